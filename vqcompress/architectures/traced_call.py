"""Follow one call of a denoiser: what each of its layers reads, which blocks lie before or around it, when it runs.

Every tensor carries marks, one for each kind of argument that it was computed from, and one if a block made it. A
dispatch mode passes them from the inputs of each operation to its outputs. They are kept by storage, so writing
through a view marks what it is a view of.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from enum import Flag, auto
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from vqcompress.matrix_view import is_quantizable
from vqcompress.tensor_tree import tensors_in

LEAST_LAYERS = 2  # of a block: less is a projection or an embedder


class Marks(Flag):
    """What a tensor was computed from.

    ``LATENTS``: what is being denoised, and images beside it. ``TOKENS``: text, or other tokens that are the same at
    every step. ``VECTORS``: time, guidance, sizes, pooled text, positions. ``BLOCK``: the output of a block.
    """

    NOTHING = 0
    LATENTS = auto()
    TOKENS = auto()
    VECTORS = auto()
    BLOCK = auto()


@dataclass(frozen=True)
class LayerRead:
    """The first call of a layer: the marks of its input, how many rows that had, and its place in the order."""

    marks: Marks
    rows: int
    place: int


@dataclass
class TracedCall:
    """One call. ``layers`` are those that ran; ``blocks`` the members of lists that read latents or tokens.

    ``batch`` is the number of entries in the call, ``last_block`` the place where the last block that latents reach
    ended.
    """

    batch: int
    layers: dict[str, LayerRead] = field(default_factory=dict)
    blocks: set[str] = field(default_factory=set)
    last_block: int = -1

    def around(self, layer: str) -> str | None:
        """The outermost block that ``layer`` is in."""
        return min((block for block in self.blocks if layer.startswith(block + ".")), key=len, default=None)

    def place(self, layer: str) -> int:
        """Where in the order the call ran ``layer``; after all others if it did not."""
        return self.layers[layer].place if layer in self.layers else len(self.layers)


def trace(
    denoiser: nn.Module, kinds: Sequence[tuple[Tensor, Marks]], batch: int, call: Callable[[], Any]
) -> TracedCall:
    """What ``call``, which calls ``denoiser``, does.

    ``kinds`` are the arguments' tensors with their marks, ``batch`` is the number of entries in them.
    """
    found, tracer = TracedCall(batch), _Tracer()
    for tensor, marks in kinds:
        tracer.add(tensor, marks)
    with ExitStack() as held:
        for name, module in denoiser.named_modules():
            if not any(True for _ in module.children()):
                held.callback(module.register_forward_pre_hook(_reading(found, tracer, name), with_kwargs=True).remove)
        for name in block_candidates(denoiser):
            module = denoiser.get_submodule(name)
            held.callback(module.register_forward_pre_hook(_entering(found, tracer, name), with_kwargs=True).remove)
            held.callback(module.register_forward_hook(_leaving(found, tracer, name)).remove)
        held.enter_context(tracer)
        call()
    return found


def block_candidates(denoiser: nn.Module) -> list[str]:
    """Members of lists that have several matrices, the outer before the inner."""
    lists = [(name, module) for name, module in denoiser.named_modules() if isinstance(module, nn.ModuleList)]
    members = [(f"{name}.{index}", member) for name, module in lists for index, member in enumerate(module)]
    return [name for name, member in members if sum(is_quantizable(part) for part in member.modules()) >= LEAST_LAYERS]


class _Tracer(TorchDispatchMode):
    """Passes marks on."""

    def __init__(self) -> None:
        super().__init__()
        self.marks = WeakIdKeyDictionary()

    def of(self, value: Any) -> Marks:
        """The marks of all tensors in ``value`` together."""
        found = Marks.NOTHING
        for tensor in tensors_in(value):
            found |= self.marks.get(tensor.untyped_storage(), Marks.NOTHING)
        return found

    def add(self, value: Any, marks: Marks) -> None:
        """Give ``marks`` to all tensors in ``value``."""
        for tensor in tensors_in(value):
            storage = tensor.untyped_storage()
            self.marks[storage] = self.marks.get(storage, Marks.NOTHING) | marks

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if marks := self.of((args, kwargs)):
            self.add(output, marks)
            if func._schema.is_mutable and not func._schema.name.startswith("aten::_"):
                self.add(args[:1], marks)
        return output


def _reading(found: TracedCall, tracer: _Tracer, name: str) -> Callable[..., None]:
    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if name in found.layers:
            return
        first = next(tensors_in((args, kwargs)), None)
        if first is not None:
            found.layers[name] = LayerRead(tracer.of(first), _rows(module, first), len(found.layers))

    return note


def _rows(layer: nn.Module, x: Tensor) -> int:
    if not x.ndim:
        return 1
    columns = x.shape[1] if isinstance(layer, nn.Conv2d | nn.Conv3d) else x.shape[-1]
    return x.numel() // max(columns, 1)


def _entering(found: TracedCall, tracer: _Tracer, name: str) -> Callable[..., None]:
    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if tracer.of((args, kwargs)) & (Marks.LATENTS | Marks.TOKENS):
            found.blocks.add(name)

    return note


def _leaving(found: TracedCall, tracer: _Tracer, name: str) -> Callable[..., None]:
    def note(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        marks = tracer.of(output)
        if name in found.blocks and marks & (Marks.LATENTS | Marks.TOKENS):
            tracer.add(output, Marks.BLOCK)
        if name in found.blocks and marks & Marks.LATENTS:
            found.last_block = len(found.layers)

    return note
