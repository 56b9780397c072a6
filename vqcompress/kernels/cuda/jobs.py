"""What the kernels of ``decode.cu`` are launched with: which kernel, and a record of every weight's part in it.

A job is the columns of one rate of one weight. A launch does the jobs of any number of weights whose code differs in no
more than the rate. Tensors that kernels need in another form than they
are stored in (column order, float32 scales, value tables) are made here, once for a weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from vqcompress.formats import AdditiveSpec, FormatSpec, ScalarSpec, TrellisSpec
from vqcompress.formats.outliers import POSITIONS, VALUES
from vqcompress.formats.rates import column_bytes, stored_counts
from vqcompress.formats.trellis_table import value_table
from vqcompress.kernels.transforms import column_factors, has_outliers, is_rotated, is_scaled, outlier_places
from vqcompress.matrix_view import Shape, matrix_shape

GROUP = 32  # outputs that a thread decodes
THREADS = 256
LARGEST_ROTATION = 256  # eight lanes of a warp
SHARED_BYTES = 48 << 10  # less than that any GPU gives without being asked
ALIGNED, ROTATED, FACTORS, OUTLIERS, PACKED = 1, 2, 4, 8, 16  # as in decode.cu
OUT_TYPES = {torch.float32: "float", torch.float16: "Half", torch.bfloat16: "Bfloat"}

TOGETHER = (tuple(range(0, 13, 2)), tuple(range(1, 13, 2)))
"""Half bits a weight that one trellis kernel decodes: with all rates in one, a layer takes one launch, and few kernels
have to be compiled. Rates above six bits are rare, and have a kernel each."""

POINTERS = ("codes", "order", "scale", "factors", "table", "zeros", "positions", "values")
JOB = np.dtype(
    [(name, np.uint64) for name in POINTERS]
    + [("out", np.int64), ("columns", np.uint32), ("outputs", np.uint32), ("outliers", np.int32)]
    + [("groups", np.uint32), ("magic", np.uint32)]
    + [(name, np.int32) for name in ("state_bits", "rotation", "dimension", "rate")]
    + [("column_bytes", np.uint32), ("norm", np.float32), ("first_tile", np.uint32), ("unused", np.uint32, 2)],
    align=True,
)
"""`Job` of decode.cu."""


class KernelName(NamedTuple):
    """A kernel to compile: ``format``, flags, type of output, and what it is made for: ``sizes`` are half bits a weight
    (trellis, one or several), the dimension (additive) or bits (scalar), 0 for any; ``table`` is the place of a
    trellis' table."""

    format: str
    sizes: tuple[int, ...]
    table: str
    flags: int
    dtype: torch.dtype

    @property
    def sources(self) -> tuple[str, ...]:
        """The files before its line."""
        return ("decode.cu",)

    @property
    def symbol(self) -> str:
        """Its name in the machine code."""
        parts = (self.format, *self.sizes, self.table, self.flags, OUT_TYPES[self.dtype])
        return "_".join(map(str, parts)).lower()

    @property
    def line(self) -> str:
        """The line after ``decode.cu`` that makes it."""
        sizes = ", ".join(map(str, self.sizes))
        own = f"{self.table}, {self.flags}, " if self.table else f"{sizes}, {self.flags}, "
        after = f", {sizes}" if self.table else ""
        return f"{self.format.upper()}({self.symbol}, {own}{OUT_TYPES[self.dtype]}{after})"


@dataclass(frozen=True)
class Launch:
    """A kernel, its ``jobs [n]`` (`JOB`), their tiles, bytes of shared memory, and the tensors at their addresses."""

    kernel: KernelName
    jobs: np.ndarray
    tiles: int
    shared: int
    held: tuple[Tensor, ...]


Field: TypeAlias = Tensor | tuple[Tensor, int] | int | float


class _Part(NamedTuple):
    """Columns of one rate of one weight. ``fields`` are a job's; tensors stand for their addresses."""

    kernel: KernelName
    shared: int
    fields: dict[str, Field]


Address = Callable[[Tensor], int]


