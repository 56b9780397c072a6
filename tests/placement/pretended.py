"""A device that there is not: tensors that say they are on ``cuda:0``, with values, on a machine without one.

Inside `pretended_cuda`, tensors can be made on, and moved to, ``cuda``. An operator whose tensors are on different
devices raises, as on a real machine, except for numbers (tensors without dimensions) of the CPU; so does reading such a
tensor as an array. Values are computed on the CPU, so a whole run must end in the very bytes of a run on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.autograd.graph import _engine_run_backward
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from vqcompress.kernels.table import choose_kernel
from vqcompress.kernels.triton.device import _capability

CUDA = torch.device("cuda:0")
COPIES = (torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default, torch.ops.aten.set_.source_Tensor)


class MixedDevicesError(RuntimeError):
    """Tensors of two devices in one operator."""


class OnDevice(Tensor):
    """A tensor that says it is on ``cuda:0``."""

    @property
    def device(self) -> torch.device:
        return CUDA

    @property
    def is_cuda(self) -> bool:
        return True

    @property
    def is_cpu(self) -> bool:
        return False

    def cpu(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.to("cpu")

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")

    __array__ = numpy

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def get_device(self) -> int:
        return 0

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


def on_device(tensor: Tensor) -> OnDevice:
    return tensor if isinstance(tensor, OnDevice) else Tensor._make_subclass(OnDevice, tensor)


def plain(value: Any) -> Any:
    return tree_map(lambda item: _plain(item) if isinstance(item, OnDevice) else item, value)


def _plain(tensor: Tensor) -> Tensor:
    return Tensor._make_subclass(Tensor, tensor)


def run(func: Any, args: Any, kwargs: Any) -> Any:
    """``func`` on the CPU, its results on the device that they would be on."""
    tensors: list[Tensor] = []
    tree_map(lambda item: tensors.append(item) if isinstance(item, Tensor) else None, (args, kwargs))
    there = [tensor for tensor in tensors if isinstance(tensor, OnDevice)]
    here = [tensor for tensor in tensors if not isinstance(tensor, OnDevice) and tensor.dim()]
    if there and here and func not in COPIES and not _is_index(func, args):
        shapes = [tuple(tensor.shape) for tensor in here]
        raise MixedDevicesError(f"{func}: {len(there)} tensors on cuda:0, and {shapes} on the CPU")
    with torch._C._DisableTorchDispatch():
        inner_args, inner_kwargs = plain((args, kwargs))
        result = func(*inner_args, **inner_kwargs)
        return tree_map(lambda item: _placed(item, args, inner_args), result)


def _placed(item: Any, args: Any, inner: Any) -> Any:
    if not isinstance(item, Tensor):
        return item
    for outer, own in zip(args, inner, strict=True):
        if item is own and isinstance(outer, Tensor):
            return outer  # in place
        if isinstance(own, list | tuple):
            for one, other in zip(outer, own, strict=True):
                if item is other:
                    return one
    return on_device(item)


def _is_index(func: Any, args: Any) -> bool:
    """Indexing a device's tensor with the host's indices is allowed, and copies the indices."""
    indexing = func.__name__.startswith(("index.Tensor", "index_put", "_index_put_impl", "_unsafe_index"))
    return (
        indexing
        and isinstance(args[0], OnDevice)
        and (len(args) < 3 or isinstance(args[2], OnDevice) or not args[2].dim())
    )


class _Moves(TorchFunctionMode):
    """Moves to and from the device, and what is made there: to torch's own code all of it is on the CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.backward:
            with self:  # hooks of the backward pass move tensors, too
                return _engine_run_backward(
                    args[:1],
                    (torch.ones_like(args[0]),),
                    False,
                    False,
                    (),
                    allow_unreachable=True,
                    accumulate_grad=True,
                )
        if func is Tensor.to and args:
            return _moved(func, args, kwargs)
        if func is Tensor.cuda:
            return _moved(Tensor.to, (args[0], "cuda"), kwargs)
        if func in (Tensor.cpu,) and isinstance(args[0], OnDevice):
            return _moved(Tensor.to, (args[0], "cpu"), kwargs)
        if (
            func in (torch.as_tensor, torch.asarray)
            and isinstance(args[0], Tensor)
            and kwargs.get("device") is not None
        ):
            return _moved(Tensor.to, (args[0],), kwargs)
        device = kwargs.get("device")
        if device is None or torch.device(device).type != "cuda":
            return func(*args, **kwargs)
        made = func(*args, **{**kwargs, "device": torch.device("cpu")})
        with torch._C._DisableTorchDispatch():
            return on_device(made)


class _Move(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, goes: bool) -> Tensor:
        ctx.goes = goes
        copied = tensor.detach().clone()
        with torch._C._DisableTorchDispatch():
            return on_device(copied) if goes else _plain(copied)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return _Move.apply(grad, not ctx.goes), None


def _moved(func: Any, args: Any, kwargs: Any) -> Any:
    tensor, *rest = args
    device, others = kwargs.pop("device", None), []
    for item in rest:
        if isinstance(item, Tensor):
            device, others = item.device, [item.dtype]
        elif isinstance(item, str | torch.device):
            device = item
        elif item is not None or others:
            others.append(item)
    goes = None if device is None else torch.device(device).type == "cuda"
    if device is not None and torch.device(device).type not in ("cpu", "cuda"):
        return func(*args, **{**kwargs, "device": device}) if not rest else func(*args, **kwargs)
    if goes is not None and goes != isinstance(tensor, OnDevice) and not tensor.is_meta:
        tensor = _Move.apply(tensor, goes)
        kwargs.pop("copy", None)
    others = [item for item in others if not isinstance(item, bool)]
    return func(tensor, *others, **kwargs) if others or kwargs else tensor


def _in_modes(task: Any, *args: Any, **kwargs: Any) -> Any:
    """A mode is its thread's own."""
    with _Moves():
        return task(*args, **kwargs)


@contextmanager
def pretended_cuda() -> Iterator[torch.device]:
    """Inside, there is a device ``cuda:0``."""
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # a parameter's data cannot change its type
    submit = ThreadPoolExecutor.submit

    def submit_there(pool: ThreadPoolExecutor, task: Any, *args: Any, **kwargs: Any) -> Any:
        return submit(pool, _in_modes, task, *args, **kwargs)

    no_kernels = patch("torch.cuda.get_device_capability", return_value=(0, 0))
    try:
        with no_kernels, patch.object(ThreadPoolExecutor, "submit", submit_there), _Moves():
            yield CUDA
    finally:
        for cached in (_capability, choose_kernel):
            cached.cache_clear()
        torch.__future__.set_overwrite_module_params_on_conversion(before)
