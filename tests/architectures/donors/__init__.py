"""Tiny components of every family; the pipelines of a family are built from one donor's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tests.architectures import tiny_pipelines
from tests.architectures.donors import controls, images, popular, unets, videos, vision_language
from tests.architectures.donors.parts import Components


def of(build: Callable[[], Any]) -> Callable[[], Components]:
    return lambda: dict(build().components)


DONORS: dict[str, Callable[[], Components]] = {
    **{name: of(build) for name, build in tiny_pipelines.TINY.items()},
    **popular.DONORS,
    **images.DONORS,
    **unets.DONORS,
    **videos.DONORS,
    **controls.DONORS,
    **vision_language.DONORS,
}
"""Name -> components with random weights, by their names in a pipeline."""


@torch.no_grad()
def components(name: str) -> Components:
    """A donor's components, the same at every call."""
    torch.manual_seed(0)
    parts = DONORS[name]()
    for part in parts.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    return parts
