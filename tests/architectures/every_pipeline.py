"""Every pipeline class of the installed diffusers that draws images or videos, and from which donor it is built."""

from __future__ import annotations

import functools
import inspect
import re
import sys
from dataclasses import replace
from types import ModuleType
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from tests.architectures import donors
from vqcompress.architectures import Architecture
from vqcompress.sampling_config import SamplingConfig

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
    "ledits_pp": ("sd15", "sdxl"),
    **dict.fromkeys(("stable_diffusion_diffedit", "stable_diffusion_attend_and_excite"), ("sd15",)),
    **dict.fromkeys(("stable_diffusion_safe", "stable_diffusion_ldm3d", "text_to_video_synthesis"), ("sdxl", "sd15")),
    **dict.fromkeys(("t2i_adapter", "stable_diffusion_variants"), ("sdxl", "sd15")),
    "animatediff": ("animated",),
    "stable_video_diffusion": ("video_diffusion",),
    "deepfloyd_if": ("in_pixels",),
    "kandinsky3": ("kandinsky3",),
    "kandinsky2_2": ("kandinsky22",),
    "latent_diffusion": ("latent_diffusion",),
    "latent_consistency_models": ("lcm",),
    "stable_cascade": ("cascade",),
    "stable_diffusion_3": ("sd3",),
    "flux": ("flux",),
    "visualcloze": ("visualcloze",),
    "flux2": ("flux2",),
    "chroma": ("chroma",),
    "pixart_alpha": ("pixart",),
    "lumina": ("lumina",),
    "lumina2": ("lumina2",),
    "dit": ("dit",),
    "hunyuandit": ("hunyuan_controlnet",),
    "wan": ("wan_image", "wan_vace", "wan"),
    "qwenimage": ("qwen_image",),
    "z_image": ("z_image",),
    "ltx": ("ltx",),
    "hunyuan_video": ("hunyuan_video",),
    "hunyuan_video1_5": ("hunyuan15",),
    "hunyuan_image": ("hunyuan_image",),
    "sana": ("sana",),
    "cogvideo": ("cogvideox", "cogvideox_image"),
    "allegro": ("allegro",),
    "anyflow": ("anyflow",),
    "chronoedit": ("chronoedit",),
    "cosmos": ("cosmos2",),
    "kandinsky5": ("kandinsky5",),
    "latte": ("latte",),
    "ltx2": ("ltx2",),
    "mochi": ("mochi",),
    "motif_video": ("motif_video",),
    "sana_video": ("sana_video",),
    "skyreels_v2": ("skyreels",),
    "helios": ("helios",),
    "lucy": ("lucy",),
    "controlnet_hunyuandit": ("hunyuan_controlnet",),
    "controlnet_sd3": ("sd3_controlnet",),
    "aura_flow": ("aura_flow",),
    "bria": ("bria",),
    "bria_fibo": ("bria_fibo",),
    "cogview3": ("cogview3",),
    "cogview4": ("cogview4",),
    "ernie_image": ("ernie",),
    "hidream_image": ("hidream",),
    "krea2": ("krea2",),
    "ideogram4": ("ideogram4",),
    "omnigen": ("omnigen",),
    "ovis_image": ("ovis",),
    "longcat_image": ("longcat",),
    "nucleusmoe_image": ("nucleus",),
    "bria_fibo2": ("bria_fibo2",),
    "dreamlite": ("dreamlite",),
    "joyimage": ("joyimage",),
    "qwenimage21": ("qwen_image21",),
    "prx": ("prx",),
    **dict.fromkeys(("ddim", "ddpm", "consistency_models"), ("unconditional",)),
}
"""Package of a pipeline -> donors to try, in order."""

