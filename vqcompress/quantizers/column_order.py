"""An order of columns in which whole steps of rate fit.

Reverse water-filling asks for a rate of ``log2(P_j / θ) / 2`` bits in the column of pivot ``P_j``, and codes have
multiples of half a bit: rounding costs .014 bit a weight on average, .057 with whole bits. The order in which columns
are coded is free, as decoding does not know it. Exchanging two neighbours in it keeps the product of their pivots and
moves the two apart or together, by as much as they are correlated. So columns are exchanged until more of them ask for
a rate that there is. What stays as it is, roughly, is the course of the whole order, from strong inputs to weak ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

SWEEPS = 200  # past all neighbours; most layers need fewer
BISECTIONS = 50


def price_of_a_bit(costs: Tensor, bits: float, distortions: Mapping[float, float]) -> float:
    """The price at which columns that each take their cheapest rate have ``bits`` bits a weight.

    ``costs [columns]`` are those at rate 0; ``distortions`` maps rates in bits to the share of them that is left.
    """
    rates = torch.tensor(sorted(distortions), dtype=torch.float64)
    left = costs.cpu().double()[:, None] * torch.tensor([distortions[rate] for rate in rates.tolist()]).double()
    low, high = 0.0, 2 * math.log(2) * float(left.max())
    for _ in range(BISECTIONS):
        price = (low + high) / 2
        cheap = float(rates[(left + price * rates).argmin(1)].mean()) > bits
        low, high = (price, high) if cheap else (low, price)
    return high


def fitted_order(
    order: Tensor,
    corners: Sequence[Tensor],
    energy: Tensor,
    distortions: Mapping[float, float],
    price: float,
) -> Tensor:
    """``order [columns]`` with columns exchanged inside each block of it, so that they cost less.

    ``corners`` are the blocks' triangles ``[block, block]`` on the diagonal of U, the factor of the moment's inverse
    (`error_feedback`), in processing order. ``energy [columns]`` is that of their weights, in natural order.
    ``distortions`` maps rates in bits to what they leave of it, and ``price`` is what a bit is worth.
    """
    from vqcompress.search.order_loops import compiled_exchanges

    rates = np.array(sorted(distortions), dtype=np.float64)
    left = np.array([distortions[rate] for rate in rates.tolist()], dtype=np.float64)
    found, start = [], 0
    for corner in corners:
        block = order[start : start + len(corner)]
        factor = _inverse(corner).t().contiguous().numpy()
        places = np.arange(len(block))
        compiled_exchanges()(factor, places, energy[block].double().numpy(), left, rates, price, SWEEPS)
        found.append(block[torch.from_numpy(places)])
        start += len(corner)
    return torch.cat(found)


def _inverse(corner: Tensor) -> Tensor:
    eye = torch.eye(len(corner), dtype=torch.float64)
    return torch.linalg.solve_triangular(corner.double(), eye, upper=True)
