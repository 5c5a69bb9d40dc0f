"""The miner by hand, and against a reference that sorts everything and thinks in sets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import pytest

from nvr_rag.errors import InvalidInput
from tests.unit.training.mining.corpora import corpus, judged, vectors
from training.data import JudgedQuery
from training.mining import miner
from training.mining.miner import Mined, mine
from training.mining.records import Corpus, MinedPair, MiningSettings, Negative, RuleName, Vectors

# Scores with the query 1; every document has one chunk unless said otherwise.
SHELF = corpus(
    {
        "a": ("da", 0, "answer", 0.75),
        "b": ("db", 0, "close", 0.6875),
        "c": ("dc", 0, "tie", 0.5625),  # 0.75 * 0.75
        "d": ("dd", 0, "hard", 0.5),
        "e": ("de", 0, "hard", 0.5),
        "f": ("df", 0, "fair", 0.25),
        "g": ("dg", 0, "far", -0.5),
        "h": ("dh", 0, "best", 0.875),
    }
)
ONE = vectors(1.0)


def hand(query: JudgedQuery, table: Corpus = SHELF, **options: Any) -> Mined:
    settings = MiningSettings(**{"rule": "perc-pos", "ratio": 0.75, "depth": 8, **options})
    return mine([query], ONE, table, settings)


def negatives(mined: Mined) -> list[list[str]]:
    return [[negative.id for negative in pair.negatives] for pair in mined.pairs]


def test_a_pair_by_hand() -> None:
    (pair,) = hand(judged(chunks={"a": 2})).pairs
    assert pair == MinedPair(
        query_key="q",
        positive="a",
        grade=2,
        positive_score=0.75,
        # h and b are too close, c is exactly at the threshold, e is a copy of d
        negatives=(Negative("d", 0.5, "mined"), Negative("f", 0.25, "mined"), Negative("g", -0.5, "mined")),
        known=frozenset({"answer"}),
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"rule": "naive"}, ["h", "b", "c", "d"]),
        ({"rule": "naive", "negatives": 2}, ["h", "b"]),
        ({"rule": "naive", "negatives": 0}, []),
        ({"rule": "naive", "depth": 4}, ["h", "b", "c"]),
        ({"rule": "margin-pos", "margin": 0.0}, ["b", "c", "d", "f"]),
        ({"rule": "margin-pos", "margin": 0.25}, ["f", "g"]),
        ({"rule": "perc-pos", "ratio": 1.0}, ["b", "c", "d", "f"]),
        ({"rule": "perc-pos", "ratio": 0.75, "depth": 5}, ["d"]),
    ],
)
def test_rules_and_numbers(options: dict[str, Any], expected: list[str]) -> None:
    assert negatives(hand(judged(chunks={"a": 1}), **options)) == [expected]


def test_each_positive_has_its_own_threshold() -> None:
    mined = hand(judged(chunks={"d": 1, "a": 1}), negatives=2)
    assert [pair.positive for pair in mined.pairs] == ["a", "d"]
    # 0.75 * 0.75 = 0.5625 and 0.5 * 0.75 = 0.375; d and its copy e are never negatives
    assert negatives(mined) == [["f", "g"], ["f", "g"]]
    assert negatives(hand(judged(chunks={"a": 1, "f": 1}), negatives=2)) == [["d", "g"], ["g"]]
    assert {pair.known for pair in mined.pairs} == {frozenset({"answer", "hard"})}


def test_a_positive_that_scores_below_zero() -> None:
    table = corpus(
        {id_: (id_, 0, id_, score) for id_, score in {"a": -0.5, "b": -0.375, "c": -0.625, "d": -0.75}.items()}
    )
    assert negatives(hand(judged(chunks={"a": 1}), table)) == [["d"]]


def test_what_people_called_irrelevant_comes_first_whatever_the_rule_says() -> None:
    (pair,) = hand(judged(chunks={"a": 1, "h": 0, "g": 0})).pairs
    assert pair.negatives == (
        Negative("h", 0.875, "judged"),
        Negative("g", -0.5, "judged"),
        Negative("d", 0.5, "mined"),
        Negative("f", 0.25, "mined"),
    )
    (few,) = hand(judged(chunks={"a": 1, "h": 0, "g": 0}), negatives=1).pairs
    assert few.negatives == (Negative("h", 0.875, "judged"),)


def test_judged_negatives_need_not_be_near() -> None:
    (pair,) = hand(judged(chunks={"a": 1, "g": 0}), depth=4).pairs
    assert pair.negatives == (Negative("g", -0.5, "judged"),)


def test_a_copy_of_a_judged_negative_is_no_second_one() -> None:
    assert negatives(hand(judged(chunks={"a": 1, "e": 0}))) == [["e", "f", "g"]]
    assert negatives(hand(judged(chunks={"a": 1, "e": 0, "d": 0}))) == [["d", "f", "g"]]


def test_a_copy_of_a_positive_is_no_negative_even_when_judged() -> None:
    mined = hand(judged(chunks={"d": 1, "e": 0}))
    assert [pair.positive for pair in mined.pairs] == ["d"]
    assert negatives(mined) == [["f", "g"]]


def test_copies_of_a_positive_are_one_pair_of_the_best_grade() -> None:
    (pair,) = hand(judged(chunks={"d": 1, "e": 3})).pairs
    assert (pair.positive, pair.grade) == ("e", 3)
    (pair,) = hand(judged(chunks={"e": 2, "d": 2})).pairs
    assert (pair.positive, pair.grade) == ("d", 2)


def test_a_text_refused_in_one_copy_is_refused_in_all() -> None:
    table = corpus(
        {
            "a": ("da", 0, "answer", 0.75),
            "b": ("db", 0, "twin", 0.625),  # too close
            "c": ("dc", 0, "twin", 0.5),  # the same words under another heading
            "d": ("dd", 0, "fair", 0.25),
        }
    )
    assert negatives(hand(judged(chunks={"a": 1}), table)) == [["d"]]
    # said to be irrelevant, it is trusted
    assert negatives(hand(judged(chunks={"a": 1, "c": 0}), table)) == [["c", "d"]]


def book() -> Corpus:
    """A document of six chunks, the third of which scores best, and two chunks of other documents."""
    scores = [0.25, 0.5, 0.875, 0.5, 0.125, 0.25]
    chunks = {f"b{at}": ("book", at, f"page {at}", score) for at, score in enumerate(scores)}
    return corpus({**chunks, "x": ("dx", 0, "page 4", 0.375), "y": ("dy", 0, "other", 0.0625)})


def test_of_a_document_the_best_chunk_is_the_positive() -> None:
    (pair,) = hand(judged(documents={"book": 2}), book()).pairs
    assert (pair.positive, pair.grade, pair.positive_score) == ("b2", 2, 0.875)
    assert pair.known == {f"page {at}" for at in range(6)}
    assert [negative.id for negative in pair.negatives] == ["y"]  # x copies a page


def test_of_a_document_the_chunk_said_to_be_irrelevant_is_not_the_positive() -> None:
    (pair,) = hand(judged(chunks={"b2": 0}, documents={"book": 2}), book()).pairs
    assert (pair.positive, pair.positive_score) == ("b1", 0.5)  # b3 is as good, and later
    assert pair.known == {f"page {at}" for at in (0, 1, 3, 4, 5)}
    assert pair.negatives == (Negative("b2", 0.875, "judged"), Negative("y", 0.0625, "mined"))


def test_a_chunk_and_its_document_are_one_pair_when_the_chunk_is_the_best() -> None:
    (pair,) = hand(judged(chunks={"b2": 1}, documents={"book": 3}), book()).pairs
    assert (pair.positive, pair.grade) == ("b2", 3)
    pairs = hand(judged(chunks={"b0": 1}, documents={"book": 3}), book()).pairs
    assert [(pair.positive, pair.grade) for pair in pairs] == [("b0", 1), ("b2", 3)]


def test_neighbours_of_a_positive_are_left_out() -> None:
    assert negatives(hand(judged(chunks={"b2": 1}), book(), neighbours=0)) == [["b1", "b3", "x", "b0"]]
    assert negatives(hand(judged(chunks={"b2": 1}), book(), neighbours=1)) == [["x", "b0", "b5", "y"]]
    assert negatives(hand(judged(chunks={"b2": 1}), book(), neighbours=2)) == [["b5", "y"]]  # x copies page 4
    assert negatives(hand(judged(chunks={"b2": 1, "b3": 0}), book(), neighbours=2)) == [["b3", "b5", "y"]]


def test_queries_without_a_positive_in_the_corpus_are_counted_not_mined() -> None:
    queries = [judged("k1", {"zz": 1}), judged("k2", {"a": 0}), judged("k3", {}, {"da": 0}), judged("k4", {"a": 1})]
    mined = mine(queries, np.repeat(ONE, 4, axis=0), SHELF, MiningSettings(depth=8))
    assert [pair.query_key for pair in mined.pairs] == ["k4"]
    assert (mined.report.queries, mined.report.queries_without_positive) == (4, 3)


def test_nothing_comes_of_nothing() -> None:
    nothing = mine([], np.empty((0, 1), np.float32), SHELF, MiningSettings())
    assert (nothing.pairs, nothing.report.queries) == ((), 0)
    assert mine([judged(chunks={"a": 1})], ONE, corpus({"b": ("d", 0, "t", 1)}), MiningSettings()).pairs == ()


def test_order_of_queries_blocks_and_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    queries, query_vectors, table = random_case(rng, queries=7, rows=50)
    settings = MiningSettings(depth=20, negatives=3)
    whole = mine(queries, query_vectors, table, settings)
    assert [pair.query_key for pair in whole.pairs] == sorted(pair.query_key for pair in whole.pairs)
    monkeypatch.setattr(miner, "BLOCK", 3)
    order, said = rng.permutation(7), []
    shuffled = [queries[at] for at in order]
    again = mine(shuffled, query_vectors[order], table, settings, lambda done, total: said.append((done, total)))
    assert again == whole
    assert said == [(3, 7), (6, 7), (7, 7)]


@pytest.mark.parametrize("shape", [(2, 1), (1, 2), (1,)])
def test_query_vectors_must_fit(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInput, match="query vectors"):
        mine([judged(chunks={"a": 1})], np.ones(shape, np.float32), SHELF, MiningSettings())
    with pytest.raises(InvalidInput, match="float64"):
        mine([judged(chunks={"a": 1})], np.ones((1, 1)), SHELF, MiningSettings())


def test_a_query_comes_once() -> None:
    with pytest.raises(InvalidInput, match="twice"):
        mine([judged("k"), judged("k")], np.ones((2, 1), np.float32), SHELF, MiningSettings())


@pytest.mark.parametrize(
    "wrong",
    [
        {"rule": "abs"},
        {"margin": -0.01},
        {"margin": float("inf")},
        {"margin": float("nan")},
        {"ratio": 0.0},
        {"ratio": 1.01},
        {"ratio": float("nan")},
        {"negatives": -1},
        {"depth": 0},
        {"neighbours": -1},
    ],
)
def test_settings_without_a_meaning_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput) as error:
        MiningSettings(**wrong)
    assert error.value.field in wrong


# The reference: every score of every row, and sets of texts.


def reference(
    query: JudgedQuery, vector: Vectors, c: Corpus, settings: MiningSettings
) -> tuple[list[Any], Counter[str]]:
    """Pairs as (positive, grade, score, negatives, known), and what became of the candidates."""
    rows, text = range(len(c.ids)), c.digests
    score = [sum(float(x) * float(y) for x, y in zip(vector, c.vectors[row], strict=True)) for row in rows]
    best = sorted(rows, key=lambda row: (-score[row], row))
    said = {row: query.chunks[c.ids[row]] for row in rows if c.ids[row] in query.chunks}
    zero = {row for row in said if said[row] == 0}
    bad = {text[row] for row in zero}
    chosen = [(row, grade) for row, grade in said.items() if grade]
    around = {r for r in rows for p, _ in chosen if c.documents[r] == c.documents[p]
              and abs(c.ordinals[r] - c.ordinals[p]) <= settings.neighbours}  # fmt: skip
    whole = {row for row in rows if query.documents.get(c.documents[row]) and text[row] not in bad}
    known = {row for row, _ in chosen} | whole
    for document, grade in query.documents.items():
        chosen += [(row, grade) for row in best if row in whole and c.documents[row] == document][:1]
    good = {text[row] for row in known}
    near = {text[row] for row in around} - good - bad
    groups = {one: min((-g, r) for r, g in chosen if text[r] == one) for one in {text[r] for r, _ in chosen}}
    pairs, counts = [], Counter[str]()
    for row, grade in sorted((r, -g) for g, r in groups.values()):
        limit = {"naive": float("inf"), "margin-pos": score[row] - settings.margin,
                 "perc-pos": score[row] - (1 - settings.ratio) * abs(score[row])}[settings.rule]  # fmt: skip
        pool = [r for r in best if r in zero] + [r for r in best[: settings.depth] if r not in zero]
        close = {text[r] for r in pool if not score[r] < limit} - good - near - bad
        left: list[int] = []
        for r in pool:
            if text[r] not in good | near | close | {text[taken] for taken in left}:
                left.append(r)
        counts["known_positive"] += len(set(pool) & known)
        counts["copy_of_positive"] += sum(text[r] in good for r in set(pool) - known)
        counts["neighbour"] += sum(text[r] in near for r in pool)
        counts["rule"] += sum(text[r] in close for r in pool)
        counts["kept"] += len(left)
        counts["examined"] += len(pool)
        emitted = [(c.ids[r], score[r], "judged" if r in zero else "mined") for r in left[: settings.negatives]]
        pairs.append((c.ids[row], grade, score[row], emitted, good))
    return pairs, counts


def random_case(rng: np.random.Generator, *, queries: int, rows: int) -> tuple[list[JudgedQuery], Vectors, Corpus]:
    """Whole numbers: sums are exact in any order, and ties are everywhere."""
    ids = [f"c{row:03d}" for row in range(rows)]
    documents = [f"d{document}" for document in rng.integers(0, max(1, rows // 5), rows)]
    texts = rng.integers(0, max(1, int(rows * 0.7)), rows)
    table = Corpus(
        ids=ids,
        digests=[f"t{text}" for text in texts],
        documents=documents,
        ordinals=rng.permutation(rows) % 7,
        vectors=rng.integers(-2, 3, (rows, 4)).astype(np.float32),
    )
    judgments = [
        judged(
            f"k{at:02d}",
            {str(rng.choice([*ids, "gone"])): int(rng.integers(0, 3)) for _ in range(rng.integers(0, 6))},
            {str(rng.choice([*documents, "gone"])): int(rng.integers(0, 3)) for _ in range(rng.integers(0, 3))},
        )
        for at in range(queries)
    ]
    return judgments, rng.integers(-2, 3, (queries, 4)).astype(np.float32), table


def random_settings(rng: np.random.Generator) -> MiningSettings:
    negatives = int(rng.integers(1, 6))
    return MiningSettings(
        rule=get_args(RuleName)[rng.integers(0, 3)],
        margin=float(rng.choice([0, 0.5, 1, 3])),
        ratio=float(rng.choice([0.5, 0.75, 1])),  # exact in binary: a threshold meets whole numbers
        depth=negatives + int(rng.integers(0, 40)),
        negatives=negatives,
        neighbours=int(rng.integers(0, 3)),
    )


@pytest.mark.parametrize("seed", range(120))
def test_agrees_with_the_reference(seed: int) -> None:
    rng = np.random.default_rng(seed)
    queries, query_vectors, table = random_case(rng, queries=6, rows=int(rng.integers(1, 60)))
    settings = random_settings(rng)
    mined = mine(queries, query_vectors, table, settings)
    expected: list[Any] = []
    counts = Counter[str]()
    for query, vector in zip(queries, query_vectors, strict=True):
        pairs, more = reference(query, vector, table, settings)
        expected += [(query.key, *pair) for pair in pairs]
        counts += more
    found = [(p.query_key, p.positive, p.grade, p.positive_score, list(p.negatives), p.known) for p in mined.pairs]
    assert found == expected
    assert_sound(mined.pairs, table, settings)
    report = mined.report
    assert {reason: number for reason, number in report.removed.items() if reason != "copy_of_negative"} == {
        reason: counts[reason] for reason in ("known_positive", "copy_of_positive", "neighbour", "rule")
    }
    assert (report.examined, report.kept, report.pairs) == (counts["examined"], counts["kept"], len(expected))
    assert report.examined == sum(report.removed.values()) + report.kept


def assert_sound(pairs: Sequence[MinedPair], table: Corpus, settings: MiningSettings) -> None:
    text = dict(zip(table.ids, table.digests, strict=True))
    for pair in pairs:
        texts = [text[negative.id] for negative in pair.negatives]
        assert text[pair.positive] in pair.known
        assert not set(texts) & pair.known
        assert len(set(texts)) == len(texts) <= settings.negatives
        mined = [negative.score for negative in pair.negatives if negative.why == "mined"]
        assert mined == sorted(mined, reverse=True)
        if settings.rule != "naive":
            assert all(score < pair.positive_score for score in mined)


def test_the_random_cases_are_worth_running() -> None:
    """Each kind of removal, both kinds of negatives, and pairs that fall short."""
    total, emitted, short = Counter[str](), Counter[str](), 0
    for seed in range(120):
        rng = np.random.default_rng(seed)
        case = random_case(rng, queries=6, rows=int(rng.integers(1, 60)))
        report = mine(*case, random_settings(rng)).report
        total.update(report.removed)
        emitted.update(report.emitted)
        short += sum(report.short.values())
    assert min(total.values()) > 50
    assert min(emitted.values()) > 50
    assert short > 50
