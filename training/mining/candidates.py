"""The best rows of a matrix for each query by inner product: exact, deterministic, and in bounded memory.

BLAS adds in an order that depends on the shape of its operands, so the same pair may score differently in another tile.
Tiles therefore only propose: whatever could be among the best within the rounding error of float32 is scored again in
float64, each pair by itself and in one order of addition, and that score decides. Ties go to the smaller row. So the
answer is the same for any tile size and any number of threads. Nothing here knows what a row stands for.

Q queries, N rows, D dimensions, K kept for each query, P pairs of a query and a row.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nvr_rag.errors import InvalidInput
from training.mining.records import Vectors

ROWS_PER_TILE = 8192
_PAIRS_AT_ONCE = 4096  # scored in float64 together: 384 dimensions make 25 MB
_UNIT = 2.0**-24  # unit roundoff of float32

Rows = NDArray[np.int64]
Scores = NDArray[np.float64]


class Nearest(NamedTuple):
    """The best rows of each query, best first, ties by row."""

    rows: Rows  # (Q, K)
    scores: Scores  # (Q, K)


def nearest(queries: Vectors, vectors: Vectors, depth: int, *, rows_per_tile: int = ROWS_PER_TILE) -> Nearest:
    """The min(depth, N) rows of `vectors` (N, D), best first, for each of `queries` (Q, D).

    Holds Q x rows_per_tile scores at once, so hand in some hundred queries a call. `vectors` may be a memory map, of
    which a tile is read at a time. Raises InvalidInput for vectors that are not finite.
    """
    lengths = _lengths(queries, first=0, name="query")  # (Q,)
    best = Nearest(np.empty((len(queries), 0), np.int64), np.empty((len(queries), 0), np.float64))
    for start in range(0, len(vectors), rows_per_tile):
        tile = np.ascontiguousarray(vectors[start : start + rows_per_tile])  # (R, D)
        slack = _rounding(tile.shape[1]) * lengths * _lengths(tile, first=start, name="chunk").max() + _TINY
        floor = best.scores[:, -1] if best.rows.shape[1] == depth else np.full(len(queries), -np.inf)
        owners, rows = _proposed(queries @ tile.T, floor, slack, depth)  # (P,), (P,)
        scores = exact_scores(queries, owners, tile, rows)  # (P,)
        best = _merged(best, owners, rows + start, scores, width=min(depth, start + len(tile)))
    return best


def exact_scores(queries: Vectors, owners: Rows, vectors: Vectors, rows: Rows) -> Scores:
    """The inner product (P,) of queries[owners[i]] and vectors[rows[i]]: the same whatever else is scored with it."""
    scores = np.empty(len(rows), np.float64)
    for start in range(0, len(rows), _PAIRS_AT_ONCE):
        part = slice(start, start + _PAIRS_AT_ONCE)
        # Products of two float32 are exact in float64; each sum runs over one contiguous line of D numbers.
        scores[part] = np.multiply(queries[owners[part]], vectors[rows[part]], dtype=np.float64).sum(axis=1)
    return scores


_TINY = 1e-30  # products below the smallest normal float32 may vanish


def _rounding(dimensions: int) -> float:
    """A bound for |float32 inner product - true one| / (length * length), for any order of addition.

    Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.1: n u / (1 - n u); a little more for the
    rounding of the lengths themselves.
    """
    return 1.01 * dimensions * _UNIT / (1 - dimensions * _UNIT)


def _lengths(matrix: Vectors, *, first: int, name: str) -> Scores:
    """Euclidean length of each row. `first` is the number of the first one, for the message."""
    squares = np.einsum("ij,ij->i", matrix, matrix)
    wrong = np.flatnonzero(~np.isfinite(squares))
    if len(wrong):
        raise InvalidInput(f"the vector of {name} row {first + wrong[0]} is not finite; encode again")
    lengths: Scores = np.sqrt(squares, dtype=np.float64)
    return lengths


def _proposed(scores: NDArray[np.float32], floor: Scores, slack: Scores, depth: int) -> tuple[Rows, Rows]:
    """Pairs (owner, row of the tile) that may be among the best `depth` of their query.

    `scores` (Q, R) are off by at most `slack` (Q,). `floor` (Q,) is the true score that a row has to reach at least.
    """
    bar = floor - slack
    mask = scores >= _below(bar)
    crowded = np.flatnonzero(mask.sum(axis=1) > 2 * depth)
    if len(crowded):
        # A row that is two slacks below the tile's own depth-th best is truly worse than `depth` rows of this tile.
        at = scores.shape[1] - depth
        bar[crowded] = np.maximum(bar[crowded], np.partition(scores[crowded], at, axis=1)[:, at] - 2 * slack[crowded])
        mask[crowded] = scores[crowded] >= _below(bar[crowded])
    owners, rows = np.nonzero(mask)
    return owners, rows


def _below(bar: Scores) -> NDArray[np.float32]:
    """The bar as a column of float32, rounded down: comparing (Q, R) in float64 would double the memory."""
    return np.nextafter(bar.astype(np.float32), np.float32(-np.inf))[:, None]


def _merged(best: Nearest, owners: Rows, rows: Rows, scores: Scores, *, width: int) -> Nearest:
    """The best `width` of each query out of those so far and new ones. Each query has so many."""
    number, so_far = best.rows.shape
    owners = np.concatenate([np.repeat(np.arange(number), so_far), owners])
    rows, scores = np.concatenate([best.rows.ravel(), rows]), np.concatenate([best.scores.ravel(), scores])
    order = np.lexsort((rows, -scores, owners))
    counts = np.bincount(owners, minlength=number)
    rank = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    kept = order[rank < width]
    return Nearest(rows[kept].reshape(number, width), scores[kept].reshape(number, width))
