"""The rules, by numbers worked out by hand and by what must hold for any numbers."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from training.mining.rules import margin_pos, naive, perc_pos

often = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
score = st.floats(min_value=-100, max_value=100, allow_subnormal=False)
ratios = st.floats(min_value=0.01, max_value=1)
margins = st.floats(min_value=0, max_value=10)


def test_naive_keeps_all() -> None:
    assert naive([0.9, 0.1, -3.0], 0.5).tolist() == [True, True, True]
    assert naive([], 0.5).tolist() == []


def test_margin_pos_by_hand() -> None:
    # 0.75 - 0.25 = 0.5, all three exact in binary
    assert margin_pos([0.75, 0.5, 0.4375, -0.5], 0.75, 0.25).tolist() == [False, False, True, True]
    # -0.25 - 0.25 = -0.5
    assert margin_pos([0.0, -0.5, -0.5625], -0.25, 0.25).tolist() == [False, False, True]


def test_perc_pos_by_hand() -> None:
    # 0.5 * 0.75 = 0.375
    assert perc_pos([0.5, 0.375, 0.25, -0.5], 0.5, 0.75).tolist() == [False, False, True, True]


def test_perc_pos_of_a_negative_positive_stays_below_it() -> None:
    # -0.5 * 0.75 = -0.375 would keep what is better than the positive; a quarter of |p| below it is -0.625
    assert perc_pos([-0.375, -0.5, -0.625, -0.75], -0.5, 0.75).tolist() == [False, False, False, True]


def test_perc_pos_of_a_positive_at_zero() -> None:
    assert perc_pos([0.25, 0.0, -0.0, -1e-9], 0.0, 0.95).tolist() == [False, False, False, True]


def test_the_threshold_belongs_to_one_positive() -> None:
    scores = [0.5, 0.25]
    assert margin_pos(scores, 0.75, 0.125).tolist() == [True, True]
    assert margin_pos(scores, 0.5, 0.125).tolist() == [False, True]


def test_scores_of_float32_are_compared_in_float64() -> None:
    # The nearest float32 to 0.7 is 0.69999998807..., below 0.7: in float32 the two would be a tie.
    scores = np.array([0.7], dtype=np.float32)
    assert margin_pos(scores, 0.7, 0.0).tolist() == [True]
    # The nearest float32 to 0.1 is 0.10000000149...: no tie, and above.
    assert margin_pos(np.array([0.1], dtype=np.float32), 0.1, 0.0).tolist() == [False]
    # Twice as small or as large changes nothing: 0.7 * 0.5 = 0.35, and the float32 of 0.35 is 0.3499999940...
    assert perc_pos(np.array([0.35], dtype=np.float32), 0.7, 0.5).tolist() == [True]
    # A positive of float32 counts as what it is: 0.699999988 * 0.5 is that float32 exactly.
    assert perc_pos(np.array([0.35], dtype=np.float32), float(np.float32(0.7)), 0.5).tolist() == [False]
    assert perc_pos(np.array([0.35], dtype=np.float32), np.float32(0.7), 0.5).tolist() == [False]


@often
@given(positive=score, margin=margins, ratio=ratios)
def test_a_tie_with_the_threshold_is_never_kept(positive: float, margin: float, ratio: float) -> None:
    assert not margin_pos([positive - margin], positive, margin)[0]
    if positive >= 0:
        assert not perc_pos([positive * ratio], positive, ratio)[0]
    assert margin_pos([math.nextafter(positive - margin, -math.inf)], positive, margin)[0]


@often
@given(positive=score, scores=st.lists(score, max_size=20), ratio=ratios, margin=margins)
def test_what_is_kept_is_worse_than_the_positive(
    positive: float, scores: list[float], ratio: float, margin: float
) -> None:
    for kept in (margin_pos(scores, positive, margin), perc_pos(scores, positive, ratio)):
        assert all(one < positive for one, keep in zip(scores, kept, strict=True) if keep)


@often
@given(positive=score, scores=st.lists(score, max_size=20))
def test_no_margin_keeps_whatever_is_worse(positive: float, scores: list[float]) -> None:
    worse = [one < positive for one in [*scores, positive]]
    assert margin_pos([*scores, positive], positive, 0.0).tolist() == worse
    assert perc_pos([*scores, positive], positive, 1.0).tolist() == worse


@often
@given(positive=score, scores=st.lists(score, max_size=20), ratio=ratios)
def test_perc_pos_asks_for_a_share_of_the_size_of_the_positive(
    positive: float, scores: list[float], ratio: float
) -> None:
    for one, keep in zip(scores, perc_pos(scores, positive, ratio), strict=True):
        distance, wanted = positive - one, (1 - ratio) * abs(positive)
        if not math.isclose(distance, wanted, rel_tol=1e-9, abs_tol=1e-9):
            assert keep == (distance > wanted)
