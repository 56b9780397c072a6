"""What each compressed component costs by itself, where a variant has several."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor

from vqcompress.architectures import Architecture
from vqcompress.metrics import image_fidelity
from vqcompress.report.comparison import ComponentCost
from vqcompress.report.drawing import Sampling, draw

IMAGES = 12  # drawn anew for every component


def component_costs(
    original: Any,
    variant: Any,
    architecture: Architecture,
    sampling: Sampling,
    images: Tensor,
    parts: Mapping[str, Mapping[str, Any]],
    progress: Callable[[int, int], None],
) -> tuple[ComponentCost, ...]:
    """Image fidelity with one component of ``variant`` at a time in ``original``; none for a variant with only one.

    ``images`` are the original's under ``sampling``; ``parts`` is what `inspect` says of the variant's components.
    """
    if len(parts) < 2:
        return ()
    few = replace(sampling, prompts=sampling.prompts[:IMAGES])
    costs = []
    for done, (name, part) in enumerate(parts.items()):
        with _exchanged(original, name, getattr(variant, name)):
            drawn, _ = draw(original, architecture, few, lambda *_: None)
        found = image_fidelity(drawn, images[: len(drawn)])
        bits = part["component_bits_per_weight"]
        costs.append(ComponentCost(name, bits, part["bytes"], found["psnr"], found["ssim"]))
        progress(done + 1, len(parts))
    return tuple(costs)


@contextmanager
def _exchanged(pipeline: Any, name: str, component: Any) -> Iterator[None]:
    before = getattr(pipeline, name)
    setattr(pipeline, name, component)
    try:
        yield
    finally:
        setattr(pipeline, name, before)
