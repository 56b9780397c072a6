"""A GPU for tests of a second stream: what that stream is given is done only once another stream waits for it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from vqcompress.kernels import reference
from vqcompress.kernels.cuda.jobs import Launch
from vqcompress.kernels.cuda.operations import laid_out, prepare_with
from vqcompress.kernels.tensor_cache import place_of
from vqcompress.kernels.weight_source import WeightSource
from vqcompress.layers.packed import PackedLayer

MAIN, SIDE, OTHER = 7, 8, 9
"""Handles of streams."""


class LateGpu:
    """A driver and its second stream, on this CPU. ``events`` tells what was asked for, and in which order; launches of
    ``wrong_from`` weights or more decode wrong ones."""

    verdicts = None

    def __init__(self, network: nn.Module) -> None:
        self.network, self.current, self.handle = network, MAIN, SIDE
        self.events: list[tuple[Any, ...]] = []
        self.waiting: list[Callable[[], object]] = []
        self.recording = False
        self._known: dict[Any, tuple[Tensor, Any]] = {}  # with the tensors, whose addresses stand for no others then
        self.wrong_from = 1 << 30

    # what decoding needs of a device

    def unsupported_reason(self, device: torch.device) -> str:
        return ""

    def prepare(self, launch: Launch, jobs: Tensor, blocks: int = 4) -> Callable[[int, int], None]:
        def run(stream: int, out: int) -> None:
            self.events.append(("launch", stream, _weights(launch)))
            self._do(stream, lambda: [self._decode(job, launch, out) for job in launch.jobs])

        return run

    def stream(self, device: torch.device) -> int:
        return self.current

    def finish(self, device: torch.device) -> None:
        return None

    def use(self, tensors: Any, device: torch.device) -> None:
        return None

    # the second stream

    def fork(self) -> None:
        self.events.append(("fork", self.current))

    def mark(self) -> int:
        self.events.append(("mark",))
        return len(self.waiting)

    def join(self, mark: int) -> None:
        self.events.append(("join", self.current))
        done, self.waiting = self.waiting[:mark], self.waiting[mark:]
        for work in done:
            work()

    @contextmanager
    def entered(self) -> Iterator[None]:
        with _Later(self.waiting):
            yield

    def capturing(self) -> bool:
        return self.recording

    def _do(self, stream: int, work: Callable[[], object]) -> None:
        if stream == SIDE:
            self.waiting.append(work)
        else:
            work()

    def _decode(self, job: Any, launch: Launch, out: int) -> None:
        """The columns of one job, found by where its codes lie."""
        layer = next(layer for layer in self.layers().values() if _has(layer, int(job["codes"])))
        dtype, columns = launch.kernel.dtype, int(job["columns"])
        order = torch.frombuffer((ctypes.c_int * columns).from_address(int(job["order"])), dtype=torch.int32).long()
        whole = self._decoded(layer)
        address, size = out + int(job["out"]) * dtype.itemsize, whole.nbytes
        target = torch.frombuffer((ctypes.c_char * size).from_address(address), dtype=dtype).view(whole.shape)
        target[order] = whole[order] + (_weights(launch) >= self.wrong_from)

    def _decoded(self, layer: PackedLayer) -> Tensor:
        """``Wᵀ``, float32; decoded anew only where a tensor changed, because that is slow."""
        tensors = layer.tensors()
        key = tuple(map(place_of, tensors.values()))
        if key not in self._known:
            self._known[key] = reference.decode_transposed(layer.spec, layer.dense_shape, tensors), tensors
        return self._known[key][0]

    # layers that this GPU serves

    def layers(self) -> Mapping[str, PackedLayer]:
        return {name: layer for name, layer in self.network.named_modules() if isinstance(layer, PackedLayer)}

    def serve(self, x: Tensor) -> None:
        """Let this GPU decode for every layer from the next call on; ``x`` is as wide as the widest input."""
        for layer in self.layers().values():
            source = layer.__dict__["weight_source"] or WeightSource()
            layer.take_weight_from(None)
            layer.__dict__["weight_source"] = source
            weight = layer.spec, layer.dense_shape, layer.tensors()
            source.get(
                x.flatten()[:1],
                list(weight[2].values()),
                lambda layer=layer: laid_out(self._decoded(layer), layer.dense_shape),
                lambda w=weight: prepare_with(self, *w, torch.float32),
            )

    def happened(self) -> list[tuple[Any, ...]]:
        """Events since the last question."""
        found, self.events = self.events, []
        return found


class _Later(TorchDispatchMode):
    """Operators that write to their first argument are done later."""

    def __init__(self, waiting: list[Callable[[], object]]) -> None:
        super().__init__()
        self._waiting = waiting

    def __torch_dispatch__(self, function: Any, kinds: Any, arguments: Any = (), keywords: Any = None) -> Any:
        if not function.overloadpacket.__name__.endswith("_"):
            return function(*arguments, **(keywords or {}))
        self._waiting.append(lambda: function(*arguments, **(keywords or {})))
        return arguments[0]


def _has(layer: PackedLayer, address: int) -> bool:
    codes = layer.weight
    return codes.data_ptr() <= address < codes.data_ptr() + max(1, codes.nbytes)


def _weights(launch: Launch) -> int:
    """How many weights a launch has jobs of."""
    return len(set(launch.jobs["out"].tolist()))
