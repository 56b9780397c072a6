"""Pipelines on the Hub by name: their networks, how they sample, their licences.

Steps, guidance and sizes are those of the model cards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vqcompress.models import hub_denoisers as denoisers
from vqcompress.models import hub_parts as parts
from vqcompress.models.hub_parts import HubPart
from vqcompress.sampling_config import ResolvedSampling

DENOISERS = ("transformer", "transformer_2", "unet")

Networks = Mapping[str, HubPart]
"""Component -> network."""


@dataclass(frozen=True)
class HubPipeline:
    """A pipeline as its folder ``hub`` has it.

    ``pipeline`` is its class in diffusers, ``options`` are arguments of the class other than components. ``weights`` is
    a file on the Hub (``owner/name file``) with the denoiser alone, which ``hub`` is the base of. ``commercial`` is
    False if the licence forbids commercial use.
    """

    hub: str
    pipeline: str
    networks: Networks
    sampling: ResolvedSampling
    licence: str
    commercial: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)
    weights: str | None = None

    @property
    def parameters(self) -> int:
        """Of all denoisers."""
        return sum(part.parameters for name, part in self.networks.items() if name in DENOISERS)


def _square(steps: int, guidance: float, side: int = 1024) -> ResolvedSampling:
    return ResolvedSampling(steps, guidance, side, side)


def _with_text(denoiser: HubPart, text_encoder: HubPart, vae: HubPart) -> Networks:
    return {"transformer": denoiser, "text_encoder": text_encoder, "vae": vae}


def _flux(denoiser: HubPart) -> Networks:
    return {
        "transformer": denoiser,
        "text_encoder": parts.CLIP_L,
        "text_encoder_2": parts.T5_XXL,
        "vae": parts.VAE_FLUX,
    }


def _sd3(denoiser: HubPart) -> Networks:
    return {
        "transformer": denoiser,
        "text_encoder": parts.CLIP_L_PROJECTED,
        "text_encoder_2": parts.CLIP_G,
        "text_encoder_3": parts.T5_XXL,
        "vae": parts.VAE_FLUX,
    }


def _sdxl(denoiser: HubPart) -> Networks:
    return {"unet": denoiser, "text_encoder": parts.CLIP_L, "text_encoder_2": parts.CLIP_G, "vae": parts.VAE_SDXL}


def _wan_experts(expert: HubPart) -> Networks:
    """Two transformers of one configuration, for high noise and for low noise."""
    return {
        "transformer": expert,
        "transformer_2": expert,
        "text_encoder": parts.UMT5_XXL,
        "vae": parts.VAE_WAN21,
    }


_QWEN_IMAGE = _with_text(denoisers.QWEN_IMAGE, parts.QWEN25_VL_7B, parts.VAE_QWEN_IMAGE)
_APACHE, _OPENRAIL, _STABILITY, _TENCENT = "Apache-2.0", "OpenRAIL++-M", "Stability AI", "Tencent Hunyuan"
_FLUX_LICENCE = "FLUX.1 [dev]"

HUB_PIPELINES: dict[str, HubPipeline] = {
    "flux-dev": HubPipeline(
        "black-forest-labs/FLUX.1-dev",
        "FluxPipeline",
        _flux(denoisers.FLUX_DEV),
        _square(28, 3.5),
        _FLUX_LICENCE,
        commercial=False,
    ),
    "flux-schnell": HubPipeline(
        "black-forest-labs/FLUX.1-schnell", "FluxPipeline", _flux(denoisers.FLUX_SCHNELL), _square(4, 0.0), _APACHE
    ),
    "flux-kontext": HubPipeline(
        "black-forest-labs/FLUX.1-Kontext-dev",
        "FluxKontextPipeline",
        _flux(denoisers.FLUX_DEV),
        _square(28, 2.5),
        _FLUX_LICENCE,
        commercial=False,
    ),
    "flux2-dev": HubPipeline(
        "black-forest-labs/FLUX.2-dev",
        "Flux2Pipeline",
        _with_text(denoisers.FLUX2_DEV, parts.MISTRAL_SMALL_32, parts.VAE_FLUX2),
        _square(50, 4.0),
        "FLUX.2 [dev]",
        commercial=False,
    ),
    "flux2-klein": HubPipeline(
        "black-forest-labs/FLUX.2-klein-4B",
        "Flux2KleinPipeline",
        _with_text(denoisers.FLUX2_KLEIN_4B, parts.QWEN3_4B_CAUSAL, parts.VAE_FLUX2),
        _square(4, 1.0),
        _APACHE,
        options={"is_distilled": True},
    ),
    "flux2-klein-9b": HubPipeline(
        "black-forest-labs/FLUX.2-klein-9B",
        "Flux2KleinPipeline",
        _with_text(denoisers.FLUX2_KLEIN_9B, parts.QWEN3_8B_CAUSAL, parts.VAE_FLUX2),
        _square(4, 1.0),
        "FLUX [klein]",
        commercial=False,
        options={"is_distilled": True},
    ),
    "flux3-klein": HubPipeline(
        "black-forest-labs/flux-3-image-klein",
        "Flux3DistilledModularPipeline",
        _with_text(denoisers.FLUX3_KLEIN, parts.QWEN3_VL_4B_CAUSAL, parts.VAE_FLUX2),
        _square(16, 1.0),
        "FLUX Kommunity",
        commercial=False,
    ),
    "sd3-medium": HubPipeline(
        "stabilityai/stable-diffusion-3-medium-diffusers",
        "StableDiffusion3Pipeline",
        _sd3(denoisers.SD3_MEDIUM),
        _square(28, 7.0),
        _STABILITY,
    ),
    "sd35-large": HubPipeline(
        "stabilityai/stable-diffusion-3.5-large",
        "StableDiffusion3Pipeline",
        _sd3(denoisers.SD35_LARGE),
        _square(28, 3.5),
        _STABILITY,
    ),
    "sd35-medium": HubPipeline(
        "stabilityai/stable-diffusion-3.5-medium",
        "StableDiffusion3Pipeline",
        _sd3(denoisers.SD35_MEDIUM),
        _square(40, 4.5),
        _STABILITY,
    ),
    "qwen-image": HubPipeline("Qwen/Qwen-Image", "QwenImagePipeline", _QWEN_IMAGE, _square(50, 4.0), _APACHE),
    "qwen-image-edit": HubPipeline(
        "Qwen/Qwen-Image-Edit", "QwenImageEditPipeline", _QWEN_IMAGE, _square(50, 4.0), _APACHE
    ),
    "z-image-turbo": HubPipeline(
        "Tongyi-MAI/Z-Image-Turbo",
        "ZImagePipeline",
        _with_text(denoisers.Z_IMAGE, parts.QWEN3_4B, parts.VAE_FLUX),
        _square(9, 0.0),
        _APACHE,
    ),
    "wan22-t2v-a14b": HubPipeline(
        "Wan-AI/Wan2.2-T2V-A14B-Diffusers",
        "WanPipeline",
        _wan_experts(denoisers.WAN22_T2V_EXPERT),
        ResolvedSampling(40, 4.0, 480, 832),
        _APACHE,
        options={"boundary_ratio": 0.875},
    ),
    "wan22-i2v-a14b": HubPipeline(
        "Wan-AI/Wan2.2-I2V-A14B-Diffusers",
        "WanImageToVideoPipeline",
        _wan_experts(denoisers.WAN22_I2V_EXPERT),
        ResolvedSampling(40, 3.5, 480, 832),
        _APACHE,
        options={"boundary_ratio": 0.9},
    ),
    "wan22-ti2v-5b": HubPipeline(
        "Wan-AI/Wan2.2-TI2V-5B-Diffusers",
        "WanPipeline",
        _with_text(denoisers.WAN22_TI2V_5B, parts.UMT5_XXL, parts.VAE_WAN22),
        ResolvedSampling(50, 5.0, 704, 1280),
        _APACHE,
        options={"expand_timesteps": True},
    ),
    "ltx2": HubPipeline(
        "Lightricks/LTX-2",
        "LTX2Pipeline",
        _with_text(denoisers.LTX2, parts.GEMMA3_12B, parts.VAE_LTX2),
        ResolvedSampling(40, 4.0, 512, 768),
        "LTX-2 Community",
    ),
    "hunyuan-video-15": HubPipeline(
        "hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-480p_t2v",
        "HunyuanVideo15Pipeline",
        {
            "transformer": denoisers.HUNYUAN_VIDEO_15,
            "text_encoder": parts.QWEN25_VL_7B_TEXT,
            "text_encoder_2": parts.BYT5_GLYPHS,
            "vae": parts.VAE_HUNYUAN_VIDEO_15,
        },
        ResolvedSampling(50, 6.0, 480, 848),
        _TENCENT,
    ),
    "hunyuan-image": HubPipeline(
        "hunyuanvideo-community/HunyuanImage-2.1-Diffusers",
        "HunyuanImagePipeline",
        {
            "transformer": denoisers.HUNYUAN_IMAGE,
            "text_encoder": parts.QWEN25_VL_7B,
            "text_encoder_2": parts.BYT5_GLYPHS,
            "vae": parts.VAE_HUNYUAN_IMAGE,
        },
        _square(50, 3.5, 2048),
        _TENCENT,
    ),
    "chroma": HubPipeline(
        "lodestones/Chroma1-HD",
        "ChromaPipeline",
        _with_text(denoisers.CHROMA, parts.T5_XXL, parts.VAE_FLUX),
        _square(40, 3.0),
        _APACHE,
    ),
    "sana": HubPipeline(
        "Efficient-Large-Model/Sana_1600M_1024px_diffusers",
        "SanaPipeline",
        _with_text(denoisers.SANA, parts.GEMMA2_2B, parts.VAE_SANA),
        _square(20, 4.5),
        "NVIDIA NSCL v2",
        commercial=False,
    ),
    "krea2": HubPipeline(
        "krea/Krea-2-Raw",
        "Krea2Pipeline",
        _with_text(denoisers.KREA2, parts.QWEN3_VL_4B, parts.VAE_QWEN_IMAGE),
        _square(28, 4.5),
        "Krea 2 Community",
    ),
    "pixart-sigma": HubPipeline(
        "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS",
        "PixArtSigmaPipeline",
        _with_text(denoisers.PIXART_SIGMA, parts.T5_XXL, parts.VAE_SDXL),
        _square(20, 4.5),
        _OPENRAIL,
    ),
    "lumina-image-2": HubPipeline(
        "Alpha-VLLM/Lumina-Image-2.0",
        "Lumina2Pipeline",
        _with_text(denoisers.LUMINA_IMAGE_2, parts.GEMMA2_2B, parts.VAE_FLUX),
        _square(50, 4.0),
        _APACHE,
    ),
    "kolors": HubPipeline(
        "Kwai-Kolors/Kolors-diffusers",
        "KolorsPipeline",
        {"unet": denoisers.KOLORS, "text_encoder": parts.CHATGLM3_6B, "vae": parts.VAE_SDXL},
        _square(50, 5.0),
        "Kolors",
    ),
    "ssd-1b": HubPipeline(
        "segmind/SSD-1B", "StableDiffusionXLPipeline", _sdxl(denoisers.SSD_1B), _square(50, 9.0), _APACHE
    ),
    "sdxl-lightning": HubPipeline(
        "stabilityai/stable-diffusion-xl-base-1.0",
        "StableDiffusionXLPipeline",
        _sdxl(denoisers.SDXL),
        _square(4, 0.0),
        _OPENRAIL,
        weights="ByteDance/SDXL-Lightning sdxl_lightning_4step_unet.safetensors",
    ),
    "sdxl-refiner": HubPipeline(
        "stabilityai/stable-diffusion-xl-refiner-1.0",
        "StableDiffusionXLImg2ImgPipeline",
        {"unet": denoisers.SDXL_REFINER, "text_encoder_2": parts.CLIP_G, "vae": parts.VAE_SDXL},
        _square(50, 5.0),
        _OPENRAIL,
        options={"requires_aesthetics_score": True},
    ),
    "sdxl-inpaint": HubPipeline(
        "diffusers/stable-diffusion-xl-1.0-inpainting-0.1",
        "StableDiffusionXLInpaintPipeline",
        _sdxl(denoisers.SDXL_INPAINT),
        _square(20, 8.0),
        _OPENRAIL,
    ),
}
