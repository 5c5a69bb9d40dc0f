"""Maximal marginal relevance, against numbers worked out by hand and a reference in plain Python."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from nvr_rag.searching.diversity import choose


def reference(scores: list[float], vectors: list[list[float]], count: int, diversity: float) -> list[int]:
    """Carbonell & Goldstein (1998), word for word."""

    def cosine(a: list[float], b: list[float]) -> float:
        lengths = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b))
        return sum(x * y for x, y in zip(a, b, strict=True)) / lengths if lengths else 0.0

    low, high = min(scores), max(scores)
    relevance = [(score - low) / (high - low) if high > low else 1.0 for score in scores]
    chosen: list[int] = []
    while len(chosen) < min(count, len(scores)):
        margins = {}
        for i in range(len(scores)):
            if i not in chosen:
                nearest = max((cosine(vectors[i], vectors[j]) for j in chosen), default=0.0)
                margins[i] = (1 - diversity) * relevance[i] - diversity * nearest
        chosen.append(max(margins, key=lambda i: (round(margins[i], 9), -i)))
    return chosen


def test_by_hand() -> None:
    """The second is a copy of the first; the third is at a right angle to both."""
    vectors = [np.array(v, np.float32) for v in ([2, 0], [1, 0], [0, 3])]
    found = choose([1.0, 0.9, 0.5], vectors, 3, 0.5)
    assert [position for position, _ in found] == [0, 2, 1]
    # Relevance 1, 0.8 and 0: first 0.5 * 1; then 0.5 * 0.8 - 0.5 * 1 against 0.5 * 0 - 0; then the copy.
    assert [margin for _, margin in found] == pytest.approx([0.5, 0.0, -0.1])


@pytest.mark.parametrize("seed", range(30))
def test_random_against_the_reference(seed: int) -> None:
    draw = random.Random(seed)
    size = draw.randint(1, 12)
    scores = sorted((draw.choice([0.1, 0.5, 2.0, draw.random()]) for _ in range(size)), reverse=True)
    vectors = [[draw.gauss(0, 1) for _ in range(3)] for _ in range(size)]
    count, diversity = draw.randint(1, 14), draw.choice([0.0, 0.3, 0.7, 1.0])
    found = choose(scores, [np.array(vector, np.float32) for vector in vectors], count, diversity)
    exact = [np.array(vector, np.float32).astype(float).tolist() for vector in vectors]
    assert [position for position, _ in found] == reference(scores, exact, count, diversity)


@pytest.mark.parametrize("scores", [[3.0, 2.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0], [5.0, 5.0, 1e-300, 0.0]])
def test_without_diversity_it_is_the_ranking_itself(scores: list[float]) -> None:
    same = [np.ones(3, np.float32)] * 4
    assert [position for position, _ in choose(scores, same, 4, 0.0)] == [0, 1, 2, 3]


def test_what_has_no_vector_is_like_nothing_else() -> None:
    one = np.array([1, 0], np.float32)
    found = choose([1.0, 1.0, 1.0, 1.0], [one, one, None, np.zeros(2, np.float32)], 4, 0.5)
    assert [position for position, _ in found] == [0, 2, 3, 1]
    assert choose([], [], 3, 0.5) == []
    assert [position for position, _ in choose([2.0, 1.0], [None, None], 3, 1.0)] == [0, 1]
