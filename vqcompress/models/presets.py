"""Every published configuration by name, with official constructor arguments; built on the meta device, it costs nothing.

Sizes: DiT table 1 (arXiv 2212.09748; SiT has the same), MDT (2303.14389), DiffiT's released factory (2312.02139),
PixArt-α (2310.00426), DiT-MoE table 1 (2407.11633).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module

import torch
from torch import nn

from vqcompress.errors import ArchitectureError

# Where a family's network is; named, not imported, so that a look at the names costs no imports.
NETWORKS: dict[str, str] = {
    "dit": "vqcompress.models.dit:DiT",
    "sit": "vqcompress.models.dit:SiT",
    "mdt_v1": "vqcompress.models.mdt:MDTv1",
    "mdt_v2": "vqcompress.models.mdt:MDTv2",
    "dit_moe": "vqcompress.models.dit_moe:DiTMoE",
    "diffit_latent": "vqcompress.models.diffit_latent:DiffiTLatent",
    "pixart": "vqcompress.models.pixart:PixArt",
}


@dataclass(frozen=True)
class Preset:
    """A published configuration: a family of `vqcompress.models` and its constructor arguments."""

    family: str
    arguments: Mapping[str, object]

    def build(self, device: str | torch.device = "meta") -> nn.Module:
        """The network in eval mode, with random weights, or with none on the meta device."""
        module, name = NETWORKS[self.family].split(":")
        with torch.device(device):
            return getattr(import_module(module), name)(**self.arguments).eval()


def _size(width: int, depth: int, heads: int, **more: object) -> dict[str, object]:
    return {"hidden_size": width, "depth": depth, "num_heads": heads, **more}


_DIT_SIZES = {"s": _size(384, 12, 6), "b": _size(768, 12, 12), "l": _size(1024, 24, 16), "xl": _size(1152, 28, 16)}
_MOE_SIZES = {
    "s-8e2a": _size(384, 12, 6, num_experts=8),
    "s-16e2a": _size(384, 12, 6, num_experts=16),
    "b-8e2a": _size(768, 12, 12, num_experts=8),
    "xl-8e2a": _size(1152, 28, 16, num_experts=8, use_flash_attn=True),
    "g-16e2a": _size(1408, 40, 16, num_experts=16, use_flash_attn=True),
}
_XL = _DIT_SIZES["xl"]


def _dits() -> Iterator[tuple[str, Preset]]:
    for family in ("dit", "sit"):
        for name, size in _DIT_SIZES.items():
            for patch in (2, 4, 8):
                yield f"{family}-{name}-{patch}", Preset(family, size | {"patch_size": patch})
        yield f"{family}-xl-2-512", Preset(family, _XL | {"input_size": 64})


PRESETS: dict[str, Preset] = {
    **dict(_dits()),
    "mdt-v1-xl-2": Preset("mdt_v1", _XL | {"decode_layer": 2}),
    "mdt-v2-xl-2": Preset("mdt_v2", _XL | {"decode_layer": 4}),
    "diffit-256": Preset("diffit_latent", _XL | {"input_size": 32}),
    "diffit-512": Preset("diffit_latent", _XL | {"input_size": 64}),
    "pixart-alpha-256": Preset("pixart", _XL | {"input_size": 32, "lewei_scale": 0.5}),
    "pixart-alpha-512": Preset("pixart", _XL | {"input_size": 64, "lewei_scale": 1.0}),
    "pixart-alpha": Preset("pixart", _XL | {"input_size": 128, "lewei_scale": 2.0, "sizes": True}),
    **{f"dit-moe-{name}": Preset("dit_moe", size) for name, size in _MOE_SIZES.items()},
}


def preset(name: str) -> Preset:
    """The published configuration called ``name``; ArchitectureError lists the names when there is none."""
    if name not in PRESETS:
        raise ArchitectureError(f"No published configuration is called {name!r}; there are {', '.join(PRESETS)}.")
    return PRESETS[name]
