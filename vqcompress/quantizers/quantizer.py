"""What a method's module provides, and how it is found from its row in `vqcompress.methods`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

from torch import Tensor

from vqcompress.errors import RecipeError
from vqcompress.formats import FormatSpec
from vqcompress.methods import METHODS
from vqcompress.quantizers.scales import mean_energy


@dataclass(frozen=True)
class Quantizer:
    """The functions of one method; its traits as data are in `vqcompress.methods`.

    ``quantize`` is ``(weight [out, columns] float32, SecondMoment | None, settings, bits, seed) -> (spec, tensors)``;
    that of a method with ``output_feedback`` also takes ``output_moment=``. ``settings`` is a dataclass.

    Methods with ``learn_codebooks``, ``(weights, settings, seed, bits) -> float16 [M, 2**b, d]``, may share codebooks
    between layers: their ``quantize`` takes such codebooks (or ``None``) as a last argument, and ``codebook_shape``,
    ``(settings, bits) -> (M, 2**b, d)``, tells their size beforehand. ``energy``, ``(weight, settings) -> [columns]``,
    is the mean square that the code has to span in each column. ``check`` raises `RecipeError` where settings ask for
    what this machine does not have.
    """

    quantize: Callable[..., tuple[FormatSpec, dict[str, Tensor]]]
    settings: type
    learn_codebooks: Callable[[Iterable[Tensor], Any, int, float], Tensor] | None = None
    codebook_shape: Callable[[Any, float], tuple[int, int, int]] | None = None
    energy: Callable[[Tensor, Any], Tensor] = mean_energy
    check: Callable[[Any], None] = lambda settings: None


@cache
def quantizer_of(method: str) -> Quantizer:
    """The quantizer of ``method``, imported on first use. Raises `RecipeError` for an unknown name."""
    if method not in METHODS:
        raise RecipeError(f"unknown method {method!r}; there are {', '.join(METHODS)}")
    module, _, attribute = METHODS[method].quantizer.partition(":")
    return getattr(import_module(module), attribute)
