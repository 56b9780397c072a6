"""Published sizes, counted on the meta device."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vqcompress.errors import ArchitectureError
from vqcompress.models import FAMILIES
from vqcompress.models.presets import NETWORKS, PRESETS, SYNONYMS, preset

# Parameters and Linear layers of the official classes.
OFFICIAL = {
    "dit-xl-2": (675_129_632, 144),
    "sit-xl-2": (675_129_632, 144),
    "mdt-v1-xl-2": (699_778_144, 149),
    "mdt-v2-xl-2": (742_263_904, 165),
    "diffit-256": (561_330_144, 143),
    "diffit-512": (563_562_464, 143),
    "pixart-alpha-256": (610_856_096, None),
    "pixart-alpha-512": (610_856_096, None),
    "pixart-alpha": (611_349_152, None),
}
# Millions, as the papers' tables and the model cards round them: all parameters, and those that one token meets.
ROUNDED = {
    "dit-s-2": (33, None),
    "dit-b-2": (130, None),
    "dit-l-2": (458, None),
    "dit-moe-s-8e2a": (199.3, 72),
    "dit-moe-s-16e2a": (369.2, 72),
    "dit-moe-b-8e2a": (795.9, 286),
    "dit-moe-xl-8e2a": (4168, 1490),
    "dit-moe-g-16e2a": (16504, 3180),
}


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def active_parameters(network: nn.Module) -> float:
    args = network.config
    routed = sum(p.numel() for n, p in network.named_parameters() if ".experts." in n)
    return parameters(network) - routed * (1 - args["num_experts_per_tok"] / args["num_experts"])


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_sizes(name: str) -> None:
    network = preset(name).build()
    count, linears = OFFICIAL[name]
    assert parameters(network) == count
    assert linears in (None, sum(isinstance(m, nn.Linear) for m in network.modules()))
    assert all(p.device.type == "meta" for p in network.parameters())


@pytest.mark.parametrize("name", ROUNDED)
def test_rounded_sizes(name: str) -> None:
    network = preset(name).build()
    total, active = ROUNDED[name]
    assert parameters(network) / 1e6 == pytest.approx(total, rel=0.02 if total < 500 and active is None else 1e-3)
    assert active is None or active_parameters(network) / 1e6 == pytest.approx(active, rel=3e-3)


@pytest.mark.parametrize("name", [n for n in PRESETS if n.startswith("dit-s-")])
def test_small_presets_run_on_the_meta_device(name: str) -> None:
    network = preset(name).build()
    x, t, y = torch.zeros(2, 4, 32, 32), torch.zeros(2), torch.zeros(2, dtype=torch.long)
    assert network(x.to("meta"), t.to("meta"), y.to("meta")).shape == (2, 8, 32, 32)


@pytest.mark.parametrize("name", ["diffit-512", "mdt-v2-xl-2"])
def test_position_indices_are_rebuilt_and_not_stored(name: str) -> None:
    network = preset(name).build()  # of diffit-512 they would be 235 MB
    assert not list(network.buffers())
    assert not [key for key, tensor in network.state_dict().items() if not tensor.is_floating_point()]


def test_every_preset_has_a_family_and_a_network() -> None:
    assert {p.family for p in PRESETS.values()} | {"diffusers_dit"} == NETWORKS.keys()
    in_diffusers = {"unet", "diffusers_dit", "diffusers_lumina"}
    assert NETWORKS.keys() - FAMILIES.keys() == in_diffusers | {"diffit_image"}  # nobody published weights for it


def test_other_names_are_those_of_presets() -> None:
    assert set(SYNONYMS.values()) <= PRESETS.keys()
    assert not SYNONYMS.keys() & PRESETS.keys()
    assert preset("dit-moe-b") is PRESETS["dit-moe-b-8e2a"]


def test_unknown_name() -> None:
    with pytest.raises(ArchitectureError, match=r"'dit-xxl'; did you mean 'dit-xl-[248]"):
        preset("dit-xxl")
