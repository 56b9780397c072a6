"""Weights of several layers decoded into one buffer, by one launch for each kernel that they need between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from vqcompress.formats import FormatSpec
from vqcompress.kernels.cuda.driver import Driver
from vqcompress.kernels.cuda.jobs import launches
from vqcompress.matrix_view import Shape, matrix_shape

Weight = tuple[FormatSpec, Shape, Mapping[str, Tensor]]
BOUNDARY = 128  # elements: where a weight may begin, 256 bytes in 16 bits


class Side(Protocol):
    """A second stream of a device, beside the current one of each thread. Tests stand in for it."""

    handle: int

    def fork(self) -> None:
        """Let the second stream wait for what the current one was given."""

    def mark(self) -> Any:
        """Stands for what the second stream was given so far."""

    def join(self, mark: Any) -> None:
        """Let the current stream wait for what ``mark`` stands for."""

    def entered(self) -> AbstractContextManager[Any]:
        """Inside, torch's operators go to the second stream."""

    def capturing(self) -> bool:
        """Whether the current stream records a CUDA graph."""


@dataclass(frozen=True)
class Part:
    """One weight of a group: ``Wᵀ`` begins at element ``at``; a filter is then laid out channels last at ``laid``."""

    shape: Shape
    at: int
    laid: int

    @classmethod
    def placed(cls, shape: Shape, start: int) -> Part:
        """The part that begins at ``start``."""
        return cls(shape, start, start if len(shape) == 2 else start + _padded(shape))

    @property
    def end(self) -> int:
        """Where the next part may begin."""
        return self.laid + _padded(self.shape)

    def transposed(self, out: Tensor) -> Tensor:
        """``Wᵀ`` in the group's buffer, seen as the weight."""
        outputs, columns = matrix_shape(self.shape)
        if len(self.shape) == 2:
            return out.as_strided((outputs, columns), (1, outputs), self.at)
        _, _, height, width = self.shape
        return out.as_strided(self.shape, (1, height * width * outputs, width * outputs, outputs), self.at)

    def weight(self, out: Tensor) -> Tensor:
        """The weight in the group's buffer, as `vqcompress.kernels.cuda.operations.laid_out` lays it out."""
        if len(self.shape) == 2:
            return self.transposed(out)
        _, inputs, height, width = self.shape
        return out.as_strided(self.shape, (height * width * inputs, 1, width * inputs, inputs), self.laid)


class Group:
    """Weights that are decoded together, to ``dtype`` on ``device``, into a buffer of ``elements``.

    It holds no stored tensor, but addresses of them: `fill` may be called as long as they are where they were, and
    unchanged. ``blocks`` are those that a launch puts on each multiprocessor; what is left is for products.
    """

    def __init__(self, driver: Driver, side: Side, weights: Sequence[Weight], dtype: torch.dtype, blocks: int) -> None:
        self.dtype, self.device, self._side = dtype, weights[0][2]["weight"].device, side
        self.parts = parts_of([shape for _, shape, _ in weights])
        self.elements = self.parts[-1].end
        stored = {tensor.untyped_storage()._cdata for _, _, tensors in weights for tensor in tensors.values()}
        with torch.no_grad(), torch.inference_mode(False):
            made = launches(
                [(spec, shape, {name: t.detach() for name, t in tensors.items()}) for spec, shape, tensors in weights],
                dtype,
                [part.at for part in self.parts],
            )
            jobs = [torch.from_numpy(launch.jobs.view(np.uint8).copy()).to(self.device) for launch in made]
            self._runs = [driver.prepare(launch, own, blocks) for launch, own in zip(made, jobs, strict=True)]
            driver.finish(self.device)
        derived = [t for launch in made for t in launch.held if t.untyped_storage()._cdata not in stored]
        self._held = (*derived, *jobs)
        with side.entered():
            driver.use(self._held, self.device)

    @property
    def launches(self) -> int:
        """How many fill it."""
        return len(self._runs)

    def fill(self, out: Tensor) -> None:
        """Decode into ``out [elements]`` on the second stream."""
        address = out.data_ptr()
        for run in self._runs:
            run(self._side.handle, address)
        filters = [part for part in self.parts if len(part.shape) == 4]
        if filters:
            with self._side.entered():
                for part in filters:
                    part.weight(out).copy_(part.transposed(out))


def parts_of(shapes: Sequence[Shape]) -> list[Part]:
    """Where weights of these shapes lie in a buffer, one after the other."""
    parts: list[Part] = []
    for shape in shapes:
        parts.append(Part.placed(shape, parts[-1].end if parts else 0))
    return parts


def bytes_in_group(shape: Shape, dtype: torch.dtype) -> int:
    """What a weight takes of a group's buffer."""
    return Part.placed(shape, 0).end * dtype.itemsize


def _padded(shape: Shape) -> int:
    outputs, columns = matrix_shape(shape)
    return -(-outputs * columns // BOUNDARY) * BOUNDARY


class CudaSide:
    """A second stream of torch's."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)
        self.handle: int = self._stream.cuda_stream

    def fork(self) -> None:
        self._stream.wait_stream(torch.cuda.current_stream(self._device))

    def mark(self) -> torch.cuda.Event:
        return self._stream.record_event()

    def join(self, mark: torch.cuda.Event) -> None:
        torch.cuda.current_stream(self._device).wait_event(mark)

    def entered(self) -> AbstractContextManager[Any]:
        return torch.cuda.stream(self._stream)

    def capturing(self) -> bool:
        return torch.cuda.is_current_stream_capturing()


class Pass:
    """One call of a network: the weights of its groups, each decoded while those of the group before are multiplied.

    ``usable(index)`` says whether the stored tensors of a group are those that it was made for. At most two groups'
    buffers exist at a time. A buffer belongs to the stream of the call: the second stream writes to it after `fork`,
    when everything that this stream did with the memory is waited for, and this stream reads it after `join`.
    """

    def __init__(self, groups: Sequence[Group], side: Side, usable: Any, stream: int) -> None:
        self._groups, self._side, self._usable, self._stream = groups, side, usable, stream
        self._at, self._out = -1, None
        self._coming: tuple[Tensor, Any] | None = None
        self._launch(0)

    def weight(self, group: int, part: int, stream: int) -> Tensor | None:
        """That of a group's part, if this pass has it; products on ``stream`` may read it until the next group's."""
        if stream != self._stream:
            return None
        if group == self._at + 1 and self._coming is not None:
            self._advance(*self._coming)
        if group != self._at or self._out is None:
            return None
        return self._groups[group].parts[part].weight(self._out)

    def finish(self) -> None:
        """Nothing of this pass is left on the second stream, or of its buffers."""
        if self._coming is not None:
            self._side.join(self._coming[1])
        self._out = self._coming = None

    def _advance(self, out: Tensor, mark: Any) -> None:
        self._out = self._coming = None  # freed before the next is allocated
        self._at += 1
        self._side.join(mark)
        self._out = out
        self._launch(self._at + 1)

    def _launch(self, index: int) -> None:
        if index < len(self._groups) and self._usable(index):
            group = self._groups[index]
            out = torch.empty(group.elements, dtype=group.dtype, device=group.device)
            self._side.fork()
            group.fill(out)
            self._coming = out, self._side.mark()
