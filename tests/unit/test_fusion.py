"""Fusion, with every number worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from nvr_rag.errors import InvalidInput
from nvr_rag.fusion import FusionSettings, fuse, reciprocal_rank_fusion, weighted_fusion
from nvr_rag.stores.base import Scored


def about(*expected: tuple[str, float]) -> Any:
    return [(key, pytest.approx(score)) for key, score in expected]


def ranked(**scores: float) -> list[Scored]:
    """Candidates in the order given."""
    return [Scored(id=key, score=score) for key, score in scores.items()]


def test_reciprocal_rank_fusion_by_hand() -> None:
    dense, lexical = ranked(a=0.9, b=0.8, c=0.7), ranked(c=12.0, a=3.0)
    assert reciprocal_rank_fusion([(dense, 1.0), (lexical, 1.0)], rank_constant=60) == about(
        ("a", 1 / 61 + 1 / 62),
        ("c", 1 / 63 + 1 / 61),
        ("b", 1 / 62),
    )


def test_weights_move_the_ranking() -> None:
    dense, lexical = ranked(a=0.9, b=0.8), ranked(b=5.0, a=4.0)
    assert fuse(dense, lexical, FusionSettings(dense_weight=2.0)) == about(
        ("a", 2 / 61 + 1 / 62),
        ("b", 2 / 62 + 1 / 61),
    )
    assert [key for key, _ in fuse(dense, lexical, FusionSettings(lexical_weight=2.0))] == ["b", "a"]


def test_ties_are_broken_by_id() -> None:
    assert [key for key, _ in fuse(ranked(z=1.0), ranked(a=1.0), FusionSettings())] == ["a", "z"]
    assert [key for key, _ in fuse(ranked(b=1.0, a=0.5), ranked(a=1.0, b=0.5), FusionSettings())] == ["a", "b"]


def test_weighted_fusion_by_hand() -> None:
    dense, lexical = ranked(a=0.9, b=0.7, c=0.5), ranked(c=10.0, d=2.0)
    # scaled: a 1, b 0.5, c 0; c 1, d 0; weights 3 and 1
    assert weighted_fusion([(dense, 3.0), (lexical, 1.0)]) == about(
        ("a", 0.75),
        ("b", 0.375),
        ("c", 0.25),
        ("d", 0.0),
    )


def test_weighted_fusion_of_equal_scores_counts_them_full() -> None:
    assert weighted_fusion([(ranked(b=2.0, a=2.0), 1.0), ([], 1.0)]) == [("a", 0.5), ("b", 0.5)]


def test_an_empty_side_leaves_the_other_in_order() -> None:
    assert [key for key, _ in fuse(ranked(b=0.9, a=0.1), [], FusionSettings())] == ["b", "a"]
    assert fuse([], [], FusionSettings()) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"dense_weight": -0.1},
        {"dense_weight": 0.0, "lexical_weight": 0.0},
        {"dense_weight": float("nan")},
        {"lexical_weight": float("inf")},
        {"rank_constant": 0},
        {"depth": 0},
        {"method": "sum"},
    ],
)
def test_settings_without_a_meaning_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        FusionSettings(**wrong)


def test_settings_survive_json() -> None:
    settings = FusionSettings(method="weighted", dense_weight=0.25, depth=50)
    assert FusionSettings(**settings.as_json()) == settings
