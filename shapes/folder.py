"""Write a complete pipeline as an ordinary diffusers folder of float16 safetensors."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import torch

from vqcompress.shapes.tokenizer import write_slow_files


def save_pipeline(folder: Path, vae, unet, text_encoders, tokenizer, scheduler) -> None:
    """Save as `StableDiffusionXLPipeline` to `folder`; an older folder is replaced by rename."""
    from diffusers import StableDiffusionXLPipeline

    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    vae, unet, first, second = (_half(module) for module in (vae, unet, *text_encoders))
    pipe = StableDiffusionXLPipeline(
        vae, first, second, tokenizer, tokenizer, unet, scheduler,
        force_zeros_for_empty_prompt=False,  # unconditional means the empty caption, as in training
        add_watermarker=False,
    )  # fmt: skip
    pipe.save_pretrained(part, safe_serialization=True)
    for name in ("tokenizer", "tokenizer_2"):
        write_slow_files(tokenizer, part / name)
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