def size_problem(spec: FormatSpec, shape: Shape) -> str:
    """Why the kernels cannot serve a weight of these sizes, or an empty string: their offsets have 32 bits."""
    outputs, columns = matrix_shape(shape)
    groups = -(-outputs // GROUP)
    if columns * groups * groups >= 1 << 31 or columns * outputs >= 1 << 31:
        return "too many weights for 32-bit offsets"
    if isinstance(spec, TrellisSpec) and spec.rotation > LARGEST_ROTATION:
        return f"a rotation of {spec.rotation} outputs, more than {LARGEST_ROTATION}"
    return ""


def launches(
    weights: Sequence[tuple[FormatSpec, Shape, Mapping[str, Tensor]]],
    dtype: torch.dtype,
    outs: Sequence[int],
    address: Address = Tensor.data_ptr,
    threads: int = THREADS,
) -> list[Launch]:
    """What decodes ``weights`` to ``Wᵀ [columns, outputs]`` of ``dtype``, each ``outs`` elements from where a launch
    writes to. One launch for each kernel that they need between them.

    Reads the column rates from the device, so it waits for it: made once for a weight.
    """
    parts: dict[KernelName, list[_Part]] = {}
    for (spec, shape, tensors), out in zip(weights, outs, strict=True):
        for part in _parts(spec, shape, tensors, dtype):
            part.fields["out"] = out
            parts.setdefault(part.kernel, []).append(part)
    return [_launch(kernel, own, address, threads) for kernel, own in parts.items()]


def trellis_jobs(
    spec: TrellisSpec,
    shape: Shape,
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype,
    address: Address = Tensor.data_ptr,
) -> tuple[np.ndarray, tuple[Tensor, ...]]:
    """Records (`JOB`) of the columns of each rate, of codes without transforms, with value tables in ``dtype``; and the
    tensors at their addresses."""
    outputs, columns = matrix_shape(shape)
    common: dict[str, Field] = {"outputs": outputs, "groups": -(-outputs // GROUP)}
    parts = list(_trellis_parts(spec, outputs, columns, tensors, dtype, ALIGNED, common))
    for part in parts:
        if "table" in part.fields:
            part.fields["table"] = part.fields["table"].to(dtype)  # type: ignore[union-attr]
    if not parts:
        return np.zeros(0, JOB), ()
    launch = _launch(parts[0].kernel, parts, address, THREADS)
    return launch.jobs, launch.held


def _launch(kernel: KernelName, parts: list[_Part], address: Address, threads: int) -> Launch:
    jobs, tiles, held = np.zeros(len(parts), JOB), 0, []
    for job, part in zip(jobs, parts, strict=True):
        for name, value in part.fields.items():
            if isinstance(value, Tensor | tuple):
                tensor, offset = value if isinstance(value, tuple) else (value, 0)
                held.append(tensor)
                job[name] = address(tensor) + offset
            else:
                job[name] = value
        job["first_tile"] = tiles
        tiles += -(-int(job["columns"]) * int(job["groups"]) // threads)
    return Launch(kernel, jobs, tiles, max(part.shared for part in parts), tuple(held))


def _parts(spec: FormatSpec, shape: Shape, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Iterator[_Part]:
    outputs, columns = matrix_shape(shape)
    if not outputs * columns:
        return
    groups = -(-outputs // GROUP)
    common: dict[str, Field] = {
        "outputs": outputs,
        "groups": groups,
        "magic": (1 << 31) // groups + 1,
    }
    flags = 0 if outputs % GROUP else ALIGNED
    if is_scaled(spec):
        common["factors"], flags = column_factors(shape, tensors), flags | FACTORS
    if has_outliers(spec):
        outlier_places(shape, tensors)  # which checks that they are in the weight
        values = tensors[VALUES].detach().float()
        common |= {"positions": tensors[POSITIONS], "values": values, "outliers": len(values)}
        flags |= OUTLIERS
    match spec:
        case TrellisSpec():
            yield from _trellis_parts(spec, outputs, columns, tensors, dtype, flags, common)
        case AdditiveSpec():
            yield from _additive_parts(spec, outputs, columns, tensors, dtype, flags, common)
        case ScalarSpec():
            yield _scalar_part(spec, columns, outputs, tensors, dtype, flags, common)


def _trellis_parts(spec, outputs, columns, tensors, dtype, flags, common) -> Iterator[_Part]:
    codes = tensors["weight"]
    if is_rotated(spec):
        flags |= ROTATED
        common |= {"rotation": spec.rotation, "norm": spec.rotation**-0.5}
    common |= {"scale": padded_scale(tensors["scale"], outputs), "state_bits": spec.state_bits}
    if codes.data_ptr() % 4:
        flags &= ~ALIGNED
    place = "SHARED_FLOAT"
    for rate, order, start in reversed(list(_rate_blocks(spec, outputs, columns, tensors))):
        halves = spec.halves(rate) if spec.column_bits(outputs, rate) else 0
        fields = common | {
            "codes": (codes, start),
            "order": order,
            "columns": len(order),
            "column_bytes": column_bytes(spec, outputs, rate),
            "rate": halves,
        }
        shared = 0
        if halves:  # the lowest rate, which may be none, is last, and goes with the others
            fields["table"] = table = _table(spec, halves, tensors)
            place, shared = _place(table)
        sizes = next((sizes for sizes in TOGETHER if halves in sizes), (halves,))
        yield _Part(KernelName("trellis", sizes, place, flags, dtype), shared, fields)


def _additive_parts(spec, outputs, columns, tensors, dtype, flags, common) -> Iterator[_Part]:
    books = tensors["codebooks"].detach().float().contiguous()
    common |= {"scale": padded_scale(tensors["scale"], outputs), "state_bits": spec.code_bits}
    common |= {"dimension": spec.dimension, "table": books}
    for rate, order, start in _rate_blocks(spec, outputs, columns, tensors):
        fields = common | {"codes": (tensors["weight"], start), "order": order, "columns": len(order), "rate": rate}
        fields["column_bytes"] = column_bytes(spec, outputs, rate)
        size = spec.dimension if spec.dimension in (2, 4, 8, 16) else 0
        yield _Part(KernelName("additive", (size,), "", flags, dtype), 0, fields)


def _scalar_part(spec, columns, outputs, tensors, dtype, flags, common) -> _Part:
    codes = tensors["weight"]
    fields = common | {
        "codes": codes,
        "order": torch.arange(columns, dtype=torch.int32, device=codes.device),
        "table": tensors["group_scale"].detach(),
        "zeros": tensors["group_zero"],
        "columns": columns,
        "state_bits": spec.bits,
        "dimension": spec.group_size,
        "rate": spec.scale_bits,
        "column_bytes": codes.numel() // columns,
    }
    if spec.packed_scales:
        fields["scale"], flags = padded_scale(tensors["scale"], outputs), flags | PACKED
    if codes.data_ptr() % 4 or tensors["group_zero"].data_ptr() % 4:
        flags &= ~ALIGNED
    return _Part(KernelName("scalar", (spec.bits if flags & ALIGNED else 0,), "", flags, dtype), 0, fields)


def _rate_blocks(
    spec: TrellisSpec | AdditiveSpec, outputs: int, columns: int, tensors: Mapping[str, Tensor]
) -> Iterator[tuple[int, Tensor, int]]:
    """``(rate, columns of that rate [n] int32, first byte)`` of each rate that occurs."""
    device = tensors["weight"].device
    if "rates" not in tensors:
        yield spec.min_rate, torch.arange(columns, dtype=torch.int32, device=device), 0
        return
    order = torch.sort(spec.rates(columns, tensors), stable=True).indices.int()
    first = start = 0
    for number, count in enumerate(stored_counts(tensors["rates"], columns, spec.rate_bits)):
        if count:
            yield spec.min_rate + number, order[first : first + count].clone(), start
        first, start = first + count, start + count * column_bytes(spec, outputs, spec.min_rate + number)


def padded_scale(scale: Tensor, outputs: int) -> Tensor:
    """A scale for each output, float32, zeros up to a multiple of `GROUP`."""
    each = scale.detach().float().expand(outputs)
    return torch.nn.functional.pad(each, (0, -outputs % GROUP)).contiguous()


def _table(spec: TrellisSpec, halves: int, tensors: Mapping[str, Tensor]) -> Tensor:
    """The value table of a rate, or its two: float32 where that is short or learned, else float16 ``[values]``."""
    numbers = range(halves // 2, (halves + 3) // 2)
    if spec.state_bits <= 12 or set(numbers) & set(spec.codebook_rates):
        return torch.cat([spec.table(number, tensors).detach() for number in numbers])
    device = tensors["weight"].device
    return torch.cat([value_table(spec.state_bits, number, spec.tail) for number in numbers]).to(device)


def _place(table: Tensor) -> tuple[str, int]:
    """Where a kernel reads this table, and the bytes of shared memory that it takes."""
    kind = "FLOAT" if table.dtype == torch.float32 else "HALF"
    return (f"SHARED_{kind}", table.nbytes) if table.nbytes < SHARED_BYTES else (f"GLOBAL_{kind}", 0)
