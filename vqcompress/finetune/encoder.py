"""A weight encoded in the metric of the loss."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from vqcompress.errors import RecipeError
from vqcompress.finetune.curvature import LossMoment
from vqcompress.methods import METHODS
from vqcompress.quantized_weight import QuantizedWeight
from vqcompress.quantizers import quantize_weight, settings_for
from vqcompress.recipe import Recipe

Encode = Callable[[Tensor, LossMoment, QuantizedWeight], QuantizedWeight]
"""``(weight, its moments, packed so far)`` -> packed anew, in no more bytes; as it was, if it is too small for that."""


def loss_encoder(recipe: Recipe, tries: int = 2) -> Encode:
    """Encodes by the recipe's method and settings; methods that know nothing of outputs go by ``inputs`` alone.

    Of ``tries`` codes of different seeds the best is kept: luck is worth a few percent of the error.
    """
    method, settings = METHODS[recipe.method], settings_for(recipe.method, recipe.settings)
    tries = 1 if method.whole_bits else tries  # scalar codes have nothing to draw

    def encode(weight: Tensor, moment: LossMoment, before: QuantizedWeight) -> QuantizedWeight:
        bits = getattr(before.spec, "bits", recipe.bits) if method.whole_bits else before.bits_per_weight
        try:
            found = [
                quantize_weight(
                    weight, moment.inputs, method=recipe.method, bits=bits, seed=recipe.seed + place, settings=settings,
                    shared_codebooks=before.shared.get("codebooks"),
                    output_moment=moment.outputs if method.output_feedback else None,
                )
                for place in range(tries)
            ]  # fmt: skip
        except RecipeError:  # too small for what it has: dealing out can leave a layer less than anybody may ask for
            return before
        return min(found, key=lambda fresh: moment.cost(fresh.decode() - weight))

    return encode
