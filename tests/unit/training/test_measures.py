"""Measures by query, by hand and against twenty lines of our own."""

from __future__ import annotations

import builtins
from math import log2
from typing import Any

import numpy as np
import pytest

from nvr_rag.errors import ConfigurationError, InvalidInput
from training.measures import MEASURES, answerable, means, measure


def reference(grades: dict[str, int], ranked: list[str]) -> dict[str, float]:
    """The definitions, written down once more."""
    relevant = {id_ for id_, grade in grades.items() if grade > 0}

    def dcg(gains: list[int]) -> float:
        return sum(gain / log2(rank + 1) for rank, gain in enumerate(gains[:10], start=1))

    ideal = dcg(sorted(grades.values(), reverse=True))
    first = next((rank for rank, id_ in enumerate(ranked[:10], start=1) if id_ in relevant), None)
    top = ranked[:10]
    return {
        "nDCG@10": dcg([grades.get(id_, 0) for id_ in ranked]) / ideal,
        "MRR@10": 1 / first if first else 0.0,
        "R@10": len(relevant & set(ranked[:10])) / len(relevant),
        "R@100": len(relevant & set(ranked[:100])) / len(relevant),
        "Judged@10": sum(id_ in grades for id_ in top) / len(top) if top else 0.0,
    }


def test_a_ranking_by_hand() -> None:
    found = measure({"q": {"a": 2, "b": 1, "c": 0}}, {"q": ["x", "a", "c", "b"]})
    ideal = 2 / log2(2) + 1 / log2(3)
    assert found == {
        "q": {
            "nDCG@10": pytest.approx((2 / log2(3) + 1 / log2(5)) / ideal),
            "MRR@10": 0.5,
            "R@10": 1.0,
            "R@100": 1.0,
            "Judged@10": 0.75,
        }
    }


def test_many_rankings_agree_with_the_reference() -> None:
    rng = np.random.default_rng(0)
    pool = [f"d{number}" for number in range(160)]
    qrels, run = {}, {}
    for number in range(60):
        judged = rng.choice(pool, size=12, replace=False)
        qrels[f"q{number}"] = {"d0": 1, **{str(id_): int(rng.integers(0, 4)) for id_ in judged}}
        run[f"q{number}"] = [str(id_) for id_ in rng.permutation(pool)[: rng.integers(0, 140)]]
    found = measure(qrels, run)
    assert found.keys() == qrels.keys()
    for query, values in found.items():
        assert values == pytest.approx(reference(qrels[query], run[query])), query


def test_order_decides_not_the_names() -> None:
    # Equal scores would be put in the order of the ids.
    assert measure({"q": {"z": 1}}, {"q": ["z", "y", "a"]})["q"]["MRR@10"] == 1
    assert measure({"q": {"a": 1}}, {"q": ["z", "y", "a"]})["q"]["MRR@10"] == pytest.approx(1 / 3)


def test_the_hundredth_counts_and_the_one_after_does_not() -> None:
    ranked = [f"d{number}" for number in range(101)]
    assert measure({"q": {"d99": 1}}, {"q": ranked})["q"]["R@100"] == 1
    assert measure({"q": {"d100": 1}}, {"q": ranked})["q"]["R@100"] == 0


@pytest.mark.parametrize("run", [{}, {"q": []}, {"other": ["a"]}])
def test_a_judged_query_without_results_scores_zero(run: dict[str, list[str]]) -> None:
    assert measure({"q": {"a": 1}}, run) == {"q": dict.fromkeys(MEASURES, 0.0)}


def test_a_query_without_results_beside_one_with() -> None:
    found = measure({"full": {"a": 1}, "empty": {"a": 1}}, {"full": ["a"], "empty": []})
    assert found["full"] == dict.fromkeys(MEASURES, 1.0)
    assert found["empty"] == dict.fromkeys(MEASURES, 0.0)


def test_queries_without_judgments_or_without_a_relevant_one_are_left_out() -> None:
    qrels = {"b": {"x": 1}, "nothing": {"x": 0}, "none": {}, "a": {"x": 0, "y": 3}}
    found = measure(qrels, {"a": ["x"], "b": ["x"], "nothing": ["x"], "stranger": ["x"]})
    assert list(found) == answerable(qrels) == ["a", "b"]
    assert measure({"nothing": {"x": 0}}, {"nothing": ["x"]}) == {}


def test_an_id_ranked_twice_is_refused() -> None:
    with pytest.raises(InvalidInput, match="query 'q' has an id twice"):
        measure({"q": {"a": 1}}, {"q": ["a", "b", "a"]})


def test_means() -> None:
    assert means({"a": {"x": 0.25, "y": 1.0}, "b": {"x": 0.5, "y": 0.0}}) == {"x": 0.375, "y": 0.5}
    assert means({}) == {}


def test_without_the_library_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *rest: Any, **options: Any) -> Any:
        if name == "ir_measures":
            raise ImportError(name)
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ConfigurationError, match=r"pip install 'nvr-rag\[training\]'"):
        measure({"q": {"a": 1}}, {"q": ["a"]})
