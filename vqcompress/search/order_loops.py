"""The compiled loop of `vqcompress.quantizers.column_order`. Importing this file imports numba."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from vqcompress.machine_code import compiled


@lru_cache(maxsize=1)
def compiled_exchanges() -> Any:
    """Exchanges neighbours in the order of columns where that costs less, until nothing does.

    Signature ``(factor [places, columns] float64, order [places] int64, energy [columns], distortions [rates], rates
    [rates], price, sweeps)``, float64; at most ``sweeps`` times past all neighbours. ``factorᵀ factor`` is the moment;
    ``order`` says which column is coded at each place, and a column has zeros at the places before its own. A column of
    pivot ``P``, the square of its entry at its own place, costs ``min(P energy distortions + price rates)``. Both
    arrays are changed: exchanging two neighbours is a rotation of two lines of the factor.
    """
    return compiled(nogil=True, error_model="numpy")(_exchanges)


def _exchanges(factor, order, energy, distortions, rates, price, sweeps):  # type: ignore[no-untyped-def]
    places, columns = factor.shape
    cost = np.zeros(places)
    for place in range(places):
        cost[place] = np.inf
        pivot = factor[place, order[place]] ** 2 * energy[order[place]]
        for i in range(len(rates)):
            cost[place] = min(cost[place], pivot * distortions[i] + price * rates[i])
    for _ in range(sweeps):
        exchanged = 0
        for place in range(places - 1):
            first, second = order[place], order[place + 1]
            a, b, c = factor[place, first], factor[place + 1, first], factor[place + 1, second]
            whole = a * a + b * b
            early, late = a * a * c * c / whole * energy[second], whole * energy[first]
            early_cost, late_cost = np.inf, np.inf
            for i in range(len(rates)):
                early_cost = min(early_cost, early * distortions[i] + price * rates[i])
                late_cost = min(late_cost, late * distortions[i] + price * rates[i])
            before = cost[place] + cost[place + 1]
            # Not "more than before": rounding alone must not keep two of them going, and what is not a number stays.
            if not early_cost + late_cost < before * (1 - 1e-9):
                continue
            length = np.sqrt(whole)
            sine, cosine = a / length, b / length
            for column in range(columns):
                x, y = factor[place, column], factor[place + 1, column]
                factor[place, column] = sine * y - cosine * x
                factor[place + 1, column] = sine * x + cosine * y
            order[place], order[place + 1] = second, first
            cost[place], cost[place + 1] = early_cost, late_cost
            exchanged += 1
        if not exchanged:
            return
