"""Beam search for additive codes: finds codewords whose sum is near a vector.

The exact problem is NP-hard (a fully connected discrete random field, Babenko & Lempitsky 2014, Additive Quantization
for Extreme Vector Compression). The search keeps the ``beam`` best partial sums after each codebook, as faiss's
ResidualQuantizer does. With a beam as large as the number of partial sums it is exhaustive.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

LANES = 16  # codebooks are padded to a multiple of this with codewords that are never chosen
UNREACHABLE = np.float32(1e30)


class BeamSearch:
    """Searches ``codebooks [M, K, d]`` (converted to float32, ``d`` a multiple of 4). Keeps no state between calls."""

    def __init__(self, codebooks: Tensor, beam: int) -> None:
        count, size, dimension = codebooks.shape
        values = codebooks.detach().float().cpu().numpy()
        self._codebooks = np.zeros((count, dimension, -(-size // LANES) * LANES), np.float32)
        self._codebooks[:, :, :size] = values.transpose(0, 2, 1)
        self._norms = np.full((count, self._codebooks.shape[2]), UNREACHABLE, np.float32)
        self._norms[:, :size] = np.square(values).sum(2)
        self._beam = beam

    def __call__(self, targets: Tensor, rate: int) -> Tensor:
        """Codes int32 ``[n, rate]`` for ``targets [n, d]``: one codeword from each of the first ``rate`` codebooks."""
        from vqcompress.search.beam_loops import search  # imported here because it imports numba

        codes = np.zeros((len(targets), rate), np.int32)
        if rate:
            vectors = np.ascontiguousarray(targets.detach().float().cpu().numpy())
            search(vectors, self._codebooks[:rate], self._norms[:rate], self._beam, codes)
        return torch.from_numpy(codes)


def sum_codewords(codes: Tensor, codebooks: Tensor) -> Tensor:
    """Vectors ``[..., d]`` from codes ``[..., r]`` for the first ``r`` of ``codebooks [M, K, d]``. Zeros if r = 0."""
    total = codebooks.new_zeros(*codes.shape[:-1], codebooks.shape[-1])
    for level in range(codes.shape[-1]):
        total = total + codebooks[level][codes[..., level].long()]
    return total
