"""Packed weights of random codes, made where they are wanted: any byte is a valid code, so no quantizer is needed."""

from __future__ import annotations

import torch

from vqcompress.bitpack import pack, packed_bytes
from vqcompress.formats import AdditiveSpec, FormatSpec, ScalarSpec, TrellisSpec
from vqcompress.formats.rates import pack_rates
from vqcompress.matrix_view import matrix_shape
from vqcompress.quantized_weight import QuantizedWeight

FORMATS = ("trellis", "additive", "scalar")
SHARED_BOOK = "synthetic"


def packed_weight(
    name: str, shape: tuple[int, ...], bits: float = 3, device: str | torch.device = "cpu", seed: int = 0
) -> QuantizedWeight:
    """A weight of about ``bits`` bits: ``trellis`` (12-bit states, rates ``bits - 1`` and ``bits``, multiples of 1/2),
    ``additive`` (``bits`` shared codebooks of 256 vectors of 8) or ``scalar`` (groups of 64)."""
    generator = torch.Generator(device).manual_seed(seed)
    outputs, columns = matrix_shape(shape)
    if name == "trellis":
        return _trellis(shape, outputs, columns, bits, generator)
    if name == "additive":
        return _additive(shape, outputs, columns, int(bits), generator)
    return _scalar(shape, outputs, columns, int(bits), generator)


def _trellis(
    shape: tuple[int, ...], outputs: int, columns: int, bits: float, generator: torch.Generator
) -> QuantizedWeight:
    unit = 2 if bits % 1 else 1  # a rate counts half bits, or bits
    low, order = int(unit * (bits - 1)), torch.randperm(columns, generator=torch.Generator().manual_seed(1))
    rates = (torch.arange(columns) % 2 * unit + low)[order]
    size = sum(packed_bytes(outputs * rate // unit, 1) for rate in rates.tolist())
    spec = TrellisSpec(12, low, unit, 0.0, True, size, half_rates=unit == 2)
    tensors = {"weight": _bytes((1, size), generator), "scale": _scale((outputs,), generator)}
    tensors["rates"] = pack_rates(rates, low, unit).to(generator.device)
    return QuantizedWeight(spec, shape, tensors)


def _additive(
    shape: tuple[int, ...], outputs: int, columns: int, bits: int, generator: torch.Generator
) -> QuantizedWeight:
    spec: FormatSpec = AdditiveSpec(8, 8, bits, bits, 0, SHARED_BOOK, True, columns * -(-outputs // 8) * bits)
    codebooks = torch.randn(spec.codebook_shape, generator=generator, device=generator.device).half()
    tensors = {"weight": _bytes((1, spec.code_bytes), generator), "scale": _scale((outputs,), generator)}
    return QuantizedWeight(spec, shape, tensors, {"codebooks": codebooks})


def _scalar(
    shape: tuple[int, ...], outputs: int, columns: int, bits: int, generator: torch.Generator
) -> QuantizedWeight:
    spec = ScalarSpec(bits, 64)
    zeros = torch.full((spec.groups(columns), outputs), 1 << (bits - 1), dtype=torch.int32)
    tensors = {
        "weight": _bytes((1, columns * packed_bytes(outputs, bits)), generator),
        "group_scale": _scale((spec.groups(columns), outputs), generator),
        "group_zero": pack(zeros, bits).to(generator.device),
    }
    return QuantizedWeight(spec, shape, tensors)


def _bytes(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    return torch.randint(-128, 128, shape, generator=generator, dtype=torch.int8, device=generator.device)


def _scale(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    return (0.01 + 0.01 * torch.rand(shape, generator=generator, device=generator.device)).half()
