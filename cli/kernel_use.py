"""The kernels that a folder's packed layers use on this machine, for `vqcompress inspect`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

SAMPLES = {"few rows": 1, "many rows": 1024}
"""Key in the JSON -> samples (rows of activations) in a call."""
Use = dict[str, dict[str, Any]]
"""Key of `SAMPLES` -> kernel, why, refused (kernels that come earlier in the table -> reason)."""


def kernel_use(folder: Path) -> tuple[str, dict[str, dict[str, Use]]]:
    """The device, and component -> layer -> `Use`. Half precision is assumed on a GPU, float32 elsewhere."""
    import torch

    from vqcompress.component_files import components
    from vqcompress.layers.description import layer_specs

    device = "cuda" if torch.cuda.is_available() else "cpu"
    packed = {part.name: part.description for part in components(folder) if part.description is not None}
    return device, {
        name: {layer: _use(spec, shape, device) for layer, (spec, shape) in layer_specs(description).items()}
        for name, description in packed.items()
    }


def _use(spec: Any, shape: tuple[int, ...], device: str) -> Use:
    import torch

    from vqcompress.kernels import kernel_choice

    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    choices = {label: kernel_choice(spec, shape, samples, device, dtype) for label, samples in SAMPLES.items()}
    return {
        label: {"kernel": choice.name, "why": choice.purpose, "refused": choice.refused}
        for label, choice in choices.items()
    }


def kernel_lines(device: str, layers: dict[str, Use]) -> list[str]:
    """For people: how many layers use which kernel, what it is for, and why the kernels before it do not run.

    What a layer's scales, rotation or outliers add to its kernel's work is in the JSON alone.
    """
    lines = []
    for label, samples in SAMPLES.items():
        uses = Counter((use[label]["kernel"], use[label]["why"].partition("; ")[0]) for use in layers.values())
        for (kernel, why), count in uses.most_common():
            noun = "sample" if samples == 1 else "samples"
            lines.append(f"    {samples} {noun} on {device}: {_layers(count)} {kernel} ({why})")
    reasons = Counter(
        f"{kernel}: {reason}"
        for use in layers.values()
        for kernel, reason in use["few rows"]["refused"].items()  # with one sample, none is refused for too many
    )
    lines += [
        f"    not used: {reason} ({count} {'layer' if count == 1 else 'layers'})"
        for reason, count in reasons.most_common(3)
    ]
    return lines


def _layers(count: int) -> str:
    return "1 layer uses" if count == 1 else f"{count} layers use"
