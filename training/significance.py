"""Is a difference between two systems more than chance? Per-query measures enter; intervals and p-values leave.

Both tests are paired: a query is compared with itself, because queries differ far more than systems do. Pure NumPy,
repeatable by seed, in bounded memory. Knows no measure, no index and no model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nvr_rag.errors import InvalidInput

PerQuery = Mapping[str, Mapping[str, float]]  # query -> name of the measure -> value
Values = NDArray[np.float64]  # (N,)

_EXACT_QUERIES = 12  # up to so many differences all 2**n sign patterns are gone through
_BLOCK_CELLS = 2_000_000  # resamples x queries held at a time
_ROUNDING = 1e-12  # of the sum of all sizes: sums that differ by less are equal


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """A mean with its percentile bootstrap interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Two systems compared by one measure over the queries that both were asked."""

    measure: str
    n: int  # queries that both have
    base: float  # mean of the first system over these
    other: float  # mean of the second
    difference: Interval  # other - base
    p: float  # two-sided, of the randomisation test
    wins: int  # queries at which the second is better
    losses: int
    ties: int
    only_base: int  # queries that the second was not asked: left out
    only_other: int


def compare(base: PerQuery, other: PerQuery, measure: str, *, seed: int) -> Comparison:
    """Compare two systems by a measure, where higher is better. Raises InvalidInput when there is nothing to compare,
    and for a measure that a query lacks."""
    differences = differences_by_query(base, other, measure)
    shared = sorted(differences)
    values = np.array([differences[query] for query in shared], dtype=np.float64)  # (N,)
    return Comparison(
        measure=measure,
        n=len(shared),
        base=float(np.mean([base[query][measure] for query in shared])),
        other=float(np.mean([other[query][measure] for query in shared])),
        difference=paired_bootstrap(values, seed=seed),
        p=randomisation_test(values, seed=seed),
        wins=int((values > 0).sum()),
        losses=int((values < 0).sum()),
        ties=int((values == 0).sum()),
        only_base=len(base) - len(shared),
        only_other=len(other) - len(shared),
    )


def differences_by_query(base: PerQuery, other: PerQuery, measure: str) -> dict[str, float]:
    """other - base for each query that both have. Raises as `compare` does."""
    shared = base.keys() & other.keys()
    if not shared:
        raise InvalidInput("the two evaluations have no query in common; evaluate both on the same queries")
    for query in shared:
        for side in (base[query], other[query]):
            if measure not in side:
                there = ", ".join(side) or "none"
                raise InvalidInput(f"query {query!r} has no {measure!r}; it has: {there}", field="measure")
    return {query: other[query][measure] - base[query][measure] for query in shared}


def paired_bootstrap(
    differences: Sequence[float] | Values, *, seed: int, resamples: int = 10_000, confidence: float = 0.95
) -> Interval:
    """The mean difference and the interval that holds it with this confidence: queries are drawn with replacement,
    and the interval is cut from the middle of the means of all draws. Raises InvalidInput."""
    values = _checked(differences)
    generator = np.random.default_rng(seed)
    means = np.empty(resamples)
    for block in _blocks(resamples, len(values)):
        drawn = generator.integers(0, len(values), size=(len(block), len(values)))  # (B, N)
        means[block.start : block.stop] = values[drawn].mean(axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(mean=float(values.mean()), low=float(low), high=float(high))


def randomisation_test(differences: Sequence[float] | Values, *, seed: int, resamples: int = 10_000) -> float:
    """The two-sided p-value of a mean difference, when each query's sign is as likely to be the other one.

    Queries without a difference say nothing about it and are left out. Few queries: exact, the share of all sign
    patterns with a mean at least as far from 0. Many: (1 + count) / (1 + resamples) over random patterns. Raises
    InvalidInput.
    """
    values = _checked(differences)
    values = values[values != 0]
    if not len(values):
        return 1.0
    if len(values) <= _EXACT_QUERIES:
        patterns = np.arange(2 ** len(values))[:, None]  # (2**N, 1)
        return _as_extreme(values, (patterns >> np.arange(len(values))) % 2 == 1) / len(patterns)
    generator = np.random.default_rng(seed)
    count = sum(
        # Doubles, because small integers are drawn several at a time: their stream would depend on the blocks.
        _as_extreme(values, generator.random((len(block), len(values))) < 0.5)
        for block in _blocks(resamples, len(values))
    )
    return (1 + count) / (1 + resamples)


def _as_extreme(values: Values, flipped: NDArray[np.bool_]) -> int:
    """In how many rows of sign flips (B, N) the sum is at least as far from 0 as without any."""
    sums = np.where(flipped, -values, values).sum(axis=1)  # (B,)
    slack = _ROUNDING * float(np.abs(values).sum())
    return int((np.abs(sums) >= abs(float(values.sum())) - slack).sum())


def _blocks(resamples: int, queries: int) -> Iterator[range]:
    """Consecutive ranges of resamples that fit into memory."""
    size = max(1, _BLOCK_CELLS // queries)
    for start in range(0, resamples, size):
        yield range(start, min(start + size, resamples))


def _checked(differences: Sequence[float] | Values) -> Values:
    values = np.asarray(differences, dtype=np.float64)
    if values.size == 0:
        raise InvalidInput("there are no differences to test; compare at least one query")
    if not np.isfinite(values).all():
        raise InvalidInput("a difference is not a number; measure the queries again")
    return values
