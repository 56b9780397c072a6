"""The trellis format against its description: windows of a circular bit string, and a table that must never change."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import pytest
import torch

from vqcompress.bitpack import packed_bytes
from vqcompress.formats import spec_from_dict, spec_to_dict
from vqcompress.formats.rates import pack_rates
from vqcompress.formats.trellis import new_bits, pack_symbols, unpack_symbols, window_states
from vqcompress.formats.trellis_table import GAUSSIAN_CODES, STATE_BITS, gaussian_error, max_rate, value_table
from vqcompress.kernels import decode


def literal_decode(weight, tables=()) -> torch.Tensor:
    """The format in words: cut the stream into columns, write it as a bit string, look up windows that wrap around.

    ``tables`` are learned ones, by the spec's ``codebook_rates``.
    """
    spec, (rows, columns) = weight.spec, weight.shape
    stream = "".join(f"{byte & 0xFF:08b}" for byte in weight.tensors["weight"].flatten().tolist())
    learned = dict(zip(spec.codebook_rates, tables, strict=True))
    rates = spec.rates(columns, weight.tensors).tolist()
    decoded, start = torch.zeros(rows, columns), 0
    for rate, column in sorted((rate, column) for column, rate in enumerate(rates)):
        low, high = (rate // 2, (rate + 1) // 2) if spec.half_rates else (rate, rate)
        lengths = [high if row % 2 else low for row in range(rows)]
        bits = stream[start : start + sum(lengths)]
        start += 8 * packed_bytes(sum(lengths), 1)
        for row in range(rows if bits else 0):
            end = sum(lengths[: row + 1])
            window = "".join(bits[i % len(bits)] for i in range(end - spec.state_bits, end))
            if (new := lengths[row]) not in learned:
                learned[new] = value_table(spec.state_bits, new, spec.tail)
            decoded[row, column] = learned[new][int(window, 2)].float()
    assert start == len(stream)
    return decoded * weight.tensors["scale"].float()[:, None]


@pytest.mark.parametrize(
    ("state_bits", "min_rate", "rate_bits"), [(8, 2, 0), (8, 0, 2), (12, 2, 1), (10, 1, 2), (16, 3, 2)]
)
@pytest.mark.parametrize("rows", [16, 21])
@pytest.mark.parametrize("row_scales", [True, False])
def test_decode_is_the_description(random_weight, check_spec, state_bits, min_rate, rate_bits, rows, row_scales):
    geometry = {"state_bits": state_bits, "min_rate": min_rate, "rate_bits": rate_bits, "row_scales": row_scales}
    weight = random_weight("trellis", (rows, 9), **geometry, tail=0.1)
    check_spec(weight)
    assert torch.equal(weight.decode(), literal_decode(weight))


def test_windows_wrap_around():
    symbols = torch.tensor([0b01, 0b10, 0b11, 0b00])  # stream 01 10 11 00
    assert window_states(symbols, 2, 4).tolist() == [0b0001, 0b0110, 0b1011, 0b1100]
    assert window_states(symbols, 2, 3).tolist() == [0b001, 0b110, 0b011, 0b100]


@pytest.mark.parametrize("rate", [0.5, 1, 1.5, 2.5, 3])
@pytest.mark.parametrize("outputs", [1, 2, 7, 8, 21])
def test_symbols_survive_packing(rate, outputs):
    widths = new_bits(rate, outputs)
    assert int(widths.sum()) == int(outputs * rate)
    assert set(widths.tolist()) <= {int(rate), -int(-rate // 1)}
    symbols = torch.randint(0, 1 << 20, (5, outputs), generator=torch.Generator().manual_seed(1)) % (1 << widths)
    packed = pack_symbols(symbols.int(), rate)
    assert packed.shape == (5, packed_bytes(int(outputs * rate), 1))
    assert torch.equal(unpack_symbols(packed, int(2 * rate), outputs), symbols.int())


@pytest.mark.parametrize("spoiled", ["rate beyond the last", "one byte less"])
def test_half_rates_that_do_not_fit_are_named(random_weight, spoiled):
    weight = random_weight("trellis", (21, 9), min_rate=3, rate_bits=4, half_rates=True, rates=torch.arange(3, 12))
    spec, rates = weight.spec, weight.tensors["rates"]
    assert spec.shape_problem(*weight.shape) is None
    assert spec.content_problem("rates", rates, *weight.shape) is None
    if spoiled == "one byte less":
        shorter = replace(spec, code_bytes=spec.code_bytes - 1)
        assert "bytes of codes" in shorter.content_problem("rates", rates, *weight.shape)
    else:
        higher = pack_rates(torch.arange(5, 14), 3, 4)
        assert "the format ends at 12" in spec.content_problem("rates", higher, *weight.shape)


@pytest.mark.parametrize(("state_bits", "rate"), GAUSSIAN_CODES)
def test_table_is_a_unit_source_times_its_gain(state_bits, rate):
    multiplier, gain, _ = GAUSSIAN_CODES[state_bits, rate]
    table = value_table(state_bits, rate, 0.0).double()
    assert multiplier % 2 == 1
    assert table.shape == (1 << state_bits,)
    assert table.square().mean().sqrt() == pytest.approx(gain, rel=1e-3)
    assert abs(table.mean()) < 1e-3


def test_errors_fall_with_rate_and_with_state_bits():
    for bits in STATE_BITS:
        errors = [gaussian_error(bits, halves / 2) for halves in range(2 * max_rate(bits) + 1)]
        assert errors == sorted(errors, reverse=True)
        assert all(error > 2.0**-halves for halves, error in enumerate(errors[1:], 1))  # Shannon's bound
        # Convex: a half-integer rate leaves less than half of the columns at either neighbour would.
        assert all(error < (errors[at - 1] + errors[at + 1]) / 2 for at, error in enumerate(errors[1:-1], 1))
    for rate in (0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4):
        errors = [gaussian_error(bits, rate) for bits in STATE_BITS]
        assert errors == sorted(errors, reverse=True)


def test_heavier_tables_reach_further():
    reach = [float(value_table(12, 3, tail).max()) for tail in (0.0, 0.1, 0.2, 0.3)]
    assert reach == sorted(reach)
    assert reach[-1] > 2 * reach[0]


def test_tables_are_golden():
    """Files decode with these values for ever: a change here is a new format version."""
    sums = {
        (bits, rate): hashlib.sha256(value_table(bits, rate, 0.1).numpy().tobytes()).hexdigest()[:8]
        for bits, rate in GOLDEN
    }
    assert sums == GOLDEN


GOLDEN = {
    (8, 2): "f12ce9de",
    (10, 3): "4632d802",
    (12, 1): "77ff939c",
    (12, 2): "7858161e",
    (12, 3): "d3dad7da",
    (12, 4): "3a867a96",
    (14, 3): "e03123d9",
    (16, 3): "bfe20f6c",
}


def with_learned_tables(weight, rates=(2, 3)):
    """The same codes, read with tables of their own for ``rates``."""
    spec = replace(weight.spec, codebook="tables", codebook_rates=rates)
    tables = torch.randn(spec.codebook_shape, generator=torch.Generator().manual_seed(7)).half()
    return replace(weight, spec=spec, shared={"codebooks": tables})


def test_learned_tables_take_the_place_of_the_formula(random_weight):
    plain = random_weight("trellis", (24, 20), min_rate=1, rate_bits=2)
    learned = with_learned_tables(plain)
    touched = torch.isin(plain.spec.rates(20, plain.tensors), torch.tensor([2, 3]))
    assert torch.equal(plain.decode()[:, ~touched], learned.decode()[:, ~touched])
    assert not (plain.decode() == learned.decode())[:, touched].any()
    fast = decode(learned.spec, learned.shape, {**learned.tensors, **learned.shared}, torch.float32)
    assert torch.equal(fast, learned.decode())


def test_learned_tables_survive_json_and_are_absent_by_default(random_weight):
    plain = random_weight("trellis", (24, 20))
    assert "codebook" not in spec_to_dict(plain.spec)
    learned = with_learned_tables(plain)
    assert spec_from_dict(json.loads(json.dumps(spec_to_dict(learned.spec)))) == learned.spec
    assert learned.uses_shared_codebook
