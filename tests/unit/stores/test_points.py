"""Ties, batches and checks that the stores share."""

from __future__ import annotations

import pytest

from nvr_rag.stores.base import Scored
from nvr_rag.stores.points import MAX_TIES, batches, is_id, with_ties


class Ranked:
    """A store with these scores, which cuts ties from the wrong end: the highest ids first."""

    def __init__(self, *scores: float) -> None:
        self.asked: list[int] = []
        self._hits = sorted(
            (Scored(id=f"{n:06}", score=score) for n, score in enumerate(scores)),
            key=lambda hit: (hit.score, hit.id),
            reverse=True,
        )

    def __call__(self, limit: int) -> list[Scored]:
        self.asked.append(limit)
        return self._hits[:limit]


def test_without_a_tie_at_the_cut_one_question_is_enough() -> None:
    ranked = Ranked(*(1000.0 - n for n in range(1000)))
    assert [hit.id for hit in with_ties(ranked, 10)] == [f"{n:06}" for n in range(10)]
    assert len(ranked.asked) == 1
    assert ranked.asked[0] < 50


def test_a_long_tie_at_the_cut_is_seen_whole() -> None:
    ranked = Ranked(9.0, *[1.0] * 3000, 0.5)
    assert [hit.id for hit in with_ties(ranked, 3)] == ["000000", "000001", "000002"]


def test_an_endless_tie_is_cut_somewhere_but_in_bounded_work() -> None:
    ranked = Ranked(*[1.0] * (2 * MAX_TIES))
    assert len(with_ties(ranked, 5)) == 5
    assert max(ranked.asked) <= 5 + MAX_TIES


def test_fewer_than_k_are_all_returned() -> None:
    assert len(with_ties(Ranked(1.0, 1.0, 2.0), 10)) == 3
    assert with_ties(Ranked(), 10) == []
    assert with_ties(Ranked(1.0), 0) == []
    assert with_ties(Ranked(1.0), -1) == []


def test_batches_keep_order_and_everything() -> None:
    assert list(batches([1, 2, 3, 4, 5], 2)) == [[1, 2], [3, 4], [5]]
    assert list(batches([], 2)) == []


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("6fa459ea-ee8a-3ca4-894e-db77e160355e", True),
        ("6FA459EA-EE8A-3CA4-894E-DB77E160355E", False),
        ("6fa459eaee8a3ca4894edb77e160355e", False),
        ("urn:uuid:6fa459ea-ee8a-3ca4-894e-db77e160355e", False),
        ("17", False),
        ("", False),
    ],
)
def test_ids_have_one_spelling(text: str, good: bool) -> None:
    assert is_id(text) is good
