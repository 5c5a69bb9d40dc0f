from __future__ import annotations

import pytest

from nvr_rag.encoders.batching import batches, windows


def test_batches_group_by_length_within_the_padded_budget() -> None:
    # longest first; 10 alone fills 10 of 12, then 2 x 5 = 10 (a third 5 would make 15), then 5 + 3 (2 x 5), then 1.
    assert batches([5, 10, 5, 1, 3, 5], budget=12) == [[1], [0, 2], [5, 4], [3]]


def test_a_text_over_the_budget_is_a_batch_of_its_own() -> None:
    assert batches([100, 2, 2], budget=10) == [[0], [1, 2]]


@pytest.mark.parametrize("budget", [1, 7, 64, 1000])
def test_batches_hold_every_position_once_and_keep_the_budget(budget: int) -> None:
    lengths = [(i * 37) % 61 + 1 for i in range(200)]
    groups = batches(lengths, budget=budget)
    assert sorted(i for group in groups for i in group) == list(range(200))
    assert all(len(group) == 1 or len(group) * max(lengths[i] for i in group) <= budget for group in groups)


def test_no_texts_make_no_batches() -> None:
    assert batches([], budget=10) == []
    assert list(windows([], count=3, total=10)) == []


def test_texts_without_tokens_are_batched_too() -> None:
    assert batches([0, 0], budget=10) == [[0, 1]]


def test_the_first_window_may_be_smaller() -> None:
    cut = windows([1] * 8, count=4, total=10, first=2)
    assert [len(window) for window in cut] == [2, 4, 2]


def test_windows_end_at_the_count_or_at_the_total() -> None:
    cut = windows([1, 1, 1, 1, 8, 30, 2], count=3, total=10)
    assert [list(window) for window in cut] == [[0, 1, 2], [3, 4], [5], [6]]
