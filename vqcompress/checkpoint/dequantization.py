"""A compressed folder as a dense one, for programs that know nothing of packed layers."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from vqcompress.checkpoint.loading import load
from vqcompress.checkpoint.publication import check_target, publish
from vqcompress.layers import make_dense, vq_layers


def dequantize(
    folder: str | Path, output: str | Path, *, dtype: torch.dtype = torch.float16, overwrite: bool = False
) -> Path:
    """Write the pipeline in ``folder`` to ``output`` with dense weights in ``dtype``, in the layout of its base model.

    Raises `CheckpointError` when ``folder`` is not sound or ``output`` exists and ``overwrite`` is off.
    """
    output = Path(output)
    check_target(output, overwrite)
    pipeline = load(folder, torch_dtype=dtype)
    for component in pipeline.components.values():
        if isinstance(component, nn.Module) and vq_layers(component):
            make_dense(component, dtype)
            component.__dict__.pop("hf_quantizer", None)
    with publish(output, overwrite) as partial:
        pipeline.save_pretrained(partial, safe_serialization=True)
    return output
