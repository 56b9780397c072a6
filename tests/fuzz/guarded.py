"""Tensors with a page behind them that nobody may read: one byte too far ends the process."""

from __future__ import annotations

import ctypes
import mmap

import torch
from torch import Tensor, nn

from vqcompress.layers import SharedCodebooks
from vqcompress.layers.packed import PackedLayer

PROT_NONE = 0
_LIBRARY = ctypes.CDLL(None, use_errno=True)
_KEPT: list[mmap.mmap] = []


def guarded(tensor: Tensor) -> Tensor:
    """A copy of ``tensor`` whose last byte is the last of a page, before one that cannot be read."""
    size = tensor.numel() * tensor.element_size()
    if not size:
        return tensor
    room = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, room + mmap.PAGESIZE)
    _KEPT.append(memory)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    if _LIBRARY.mprotect(ctypes.c_void_p(address + room), mmap.PAGESIZE, PROT_NONE):
        raise OSError(ctypes.get_errno(), "mprotect")
    copy = torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel(), offset=room - size)
    return copy.copy_(tensor.detach().reshape(-1)).view(tensor.shape)


def guard(component: nn.Module) -> None:
    """Put every tensor of packed layers and shared codebooks into guarded memory, in place."""
    for module in component.modules():
        if isinstance(module, PackedLayer | SharedCodebooks):
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[name] = nn.Parameter(guarded(parameter.data), requires_grad=False)


def forget() -> None:
    """Let the guarded memory go with the tensors that are in it."""
    _KEPT.clear()
