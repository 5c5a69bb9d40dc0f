"""Intervals and p-values: small cases by hand, large ones against SciPy, and the same numbers however memory is cut."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from nvr_rag.errors import InvalidInput
from training import significance
from training.significance import compare, differences_by_query, paired_bootstrap, randomisation_test


def differences(count: int, mean: float, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, 0.3, count)


# the bootstrap


def test_the_interval_agrees_with_scipy() -> None:
    values = differences(300, 0.05)
    ours = paired_bootstrap(values, seed=3)
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(8)
    ).confidence_interval
    assert ours.mean == pytest.approx(values.mean())
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs), abs=0.002)


def test_a_wider_confidence_gives_a_wider_interval() -> None:
    values = differences(100, 0.0)
    wide, narrow = (paired_bootstrap(values, seed=0, confidence=confidence) for confidence in (0.99, 0.8))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_the_mean_of_two_queries_has_four_equally_likely_draws() -> None:
    # Means 0, 0.5 (twice) and 1: the middle half of the draws lies at 0.5, all but the outermost tenth between 0 and 1.
    assert paired_bootstrap([0.0, 1.0], seed=0, confidence=0.4) == significance.Interval(mean=0.5, low=0.5, high=0.5)
    assert paired_bootstrap([0.0, 1.0], seed=0, confidence=0.9) == significance.Interval(mean=0.5, low=0.0, high=1.0)


@pytest.mark.parametrize("value", [0.25, -0.5, 0.0])
def test_equal_differences_leave_no_doubt(value: float) -> None:
    assert paired_bootstrap([value] * 8, seed=0) == significance.Interval(mean=value, low=value, high=value)


# the randomisation test


def test_all_sign_patterns_of_few_queries() -> None:
    # Sums of +-1 +-2 +-3: 6, 4, 2, 0, 0, -2, -4, -6. As far out as 6: 2 of 8.
    assert randomisation_test([1, 2, 3], seed=0) == 2 / 8
    # As far out as |1 + 2 - 3| = 0: all of them.
    assert randomisation_test([1, 2, -3], seed=0) == 1
    # As far out as |-1 + 2 + 3| = 4: 6, 4, -4, -6.
    assert randomisation_test([-1, 2, 3], seed=0) == 4 / 8
    assert randomisation_test([-1, -2, -3], seed=0) == 2 / 8


def test_equal_sums_are_equal_although_floats_are_rounded() -> None:
    # Of 8 patterns of +-1 +-2 +-1 those with sums of 4, 2 (twice) and their opposites are as far out as 2. In floats
    # 0.1 + 0.2 - 0.1 comes out larger than its rival, -0.1 + 0.2 + 0.1.
    assert randomisation_test([0.1, 0.2, -0.1], seed=0) == randomisation_test([1, 2, -1], seed=0) == 6 / 8


def test_few_queries_agree_with_scipy() -> None:
    values = differences(11, 0.2)
    theirs = scipy.stats.permutation_test(
        (values, np.zeros(11)), lambda x, y, axis: (x - y).mean(axis=axis), permutation_type="samples", vectorized=True
    )
    assert len(theirs.null_distribution) == 2**11  # all of them
    assert randomisation_test(values, seed=0) == pytest.approx(theirs.pvalue, abs=1e-12)


@pytest.mark.parametrize("mean", [0.0, 0.02, 0.05])
def test_many_queries_agree_with_scipy(mean: float) -> None:
    values = differences(200, mean)
    theirs = scipy.stats.permutation_test(
        (values, np.zeros(200)),
        lambda x, y, axis: (x - y).mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=10_000,
        rng=np.random.default_rng(5),
    )
    assert randomisation_test(values, seed=0) == pytest.approx(theirs.pvalue, abs=0.015)


def test_a_sure_difference_has_the_smallest_p_that_so_many_resamples_allow() -> None:
    assert randomisation_test([0.5] * 100, seed=0, resamples=999) == 1 / 1000


def test_queries_without_a_difference_change_nothing() -> None:
    values = differences(50, 0.05)
    padded = np.concatenate([values[:20], np.zeros(70), values[20:]])
    assert randomisation_test(padded, seed=4) == randomisation_test(values, seed=4)


@pytest.mark.parametrize("count", [1, 12, 500])
def test_no_difference_at_all_has_p_1(count: int) -> None:
    assert randomisation_test(np.zeros(count), seed=0) == 1.0


# both


def test_a_seed_repeats_the_numbers_and_another_does_not() -> None:
    values = differences(60, 0.05)
    assert paired_bootstrap(values, seed=7) == paired_bootstrap(values, seed=7)
    assert paired_bootstrap(values, seed=7) != paired_bootstrap(values, seed=8)
    assert randomisation_test(values, seed=7) == randomisation_test(values, seed=7)
    assert len({randomisation_test(values, seed=seed) for seed in range(5)}) > 1


@pytest.mark.parametrize("cells", [1, 37 * 101, 10**9])
def test_memory_blocks_do_not_show(cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    values = differences(37, 0.05)
    before = paired_bootstrap(values, seed=2, resamples=1500), randomisation_test(values, seed=2, resamples=1500)
    monkeypatch.setattr(significance, "_BLOCK_CELLS", cells)
    assert (
        paired_bootstrap(values, seed=2, resamples=1500),
        randomisation_test(values, seed=2, resamples=1500),
    ) == before


@pytest.mark.parametrize("values", [[], [0.1, float("nan")], [float("inf")]])
def test_what_is_not_a_list_of_numbers_is_refused(values: list[float]) -> None:
    with pytest.raises(InvalidInput, match=r"no differences|not a number"):
        paired_bootstrap(values, seed=0)
    with pytest.raises(InvalidInput, match=r"no differences|not a number"):
        randomisation_test(values, seed=0)


# comparing two systems


def by_query(**values: float) -> dict[str, dict[str, float]]:
    return {query: {"nDCG@10": value, "R@10": 0.5} for query, value in values.items()}


def test_a_comparison_pairs_the_queries_that_both_have() -> None:
    base = by_query(a=0.5, b=0.5, c=0.5, d=0.25, only=1.0)
    other = by_query(d=0.25, c=0.25, b=1.0, a=1.0, extra=0.0, more=0.0)
    found = compare(base, other, "nDCG@10", seed=0)
    assert (found.n, found.only_base, found.only_other) == (4, 1, 2)
    assert (found.base, found.other) == (0.4375, 0.625)
    assert (found.wins, found.losses, found.ties) == (2, 1, 1)
    assert found.difference.mean == 0.1875
    # Signs of 0.5, 0.5 and 0.25 (the tie aside): as far out as |0.75| are 0.75, 1.25 with either sign.
    # Sums: 1.25, 0.75, 0.25 (twice) and their opposites: 4 of 8.
    assert found.p == 4 / 8
    assert differences_by_query(base, other, "nDCG@10") == {"a": 0.5, "b": 0.5, "c": -0.25, "d": 0.0}


def test_the_order_of_the_queries_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    base = {f"q{i}": {"nDCG@10": float(value)} for i, value in enumerate(rng.random(50))}
    other = {f"q{i}": {"nDCG@10": float(value)} for i, value in enumerate(rng.random(50))}
    backwards = dict(reversed(base.items()))
    found = compare(base, other, "nDCG@10", seed=1)
    assert compare(backwards, other, "nDCG@10", seed=1) == found
    by_name = [other[query]["nDCG@10"] - base[query]["nDCG@10"] for query in sorted(base)]
    assert found.difference == paired_bootstrap(by_name, seed=1)


def test_swapping_the_sides_turns_the_sign() -> None:
    base, other = by_query(a=0.1, b=0.4, c=0.2), by_query(a=0.3, b=0.9, c=0.1)
    forth, back = compare(base, other, "nDCG@10", seed=0), compare(other, base, "nDCG@10", seed=0)
    assert forth.difference.mean == pytest.approx(-back.difference.mean)
    assert (forth.wins, forth.losses, forth.p) == (back.losses, back.wins, back.p)


def test_nothing_in_common_is_refused() -> None:
    with pytest.raises(InvalidInput, match="no query in common"):
        compare(by_query(a=1), by_query(b=1), "nDCG@10", seed=0)


def test_an_unknown_measure_is_refused_with_those_there_are() -> None:
    with pytest.raises(InvalidInput, match=r"no 'MRR@10'; it has: nDCG@10, R@10"):
        compare(by_query(a=1), by_query(a=1), "MRR@10", seed=0)
