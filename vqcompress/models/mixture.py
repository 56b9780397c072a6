"""A mixture of experts with a softmax router (arXiv 2407.11633, section 3). Each expert is called as a module."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, one_hot

from vqcompress.models.feed_forward import SwiGLU


class Routing(NamedTuple):
    """Router output: ``expert`` int64 [samples, k], ``weight`` [samples, k], and the balance loss in training."""

    expert: Tensor
    weight: Tensor
    balance_loss: Tensor | None


def balance_loss(probabilities: Tensor, index: Tensor) -> Tensor:
    """Scalar, 1 when samples and probability are spread evenly over the experts (arXiv 2101.03961, equation 4)."""
    experts = probabilities.shape[1]
    share = one_hot(index, experts).to(probabilities.dtype).mean(dim=(0, 1))
    return experts * (share * probabilities.mean(dim=0)).sum()


class Router(nn.Module):
    """Softmax over all experts. The best ``chosen`` are kept, and their weights are not renormalised.

    ``weight`` [experts, width] is a plain parameter and stays float, because margins between experts can be 1e-4.
    """

    def __init__(self, width: int, experts: int, chosen: int):
        super().__init__()
        self.chosen = chosen
        self.weight = nn.Parameter(torch.empty(experts, width))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)

    def forward(self, samples: Tensor) -> Routing:
        dtype = torch.promote_types(samples.dtype, torch.float32)
        probabilities = linear(samples.to(dtype), self.weight.to(dtype)).softmax(dim=-1)
        weight, index = probabilities.topk(self.chosen, dim=-1, sorted=False)
        return Routing(index, weight, balance_loss(probabilities, index) if self.training else None)


class Mixture(nn.Module):
    """Routed SwiGLU experts, plus a shared expert that always runs and is added without a weight.

    Each expert gets its samples in one differentiable call, so hooks see exactly the samples of that expert. An expert
    without samples is not called.
    """

    def __init__(self, width: int, hidden: int, shared_hidden: int, experts: int, chosen: int):
        super().__init__()
        self.gate = Router(width, experts, chosen)
        self.experts = nn.ModuleList(SwiGLU(width, hidden) for _ in range(experts))
        self.shared_experts = SwiGLU(width, shared_hidden)

    def forward(self, x: Tensor) -> Tensor:
        samples = x.flatten(0, 1)
        routing = self.gate(samples)
        return (self._routed(samples, routing) + self.shared_experts(samples)).view_as(x)

    def _routed(self, samples: Tensor, routing: Routing) -> Tensor:
        out = torch.zeros_like(samples)
        for number, expert in enumerate(self.experts):
            index, choice = (routing.expert == number).nonzero(as_tuple=True)
            if len(index):
                weight = routing.weight[index, choice, None].to(samples.dtype)
                out = out.index_add(0, index, expert(samples[index]) * weight)
        return out
