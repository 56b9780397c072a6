"""Whether the errors of an encoded weight are those that its source model promised, and what to try where they are not.

A code that fits leaves the distortion of its rate times the energy of what it encodes. Sums over the columns show to a
few per cent whether it does: measured on trained networks, the ratio is .9 to 1.1. Where weights or targets lie beyond
the code's range it is two and more, in all or in single outputs whose share of the sum is too small to show.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor

from vqcompress.formats.rotation import rotation_block
from vqcompress.quantizers.scales import SCALE_BITS
from vqcompress.quantizers.source_model import LEAST_BLOCK, LITTLE, SourceModel, SourceOptions, drowns_outputs

MOST_IN_ALL = 1.25  # times what was promised
MOST_IN_AN_OUTPUT = 6.0
CHANCE = 4.0  # standard deviations of a sum of squares, about
HEAVIER_TAIL = 0.15


def keeps_promise(costs: Tensor, promised: Tensor, columns: int) -> bool:
    """Whether ``costs [out]`` of the outputs' errors, and their sum, are near those ``promised [out]``.

    They are sums over so many ``columns``: those of few vary by chance.
    """
    chance = 1 + CHANCE / columns**0.5
    if bool(costs.sum() > MOST_IN_ALL * chance * promised.sum()):
        return False
    return bool((costs <= MOST_IN_AN_OUTPUT * chance * promised + 1e-3 * promised.mean()).all())


def other_models(model: SourceModel, options: SourceOptions, weight: Tensor) -> Iterator[SourceModel]:
    """What to try in place of ``model`` for ``weight [out, columns]``, within ``options``, the most likely first.

    A rotation mixes outputs, so that nothing is far out of range; a heavier tail reaches further.
    """
    outputs, columns = weight.shape
    block = rotation_block(outputs) if outputs > 1 and not drowns_outputs(weight) else 0
    if options.rotation == "auto" and not model.rotation and block >= LEAST_BLOCK:
        yield SourceModel(0.0 if options.tail == "auto" else float(options.tail), False, block)
    if options.tail == "auto":
        yield replace(model, tail=round(model.tail + HEAVIER_TAIL, 3))
    if options.row_scales == "auto" and not model.row_scales and SCALE_BITS / columns <= LITTLE:
        yield replace(model, row_scales=True)