BY_CLASS = {
    **dict.fromkeys(
        (
            *("StableDiffusionControlNetPipeline", "StableDiffusionControlNetImg2ImgPipeline"),
            *("StableDiffusionControlNetInpaintPipeline", "StableDiffusionControlNetPAGPipeline"),
            *("StableDiffusionControlNetPAGInpaintPipeline", "StableDiffusionAdapterPipeline"),
        ),
        "guided_sd15",
    ),
    **dict.fromkeys(
        (
            *("StableDiffusionXLControlNetPipeline", "StableDiffusionXLControlNetImg2ImgPipeline"),
            *("StableDiffusionXLControlNetInpaintPipeline", "StableDiffusionXLControlNetPAGPipeline"),
            *("StableDiffusionXLControlNetPAGImg2ImgPipeline", "StableDiffusionXLAdapterPipeline"),
        ),
        "guided_sdxl",
    ),
    "StableDiffusionXLControlNetUnionPipeline": "united_sdxl",
    "StableDiffusionXLControlNetUnionImg2ImgPipeline": "united_sdxl",
    "StableDiffusionXLControlNetUnionInpaintPipeline": "united_sdxl",
    "StableDiffusionInstructPix2PixPipeline": "pix2pix_sd15",
    "StableDiffusionXLInstructPix2PixPipeline": "pix2pix_sdxl",
    "StableDiffusionUpscalePipeline": "upscaling",
    "StableDiffusionLatentUpscalePipeline": "latent_upscaling",
    "StableDiffusionDepth2ImgPipeline": "depth",
    "StableDiffusionImageVariationPipeline": "variation",
    "StableUnCLIPPipeline": "unclip",
    "StableUnCLIPImg2ImgPipeline": "unclip",
    "AnimateDiffPAGPipeline": "animated",
    "AnimateDiffSparseControlNetPipeline": "animated_sparsely",
    "AnimateDiffSDXLPipeline": "animated_sdxl",
    "IFSuperResolutionPipeline": "finer_pixels",
    "IFImg2ImgSuperResolutionPipeline": "finer_pixels",
    "IFInpaintingSuperResolutionPipeline": "finer_pixels",
    "KandinskyPriorPipeline": "kandinsky22_prior",
    "ZImageOmniPipeline": "z_image_omni",
    "KandinskyV22PriorPipeline": "kandinsky22_prior",
    "KandinskyV22PriorEmb2EmbPipeline": "kandinsky22_prior",
    "KandinskyV22ControlnetPipeline": "kandinsky22_hint",
    "KandinskyV22ControlnetImg2ImgPipeline": "kandinsky22_hint",
    "KandinskyV22InpaintPipeline": "kandinsky22_inpaint",
    "KandinskyV22InpaintCombinedPipeline": "kandinsky22_inpaint",
    "LDMSuperResolutionPipeline": "finer_latents",
    "CogView4ControlPipeline": "cogview4_control",
    "PRXPixelPipeline": "prx_pixel",
    "CogVideoXImageToVideoPipeline": "cogvideox_image",
    "CogVideoXFunControlPipeline": "cogvideox_image",
    "WanPipeline": "wan_pair",
    "WanVideoToVideoPipeline": "wan",
    "HeliosPyramidPipeline": "helios_pyramid",
    "LTX2DFRPipeline": "ltx25",
    "AnyFlowFARPipeline": "anyflow_far",
    "CosmosTextToWorldPipeline": "cosmos",
    "CosmosVideoToWorldPipeline": "cosmos_video",
    "Cosmos2VideoToWorldPipeline": "cosmos2_video",
    "Cosmos2_5_PredictBasePipeline": "cosmos25",
    "HunyuanVideoImageToVideoPipeline": "hunyuan_image_to_video",
    "HunyuanSkyreelsImageToVideoPipeline": "skyreels_hunyuan",
    "HunyuanVideoFramepackPipeline": "framepack",
    "HunyuanVideo15ImageToVideoPipeline": "hunyuan15_image",
    "Kandinsky5T2IPipeline": "kandinsky5_still",
    "Kandinsky5I2VPipeline": "kandinsky5_image",
    "Kandinsky5I2IPipeline": "kandinsky5_edit",
    "SkyReelsV2ImageToVideoPipeline": "skyreels_image",
    "WanAnimatePipeline": "wan_animate",
    "FluxControlNetPipeline": "flux_controlnet",
    "FluxControlNetImg2ImgPipeline": "flux_controlnet",
    "FluxControlNetInpaintPipeline": "flux_controlnet",
    "StableDiffusion3InpaintPipeline": "sd3_inpaint",
    "StableDiffusion3ControlNetInpaintingPipeline": "sd3_controlnet_inpaint",
    "JoyImageEditPlusPipeline": "joyimage_plus",
    **dict.fromkeys(
        ("QwenImageEditPipeline", "QwenImageEditPlusPipeline", "QwenImageEditInpaintPipeline"), "qwen_image_edit"
    ),
    "QwenImageLayeredPipeline": "qwen_image_layered",
    "QwenImageControlNetPipeline": "qwen_image_controlnet",
    "QwenImageControlNetInpaintPipeline": "qwen_image_controlnet_inpaint",
    "SanaControlNetPipeline": "sana_controlnet",
    "SanaSprintPipeline": "sana_sprint",
    "SanaSprintImg2ImgPipeline": "sana_sprint",
    "ZImageControlNetPipeline": "z_image_controlnet",
    "ZImageControlNetInpaintPipeline": "z_image_controlnet_inpaint",
    "WanVACEPipeline": "wan_vace",
    "FluxControlPipeline": "flux_control",
    "FluxControlImg2ImgPipeline": "flux_control",
    "FluxControlInpaintPipeline": "flux_control",
    "FluxFillPipeline": "flux_fill",
    "HunyuanDiTPAGPipeline": "hunyuan_controlnet",
    "PixArtSigmaPAGPipeline": "pixart",
    "SanaPAGPipeline": "sana",
}
SIDE = 32
LARGER = re.compile("Pyramid|ImageOmni|QwenImageEdit|QwenImageLayered|QwenImage21")  # drawn at twice that
MUST = (
    *("WanPipeline", "ZImagePipeline", "LTXPipeline", "QwenImagePipeline", "FluxPipeline", "FluxKontextPipeline"),
    *("Flux2KleinPipeline", "Flux2Pipeline", "ChromaPipeline", "HunyuanVideo15Pipeline", "HunyuanImagePipeline"),
    *("StableDiffusion3Pipeline", "SanaPipeline", "Lumina2Pipeline", "PixArtSigmaPipeline", "CogVideoXPipeline"),
    *("StableDiffusionPipeline", "StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline", "FluxFillPipeline"),
    *("StableDiffusionXLInpaintPipeline", "CogVideoXImageToVideoPipeline", "DiTPipeline", "AnimateDiffPipeline"),
)
"""Classes that are driven whatever happens to others."""
UNDRIVEN = {
    **dict.fromkeys(
        (
            *("Cosmos2TextToImagePipeline", "Cosmos2VideoToWorldPipeline", "Cosmos2_5_PredictBasePipeline"),
            *("Cosmos2_5_TransferPipeline", "Cosmos3OmniPipeline", "CosmosTextToWorldPipeline"),
            "CosmosVideoToWorldPipeline",
        ),
        "needs torchvision, and for its guard cosmos_guardrail, which are not installed",
    ),
    **dict.fromkeys(
        ("LTX2LatentUpsamplePipeline", "LTXLatentUpsamplePipeline", "FluxPriorReduxPipeline"),
        "has no denoiser: its networks run once",
    ),
    **dict.fromkeys(
        ("LTX2VideoDiffusionDecodePipeline", "LTX2DFRTemporalRefinePipeline"),
        "takes latents that another pipeline made, and no prompt alone",
    ),
    "ZImageOmniPipeline": "its call encodes images in bfloat16, whatever the autoencoder computes in",
    "SanaWMPipeline": "takes the path of a camera, which no prompt set has",
    "BriaFiboEditPipeline": "takes instructions as JSON, which no prompt set has",
    "OmniGenPipeline": "its processor needs torchvision, which is not installed",
    "AnyFlowFARPipeline": "its flex attention is compiled, which no call that is followed allows on a CPU",
    "Kandinsky5I2VPipeline": "its call divides by a deviation over frames, which is no number for the few of a test",
    "ChromaInpaintPipeline": "its call reads a key that its transformer's configuration lacks, in diffusers itself",
    **dict.fromkeys(
        (
            *("ConsistencyModelPipeline", "KandinskyPipeline", "KandinskyImg2ImgPipeline", "KandinskyInpaintPipeline"),
            *("KandinskyCombinedPipeline", "KandinskyImg2ImgCombinedPipeline", "KandinskyInpaintCombinedPipeline"),
        ),
        "returns images only, no latents",
    ),
}
"""Classes that are built but cannot be called for latents."""
SLOW = {"JoyImageEditPipeline"}  # images to edit are enlarged to a megapixel: half a minute
UNPUBLISHED = {
    **dict.fromkeys(
        ("Kandinsky5T2I", "Kandinsky5I2I"),
        "it draws at sizes of its own alone, which the test's pipeline has smaller and no folder keeps",
    ),
    "HiDream": "it draws a megapixel whatever it is asked for, unless it is told otherwise, which no folder keeps",
    "ZImageControlNet": "its control network shares layers with the denoiser, which no folder keeps: quantize a "
    "ZImagePipeline, and add the control network when it is open",
    "StableCascade": "diffusers does not find the class of its decoder, which is among deprecated ones",
}
"""Parts of the names of classes that are planned and called, and not written: the reason."""
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


