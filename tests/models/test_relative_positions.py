"""Sliced biases are the gathered ones."""

from __future__ import annotations

import pytest
import torch

from vqcompress.models.relative_positions import relative_bias, relative_position_index, table_rows


@pytest.mark.parametrize("window", [1, 2, 5])
@pytest.mark.parametrize("spare", [0, 3])
def test_slicing_equals_gathering(window: int, spare: int) -> None:
    table = torch.randn(table_rows(window) + spare, 3, generator=torch.Generator().manual_seed(0))
    gathered = table[relative_position_index(window)].permute(2, 0, 1)
    assert relative_bias(table, window).equal(gathered)


def test_index_is_the_stored_one(official_run) -> None:
    mdt, diffit = official_run("mdtv2").weights, official_run("diffit_latent").weights
    assert relative_position_index(8).equal(mdt["de_blocks.0.attn.rel_pos_bias.relative_position_index"])
    assert relative_position_index(8).equal(diffit["blocks.0.attn.relative_position_index"])
