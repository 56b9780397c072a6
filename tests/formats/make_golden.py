"""Write the golden bytes and the trellis table of docs/FORMAT.md anew: ``python tests/formats/make_golden.py``.

Only for a deliberate change of the format; then raise ``FORMAT_VERSION`` unless no release has written the old one.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from vqcompress.bitpack import packed_bytes
from vqcompress.formats import AdditiveSpec, FormatSpec, ScalarSpec, TrellisSpec, spec_to_dict
from vqcompress.formats.rates import pack_rates
from vqcompress.formats.trellis_table import GAUSSIAN_CODES
from vqcompress.matrix_view import matrix_shape
from vqcompress.quantized_weight import QuantizedWeight

HERE = Path(__file__).parent
DOCUMENT = HERE.parents[1] / "docs" / "FORMAT.md"
TABLE_START = "<!-- trellis table: written by tests/formats/make_golden.py -->\n"
TABLE_END = "<!-- end of trellis table -->"


def pattern(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Fixed contents: bytes in steps coprime to 256, positions that rise, or halves between 1/64 and 1/8."""
    count = torch.arange(torch.Size(shape).numel())
    if dtype == torch.int8:
        return ((count * 151 + 71) % 256).to(torch.uint8).view(torch.int8).view(shape)
    if dtype == torch.int32:  # positions
        return (2 + count * 9).int().view(shape)
    return ((1 + count * 5 % 7) / 64 * (1 - 2 * (count % 3 == 1).float())).half().view(shape)


def cases() -> dict[str, tuple[FormatSpec, tuple[int, ...], torch.Tensor | None]]:
    """Name -> (spec, dense shape, column rates)."""
    three = torch.tensor([3, 2, 5, 2, 3, 4, 5, 3])
    mixed = torch.tensor([1, 0, 2, 3] * 3)
    learned = torch.tensor([1, 3, 2, 3, 1, 4])
    halves = torch.tensor([3, 0, 5, 1, 2, 7, 11, 9, 4, 12, 5])
    return {
        "trellis_linear": (TrellisSpec(12, 2, 2, 0.0, True, _stream(13, three)), (13, 8), three),
        "trellis_conv": (TrellisSpec(16, 3, 0, 0.03125, False, 9 * packed_bytes(6, 3)), (6, 1, 3, 3), None),
        "trellis_learned": (
            TrellisSpec(8, 1, 2, 0.0, True, _stream(9, learned), "tables", (1, 3)),
            (9, 6),
            learned,
        ),
        "trellis_gains": (
            TrellisSpec(10, 2, 2, 0.0, True, _stream(11, three), column_scales=True),
            (11, 8),
            three,
        ),
        "trellis_half_rates": (
            TrellisSpec(12, 0, 4, 0.0, True, _half_stream(13, halves), half_rates=True),
            (13, 11),
            halves,
        ),
        "trellis_half_conv": (
            TrellisSpec(10, 5, 0, 0.0625, False, 12 * packed_bytes(8 * 5 // 2, 1), half_rates=True),
            (8, 3, 2, 2),
            None,
        ),
        "trellis_outliers": (
            TrellisSpec(10, 2, 2, 0.0, True, _stream(11, three), column_scales=True, outliers=5),
            (11, 8),
            three,
        ),
        "additive_outliers": (
            AdditiveSpec(4, 6, 3, 0, 2, None, True, _stream(3, mixed, 6), outliers=4),
            (10, 12),
            mixed,
        ),
        "additive_linear": (AdditiveSpec(4, 6, 3, 0, 2, None, True, _stream(3, mixed, 6)), (10, 12), mixed),
        "additive_shared": (AdditiveSpec(8, 8, 2, 2, 0, "book", False, 5 * 4), (16, 5), None),
        "additive_gains": (AdditiveSpec(4, 6, 3, 0, 2, None, False, _stream(2, mixed, 6), True), (7, 12), mixed),
        "scalar_linear": (ScalarSpec(3, 4), (7, 10), None),
        "scalar_packed_scales": (ScalarSpec(3, 4, 6), (7, 10), None),
    }


def _stream(count: int, rates: torch.Tensor, bits: int = 1) -> int:
    return sum(packed_bytes(count * int(rate), bits) for rate in rates)


def _half_stream(count: int, rates: torch.Tensor) -> int:
    return sum(packed_bytes(count * int(rate) // 2, 1) for rate in rates)


def build(spec: FormatSpec, shape: tuple[int, ...], rates: torch.Tensor | None) -> QuantizedWeight:
    """A weight with fixed contents."""
    tensors = {name: pattern(*entry) for name, entry in spec.tensor_shapes(*matrix_shape(shape)).items()}
    if rates is not None:
        tensors["rates"] = pack_rates(rates, spec.min_rate, spec.rate_bits)
    shared = getattr(spec, "codebook", None)
    books = {} if shared is None else {"codebooks": pattern(spec.codebook_shape, torch.float16)}
    return QuantizedWeight(spec, shape, tensors, books)


def to_hex(tensor: torch.Tensor) -> str:
    """A tensor's bytes, little-endian numbers in C order."""
    return tensor.contiguous().numpy().tobytes().hex()


def golden(weight: QuantizedWeight) -> dict:
    """What a golden file holds."""
    return {
        "spec": spec_to_dict(weight.spec),
        "shape": list(weight.shape),
        "tensors": {name: {"shape": list(t.shape), "hex": to_hex(t)} for name, t in weight.state_dict().items()},
        "shared": {name: {"shape": list(t.shape), "hex": to_hex(t)} for name, t in weight.shared.items()},
        "decoded": to_hex(weight.decode()),
    }


def trellis_table() -> str:
    """The Markdown table of multipliers and gains."""
    rows = [f"| {bits} | {rate} | {m} | {gain} |" for (bits, rate), (m, gain, _) in GAUSSIAN_CODES.items()]
    return "\n".join(["", "| L | k | multiplier | gain |", "|---|---|---|---|", *rows, "", ""])


def main() -> None:
    """Write everything."""
    for name, case in cases().items():
        (HERE / f"golden_{name}.json").write_text(json.dumps(golden(build(*case)), indent=1) + "\n")
    text = DOCUMENT.read_text()
    before, _, rest = text.partition(TABLE_START)
    DOCUMENT.write_text(before + TABLE_START + trellis_table() + TABLE_END + rest.partition(TABLE_END)[2])


if __name__ == "__main__":
    main()