def a_slice(classes: dict[str, type[DiffusionPipeline]]) -> set[str]:
    """Those driven without ``--every-pipeline``: `MUST`, and of each package the one with the shortest name."""
    shortest: dict[str, str] = {}
    for name, kind in classes.items():
        before = shortest.get(package(kind), name)
        shortest[package(kind)] = min(before, name, key=len)
    return {*MUST, *shortest.values()} - SLOW


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
        return shrunk(pipeline)
    raise LookupError(problems[-1])


def shrunk(pipeline: DiffusionPipeline) -> DiffusionPipeline:
    """With smaller sizes, where it draws at some of its own whatever it is asked for."""
    pipeline.set_progress_bar_config(disable=True)
    _limit_area(sys.modules[type(pipeline).__module__])
    if hasattr(pipeline, "resolutions"):
        pipeline.resolutions = [(SIDE, SIDE)]
    if package(type(pipeline)) == "hidream_image":
        pipeline.default_sample_size = SIDE // pipeline.vae_scale_factor
    return pipeline


def _limit_area(module: ModuleType) -> None:
    """Let a pipeline that enlarges what it edits to a megapixel enlarge it less: tiny autoencoders make a token of few
    pixels."""
    enlarge = getattr(module, "calculate_dimensions", None)
    if enlarge is not None and not hasattr(enlarge, "__wrapped__"):
        limited = functools.wraps(enlarge)(lambda area, ratio: enlarge(min(area, (2 * SIDE) ** 2), ratio))
        module.calculate_dimensions = limited  # type: ignore[attr-defined]


def side(pipeline: DiffusionPipeline) -> int:
    """Of the images that tests draw, in pixels."""
    return 2 * SIDE if LARGER.search(type(pipeline).__name__) else SIDE


def _from(kind: type[DiffusionPipeline], parts: dict[str, Any]) -> DiffusionPipeline:
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


def sampling(family: Architecture, pipeline: DiffusionPipeline) -> SamplingConfig:
    pixels = None if family.name == "dit" else side(pipeline)
    return SamplingConfig(2, height=pixels, width=pixels)


def draw(family: Architecture, pipeline: DiffusionPipeline, seed: int = 0, images: str | None = None) -> Any:
    return family.sample(
        pipeline,
        ["7" if family.name == "dit" else "a cat"],
        seeds=[seed],
        sampling=replace(sampling(family, pipeline), images=images),
        output_type="latent",
    )


def latents(drawn: Any) -> list[Tensor]:
    """Of one draw, as a list: some pipelines give one tensor for each section of a video."""
    return [torch.as_tensor(part) for part in drawn] if isinstance(drawn, list) else [torch.as_tensor(drawn)]
