"""Which candidates are far enough from a positive to be trusted as negatives: one pure function a rule.

Each takes the candidates' scores (C,) and the score of *one* positive and returns a mask (C,), true for each that
is kept. The comparison is strict and in float64, whatever came in: a candidate exactly at the threshold is not kept.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Mask = NDArray[np.bool_]  # (C,)


def naive(scores: ArrayLike, positive_score: float) -> Mask:  # noqa: ARG001 (rules are called alike)
    """Keep all: the examined depth is the rule."""
    return np.ones(len(_wide(scores)), dtype=np.bool_)


def margin_pos(scores: ArrayLike, positive_score: float, margin: float) -> Mask:
    """Keep s < p - margin."""
    return _below(scores, float(positive_score) - margin)


def perc_pos(scores: ArrayLike, positive_score: float, ratio: float) -> Mask:
    """Keep s < p * ratio, and below a negative p by as much as below a positive one: s < p - (1 - ratio) * |p|."""
    positive = float(positive_score)
    return _below(scores, positive * ratio if positive >= 0 else positive * (2 - ratio))


def _below(scores: ArrayLike, threshold: float) -> Mask:
    return np.less(_wide(scores), threshold)


def _wide(scores: ArrayLike) -> NDArray[np.float64]:
    """Without this NumPy would round the threshold to the scores' float32 and keep or drop ties by chance."""
    wide: NDArray[Any] = np.asarray(scores, dtype=np.float64)
    return wide
