"""A network with errors in its weights, while the weights stay as they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


def response(layer: nn.Module, weight: Tensor, x: Tensor) -> Tensor:
    """What ``layer``, linear or a convolution, would give with ``weight [n, …]`` in place of its own and no bias."""
    weight = weight.to(x)
    return layer._conv_forward(x, weight, None) if isinstance(layer, nn.Conv2d) else F.linear(x, weight)


def flat_response(layer: nn.Module, weight: Tensor, x: Tensor) -> Tensor:
    """`response` as float32 ``[samples, n]``."""
    out = response(layer, weight, x)
    out = out.movedim(1, -1) if isinstance(layer, nn.Conv2d) else out
    return out.reshape(-1, out.shape[-1]).float()


@contextmanager
def weight_errors(network: nn.Module, errors: Mapping[str, Tensor], factors: Mapping[str, float]) -> Iterator[None]:
    """Inside the block ``network`` computes as if ``factors[layer] * errors[layer]`` were added to the weight of every
    layer that has a factor above 0."""
    with ExitStack() as hooks:
        for name, factor in factors.items():
            if factor:
                hook = _adding(errors[name], factor)
                hooks.callback(network.get_submodule(name).register_forward_hook(hook).remove)
        yield


def _adding(error: Tensor, factor: float) -> Any:
    def hook(layer: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
        return output + factor * response(layer, error, arguments[0])

    return hook
