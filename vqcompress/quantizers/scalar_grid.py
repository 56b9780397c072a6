"""Affine grids for scalar codes: one scale and one integer zero per group of inputs and output, by clip search.

Clipping the outermost weights buys a finer step for the rest; the best clip is found by trying a range of
shrunken min-max grids and keeping, for every group, the one with the least squared error (as GPTQ's reference code
does with ``mse=True``), then fitting the scale in closed form to the codes that came out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vqcompress.bitpack import pack
from vqcompress.errors import RecipeError, UnfitWeightError
from vqcompress.formats import ScalarSpec
from vqcompress.formats.scalar import FLOAT_SCALES

SCALAR_BITS = (2, 3, 4, 5, 6, 7, 8)
SHRINKS = torch.linspace(1.0, 0.4, 51).tolist()  # below 0.4 nothing ever won, not even at 2 bits on heavy tails
LARGEST_SCALE = 65504.0  # of float16, the type that scales are stored in
SEARCHED_AT_ONCE = 1 << 20  # weights
GROUPS_AT_ONCE = 1 << 15  # of each of which all candidates are held
SMALLEST_SCALE = 2.0**-14  # below it float16 loses digits


@dataclass(frozen=True)
class ScalarGrid:
    """Scales and ``zero [groups, out]`` (int32, ``0 .. 2**bits - 1``) of a weight.

    ``scale [groups, out]`` is what codes are multiplied with: float16, or, of packed scales, the products in float32 of
    ``factors [groups, out]`` (int32) and ``output_scale [out]`` (float16).
    """

    spec: ScalarSpec
    scale: Tensor
    zero: Tensor
    factors: Tensor | None = None
    output_scale: Tensor | None = None

    def encode(self, column: int, target: Tensor) -> Tensor:
        """Codes (int32) nearest to ``target``, ``[out]`` or ``[n, out]``, in the grids of ``column``."""
        group = column // self.spec.group_size
        return _nearest(target, self.scale[group].float(), self.zero[group].float(), self.spec.bits).int()

    def decode(self, column: int, codes: Tensor) -> Tensor:
        """Values ``[out]`` (float32) of ``codes [out]``, exactly as `ScalarSpec.decode_transposed` computes them."""
        group = column // self.spec.group_size
        return (codes - self.zero[group]).float() * self.scale[group].float()

    def rounded(self, columns: Tensor) -> Tensor:
        """The values nearest to ``columns [columns, out]`` in their grids."""
        return torch.stack([self.decode(j, self.encode(j, column)) for j, column in enumerate(columns)])

    def tensors(self, codes: Tensor) -> dict[str, Tensor]:
        """The stored tensors for ``codes [columns, out]``."""
        stored = {
            "weight": pack(codes, self.spec.bits).reshape(1, -1),
            "group_scale": self.scale,
            "group_zero": pack(self.zero, self.spec.bits),
        }
        if self.factors is not None and self.output_scale is not None:
            stored |= {"group_scale": pack(self.factors, self.spec.scale_bits), "scale": self.output_scale}
        return stored


def scalar_spec(bits: float, group_size: int, scale_bits: int = FLOAT_SCALES) -> ScalarSpec:
    """The spec for ``bits`` a code. Raises `RecipeError` unless ``bits`` is an integer from 2 to 8."""
    if bits not in SCALAR_BITS:
        raise RecipeError(
            f"a scalar grid has {SCALAR_BITS[0]} to {SCALAR_BITS[-1]} whole bits a code, got bits={bits:g}; "
            "methods 'trellis' and 'additive' take fractions"
        )
    return ScalarSpec(int(bits), group_size, scale_bits)


def stored_bits(spec: ScalarSpec, outputs: int, columns: int) -> float:
    """Bits a weight of all that a layer stores."""
    shapes = spec.tensor_shapes(outputs, columns).values()
    return 8 * sum(math.prod(shape) * dtype.itemsize for shape, dtype in shapes) / (outputs * columns)


def check_group_size(group_size: int) -> None:
    """Raises `RecipeError` unless ``group_size`` is a positive integer."""
    if not isinstance(group_size, int) or group_size < 1:
        raise RecipeError(f"group_size is a number of inputs, 1 or more, got {group_size!r}; 64 and 128 are usual")


def check_scale_bits(scale_bits: int) -> None:
    """Raises `RecipeError` unless scales can have ``scale_bits``."""
    if scale_bits != FLOAT_SCALES and scale_bits not in range(2, 9):
        raise RecipeError(f"scale_bits is 2 to 8 for packed scales, or {FLOAT_SCALES} for float16, got {scale_bits!r}")


def search_grid(weight: Tensor, spec: ScalarSpec, importance: Tensor) -> ScalarGrid:
    """The grid of least squared error for ``weight [columns, out]`` with columns weighted by ``importance [columns]``.

    Scales are packed where ``spec`` says so, but not those of weights so small that float16 loses the outputs' factors:
    the grid's own spec then has float16 scales, for groups of twice the size. Raises `UnfitWeightError` when a scale
    leaves the range of float16.
    """
    grid = _float_grid(weight, spec, importance)
    if not spec.packed_scales:
        return grid
    top = grid.scale.float().amax(0) / ((1 << spec.scale_bits) - 1)
    if ((top > 0) & (top < SMALLEST_SCALE)).any():
        return _float_grid(weight, ScalarSpec(spec.bits, 2 * spec.group_size), importance)
    return _packed(grid, top.half())


def _packed(grid: ScalarGrid, output_scale: Tensor) -> ScalarGrid:
    """``grid`` with its scales rounded to multiples of ``output_scale [out]``; none but zeros become zero."""
    unit, scale = output_scale.float(), grid.scale.float()
    factors = torch.where(unit > 0, scale / unit, 0).round().clamp(0, (1 << grid.spec.scale_bits) - 1)
    factors = torch.where(scale > 0, factors.clamp_min(1), factors)
    return ScalarGrid(grid.spec, factors * unit, grid.zero, factors.int(), output_scale)


def _float_grid(weight: Tensor, spec: ScalarSpec, importance: Tensor) -> ScalarGrid:
    """Groups are independent, so they are searched a few at a time: a search holds twenty bytes for each weight, and
    eight for each candidate of a group."""
    outputs = max(1, weight.shape[1])
    groups = min(SEARCHED_AT_ONCE // (spec.group_size * outputs), GROUPS_AT_ONCE // outputs)
    step = spec.group_size * max(1, groups)
    starts = range(0, max(1, len(weight)), step)
    parts = [_searched(weight[at : at + step], spec, importance[at : at + step]) for at in starts]
    scales, zeros = zip(*parts, strict=True)
    return ScalarGrid(spec, torch.cat(scales), torch.cat(zeros))


def _searched(weight: Tensor, spec: ScalarSpec, importance: Tensor) -> tuple[Tensor, Tensor]:
    """Scale (float16) and zero (int32) ``[groups, out]`` of some groups."""
    grouped, mass = _grouped(weight, spec), _grouped(importance[:, None].to(weight), spec)
    low, high = grouped.amin(1).clamp(max=0), grouped.amax(1).clamp(min=0)
    candidates = [_shrunken(low * shrink, high * shrink, spec.bits) for shrink in SHRINKS]
    scales, zeros = (torch.stack(part) for part in zip(*candidates, strict=True))
    least = _least_compiled if weight.device.type == "cpu" else _least
    chosen, best = least(grouped, mass, scales, zeros, spec.bits)
    scale, zero = (part.gather(0, chosen[None].long())[0] for part in (scales, zeros))
    fitted = _fit_scale(grouped, scale, zero, mass, spec.bits)
    better = _squared_error(grouped, fitted, zero, mass, spec.bits) < best
    return torch.where(better, fitted, scale).half(), zero.int()


def _least(grouped: Tensor, mass: Tensor, scales: Tensor, zeros: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """The candidate ``[groups, out]`` of least squared error among ``[candidates, groups, out]``, and its error."""
    best = torch.full_like(scales[0], torch.inf)
    chosen = torch.zeros_like(best, dtype=torch.int32)
    for number, candidate in enumerate(zip(scales, zeros, strict=True)):
        error = _squared_error(grouped, *candidate, mass, bits)
        better = error < best
        best, chosen = torch.where(better, error, best), torch.where(better, number, chosen)
    return chosen, best


def _least_compiled(grouped: Tensor, mass: Tensor, scales: Tensor, zeros: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """`_least` in a twentieth of the time, on the CPU."""
    from vqcompress.search.grid_loops import compiled_least  # which imports numba

    best = torch.empty_like(scales[0])
    chosen = torch.empty_like(best, dtype=torch.int32)
    given = (grouped.contiguous(), mass[:, :, 0].contiguous(), scales, zeros)
    arrays = [part.detach().numpy() for part in (*given, chosen, best)]
    compiled_least()(*arrays[:4], float((1 << bits) - 1), *arrays[4:])
    return chosen, best


def _grouped(weight: Tensor, spec: ScalarSpec) -> Tensor:
    """``[columns, n]`` -> ``[groups, group_size, n]``; a short last group is filled with zeros, which grids hit."""
    missing = -len(weight) % spec.group_size
    return F.pad(weight.float(), (0, 0, 0, missing)).unflatten(0, (-1, spec.group_size))


def _shrunken(low: Tensor, high: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Scale (rounded to float16) and zero of the grid from ``low`` to ``high``."""
    scale = (high - low) / ((1 << bits) - 1)
    if (scale > LARGEST_SCALE).any():
        raise UnfitWeightError(
            f"weights reach {float(torch.maximum(high, -low).max()):.3g}, whose grid step leaves the range of float16; "
            "keep this layer dense or rescale it"
        )
    zero = torch.where(scale > 0, -low / scale, 0).round().clamp(0, (1 << bits) - 1)
    return scale.half().float(), zero


def _nearest(target: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    """Codes nearest to ``target``, as floats; a scale of zero decodes to zero whatever the code."""
    steps = torch.where(scale > 0, target / scale, 0)
    return (steps.round() + zero).clamp(0, (1 << bits) - 1)


def _squared_error(grouped: Tensor, scale: Tensor, zero: Tensor, mass: Tensor, bits: int) -> Tensor:
    """Weighted squared error per group and output, ``[groups, out]``."""
    codes = _nearest(grouped, scale[:, None], zero[:, None], bits)
    return (((codes - zero[:, None]) * scale[:, None] - grouped).square() * mass).sum(1)


def _fit_scale(grouped: Tensor, scale: Tensor, zero: Tensor, mass: Tensor, bits: int) -> Tensor:
    """Least-squares scale for the codes that ``scale`` gives, rounded to float16."""
    steps = _nearest(grouped, scale[:, None], zero[:, None], bits) - zero[:, None]
    power = (steps.square() * mass).sum(1)
    fitted = torch.where(power > 0, (steps * grouped * mass).sum(1) / power, scale)
    return fitted.clamp(0, LARGEST_SCALE).half().float()
