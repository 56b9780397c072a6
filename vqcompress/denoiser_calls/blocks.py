"""A denoiser's blocks: the modules that the block stage tunes, and sequential order encodes, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from torch import nn

from vqcompress.moments.shrinkage import expert_key


def find_blocks(component: nn.Module, layers: Sequence[str], *, finest: bool = False) -> dict[str, list[str]]:
    """Block name -> the layers of ``layers`` in it; a layer outside of every block is a block of its own.

    A block is the outermost member of a `nn.ModuleList` with at least two of the layers that is not itself made of
    several lists of blocks: a ResNet, a stack of transformer blocks with its projections, but not a whole level of a
    UNet. With ``finest`` it is the innermost such member: each transformer block by itself, and by themselves the
    projections around the stack. Experts, which run side by side, stay together.
    """
    members = [name for name, module in component.named_modules() if _is_member(component, name) and module is not None]
    held = {name: [layer for layer in layers if layer.startswith(name + ".")] for name in members}
    large = {name for name, inside in held.items() if len(inside) >= 2}
    if finest:
        large = {name for name in large if expert_key(name + ".") is None and not _holds_another(name, large)}
    blocks: dict[str, list[str]] = {}
    for layer in layers:
        around = [name for name in large if layer.startswith(name + ".") and len(_inner_lists(name, large)) <= 1]
        blocks.setdefault(min(around, key=len, default=layer), []).append(layer)
    return blocks


def execution_order(component: nn.Module, names: Sequence[str], call: Callable[[], Any]) -> list[str]:
    """``names`` in the order in which ``call`` runs these modules; those that it does not run are left out."""
    order: dict[str, None] = {}
    with ExitStack() as hooks:
        for name in names:
            module = component.get_submodule(name)
            note = module.register_forward_pre_hook(lambda *_, name=name: order.setdefault(name))
            hooks.callback(note.remove)
        call()
    return list(order)


def _is_member(component: nn.Module, name: str) -> bool:
    parent, _, index = name.rpartition(".")
    return bool(parent) and index.isdigit() and isinstance(component.get_submodule(parent), nn.ModuleList)


def _holds_another(name: str, large: set[str]) -> bool:
    """Whether another of ``large`` that is no expert lies inside."""
    return any(other.startswith(name + ".") and expert_key(other + ".") is None for other in large)


def _inner_lists(name: str, large: set[str]) -> set[str]:
    """The lists below ``name`` that have a large member."""
    lists = {other.rpartition(".")[0] for other in large if other.startswith(name + ".")}
    return {found for found in lists if not any(found.startswith(other + ".") for other in lists if other != found)}
