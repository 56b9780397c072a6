"""Tokenizers as they are stored: without the traces of their last call."""

from __future__ import annotations

from diffusers import DiffusionPipeline


def forget_last_call(pipeline: DiffusionPipeline) -> None:
    """Clear the truncation and padding that fast tokenizers remember from the last call and write to ``tokenizer.json``.

    Every call sets them anew, so nothing changes but the file, which would else depend on whether a run was stopped
    before or after calibration.
    """
    for part in pipeline.components.values():
        if (backend := getattr(part, "backend_tokenizer", None)) is not None:
            backend.no_truncation()
            backend.no_padding()
