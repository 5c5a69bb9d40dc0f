"""Hits that do not repeat each other: relevance and vectors go in, an order comes out. Pure.

Maximal marginal relevance (Carbonell & Goldstein, SIGIR 1998): each next hit is the one for which
(1 - diversity) * relevance - diversity * (greatest cosine with a hit before) is greatest.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nvr_rag.stores.base import Vector

Matrix = NDArray[np.float64]


def choose(
    scores: Sequence[float], vectors: Sequence[Vector | None], count: int, diversity: float
) -> list[tuple[int, float]]:
    """(position, marginal relevance) of at most `count` of them, in the order of being chosen; ties by position.

    `scores` are scaled so that the worst is 0 and the best 1 (all 1 when they are equal). What has no vector is like
    nothing else.
    """
    relevance, units = _scaled(scores), _units(vectors)
    worth = (1 - diversity) * relevance  # (N,)
    nearest = np.full(len(scores), -np.inf)  # greatest cosine with what was chosen
    left = np.ones(len(scores), bool)
    chosen: list[tuple[int, float]] = []
    for _ in range(min(count, len(scores))):
        margin = worth - diversity * nearest if chosen else worth
        best = int(np.argmax(np.where(left, margin, -np.inf)))  # the first of equal ones
        chosen.append((best, float(margin[best])))
        left[best] = False
        nearest = np.maximum(nearest, units @ units[best])
    return chosen


def _scaled(scores: Sequence[float]) -> Matrix:
    values = np.asarray(scores, np.float64)
    if not len(values) or values.max() == values.min():
        return np.ones(len(values))
    scaled: Matrix = (values - values.min()) / (values.max() - values.min())
    return scaled


def _units(vectors: Sequence[Vector | None]) -> Matrix:
    """(N, D), each of length 1, or of length 0 where there is no vector."""
    dimension = max((len(vector) for vector in vectors if vector is not None), default=0)
    units = np.zeros((len(vectors), dimension))
    for row, vector in enumerate(vectors):
        length = 0.0 if vector is None else float(np.linalg.norm(vector.astype(np.float64)))
        if vector is not None and length > 0:
            units[row] = vector / length
    return units
