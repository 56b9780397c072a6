"""Weights that wait on the host and are on a device only while their part of a network runs, backward passes included.

diffusers' and accelerate's offloading is for inference: what autograd saves of a weight stays on the device until the
backward pass, or is gone by then. Importance and fine-tuning need gradients of outputs with respect to inputs, so here
a saved weight is a reference to the host's copy, which is read again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

STATE, HELD, MARK = "_vq_streamed", "_vq_held", "_hf_hook"


@dataclass(frozen=True)
class ExecutionDevice:
    """As accelerate's hooks tell diffusers where a network computes whose weights are elsewhere."""

    execution_device: torch.device


@dataclass
class Streamed:
    """What is known of a network whose weights are streamed; copies of the network share it.

    ``hosts`` maps the address of a tensor that is on the device now to the host's copy.
    """

    device: torch.device
    hosts: dict[int, Tensor] = field(default_factory=dict)
    handles: list[RemovableHandle] = field(default_factory=list)

    def __deepcopy__(self, memo: dict[int, Any]) -> Streamed:
        return self


def stream(network: nn.Module, device: torch.device, at_once: int) -> None:
    """Keep the weights of ``network`` on the host; move those of a module of at most ``at_once`` bytes while it runs.

    Larger modules are divided; 0 moves one layer at a time. Arguments of the network's calls are moved, too, and its
    outputs are on ``device``. Tensors that are on a device already stay there, as those must that learn.
    """
    state = Streamed(device)
    network.__dict__[STATE] = state
    mark_execution_device(network, device)

    def move(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        return send_to_device(args, device), send_to_device(kwargs, device)

    state.handles.append(network.register_forward_pre_hook(move, with_kwargs=True, prepend=True))
    for unit, whole in _units(network, at_once):
        _hook(state, unit, whole)


def stop_streaming(network: nn.Module) -> bool:
    """Undo `stream`, or `mark_execution_device`; whether there was anything to undo."""
    state = network.__dict__.pop(STATE, None)
    for handle in state.handles if state else ():
        handle.remove()
    marked = isinstance(network.__dict__.get(MARK), ExecutionDevice)
    if marked:
        del network.__dict__[MARK]
    return bool(state) or marked


def mark_execution_device(network: nn.Module, device: torch.device) -> None:
    """Let diffusers' pipelines and `execution_device` know that ``network`` computes on ``device``."""
    network.__dict__[MARK] = ExecutionDevice(device)


def execution_device(network: nn.Module) -> torch.device:
    """Where ``network`` computes; its weights may be elsewhere until it does."""
    for module in network.modules():
        if (found := getattr(module.__dict__.get(MARK), "execution_device", None)) is not None:
            return torch.device(found)
    return next(parameter.device for parameter in network.parameters() if not parameter.is_meta)


@contextmanager
def saved_on_host(network: nn.Module) -> Iterator[None]:
    """Inside the block, forward passes of ``network`` save references to streamed weights, not the weights."""
    state: Streamed | None = network.__dict__.get(STATE)
    if state is None:
        yield
        return

    def pack(tensor: Tensor) -> Any:
        host = state.hosts.get(tensor.untyped_storage().data_ptr())
        return tensor if host is None else (host, tensor.shape, tensor.stride(), tensor.storage_offset())

    def unpack(saved: Any) -> Tensor:
        if isinstance(saved, Tensor):
            return saved
        host, *view = saved
        return host.to(state.device).as_strided(*view)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield


def weight_bytes(network: nn.Module) -> int:
    """Of all its tensors."""
    return sum(tensor.nbytes for tensor in [*network.parameters(), *network.buffers()])


def _units(module: nn.Module, at_once: int) -> Iterator[tuple[nn.Module, bool]]:
    """Modules to move, and whether with all that is inside. A list of modules is never called itself."""
    if any(True for _ in _direct(module)):
        yield module, False
    for child in module.children():
        inner = any(True for _ in child.children())
        lists = isinstance(child, nn.ModuleList | nn.ModuleDict | nn.Sequential)
        size = weight_bytes(child)
        if inner and (lists or size > at_once):
            yield from _units(child, at_once)
        elif size:
            yield child, True


def _direct(module: nn.Module) -> Iterator[tuple[dict[str, Any], str, Tensor]]:
    for place in (module._parameters, module._buffers):
        for name, tensor in place.items():
            if tensor is not None:
                yield place, name, tensor


def _hook(state: Streamed, unit: nn.Module, whole: bool) -> None:
    def onload(module: nn.Module, args: Any) -> None:
        held, fresh = [], dict[int, Tensor]()
        for part in module.modules() if whole else [module]:
            for place, name, tensor in list(_direct(part)):
                learns = tensor.requires_grad and torch.is_grad_enabled()
                if tensor.device.type != "cpu" or learns or state.device.type == "cpu":
                    continue
                if id(tensor) not in fresh:
                    fresh[id(tensor)] = _on_device(tensor, state)
                place[name] = fresh[id(tensor)]
                held.append((place, name, tensor, fresh[id(tensor)]))
        module.__dict__.setdefault(HELD, []).append(held)

    def offload(module: nn.Module, args: Any, output: Any) -> None:
        for place, name, tensor, there in module.__dict__[HELD].pop():
            state.hosts.pop(there.untyped_storage().data_ptr(), None)
            if place.get(name) is there:  # it may have been replaced meanwhile
                place[name] = tensor

    state.handles.append(unit.register_forward_pre_hook(onload, prepend=True))
    state.handles.append(unit.register_forward_hook(offload, always_call=True))


def _on_device(tensor: Tensor, state: Streamed) -> Tensor:
    there = tensor.detach().to(state.device)
    state.hosts[there.untyped_storage().data_ptr()] = tensor.detach()
    return nn.Parameter(there, requires_grad=False) if isinstance(tensor, nn.Parameter) else there
