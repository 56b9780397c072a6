"""A bound on the network that a config describes: it cannot be larger than the files that hold its weights."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as registration

from vqcompress.errors import CheckpointError
from vqcompress.time_limit import check_time

SPARE_TENSORS, SPARE_ELEMENTS = 256, 1 << 22
"""What a network may have beyond its files: tied, constant and absent weights."""
MODULES_PER_TENSOR = 4
USUAL_NUMBER = 1024
"""In the config of any network, however small."""


@dataclass(frozen=True)
class NetworkSize:
    """How many tensors a network's files hold, how many numbers these stand for, and the longest side of one."""

    tensors: int
    elements: int
    longest: int


@contextmanager
def at_most(size: NetworkSize, where: str) -> Iterator[None]:
    """Raise `CheckpointError` as soon as the modules built inside have more than twice ``size``, and some more.

    Parameters, buffers and modules of this thread count, on the meta device too. ``where`` names the config that
    describes them.
    """
    tensors, weights = 2 * size.tensors + SPARE_TENSORS, 2 * size.elements + SPARE_ELEMENTS
    modules = MODULES_PER_TENSOR * tensors
    thread = threading.get_ident()

    def refuse(kind: str) -> None:
        raise CheckpointError(
            f"{where} describes a network of more {kind} than twice those in its weight files; it is not as it was "
            "written, download the folder again"
        )

    # One function each: a network registers thousands, and loading waits for them.
    def take_tensor(module: nn.Module, name: str, tensor: Tensor | None) -> None:
        nonlocal tensors, weights
        if tensor is None or threading.get_ident() != thread:
            return
        replaced = module._parameters.get(name)
        if replaced is None:
            replaced = module._buffers.get(name)
        if replaced is None:
            tensors -= 1
        else:  # as a head's by the embedding that it is tied to
            weights += replaced.numel()
        weights -= tensor.numel()
        if tensors < 0 or weights < 0:
            refuse("tensors" if tensors < 0 else "weights")

    def take_module(module: nn.Module, name: str, child: nn.Module | None) -> None:
        nonlocal modules
        if threading.get_ident() != thread:
            return
        check_time()
        modules -= 1
        if modules < 0:
            refuse("modules")

    handles = [
        registration.register_module_parameter_registration_hook(take_tensor),
        registration.register_module_buffer_registration_hook(take_tensor),
        registration.register_module_module_registration_hook(take_module),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def may_exceed(config: Mapping[str, Any], size: NetworkSize) -> bool:
    """Whether a number in a network's config is greater than the longest side of any of its weights.

    Few honest ones are, such as the base of rotary embeddings. A network can then be much larger than its files, and
    is worth building without memory before it is built with.
    """
    return any(number > max(size.longest, USUAL_NUMBER) for number in _numbers(config))


def _numbers(value: object) -> Iterator[float]:
    todo: list[object] = [value]
    while todo:
        match todo.pop():
            case dict() as entries:
                todo += [entry for key, entry in entries.items() if key != "quantization_config"]
            case list() | tuple() as entries:
                todo += entries
            case bool():
                pass
            case int() | float() as number:
                yield abs(number)


def build_without_memory(build: Callable[[], nn.Module], size: NetworkSize, where: str) -> nn.Module | None:
    """What ``build()`` makes, on the meta device and within ``size``; ``None`` for a network that needs real numbers.

    Raises `CheckpointError` for a network that is larger, and for one whose config does not describe any.
    """
    try:
        with at_most(size, where), torch.device("meta"):
            return build()
    except CheckpointError:
        raise
    except (NotImplementedError, RuntimeError):  # a number was asked of a tensor without memory
        return None
    except Exception as error:  # noqa: BLE001 - any that a library's constructor raises
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(f"{where} describes no network: {first[:200]}") from None
