"""The GPU's trellis search, under the interpreter, against the CPU's."""

from __future__ import annotations

import pytest
import torch

import vqcompress
from vqcompress.errors import RecipeError
from vqcompress.formats.trellis import window_states
from vqcompress.formats.trellis_table import value_table
from vqcompress.quantizers import TrellisSettings, quantize_weight
from vqcompress.search.gpu_viterbi import GpuViterbi
from vqcompress.search.viterbi import CpuViterbi


@pytest.mark.parametrize(
    ("state_bits", "rate", "outputs", "phase"), [(8, 1, 20, 0), (8, 3, 33, 7), (10, 2, 12, 11), (8, 4, 40, 1)]
)
def test_same_codes_as_the_cpu(state_bits, rate, outputs, phase):
    pytest.importorskip("triton")
    from vqcompress.search.triton_viterbi import search_columns

    generator = torch.Generator().manual_seed(0)
    targets, scale = torch.randn(2, outputs, generator=generator), 0.5 + torch.rand(outputs, generator=generator)
    table = value_table(state_bits, rate, 0.1)
    symbols, values = search_columns(targets, scale, table, rate, phase)
    assert torch.equal(table.float()[window_states(symbols.int(), rate, state_bits).long()], values)
    search = CpuViterbi(outputs, state_bits, {rate: table}, phase)
    for target, own_symbols, own_values in zip(targets, symbols, values, strict=True):
        expected_symbols, expected_values = search(target, scale, rate)
        assert torch.equal(own_symbols, expected_symbols)
        assert torch.equal(own_values, expected_values)


def test_a_layer_searched_on_the_gpu_has_the_same_codes(interpreted):
    """Feedback, column_scales, rates and the passes are the CPU's; only columns go over."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(64, 12, generator=generator) @ torch.randn(12, 12, generator=generator)
    weight, moment = torch.randn(24, 12, generator=generator), inputs.t() @ inputs / 64
    weight[:, :4] *= 8
    on_cpu, on_gpu = (
        quantize_weight(weight, moment, bits=2.5, settings=TrellisSettings(state_bits=8, search=where)).state_dict()
        for where in ("cpu", "gpu")
    )
    assert on_cpu.keys() == on_gpu.keys()
    assert all(torch.equal(on_cpu[name], on_gpu[name]) for name in on_cpu)


def test_where_there_is_no_gpu_nothing_starts(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(RecipeError, match=r"no GPU.*search='cpu'"):
        vqcompress.quantize("shapes", tmp_path / "out", settings={"search": "gpu"})
    assert not list(tmp_path.iterdir())


def test_other_places_and_larger_states_are_refused():
    with pytest.raises(RecipeError, match="is not 'cpu' or 'gpu'"):
        TrellisSettings(search="tpu")  # type: ignore[arg-type]
    pytest.importorskip("triton")
    with pytest.raises(RecipeError, match="at most 14 bits, not 16"):
        GpuViterbi(64, 16, {}, 0, torch.device("cpu"))
