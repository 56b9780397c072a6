"""Which matrices of a component are quantized, which stay dense, and why."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from vqcompress.errors import RecipeError
from vqcompress.expert_stacks import expert_shapes, stacks
from vqcompress.matrix_view import is_quantizable

MIN_WEIGHTS = 1024  # in smaller weights, scales alone take a sizeable part of a bit per weight

# Reasons that several families share.
ONE_SAMPLE_PER_TIMESTEP = (
    "sees one row per image and timestep, not one per position: its input's second moment has as few "
    "directions as there are timesteps"
)
LATENT_INPUT = "reads the bare latents through few columns; small, and every later layer depends on it"
FINAL = "writes the estimate itself: nothing after it can absorb an error; small"

IgnoreRules = Mapping[str, str]
"""Regular expression searched in a layer's name -> reason why the layer stays dense. The first match counts."""

Rules = list[tuple[re.Pattern[str], str]]


@dataclass(frozen=True)
class LayerPlan:
    """One weight of two or more dimensions.

    ``name`` is the layer's module name inside its component, or the parameter's name for a bare parameter. ``reason``
    is why it stays dense, or None if it is to be quantized. ``shape`` is the dense weight's shape.
    """

    name: str
    reason: str | None
    shape: tuple[int, ...] = ()


def plan_layers(component: nn.Module, ignore: IgnoreRules) -> list[LayerPlan]:
    """A plan for every matrix of ``component``, in the order in which its modules were registered.

    Embeddings, tables and bare parameters are listed too, with the reason why they stay dense. Experts in a stack
    (`expert_stacks`) are listed one by one, whether it is taken apart or not. Raises `RecipeError` for a pattern that
    is not a valid regular expression.
    """
    rules = [(_compiled(pattern), reason) for pattern, reason in ignore.items()]
    # A layer registered under several names is counted and planned once. A weight in several layers is tied.
    owners = Counter(id(weight) for module in component.modules() for weight in module.parameters(recurse=False))
    stacked = {name for name, _, _ in stacks(component)}
    plans: list[LayerPlan] = []
    for name, module, parameter in _matrices(component):
        if module is None and name in stacked:
            plans += _experts(name, parameter, rules)
        else:
            reason = _reason(name, module, parameter, owners[id(parameter)] > 1, rules)
            plans.append(LayerPlan(name, reason, tuple(parameter.shape)))
    return plans


def _experts(stack: str, weight: nn.Parameter, rules: Rules) -> list[LayerPlan]:
    return [
        LayerPlan(f"{stack}.{number}", _small(shape) or _ignored(f"{stack}.{number}", rules), shape)
        for number, shape in enumerate(expert_shapes(weight))
    ]


def _matrices(component: nn.Module) -> Iterator[tuple[str, nn.Module | None, nn.Parameter]]:
    """(name, module or None for a bare parameter, parameter) of each parameter with two or more dimensions."""
    for module_name, module in component.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            if parameter.ndim < 2:
                continue
            if key == "weight":
                yield module_name, module, parameter
            else:
                yield f"{module_name}.{key}".lstrip("."), None, parameter


def _reason(name: str, module: nn.Module | None, weight: nn.Parameter, tied: bool, rules: Rules) -> str | None:
    if module is None and weight.ndim == 3 and "expert" in name:
        return f"a bare parameter of {len(weight)} stacked experts, in a class whose products are not known"
    if module is None:
        return "a bare parameter, not the weight of a Linear or Conv2d"
    if isinstance(module, nn.Conv2d) and module.groups != 1:
        return f"a grouped convolution ({module.groups} groups) has no single matrix"
    if not is_quantizable(module):
        return f"{type(module).__name__} is neither a Linear nor a Conv2d"
    if not weight.is_floating_point():
        return f"already quantized ({str(weight.dtype).removeprefix('torch.')})"
    if tied:
        return "shares its weight with another layer"
    return _small(tuple(weight.shape)) or _ignored(name, rules)


def _small(shape: tuple[int, ...]) -> str | None:
    size = math.prod(shape)
    return f"only {size} weights: scales and codebooks would outweigh the codes" if size < MIN_WEIGHTS else None


def _ignored(name: str, rules: Rules) -> str | None:
    return next((reason for pattern, reason in rules if pattern.search(name)), None)


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise RecipeError(f"ignore: {pattern!r} is not a regular expression: {error}") from None
