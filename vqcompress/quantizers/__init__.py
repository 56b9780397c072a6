"""Quantizers: ``(weight, second moment, settings) -> QuantizedWeight``. Pure maths: no modules, no files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqcompress.errors import CalibrationError, RecipeError, UnfitWeightError
from vqcompress.matrix_view import to_matrix
from vqcompress.methods import DEFAULT_METHOD, METHODS
from vqcompress.moments.second_moment import SecondMoment, all_finite
from vqcompress.near_misses import did_you_mean
from vqcompress.quantized_weight import QuantizedWeight
from vqcompress.quantizers.additive import AdditiveSettings
from vqcompress.quantizers.gptq import GPTQSettings
from vqcompress.quantizers.kmeans import KMeansSettings
from vqcompress.quantizers.quantizer import Quantizer, quantizer_of
from vqcompress.quantizers.rtn import RTNSettings
from vqcompress.quantizers.scalar_fallback import better_of
from vqcompress.quantizers.trellis import TrellisSettings

MIN_BITS, MAX_BITS = 1.0, 8.0
OLD_NAMES = {"gains": "column_scales", "polish": "coordinate_descent"}  # of settings, in recipes written before


def quantize_weight(
    weight: Tensor | np.ndarray,
    second_moment: Tensor | np.ndarray | SecondMoment | None = None,
    *,
    method: str = DEFAULT_METHOD,
    bits: float = 3.0,
    seed: int = 0,
    settings: Mapping[str, Any] | object | None = None,
    shared_codebooks: Tensor | None = None,
    output_moment: Tensor | None = None,
) -> QuantizedWeight:
    """Quantize one weight, ``[out, in]`` or ``[out, in, kh, kw]``, any float dtype, a tensor or a numpy array.

    - ``second_moment``: ``E[x xᵀ]`` of the layer's input in the column order of `vqcompress.matrix_view`, as a tensor
      ``[columns, columns]`` or a `SecondMoment`; ``None`` for the identity.
    - ``bits``: budget in bits a weight.
    - ``settings``: a mapping with settings of the method, or its settings dataclass; its defaults if ``None``.
    - ``shared_codebooks``: codebooks that the component stores once for all its layers; refused by methods that have
      none.
    - ``output_moment [out, out]``: ``E[g gᵀ]`` of a loss's gradients in the outputs, which says what their errors cost
      together. The objective is then ``tr(G E H Eᵀ)``; refused by methods without ``output_feedback``.

    A vector code gives way to a scalar one that has less error in no more bytes (`quantizers.scalar_fallback`), but not
    with shared codebooks or an output moment. The same arguments give the same bytes on one machine. Raises
    `RecipeError`, `CalibrationError` and, for a weight that should stay dense, `UnfitWeightError`.
    """
    chosen = quantizer_of(method)
    _check_bits(method, bits)
    weight = _tensor(weight, "a weight")
    if not isinstance(second_moment, SecondMoment | None):
        second_moment = _tensor(second_moment, "a second moment")
    if settings is None or isinstance(settings, Mapping):
        settings = settings_for(method, settings or {})
    if not isinstance(settings, chosen.settings):
        raise RecipeError(f"method {method!r} takes {chosen.settings.__name__}, not {type(settings).__name__}")
    matrix = _checked_matrix(weight)
    _check_range(matrix, bits)
    moment = None if second_moment is None else _checked_moment(SecondMoment.of(second_moment), matrix.shape[1])
    if output_moment is not None:
        if not METHODS[method].output_feedback:
            raise RecipeError(f"method {method!r} encodes each output by itself; leave output_moment out")
        output_moment = _checked_output_moment(output_moment, len(matrix))
        spec, tensors = chosen.quantize(matrix, moment, settings, float(bits), seed, output_moment=output_moment)
        return QuantizedWeight(spec, tuple(weight.shape), tensors)
    if shared_codebooks is None:
        packed = chosen.quantize(matrix, moment, settings, float(bits), seed)
        if METHODS[method].family == "vector":
            packed = better_of(packed, matrix, moment, float(bits))
        return QuantizedWeight(packed[0], tuple(weight.shape), packed[1])
    if chosen.learn_codebooks is None:
        raise RecipeError(f"method {method!r} has no codebooks to share; leave shared_codebooks out")
    spec, tensors = chosen.quantize(matrix, moment, settings, float(bits), seed, shared_codebooks)
    return QuantizedWeight(spec, tuple(weight.shape), tensors, {"codebooks": shared_codebooks})


def settings_for(method: str, values: Mapping[str, Any]) -> Any:
    """The settings of ``method`` with ``values`` in place of defaults; `OLD_NAMES` are accepted.

    Raises `RecipeError` for an unknown name or value.
    """
    kind = quantizer_of(method).settings
    known = [field.name for field in fields(kind)]
    renamed: dict[str, Any] = {}
    for given, value in values.items():
        name = OLD_NAMES[given] if OLD_NAMES.get(given) in known else given
        if name not in known:
            meant = did_you_mean(given, known) or f"; it has {', '.join(known[:5])}, …"
            raise RecipeError(f"unknown setting {given!r} of method {method!r}{meant}")
        if name in renamed:
            raise RecipeError(f"setting {name!r} of method {method!r} is given by its old name as well; give it once")
        renamed[name] = value
    return kind(**renamed)


def _check_bits(method: str, bits: float) -> None:
    if not MIN_BITS <= bits <= MAX_BITS:  # NaN fails this too
        raise RecipeError(f"bits={bits} is out of range; give a number from {MIN_BITS:g} to {MAX_BITS:g}")
    if METHODS[method].whole_bits and bits != int(bits):
        raise RecipeError(f"method {method!r} takes a whole number of bits, not {bits}; {DEFAULT_METHOD!r} takes any")


def _tensor(given: Any, what: str) -> Tensor:
    """A tensor as it is, and the tensor of a numpy array of numbers. Raises `RecipeError` for anything else."""
    if isinstance(given, Tensor):
        return given
    if isinstance(given, np.ndarray) and np.issubdtype(given.dtype, np.floating):
        return torch.from_numpy(np.ascontiguousarray(given))
    kind = f"an array of {given.dtype}" if isinstance(given, np.ndarray) else type(given).__name__
    raise RecipeError(f"{what} is a tensor or a numpy array of floating-point numbers, not {kind}")


def _checked_matrix(weight: Tensor) -> Tensor:
    matrix = to_matrix(weight).detach().float()
    if matrix.numel() == 0:
        raise RecipeError(f"a weight of shape {tuple(weight.shape)} is empty: nothing to quantize, keep it dense")
    if not torch.isfinite(matrix).all():
        raise RecipeError(
            f"a weight of shape {tuple(weight.shape)} holds {int((~torch.isfinite(matrix)).sum())} NaN or infinite "
            "values; the checkpoint is damaged or overflowed in float16: load it in float32 or fetch it again"
        )
    return matrix


def _check_range(matrix: Tensor, bits: float) -> None:
    """Raises `UnfitWeightError` where rounding a scale to float16 would cost more than the code's own error.

    Float16's smallest values are ``2**-24`` apart. A scale near the weights' RMS ``s`` is off by up to ``2**-25 / s``
    of itself, and an ideal code of R bits by ``2**-R``: half of that is allowed.
    """
    rms = float(matrix.double().square().mean().sqrt())
    if 0 < rms < 2.0 ** (bits - 24):
        raise UnfitWeightError(
            f"weights of {rms:.2g} in the mean are too small for float16 scales at {bits:g} bits; keep this layer "
            "dense or rescale it"
        )


def _checked_moment(moment: SecondMoment, columns: int) -> SecondMoment:
    if moment.shape != (columns, columns):
        raise CalibrationError(
            f"a second moment of shape {moment.shape} does not fit a weight of {columns} columns; it must be "
            f"[{columns}, {columns}], in the column order of vqcompress.matrix_view"
        )
    if not moment.is_finite():
        raise CalibrationError(
            "a second moment holds NaN or infinite values; the activations it was recorded from overflowed: record "
            "again in float32 or bfloat16"
        )
    return moment


def _checked_output_moment(moment: Tensor, outputs: int) -> Tensor:
    if moment.shape != (outputs, outputs):
        raise CalibrationError(
            f"an output moment of shape {tuple(moment.shape)} does not fit a weight of {outputs} outputs; it must be "
            f"[{outputs}, {outputs}]"
        )
    if not all_finite(moment) or (moment.diagonal() < 0).any():
        raise CalibrationError(
            "an output moment holds NaN, infinite or negative diagonal values; the gradients that it was made of "
            "overflowed: take them in float32"
        )
    return moment.detach()


__all__ = [
    "AdditiveSettings",
    "GPTQSettings",
    "KMeansSettings",
    "Quantizer",
    "RTNSettings",
    "SecondMoment",
    "TrellisSettings",
    "quantize_weight",
    "quantizer_of",
    "settings_for",
]
