"""Build a whole pipeline around an official denoiser: its class, and the parts that the checkpoint does not have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import nn

from vqcompress.errors import ArchitectureError, first_line
from vqcompress.models.class_pipeline import ClassConditionalPipeline
from vqcompress.models.flag_dit import FlagDiT
from vqcompress.models.lumina_pipeline import LuminaTextPipeline
from vqcompress.models.next_dit import NextDiT
from vqcompress.models.pixart import PixArt
from vqcompress.models.pt_dit import PTDiT
from vqcompress.models.pt_dit_pipeline import PTDiTPipeline


class TextParts(NamedTuple):
    """A tokenizer and the text encoder that reads its tokens, both from transformers."""

    tokenizer: Any
    encoder: Any


@dataclass(frozen=True)
class PipelineParts:
    """The parts of a pipeline other than its denoiser.

    ``vae``: a diffusers AutoencoderKL; without one, a class-conditional model returns latents only. ``text``: tokenizer
    and text encoder of a text-conditional model. ``base``: the pipeline that a LinFusion adapter is mounted on.
    ``id2label``: class ids to names.
    """

    vae: Any = None
    text: TextParts | None = None
    base: DiffusionPipeline | None = None
    id2label: Mapping[int, str] | None = None


def read_vae(folder: str | Path) -> AutoencoderKL:
    """Read the autoencoder in ``folder``, or in ``vae`` of a pipeline's folder.

    Raises ArchitectureError if it cannot be read.
    """
    place = _part(Path(folder), "vae")
    try:
        return AutoencoderKL.from_pretrained(str(place), use_safetensors=True, local_files_only=True).eval()
    except (OSError, ValueError) as error:
        raise _unreadable(place, "a diffusers AutoencoderKL", error) from error


def read_text(folder: str | Path) -> TextParts:
    """Read tokenizer and text encoder in ``folder``, or in ``tokenizer`` and ``text_encoder`` of a pipeline's folder.

    Only the encoder of a T5 is read; the pipelines need no more. Raises ArchitectureError if they cannot be read.
    """
    from transformers import AutoConfig, AutoModel, AutoTokenizer, T5EncoderModel

    place = _part(Path(folder), "text_encoder")
    try:
        is_t5 = AutoConfig.from_pretrained(str(place), local_files_only=True).model_type == "t5"
        kind = T5EncoderModel if is_t5 else AutoModel
        encoder = kind.from_pretrained(str(place), dtype="auto", use_safetensors=True, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(str(_part(Path(folder), "tokenizer")), local_files_only=True)
    except (OSError, ValueError) as error:
        raise _unreadable(place, "a transformers model with its tokenizer", error) from error
    return TextParts(tokenizer, encoder.eval())


def pipeline_around(network: nn.Module, parts: PipelineParts) -> DiffusionPipeline:
    """Build the pipeline with denoiser ``network`` (see `models.from_official`) and the sampler it was trained for.

    Class-conditional networks need no other parts (without a VAE they return latents). Text-conditional networks need
    ``text`` and ``vae``. Raises ArchitectureError if a part is missing.
    """
    if "num_classes" in getattr(network, "config", {}):
        return ClassConditionalPipeline.with_defaults(
            network, parts.vae, dict(parts.id2label) if parts.id2label else None
        )
    if parts.text is None or parts.vae is None:
        raise ArchitectureError(
            f"{type(network).__name__} is conditioned on text: a checkpoint of its denoiser alone makes no pipeline. "
            "Give its text encoder and VAE too (--text-encoder and --vae, folders of their own or of a pipeline that "
            "has them)"
        )
    return _text_pipeline(network, parts.text, parts.vae)


def _text_pipeline(network: nn.Module, text: TextParts, vae: Any) -> DiffusionPipeline:
    if isinstance(network, PixArt):
        return _pixart(network, text, vae)
    if isinstance(network, FlagDiT | NextDiT):
        return LuminaTextPipeline(*text, network, vae)
    if isinstance(network, PTDiT):
        return PTDiTPipeline(*text, network, vae)
    raise ArchitectureError(f"{type(network).__name__} has no pipeline here; see vqcompress.models.from_official")


def _pixart(network: PixArt, text: TextParts, vae: Any) -> DiffusionPipeline:
    from diffusers import DPMSolverMultistepScheduler, PixArtAlphaPipeline

    if network.mlp_ratio != 4:
        raise ArchitectureError(
            f"diffusers saves PixArt with MLPs four times as wide as the tokens; mlp_ratio={network.mlp_ratio} has no "
            "pipeline"
        )
    scheduler = DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear")
    return PixArtAlphaPipeline(text.tokenizer, text.encoder, vae, network.transformer, scheduler)


def _part(folder: Path, name: str) -> Path:
    return folder / name if (folder / name).is_dir() else folder


def _unreadable(place: Path, what: str, error: Exception) -> ArchitectureError:
    reason = first_line(error)
    return ArchitectureError(f"{place} cannot be read as {what} stored as safetensors: {reason}")
