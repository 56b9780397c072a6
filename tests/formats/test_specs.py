"""Specs as JSON: names on disk, defaults left out, and what a reader refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vqcompress.errors import CheckpointError
from vqcompress.formats import AdditiveSpec, TrellisSpec, spec_from_dict, spec_to_dict

TRELLIS = TrellisSpec(12, 2, 1, 0.0, True, 640)
ADDITIVE = AdditiveSpec(8, 6, 4, 1, 2, None, False, 640)


@pytest.mark.parametrize("spec", [TRELLIS, ADDITIVE], ids=lambda spec: spec.format)
def test_column_scales_are_gains_on_disk(spec):
    scaled = type(spec)(**{**vars(spec), "column_scales": True})
    assert spec_to_dict(scaled) == {**spec_to_dict(spec), "gains": True}
    assert spec_from_dict(spec_to_dict(scaled)) == scaled
    assert not spec_from_dict(spec_to_dict(spec)).column_scales


def test_half_rates_are_left_out_where_there_are_none():
    """What older versions cannot read has a field that they refuse; everything else is as it was."""
    halves = replace(TRELLIS, half_rates=True)
    assert spec_to_dict(halves) == {**spec_to_dict(TRELLIS), "half_rates": True}
    assert spec_from_dict(spec_to_dict(halves)) == halves
    assert "half_rates" not in spec_to_dict(TRELLIS)
    with pytest.raises(CheckpointError, match="half_rates"):
        spec_from_dict({**spec_to_dict(ADDITIVE), "half_rates": True})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "lattice"}, "unknown weight format 'lattice'"),
        ({"column_scales": True}, "column_scales"),
        ({"phase": 3}, "phase"),
        ({"half_rates": 1}, "half_rates is 1, neither true nor false"),
        ({"half_rates": True, "min_rate": 13}, "min_rate is 13, not an integer from 0 to 12"),
        ({"min_rate": 7}, "min_rate is 7, not an integer from 0 to 6"),
        ({"codebook": "tables", "codebook_rates": [0, 2]}, "rates .0, 2., which the code lacks"),
        ({"codebook": "tables", "codebook_rates": [9]}, "rates .9,., which the code lacks"),
    ],
)
def test_what_this_version_does_not_know_is_refused(change, message):
    with pytest.raises(CheckpointError, match=message):
        spec_from_dict({**spec_to_dict(TRELLIS), **change})
