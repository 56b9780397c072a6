"""Choose few prompts that stand for many: cluster their features, take the medoids."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from sklearn.cluster import KMeans
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import make_union
from sklearn.preprocessing import normalize
from threadpoolctl import threadpool_limits

from vqcompress.errors import CalibrationError

DIMENSIONS = 64
RESTARTS = 4
COMPARED = 20_000
"""Prompts that are compared with each other; of a longer list, so many are drawn."""


def choose_diverse(prompts: Sequence[str], count: int, seed: int) -> tuple[str, ...]:
    """``count`` of the distinct ``prompts``, one from the middle of each of ``count`` clusters, in their given order.

    Features are TF-IDF of words, word pairs and character n-grams (LSA, Deerwester et al. 1990), clustered by k-means.
    The choice depends on nothing but the arguments: one thread, fixed seeds. When there are no more than ``count``
    distinct prompts, all of them are returned. Raises `CalibrationError` for a ``count`` below 1.
    """
    if count < 1:
        raise CalibrationError(f"at least one calibration prompt is needed, got count {count}")
    distinct = drawn(list(dict.fromkeys(prompts)), max(count, COMPARED), seed)
    if count >= len(distinct):
        return tuple(distinct)
    return tuple(distinct[index] for index in _medoids(tuple(distinct), count, seed))


def drawn(prompts: list[str], count: int, seed: int) -> list[str]:
    """``count`` of ``prompts``, in their order."""
    if len(prompts) <= count:
        return prompts
    chosen = np.random.default_rng(seed).choice(len(prompts), count, replace=False)
    return [prompts[index] for index in sorted(chosen)]


# A run asks for its prompts in every stage, some stages for fewer of them; either takes seconds.
@lru_cache(maxsize=2)
def _features(prompts: tuple[str, ...], seed: int) -> np.ndarray:
    """Unit vectors ``[prompts, dimensions]``."""
    texts = make_union(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\S+"),
        TfidfVectorizer(ngram_range=(3, 5), sublinear_tf=True, analyzer="char_wb"),
    )
    sparse = texts.fit_transform(prompts)
    dimensions = min(DIMENSIONS, len(prompts) - 1, sparse.shape[1] - 1)
    if dimensions < 1:
        return sparse.toarray()
    return normalize(TruncatedSVD(dimensions, random_state=seed).fit_transform(sparse))


@lru_cache(maxsize=8)
def _medoids(prompts: tuple[str, ...], count: int, seed: int) -> tuple[int, ...]:
    """Sorted indices: of each cluster the member nearest to its centre, filled up with the farthest from those."""
    with threadpool_limits(1):
        features = _features(prompts, seed)
        clusters = KMeans(count, n_init=RESTARTS, random_state=seed).fit(features)
    distance = ((features - clusters.cluster_centers_[clusters.labels_]) ** 2).sum(1)
    chosen = [int(members[distance[members].argmin()]) for members in _members(clusters.labels_, count) if members.size]
    while len(chosen) < count:
        chosen.append(_farthest(features, chosen))
    return tuple(sorted(chosen))


def _members(labels: np.ndarray, count: int) -> list[np.ndarray]:
    return [np.flatnonzero(labels == cluster) for cluster in range(count)]


def _farthest(features: np.ndarray, chosen: list[int]) -> int:
    gaps = ((features[:, None] - features[chosen][None]) ** 2).sum(-1).min(1)
    gaps[chosen] = -1
    return int(gaps.argmax())
