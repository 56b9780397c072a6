"""LPIPS's formula on a fixed filter bank instead of a trained network's features.

LPIPS (Zhang et al. 2018, arXiv 1801.03924, equation 1) compares the channels of each position of a network's feature
maps after scaling them to unit length. Its networks' weights are a download, so this takes oriented filters that need
none: Gabor filters in quadrature (4 orientations) and the local mean, on the three channels of an opponent colour
space, at three scales an octave apart. It is not LPIPS and its numbers are not comparable with published ones; like
LPIPS it sees edges, textures and colours, not pixel values.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from vqcompress.metrics.image_metric import ImageMetric

SCALES = 3
ORIENTATIONS = 4
RADIUS = 4
SIGMA = 1.7  # of the Gaussian window, in pixels of a scale
WAVELENGTH = 4.0
FLOOR = 0.1  # added to the length before dividing, so that flat areas do not amplify rounding (images are in 0..1)
OPPONENT = ((0.299, 0.587, 0.114), (0.5, -0.5, 0.0), (0.25, 0.25, -0.5))
"""Luma, red-green, yellow-blue."""


def feature_distances(images: Tensor, originals: Tensor) -> Tensor:
    """``[n]``: 0 for equal images; ``images`` and ``originals`` are ``[n, 3, height, width]`` in 0..1.

    Images of another number of channels are taken as gray: the mean of their channels. One image is filtered at a time:
    the responses of all filters to one of a megapixel take 200 MB.
    """
    return torch.cat([_distance(a, b) for a, b in zip(images.split(1), originals.split(1), strict=True)])


def _distance(images: Tensor, originals: Tensor) -> Tensor:
    ours, theirs = _opponent(images), _opponent(originals)
    total = torch.zeros(len(images), dtype=ours.dtype)
    for _ in range(SCALES):
        total += (_features(ours) - _features(theirs)).square().sum(1).mean((1, 2))
        if min(ours.shape[-2:]) < 4:
            break
        ours, theirs = F.avg_pool2d(ours, 2), F.avg_pool2d(theirs, 2)
    return total


def _opponent(images: Tensor) -> Tensor:
    if images.shape[1] != 3:
        images = images.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    return torch.einsum("oc,nchw->nohw", torch.tensor(OPPONENT, dtype=images.dtype), images)


def _features(images: Tensor) -> Tensor:
    """Responses of all filters on all channels, scaled to at most unit length at each position."""
    count, channels, height, width = images.shape
    filters = _bank().to(images.dtype)[:, None]
    reflect = min(RADIUS, height - 1, width - 1)
    padded = F.pad(images.reshape(-1, 1, height, width), (reflect,) * 4, mode="reflect")
    padded = F.pad(padded, (RADIUS - reflect,) * 4, mode="replicate")
    found = F.conv2d(padded, filters).reshape(count, channels * len(filters), height, width)
    return found / (found.square().sum(1, keepdim=True).sqrt() + FLOOR)


@cache
def _bank() -> Tensor:
    """``[filters, 2 RADIUS + 1, 2 RADIUS + 1]``: the window itself, of sum 1, and pairs of Gabor filters of sum 0 whose
    absolute values sum to 1."""
    axis = torch.arange(-RADIUS, RADIUS + 1, dtype=torch.float64)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    window = torch.exp(-(x.square() + y.square()) / (2 * SIGMA**2))
    window = window / window.sum()
    filters = [window]
    for place in range(ORIENTATIONS):
        angle = math.pi * place / ORIENTATIONS
        phase = 2 * math.pi / WAVELENGTH * (x * math.cos(angle) + y * math.sin(angle))
        for wave in (phase.cos(), phase.sin()):
            response = window * (wave - (window * wave).sum())
            filters.append(response / response.abs().sum())
    return torch.stack(filters)


FEATURE_DISTANCE = ImageMetric(
    "feature_distance",
    lambda images, originals: float(feature_distances(images, originals).median()),
    "feature distance",
    "× 1000",
    decimals=2,
    per_image=feature_distances,
    falls=True,
    scale=1000,
)
"""The median over images."""
