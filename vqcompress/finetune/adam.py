"""Adam (Kingma & Ba 2015, arXiv 1412.6980, algorithm 1) with a rate for each tensor and a state that is plain tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

BETAS = (0.9, 0.99)
EPSILON = 1e-16  # gradients of a well-matched student are tiny: a usual epsilon would swallow them


class Adam:
    """``rates[name]`` is the step size of ``parameters[name]``, in its units."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], rates: Mapping[str, float]) -> None:
        self.parameters, self.rates, self.count = parameters, rates, 0
        self.first = {name: torch.zeros_like(p) for name, p in parameters.items()}
        self.second = {name: torch.zeros_like(p) for name, p in parameters.items()}

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """One update from the parameters' ``grad``, which is then dropped; all rates are multiplied by ``factor``."""
        self.count += 1
        small, large = 1 - BETAS[0] ** self.count, 1 - BETAS[1] ** self.count
        for name, parameter in self.parameters.items():
            if (grad := parameter.grad) is None:
                continue
            self.first[name].lerp_(grad, 1 - BETAS[0])
            self.second[name].lerp_(grad.square(), 1 - BETAS[1])
            length = (self.second[name] / large).sqrt_().add_(EPSILON)
            parameter.addcdiv_(self.first[name], length, value=-factor * self.rates[name] / small)
            parameter.grad = None

    def state(self) -> dict[str, Tensor]:
        """Everything that `restore` needs, under ``first/…``, ``second/…`` and ``count``."""
        moments = {f"first/{name}": value for name, value in self.first.items()}
        moments |= {f"second/{name}": value for name, value in self.second.items()}
        return {**moments, "count": torch.tensor(self.count)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`."""
        self.count = int(state["count"])
        for name in self.parameters:
            self.first[name].copy_(state[f"first/{name}"])
            self.second[name].copy_(state[f"second/{name}"])
