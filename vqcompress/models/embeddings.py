"""Embeddings of patches, positions, time and labels, as in DiT (arXiv 2212.09748) and networks based on it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def _sincos_1d(positions: Tensor, width: int) -> Tensor:
    """Positions [n] -> float64 [n, width]: sines, then cosines, of width/2 frequencies 10000^(-i/(width/2))."""
    frequencies = 10000.0 ** (-torch.arange(width // 2, dtype=torch.float64) / (width / 2))
    angles = positions.to(torch.float64)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def sincos_grid(width: int, grid: int) -> Tensor:
    """Fixed 2-D positions, float32 [grid², width], row-major: first half from the column, second from the row."""
    index = torch.arange(grid)
    columns, rows = index.repeat(grid), index.repeat_interleave(grid)
    return torch.cat([_sincos_1d(columns, width // 2), _sincos_1d(rows, width // 2)], dim=1).float()


def time_features(t: Tensor, width: int = 256) -> Tensor:
    """Times [n] -> float32 [n, width]: cosines, then sines, of frequencies 10000^(-i/(width/2))."""
    half = width // 2
    index = torch.arange(half, dtype=torch.float32, device=t.device)
    angles = t.float()[:, None] * torch.exp(-math.log(10000.0) * index / half)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class TimestepEmbedder(nn.Module):
    """Times [n] -> [n, width]: fixed features, then Linear-SiLU-Linear."""

    def __init__(self, width: int, features: int = 256):
        super().__init__()
        self.features = features
        self.mlp = nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        # The caller passes the dtype, because a packed weight's dtype is not the dtype of the computation.
        return self.mlp(time_features(t, self.features).to(dtype))


class LabelEmbedder(nn.Module):
    """Labels [n] -> [n, width]. The last row, label ``classes``, is the null label for guidance."""

    def __init__(self, classes: int, width: int, dropout: float):
        super().__init__()
        self.classes, self.dropout = classes, dropout
        self.embedding_table = nn.Embedding(classes + (dropout > 0), width)

    def forward(self, labels: Tensor) -> Tensor:
        if self.training and self.dropout > 0:
            dropped = torch.rand(labels.shape, device=labels.device) < self.dropout
            labels = torch.where(dropped, self.classes, labels)
        return self.embedding_table(labels)


class PatchEmbedder(nn.Module):
    """Images [n, channels, s, s] -> tokens [n, (s/patch)², width], row-major."""

    def __init__(self, patch: int, channels: int, width: int):
        super().__init__()
        self.proj = nn.Conv2d(channels, width, kernel_size=patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


def unpatchify(tokens: Tensor, patch: int) -> Tensor:
    """Tokens [n, g², patch·patch·channels] -> images [n, channels, g·patch, g·patch]."""
    grid = int(tokens.shape[1] ** 0.5)
    x = tokens.unflatten(1, (grid, grid)).unflatten(3, (patch, patch, -1))
    return x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
