"""The machine that `gpu_check.py` checks: a GPU, or in a rehearsal this CPU, with launches that are only counted."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from random_weights import Coded
from vqcompress.kernels import reference
from vqcompress.kernels.cuda import operations as cuda
from vqcompress.kernels.cuda.jobs import Launch
from vqcompress.kernels.kernel import triton_interpreter
from vqcompress.kernels.triton import operations as triton
from vqcompress.matrix_view import from_transposed
from vqcompress.quantized_weight import QuantizedWeight

Value = TypeVar("Value")
Work = Callable[[], object]


class CountingDriver:
    """A driver whose launches do nothing but count."""

    launched = 0
    verdicts = None

    def unsupported_reason(self, device: torch.device) -> str:
        return ""

    def prepare(self, launch: Launch, jobs: Tensor, blocks: int = 4) -> Callable[[int, int], None]:
        def run(stream: int, out: int) -> None:
            CountingDriver.launched += 1

        return run

    def stream(self, device: torch.device) -> int:
        return 0

    def finish(self, device: torch.device) -> None:
        return None

    def use(self, tensors: Sequence[Tensor], device: torch.device) -> None:
        return None


@dataclass(frozen=True)
class Lab:
    """Where sections run. In a rehearsal sizes are toys, a launch of CUDA C++ is counted and the reference decodes, and
    Triton's interpreter replaces its compiler."""

    rehearsal: bool

    @property
    def device(self) -> str:
        """Torch's name of it."""
        return "cpu" if self.rehearsal else "cuda"

    def sized(self, real: Value, toy: Value) -> Value:
        """``toy`` in a rehearsal."""
        return toy if self.rehearsal else real

    def here(self, weight: Coded) -> Coded:
        """``weight`` on the device."""
        spec, shape, tensors = weight
        return spec, shape, {name: tensor.to(self.device) for name, tensor in tensors.items()}

    def decoded(self, weight: Coded, dtype: torch.dtype) -> Tensor:
        """``Wᵀ`` by CUDA C++."""
        if self.rehearsal:
            cuda.decode_with(CountingDriver(), *weight, dtype)
            return reference.decode_transposed(*weight, dtype)
        return cuda.decode_transposed(*weight, dtype)

    def dense(self, weight: Coded, dtype: torch.dtype) -> Tensor:
        """The weight as a product reads it, by CUDA C++."""
        return cuda.laid_out(self.decoded(weight, dtype), weight[1])

    def triton_decoded(self, weight: Coded, dtype: torch.dtype) -> Tensor:
        """``Wᵀ`` by Triton; the weight has no transforms."""
        with self.triton():
            return triton.decode_transposed(*weight, dtype)

    @contextmanager
    def triton(self) -> Iterator[None]:
        """Calls of Triton's kernels take what is on `device`."""
        if not self.rehearsal:
            yield
            return
        with triton_interpreter():
            yield

    def synchronize(self) -> None:
        """Wait for the device."""
        if not self.rehearsal:
            torch.cuda.synchronize()

    def elsewhere(self, work: Callable[[], Value]) -> Value:
        """``work()`` on another stream."""
        if self.rehearsal:
            return work()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            found = work()
        side.synchronize()
        return found

    def recorded(self, work: Callable[[], Value]) -> tuple[Value, Work]:
        """What ``work`` returned while a CUDA graph recorded it, and the graph's replay."""
        work()
        if self.rehearsal:
            kept = [work()]

            def again() -> None:
                kept[0].copy_(work())  # type: ignore[attr-defined]

            return kept[0], again
        self.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = work()
        return found, graph.replay

    def seconds(self, work: Sequence[Work], rounds: int = 10) -> float:
        """Seconds of all of ``work``, recorded as one graph: the best of ``rounds``."""
        if self.rehearsal:
            start = time.perf_counter()
            for call in work:
                call()
            return time.perf_counter() - start

        def whole() -> None:
            for call in work:
                call()

        _, replay = self.recorded(whole)
        best = math.inf
        for _ in range(rounds):
            start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            replay()
            stop.record()
            torch.cuda.synchronize()
            best = min(best, start.elapsed_time(stop) / 1e3)
        return best

    def eager_seconds(self, work: Work, calls: int = 20) -> float:
        """Seconds of ``work`` launched from Python and waited for: the best of ``calls``."""
        best = math.inf
        for _ in range(self.sized(calls, 2)):
            self.synchronize()
            start = time.perf_counter()
            work()
            self.synchronize()
            best = min(best, time.perf_counter() - start)
        return best

    def host_seconds(self, layer: nn.Module, x: Tensor, calls: int = 300) -> float:
        """Host seconds of one call of ``layer`` whose launches are not waited for: the least of ``calls``.

        Each gets a view, a tensor of its own: for the same one again a packed layer returns what it kept.
        """
        layer(x.view_as(x))
        best = math.inf
        for _ in range(self.sized(calls, 3)):
            own = x.view_as(x)
            self.synchronize()
            start = time.perf_counter()
            layer(own)
            best = min(best, time.perf_counter() - start)
        self.synchronize()
        return best


def coded(weight: QuantizedWeight) -> Coded:
    """A weight's spec, shape and all of its tensors."""
    return weight.spec, weight.shape, {**weight.tensors, **weight.shared}


def plain(weight: Coded) -> bool:
    """Whether the codes are all of the weight."""
    spec = weight[0]
    return all(not getattr(spec, name, 0) for name in ("rotation", "column_scales", "outliers"))


def reference_dense(weight: Coded, dtype: torch.dtype) -> Tensor:
    """The weight by the format's own decoder."""
    spec, shape, tensors = weight
    return from_transposed(reference.decode_transposed(spec, shape, tensors, dtype), shape)
