"""The door refuses what does not fit, and says what."""

from __future__ import annotations

import pytest
import torch

from vqcompress.errors import ArchitectureError
from vqcompress.models import FAMILIES, _builder, from_official

OWN = {"dit": "dit", "mdt_v2": "mdtv2", "dit_moe": "dit_moe", "diffit_latent": "diffit_latent", "pixart": "pixart"}


def test_unknown_family() -> None:
    with pytest.raises(ArchitectureError, match=r"'dyt'; the families are .*dit"):
        from_official("dyt", {}, {})


@pytest.mark.parametrize("family", FAMILIES)
def test_every_row_resolves(family: str) -> None:
    assert callable(_builder(family))


@pytest.mark.parametrize(("family", "name"), OWN.items())
def test_misfits_are_listed(official_run, family: str, name: str) -> None:
    run = official_run(name)
    weights = {n: t for n, t in run.weights.items() if n != "t_embedder.mlp.0.bias"} | {"stray": torch.zeros(1)}
    with pytest.raises(ArchitectureError, match=r"missing: t_embedder\.mlp\.0\.bias; unexpected: stray"):
        from_official(family, run.config, weights)


@pytest.mark.parametrize(("family", "name"), OWN.items())
def test_wrong_shapes_are_listed(official_run, family: str, name: str) -> None:
    run = official_run(name)
    with pytest.raises(ArchitectureError, match=r"t_embedder.* is \(3,\)|linear_1\.bias is \(3,\)"):
        from_official(family, run.config, run.weights | {"t_embedder.mlp.0.bias": torch.zeros(3)})


@pytest.mark.parametrize(("family", "name"), OWN.items())
def test_unknown_argument(official_run, family: str, name: str) -> None:
    run = official_run(name)
    with pytest.raises(ArchitectureError, match="hiden_size"):
        from_official(family, run.config | {"hiden_size": 8}, run.weights)
