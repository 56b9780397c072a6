"""What fine-tuning may have changed, as plain tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def tensors_of(component: nn.Module) -> dict[str, Tensor]:
    """Every floating-point tensor of a settled component: what fine-tuning may have changed."""
    return {name: p.detach() for name, p in component.named_parameters() if p.is_floating_point()}


@torch.no_grad()
def put_tensors(component: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `tensors_of`, into a component that was widened the same way."""
    for name, parameter in component.named_parameters():
        if name in tensors:
            parameter.copy_(tensors[name])
