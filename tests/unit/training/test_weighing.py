"""Weighing: each side and every mixture is tried on the same answers; the best one wins, ties go to how it is today."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from nvr_rag.fusion import FusionSettings
from nvr_rag.ids import sha256_text
from nvr_rag.types import Hit, Mode
from training.data import JudgedQuery
from training.weighing import SHARES, Way, weigh

TODAY = (Mode.HYBRID, FusionSettings())
Side = Mapping[str, float]  # chunk -> score
Answers = Mapping[str, tuple[Side, Side]]  # query -> dense, lexical


def hits(side: Side) -> list[Hit]:
    """The answer of one side: of each chunk its text is its id, and its document the first letter of that."""
    where = {"uri": "", "title": "", "media_type": "", "metadata": {}, "headings": (), "page": None}
    return [
        Hit(rank=rank, score=side[key], chunk_id=key, text=key, document_id=key[0], start=0, end=1, **where)
        for rank, key in enumerate(best_first(side), start=1)
    ]


def tried(
    answers: Answers, right: Mapping[str, str], now: tuple[Mode, FusionSettings] = TODAY, *, by_document: bool = False
) -> list[Way]:
    """Weigh when `right` is the one chunk, or document, that answers each query."""

    def search(text: str, mode: Mode) -> Sequence[Hit]:
        asked.append((text, mode))
        dense, lexical = answers[text]
        return hits(dense if mode is Mode.DENSE else lexical)

    asked: list[tuple[str, Mode]] = []
    counted: list[int] = []
    found = weigh(
        search,
        [
            JudgedQuery(key=text, id=text, text=text, **{"documents" if by_document else "chunks": {target: 1}})
            for text, target in right.items()
        ],
        now,
        documents={target: target[0] for target in right.values()},
        digests={target: sha256_text(target) for target in right.values()},
        report=counted.append,
    )
    assert sorted(asked) == sorted((text, mode) for text in right for mode in (Mode.DENSE, Mode.LEXICAL))
    assert counted == list(range(1, len(right) + 1))
    return found


def expected(answers: Answers, right: Mapping[str, str], way: Way) -> float:
    """Mean nDCG@10 of one right answer a query, 1 / log2(1 + rank)."""
    rankings = {text: ranking(way, *answers[text]) for text in right}
    found = [ranked.index(right[text]) + 1 for text, ranked in rankings.items() if right[text] in ranked[:10]]
    return sum(1 / math.log2(1 + rank) for rank in found) / len(right)


def ranking(way: Way, dense: Side, lexical: Side) -> list[str]:
    """From the definitions of both ways to fuse."""
    if way.mode is not Mode.HYBRID:
        return best_first(dense if way.mode is Mode.DENSE else lexical)
    scores: dict[str, float] = defaultdict(float)
    for side, weight in ((dense, way.fusion.dense_weight), (lexical, way.fusion.lexical_weight)):
        low, high = min(side.values(), default=0.0), max(side.values(), default=0.0)
        for rank, key in enumerate(best_first(side), start=1):
            scaled = (side[key] - low) / (high - low)
            scores[key] += weight * (scaled if way.fusion.method == "weighted" else 1 / (60 + rank))
    return best_first(scores)


def best_first(scores: Mapping[str, float]) -> list[str]:
    return sorted(scores, key=lambda key: (-scores[key], key))


# One side is right, and the other one is surer of something else that both know.
ONLY_DENSE: Answers = {"q": ({"a": 1.0, "b": 0.99, "c": 0.0}, {"b": 9.0, "d": 5.0, "e": 1.0})}
ONLY_LEXICAL: Answers = {"q": ({"b": 0.9, "d": 0.5, "e": 0.1}, {"a": 9.0, "b": 8.9, "c": 0.5})}
# Both sides know it, and neither puts it first.
TOGETHER: Answers = {"q": ({"x": 1.0, "a": 0.9, "u": 0.1}, {"y": 9.0, "a": 8.0, "v": 1.0})}


@pytest.mark.parametrize(
    ("answers", "mode"), [(ONLY_DENSE, Mode.DENSE), (ONLY_LEXICAL, Mode.LEXICAL), (TOGETHER, Mode.HYBRID)]
)
def test_the_best_way_comes_first(answers: Answers, mode: Mode) -> None:
    best, *others = tried(answers, {"q": "a"}, (Mode.LEXICAL if mode is Mode.DENSE else Mode.DENSE, FusionSettings()))
    assert (best.mode, best.value) == (mode, 1.0)
    if mode is not Mode.HYBRID:
        assert all(way.value < 1.0 for way in others)


@pytest.mark.parametrize("answers", [ONLY_DENSE, ONLY_LEXICAL, TOGETHER])
def test_every_way_has_the_value_that_it_has_by_definition(answers: Answers) -> None:
    more = {
        **answers,
        "p": ({"b": 0.8, "c": 0.7, "a": 0.6}, {"a": 3.0, "f": 2.0, "b": 1.0}),
        "r": ({"z": 1.0, "y": 0.5}, {}),
    }
    right = {"q": "a", "p": "c", "r": "a"}
    found = tried(more, right)
    assert len({way.value for way in found}) > 3
    for way in found:
        assert way.value == pytest.approx(expected(more, right, way), abs=1e-9), way
    assert [way.value for way in found] == sorted((way.value for way in found), reverse=True)


def test_a_share_of_the_weights_can_decide() -> None:
    """Dense search is fooled in `p`, where lexical search is not, and nearly so in `q`, where lexical search is: with
    scores scaled to [0, 1], share s of the dense weight gets q right from s > 0.889 s + 1 - s on, p below s = 0.989."""
    answers: Answers = {
        "q": ({"a": 1.0, "b": 0.9, "c": 0.1}, {"b": 9.0, "d": 5.0, "e": 1.0}),
        "p": ({"f": 1.0, "a": 0.99, "g": 0.1}, {"a": 9.0, "g": 8.0, "h": 1.0}),
    }
    best = tried(answers, {"q": "a", "p": "a"})[0]
    assert (best.mode, best.value) == (Mode.HYBRID, 1.0)
    assert (best.fusion.method, best.fusion.dense_weight, best.fusion.lexical_weight) == ("weighted", 0.92, 0.08)


@pytest.mark.parametrize(
    "now",
    [
        TODAY,
        (Mode.DENSE, FusionSettings()),
        (Mode.LEXICAL, FusionSettings()),
        (Mode.HYBRID, FusionSettings(method="weighted", dense_weight=3.0, lexical_weight=0.5)),
    ],
)
def test_of_equally_good_ways_todays_is_kept(now: tuple[Mode, FusionSettings]) -> None:
    same = {"a": 1.0, "b": 0.5}
    found = tried({"q": (same, same)}, {"q": "a"}, now)
    assert {way.value for way in found} == {1.0}
    assert (found[0].mode, found[0].fusion) == now


def test_nothing_is_tried_twice_and_only_weights_and_method_change() -> None:
    fusion = FusionSettings(rank_constant=10, depth=77)
    found = tried(TOGETHER, {"q": "a"}, (Mode.DENSE, fusion))
    ways = [(way.mode, way.fusion) for way in found]
    assert len(set(ways)) == len(ways) == 2 + 2 * len(SHARES)
    plain = replace(fusion, method="rrf", dense_weight=1.0, lexical_weight=1.0)
    assert {replace(one, method="rrf", dense_weight=1.0, lexical_weight=1.0) for _, one in ways} == {plain}


def test_a_judged_document_is_met_by_its_best_chunk() -> None:
    answers: Answers = {"q": ({"b1": 1.0, "a1": 0.9, "a2": 0.8}, {"c1": 1.0})}
    found = {way.mode: way.value for way in tried(answers, {"q": "a"}, (Mode.DENSE, TODAY[1]), by_document=True)}
    assert found[Mode.DENSE] == pytest.approx(1 / math.log2(3))
    assert found[Mode.LEXICAL] == 0.0


def test_a_way_is_ready_for_json() -> None:
    way = Way(mode=Mode.HYBRID, fusion=FusionSettings(), value=0.5)
    assert way.as_json() == {"mode": "hybrid", "fusion": FusionSettings().as_json(), "value": 0.5}
    assert type(way.as_json()["mode"]) is str
