"""Products of few samples with trellis codes on NVIDIA's GPUs: ``multiply.cu``, launched as ``decode.cu`` is.

The columns are split over blocks, so that small layers fill the GPU too; partial sums, float32, meet in a second launch
that applies scale and bias. Sums are taken in a fixed order: the same input gives the same output.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from vqcompress.formats import FormatSpec, TrellisSpec
from vqcompress.kernels.cuda.driver import DRIVER, Driver
from vqcompress.kernels.cuda.jobs import GROUP, OUT_TYPES, SHARED_BYTES, TOGETHER, size_problem, trellis_jobs
from vqcompress.kernels.kernel import Case
from vqcompress.kernels.lengths import check_input, check_lengths
from vqcompress.kernels.tensor_cache import TensorCache, place_of
from vqcompress.matrix_view import Shape, matrix_shape

MOST_SAMPLES = 64
CAPABILITY = (8, 0)  # products of 16 x 8 x 16, and bfloat16
THREADS = 128
TILE = 64 * THREADS // 32  # outputs of a block
DEPTH = 64  # columns of x that a block holds at once, as in multiply.cu
ROW = DEPTH + 8
BLOCKS_PER_PROCESSOR = 2
RATES = TOGETHER[0][1:]  # half bits a weight
TILES = (1, 2, 4)  # of sixteen samples
SOURCES = ("decode.cu", "multiply.cu")
PART = np.dtype([(name, np.uint32) for name in ("job", "first", "count", "unused")])
"""`Part` of multiply.cu."""


class ProductName(NamedTuple):
    """A kernel to compile: where the table is, the dtype of inputs and weights, and tiles of sixteen samples."""

    table: str
    dtype: torch.dtype
    tiles: int

    @property
    def sources(self) -> tuple[str, ...]:
        """The files before its line."""
        return SOURCES

    @property
    def symbol(self) -> str:
        """Its name in the machine code."""
        return f"multiply_{self.table}_{OUT_TYPES[self.dtype]}_{self.tiles}".lower()

    @property
    def line(self) -> str:
        """The line after ``multiply.cu`` that makes it."""
        rates = ", ".join(map(str, RATES))
        return f"MULTIPLY({self.symbol}, {self.table}, {OUT_TYPES[self.dtype]}, {self.tiles}, {rates})"


class FinishName(NamedTuple):
    """The kernel that adds partial sums, to outputs of ``dtype``."""

    dtype: torch.dtype

    @property
    def sources(self) -> tuple[str, ...]:
        """The files before its line."""
        return SOURCES

    @property
    def symbol(self) -> str:
        """Its name in the machine code."""
        return f"finish_{OUT_TYPES[self.dtype]}".lower()

    @property
    def line(self) -> str:
        """The line after ``multiply.cu`` that makes it."""
        return f"FINISH({self.symbol}, {OUT_TYPES[self.dtype]})"


@dataclass(frozen=True)
class ProductPlan:
    """What all products with one weight in one dtype have in common: records of its jobs and of their ``parts``, as
    bytes on the device, the scale of each output, and what lies at the jobs' addresses. ``table`` is where the kernel
    reads values, ``shared`` their bytes in shared memory. ``references`` are to the stored tensors, weak, so that their
    addresses stand for no others; ``streams`` are those that the memory of ``held`` is known to be used on."""

    jobs: Tensor
    parts: Tensor
    count: int
    scale: Tensor
    table: str
    shared: int
    held: tuple[Tensor, ...]
    references: tuple[StorageWeakRef, ...]
    streams: set[int]


_PLANS: TensorCache[ProductPlan] = TensorCache()


def unsupported_reason(spec: FormatSpec, shape: Shape, case: Case) -> str:
    """Why a product straight from the codes cannot serve the case, or an empty string."""
    if case.samples is None or len(shape) != 2:
        return "only products with a matrix"
    if case.samples > MOST_SAMPLES:
        return f"{case.samples} samples, more than {MOST_SAMPLES}"
    if case.interpreted:
        return "Triton's interpreter replaces the GPU"
    if case.dtype not in (torch.float16, torch.bfloat16):
        return f"an input of {case.dtype}"
    if reason := format_problem(spec, shape) or DRIVER.unsupported_reason(case.device):
        return reason
    has = DRIVER.capability(case.device)
    return "" if has >= CAPABILITY else f"a GPU of compute capability {has[0]}.{has[1]}, products need 8.0"


def format_problem(spec: FormatSpec, shape: Shape) -> str:
    """Why the kernel does not read such codes, or an empty string."""
    if not isinstance(spec, TrellisSpec):
        return f"no product for the {spec.format} format"
    outputs, _ = matrix_shape(shape)
    if outputs % GROUP:
        return f"{outputs} outputs, which {GROUP} does not divide"
    highest = spec.halves(spec.rate_range[-1])
    if spec.half_rates or highest > RATES[-1]:
        return "half-integer rates" if spec.half_rates else f"rates of more than {RATES[-1] // 2} bits"
    return size_problem(spec, shape)


def multiply(x: Tensor, spec: FormatSpec, shape: Shape, tensors: Mapping[str, Tensor], bias: Tensor | None) -> Tensor:
    """``x [..., columns] -> [..., outputs]`` in the dtype of ``x``, of at most `MOST_SAMPLES` samples."""
    return multiply_with(DRIVER, x, spec, shape, tensors, bias)


def multiply_with(
    driver: Driver, x: Tensor, spec: FormatSpec, shape: Shape, tensors: Mapping[str, Tensor], bias: Tensor | None
) -> Tensor:
    """`multiply` on a device that ``driver`` knows."""
    check_lengths(spec, shape, tensors)
    check_input(x, shape, bias)
    outputs, columns = matrix_shape(shape)
    given, size = x.detach().reshape(-1, columns), None
    if given.dtype == torch.float32:  # float16 times column scales, of which numbers too small for float16 may come
        size = given.abs().amax(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        given = (given / size).half()
    y = x.new_empty(*x.shape[:-1], outputs)
    if y.numel():
        _launch(driver, y, given.contiguous(), spec, shape, tensors, None if size is not None else bias)
    if size is None:
        return y
    y = y * size.view(*x.shape[:-1], 1)
    return y if bias is None else y + bias.float()


def _launch(
    driver: Driver,
    y: Tensor,
    x: Tensor,
    spec: FormatSpec,
    shape: Shape,
    tensors: Mapping[str, Tensor],
    bias: Tensor | None,
) -> None:
    rows, outputs = x.shape[0], y.shape[-1]
    plan, device, stream = plan_of(driver, spec, shape, tensors, x.dtype), x.device, driver.stream(x.device)
    if stream not in plan.streams:
        driver.use((plan.jobs, plan.parts, plan.scale, *plan.held), device)
        plan.streams.add(stream)
    partial = torch.empty(plan.count, rows, outputs, dtype=torch.float32, device=device)
    tiles = -(-outputs // TILE)
    if plan.count:
        name = ProductName(plan.table, x.dtype, next(tiles for tiles in TILES if rows <= 16 * tiles))
        run = driver.function(name, device)
        shared = 2 * 16 * name.tiles * ROW + plan.shared
        arguments = (plan.jobs, plan.parts, x, partial, np.int64(x.stride(0)))
        run(stream, tiles * plan.count, THREADS, shared, *arguments, *map(np.uint32, (rows, outputs, tiles)))
    finish = driver.function(FinishName(y.dtype), device)
    bias = bias if bias is None else bias.detach().to(y.dtype).contiguous()
    sizes = map(np.uint32, (plan.count, rows, outputs))
    finish(stream, -(-rows * outputs // THREADS), THREADS, 0, y, partial, plan.scale, bias, *sizes)


def plan_of(
    driver: Driver, spec: FormatSpec, shape: Shape, tensors: Mapping[str, Tensor], dtype: torch.dtype
) -> ProductPlan:
    """The plan of this weight, made at its first product and again when one of its tensors moves or changes.

    Raises `UnsupportedError` if it would have to be made while a CUDA graph is recorded.
    """
    assert isinstance(spec, TrellisSpec)  # `unsupported_reason`
    key = (spec, dtype, *(place_of(tensor) for tensor in tensors.values()))
    return _PLANS(tensors["weight"], key, lambda: _made(driver, spec, shape, tensors, dtype))


def _made(
    driver: Driver, spec: TrellisSpec, shape: Shape, tensors: Mapping[str, Tensor], dtype: torch.dtype
) -> ProductPlan:
    codes = tensors["weight"].detach()
    if codes.data_ptr() % 4:  # the kernel reads words
        codes = codes.clone()
    with torch.no_grad(), torch.inference_mode(False):
        given = {name: tensor.detach() for name, tensor in tensors.items()} | {"weight": codes}
        jobs, held = trellis_jobs(spec, shape, given, dtype)
        parts = parts_of(jobs, shape, driver.processors(codes.device))
        on_device = [torch.from_numpy(part.view(np.uint8).copy()).to(codes.device) for part in (jobs, parts)]
        scale = given["scale"].float().expand(matrix_shape(shape)[0]).contiguous()
    stored = {tensor.untyped_storage()._cdata for tensor in tensors.values()}
    derived = tuple(tensor for tensor in held if tensor.untyped_storage()._cdata not in stored)
    table, shared = table_place(spec)
    references = tuple(StorageWeakRef(tensor.untyped_storage()) for tensor in tensors.values())
    made_on = {driver.stream(codes.device)}
    return ProductPlan(on_device[0], on_device[1], len(parts), scale, table, shared, derived, references, made_on)


def table_place(spec: TrellisSpec) -> tuple[str, int]:
    """Where a kernel reads values of 16 bits, and the bytes of shared memory that they take there."""
    size = 2 << spec.state_bits
    return ("SHARED_HALF", size) if size + 2 * 16 * TILES[-1] * ROW < SHARED_BYTES else ("GLOBAL_HALF", 0)


def parts_of(jobs: np.ndarray, shape: Shape, processors: int) -> np.ndarray:
    """Stretches of the jobs' columns (`PART`), of about the same length, that give each processor its blocks."""
    outputs, columns = matrix_shape(shape)
    wanted = -(-BLOCKS_PER_PROCESSOR * processors // -(-outputs // TILE))
    length = DEPTH * max(1, -(-columns // (DEPTH * wanted)))
    parts = [
        (number, first, min(length, int(job["columns"]) - first), 0)
        for number, job in enumerate(jobs)
        if job["rate"]  # of columns without bits all values are zero
        for first in range(0, int(job["columns"]), length)
    ]
    return np.array(parts, PART)
