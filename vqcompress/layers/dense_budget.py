"""One setting for a model or a pipeline: how many bytes of decoded weights it may keep between calls."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from torch import nn

from vqcompress.errors import RecipeError
from vqcompress.kernels.decode_cost import decode_nanoseconds
from vqcompress.kernels.precision import product_dtype
from vqcompress.kernels.weight_source import EVERYTHING, DenseBudget, WeightSource
from vqcompress.layers.packed import PackedLayer

UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}
DENOISERS = ("unet", "transformer")
"""Components, by how their names begin, that run in every step; the others run once an image."""


def set_dense_budget(model: Any, budget: str | int | None) -> DenseBudget:
    """Let ``model``, a module or a pipeline, keep decoded weights of packed layers between calls.

    ``budget`` is a number of bytes, a text such as ``"4GB"`` (1e9 bytes each) or ``"800 MiB"``, ``"all"``, or 0 or
    ``None`` for nothing. Outputs stay the same, bit for bit. Where not all fit, a pipeline's denoiser comes before
    components that run once an image, and among its layers those with most time of decoding for each byte kept.

    Weights are decoded and kept at a layer's first call, in the dtype and on the device of that call. They are freed
    when the layer is moved or cast, when one of its tensors changes, and by a new budget, which replaces this one.
    Products of a few samples that read the codes, calls that need gradients and compiled ones decode as always.

    Returns the budget, whose ``str`` says what it holds. Raises `RecipeError` for another text or a negative number.
    """
    made = DenseBudget(parse_budget(budget))
    for component in _components(model):
        layers, each = [m for m in component.modules() if isinstance(m, PackedLayer)], _item_bytes(component)
        for layer in sorted(layers, key=_worth, reverse=True):
            layer.take_weight_from(None)
            size = math.prod(layer.dense_shape) * each
            if made.planned + size <= made.limit:
                layer.take_weight_from(WeightSource(made))
                made.planned, made.layers = made.planned + size, made.layers + 1
    return made


def parse_budget(budget: str | int | None) -> int:
    """Bytes. Raises `RecipeError` for what is none."""
    if isinstance(budget, str):
        if budget.strip().lower() == "all":
            return EVERYTHING
        found = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([a-zA-Z]*)\s*", budget)
        if found and (unit := UNITS.get(found[2].upper())) is not None:
            return min(int(float(found[1]) * unit), EVERYTHING)
    elif budget is None or (type(budget) is int and budget >= 0):
        return min(budget or 0, EVERYTHING)
    raise RecipeError(f"a dense budget of {budget!r}; give a size such as 4GB or 800MB, all, or 0")


def _components(model: Any) -> Iterator[nn.Module]:
    """Those that run in every step first."""
    if isinstance(model, nn.Module):
        yield model
        return
    parts = {name: part for name, part in model.components.items() if isinstance(part, nn.Module)}
    first = [name for name in parts if name.startswith(DENOISERS)]
    yield from (parts[name] for name in (*first, *(name for name in parts if name not in first)))


def denoisers(model: Any) -> list[nn.Module]:
    """``model`` if it is a module, or the components of a pipeline that run in every step."""
    if isinstance(model, nn.Module):
        return [model]
    parts = ((name, part) for name, part in model.components.items() if isinstance(part, nn.Module))
    return [part for name, part in parts if name.startswith(DENOISERS)]


def _worth(layer: PackedLayer) -> float:
    """Time of decoding for each weight that is kept."""
    return decode_nanoseconds(layer.spec, layer.dense_shape) / max(1, math.prod(layer.dense_shape))


def _item_bytes(component: nn.Module) -> int:
    """Bytes of a decoded number: of the packed layers' biases, or else of the other layers' parameters."""
    packed = [module for module in component.modules() if isinstance(module, PackedLayer)]
    own = {id(parameter) for layer in packed for parameter in layer._parameters.values()}
    biases = [layer.bias for layer in packed if layer.bias is not None]
    others = (parameter for parameter in component.parameters() if id(parameter) not in own)
    found = next((p for p in chain(biases, others) if p.is_floating_point()), None)
    dtype, device = (torch.get_default_dtype(), "cpu") if found is None else (found.dtype, found.device)
    return product_dtype(dtype, torch.device(device)).itemsize
