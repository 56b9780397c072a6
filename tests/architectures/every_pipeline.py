"""Every pipeline class of the installed diffusers that draws images or videos, and from which donor it is built."""

from __future__ import annotations

import inspect
from typing import Any

import diffusers
from diffusers import DiffusionPipeline

from tests.architectures import donors

OTHER_MEDIA = {
    *("ace_step", "audioldm", "audioldm2", "musicldm", "stable_audio", "stable_audio_3", "longcat_audio_dit"),
    *("dance_diffusion", "audio_diffusion", "spectrogram_diffusion", "minimax_music3"),
    *("shap_e", "marigold", "diffusion_gemma", "llada2", "rfd4_proteina"),
}
"""Packages of pipelines that make sound, shapes, depth, text or proteins."""

BY_PACKAGE: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("stable_diffusion", "controlnet", "pag", "stable_diffusion_k_diffusion"), ("sdxl", "sd15", "sd3")),
    **dict.fromkeys(("stable_diffusion_xl", "kolors", "controlnet_xs"), ("sdxl", "sd15")),
    **dict.fromkeys(("stable_diffusion_gligen", "stable_diffusion_panorama", "stable_diffusion_sag"), ("sd15",)),
    **dict.fromkeys(("latent_consistency_models", "semantic_stable_diffusion", "ledits_pp"), ("sd15", "sdxl")),
    **dict.fromkeys(("stable_diffusion_diffedit", "stable_diffusion_attend_and_excite"), ("sd15",)),
    **dict.fromkeys(("stable_diffusion_safe", "stable_diffusion_ldm3d", "text_to_video_synthesis"), ("sdxl", "sd15")),
    **dict.fromkeys(("t2i_adapter", "stable_diffusion_variants"), ("sdxl", "sd15")),
    "animatediff": ("motion",),
    "pia": ("motion",),
    "stable_diffusion_3": ("sd3",),
    "flux": ("flux",),
    "visualcloze": ("flux",),
    "flux2": ("flux2",),
    "chroma": ("chroma",),
    "pixart_alpha": ("pixart",),
    "lumina": ("lumina",),
    "lumina2": ("lumina2",),
    "dit": ("dit",),
    "hunyuandit": ("hunyuan",),
    "wan": ("wan_image", "wan_vace", "wan"),
    "qwenimage": ("qwen_image",),
    "z_image": ("z_image",),
    "ltx": ("ltx",),
    "hunyuan_video": ("hunyuan_video",),
    "hunyuan_video1_5": ("hunyuan15",),
    "hunyuan_image": ("hunyuan_image",),
    "sana": ("sana",),
    "cogvideo": ("cogvideox", "cogvideox_image"),
    **dict.fromkeys(("ddim", "ddpm", "consistency_models"), ("unconditional",)),
}
"""Package of a pipeline -> donors to try, in order."""

BY_CLASS = {
    "CogVideoXImageToVideoPipeline": "cogvideox_image",
    "CogVideoXFunControlPipeline": "cogvideox_image",
    "WanPipeline": "wan",
    "WanVideoToVideoPipeline": "wan",
    "LucyEditPipeline": "wan_image",
    "WanVACEPipeline": "wan_vace",
    "FluxControlPipeline": "flux_control",
    "FluxControlImg2ImgPipeline": "flux_control",
    "FluxControlInpaintPipeline": "flux_control",
    "FluxFillPipeline": "flux_fill",
    "HunyuanDiTPAGPipeline": "hunyuan",
    "PixArtSigmaPAGPipeline": "pixart",
    "SanaPAGPipeline": "sana",
}
MUST = (
    *("WanPipeline", "ZImagePipeline", "LTXPipeline", "QwenImagePipeline", "FluxPipeline", "FluxKontextPipeline"),
    *("Flux2KleinPipeline", "Flux2Pipeline", "ChromaPipeline", "HunyuanVideo15Pipeline", "HunyuanImagePipeline"),
    *("StableDiffusion3Pipeline", "SanaPipeline", "Lumina2Pipeline", "PixArtSigmaPipeline", "CogVideoXPipeline"),
    *("StableDiffusionPipeline", "StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline", "FluxFillPipeline"),
    *("StableDiffusionXLInpaintPipeline", "CogVideoXImageToVideoPipeline", "DiTPipeline", "AnimateDiffPipeline"),
)
"""Classes that are driven whatever happens to others."""
UNDRIVEN = {
    "ChromaInpaintPipeline": "its call reads a key that its transformer's configuration lacks, in diffusers itself",
    "ConsistencyModelPipeline": "returns images only, no latents",
}
"""Classes that are built but cannot be called for latents."""
EXTRAS = {
    "safety_checker": None, "feature_extractor": None, "image_encoder": None, "image_processor": None,
    "requires_safety_checker": False,
}  # fmt: skip


def pipeline_classes() -> dict[str, type[DiffusionPipeline]]:
    """Name -> class, without those of other media and without deprecated ones."""
    named = {name: getattr(diffusers, name, None) for name in dir(diffusers) if "Pipeline" in name}
    return {name: kind for name, kind in sorted(named.items()) if _draws(kind)}


def _draws(kind: Any) -> bool:
    if not inspect.isclass(kind) or not issubclass(kind, DiffusionPipeline) or kind is DiffusionPipeline:
        return False
    folders = kind.__module__.split(".")
    return folders[:2] == ["diffusers", "pipelines"] and not {"deprecated", *OTHER_MEDIA} & set(folders)


def package(kind: type[DiffusionPipeline]) -> str:
    return kind.__module__.split(".")[2]


def build(kind: type[DiffusionPipeline]) -> DiffusionPipeline:
    """A tiny pipeline. Raises `LookupError` with the reason where no donor has what it takes."""
    names = (BY_CLASS[kind.__name__],) if kind.__name__ in BY_CLASS else BY_PACKAGE.get(package(kind), ())
    if set(names) & {"sdxl", "sd15"}:
        names = ("sdxl",) if "XL" in kind.__name__ else ("sd3",) if "Diffusion3" in kind.__name__ else ("sd15",)
    problems = [f"no tiny components of {package(kind)}"] if not names else []
    for name in names:
        try:
            pipeline = _from(kind, donors.components(name))
        except LookupError as problem:
            problems.append(str(problem))
            continue
        pipeline.set_progress_bar_config(disable=True)
        if package(kind) == "latent_consistency_models":
            pipeline.scheduler = diffusers.LCMScheduler()
        return pipeline
    raise LookupError(problems[-1])


def _from(kind: type[DiffusionPipeline], parts: dict[str, Any]) -> DiffusionPipeline:
    if isinstance(parts.get("unet"), diffusers.UNet2DConditionModel):
        parts = {**parts, "controlnet": diffusers.ControlNetModel.from_unet(parts["unet"], conditioning_channels=3)}
    wanted = {n: p for n, p in inspect.signature(kind.__init__).parameters.items() if n != "self"}
    given = {name: parts[name] if name in parts else EXTRAS[name] for name in wanted if name in parts or name in EXTRAS}
    missing = [n for n, p in wanted.items() if n not in given and p.default is p.empty]
    if missing:
        raise LookupError(f"no tiny {', '.join(missing)}")
    for name, part in given.items():
        kinds = str(wanted[name].annotation)
        if hasattr(part, "forward") and "unet" in name + "transformer" and type(part).__name__ not in kinds:
            raise LookupError(f"no tiny {kinds.split('.')[-1].rstrip(chr(39) + '>')}")
    return kind(**given)
