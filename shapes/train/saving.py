"""Save a pipeline as a diffusers folder of float16 safetensors."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from vqcompress.shapes.train.tokenizer import write_slow_files


def save_pipeline(folder: Path, vae, unet, text_encoders, tokenizer, scheduler) -> None:
    """Save as `StableDiffusionXLPipeline` to ``folder``; an existing one is replaced by rename."""
    from diffusers import StableDiffusionXLPipeline

    vae, unet, first, second = (_half(module) for module in (vae, unet, *text_encoders))
    pipe = StableDiffusionXLPipeline(
        vae, first, second, tokenizer, tokenizer, unet, scheduler,
        force_zeros_for_empty_prompt=False,  # the unconditional branch is the empty caption, as in training
        add_watermarker=False,
    )  # fmt: skip
    _write(pipe, folder, tokenizer)


def save_transformer_pipeline(folder: Path, vae, transformer, text_encoders, tokenizer, scheduler) -> None:
    """Save as `ClipPixArtPipeline` to ``folder``; an existing one is replaced by rename."""
    from vqcompress.models.clip_pixart_pipeline import ClipPixArtPipeline

    vae, transformer, first, second = (_half(module) for module in (vae, transformer, *text_encoders))
    _write(ClipPixArtPipeline(tokenizer, first, second, transformer, scheduler, vae), folder, tokenizer)


def save_class_pipeline(folder: Path, vae, transformer, class_names: Sequence[str], guidance: float) -> None:
    """Save as `ClassConditionalPipeline` to ``folder``; an existing one is replaced by rename."""
    from vqcompress.models.class_pipeline import ClassConditionalPipeline

    names = dict(enumerate(class_names))
    pipe = ClassConditionalPipeline.with_defaults(_half(transformer), _half(vae), names, guidance)
    _write(pipe, folder)


def _write(pipe, folder: Path, tokenizer=None) -> None:
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    pipe.save_pretrained(part, safe_serialization=True)
    for place in part.glob("tokenizer*"):
        write_slow_files(tokenizer, place)
    _swap(part, folder)


def _half(module: torch.nn.Module) -> torch.nn.Module:
    return copy.deepcopy(module).half().eval()


def _swap(part: Path, folder: Path) -> None:
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    part.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
