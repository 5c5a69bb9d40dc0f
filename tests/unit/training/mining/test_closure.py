"""What judgments rule out, on corpora small enough to see at once."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from nvr_rag.errors import InvalidInput
from tests.unit.training.mining.corpora import corpus, judged, vectors
from training.data import JudgedQuery
from training.mining.closure import Closures
from training.mining.records import Corpus

# One document of eight passages, out of order in the ids, and some copies elsewhere.
LONG = corpus(
    {
        "a": ("long", 5, "text 5", 0),
        "b": ("long", 0, "text 0", 0),
        "c": ("long", 3, "text 3", 0),
        "d": ("long", 7, "text 7", 0),
        "e": ("long", 1, "text 1", 0),
        "f": ("long", 2, "text 2", 0),
        "g": ("long", 4, "text 4", 0),
        "h": ("long", 6, "text 6", 0),
        "i": ("copies", 0, "text 3", 0),
        "j": ("copies", 1, "text 2", 0),
        "k": ("copies", 2, "text 9", 0),
        "l": ("other", 3, "text 8", 0),
    }
)


def ruled_out(query: JudgedQuery, *, neighbours: int, table: Corpus = LONG) -> Mapping[str, str]:
    """Chunk id -> reason."""
    closures = Closures(table, neighbours=neighbours)
    closure = closures.of(query)
    reasons = {id_: closure.rules_out(row, int(closures.texts[row])) for row, id_ in enumerate(table.ids)}
    return {id_: reason for id_, reason in reasons.items() if reason}


def test_a_positive_its_copies_and_its_neighbours() -> None:
    assert ruled_out(judged(chunks={"c": 2}), neighbours=1) == {
        "c": "known_positive",
        "i": "copy_of_positive",
        "f": "neighbour",  # ordinal 2
        "j": "neighbour",  # an exact copy of f, in another document
        "g": "neighbour",  # ordinal 4
    }


def test_without_reach_there_are_no_neighbours() -> None:
    assert ruled_out(judged(chunks={"c": 1}), neighbours=0) == {"c": "known_positive", "i": "copy_of_positive"}


def test_reach_ends_with_the_document() -> None:
    # ordinals 0..3 of "long" are b e f c; j copies f, i copies c; "l" has ordinal 3 in another document
    found = ruled_out(judged(chunks={"b": 1}), neighbours=3)
    assert found == {"b": "known_positive", **dict.fromkeys("efcij", "neighbour")}


def test_of_a_document_every_chunk_is_known() -> None:
    found = ruled_out(judged(documents={"long": 1}), neighbours=2)
    assert found == {**dict.fromkeys("abcdefgh", "known_positive"), **dict.fromkeys("ij", "copy_of_positive")}


def test_a_document_said_to_be_irrelevant_rules_nothing_out() -> None:
    assert ruled_out(judged(documents={"long": 0}), neighbours=2) == {}


def test_what_was_said_to_be_irrelevant_is_no_neighbour() -> None:
    found = ruled_out(judged(chunks={"c": 1, "f": 0}), neighbours=1)
    # neither f nor its copy j
    assert found == {"c": "known_positive", "i": "copy_of_positive", "g": "neighbour"}


def test_a_copy_of_a_positive_is_ruled_out_whatever_was_said_of_it() -> None:
    found = ruled_out(judged(chunks={"c": 1, "i": 0}), neighbours=0)
    assert found == {"c": "known_positive", "i": "copy_of_positive"}


def test_a_judgment_of_a_chunk_is_more_precise_than_one_of_its_document() -> None:
    closures = Closures(LONG, neighbours=2)
    closure = closures.of(judged(chunks={"f": 0, "e": 0}, documents={"long": 1}))
    ids = {LONG.ids[row] for row in closure.known_rows}
    assert ids == set("abcdgh")
    assert ruled_out(judged(chunks={"f": 0, "e": 0}, documents={"long": 1}), neighbours=2) == {
        **dict.fromkeys("abcdgh", "known_positive"),
        "i": "copy_of_positive",
    }


def test_a_document_of_which_everything_is_irrelevant_answers_nothing() -> None:
    closure = Closures(LONG, neighbours=2).of(judged(chunks={"i": 0, "j": 0, "k": 0}, documents={"copies": 3}))
    assert not closure.answered
    assert closure.documents == []


def test_a_positive_among_neighbours_stays_a_positive() -> None:
    found = ruled_out(judged(chunks={"c": 1, "g": 2}), neighbours=1)
    assert found == {
        **dict.fromkeys("cg", "known_positive"),
        "i": "copy_of_positive",
        **dict.fromkeys("fja", "neighbour"),
    }


def test_what_the_corpus_lacks_is_passed_over() -> None:
    closures = Closures(LONG, neighbours=4)
    lost = closures.of(judged(chunks={"": 1, "bb": 2, "zz": 1}, documents={"gone": 1}))
    assert not lost.answered
    assert closures.of(judged(chunks={"bb": 1, "b": 1})).positives == {1: 1}
    assert not Closures(corpus({}), neighbours=1).of(judged(chunks={"a": 1}, documents={"long": 1})).answered


def test_grades_and_rows_of_positives() -> None:
    closure = Closures(LONG, neighbours=0).of(judged(chunks={"a": 3, "l": 1, "k": 0}, documents={"copies": 2}))
    assert closure.positives == {0: 3, 11: 1}
    assert closure.judged == {10}
    ((rows, grade),) = closure.documents
    assert (rows.tolist(), grade) == ([8, 9], 2)


def test_neighbours_agree_with_the_definition_on_random_documents() -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        number, reach = int(rng.integers(1, 60)), int(rng.integers(0, 5))
        documents, ordinals = rng.integers(0, 4, number), rng.permutation(number)
        ids = [f"{row:03d}" for row in range(number)]
        table = Corpus(
            ids=ids,
            digests=ids,
            documents=[f"d{document}" for document in documents],
            ordinals=ordinals,
            vectors=np.zeros((number, 1), np.float32),
        )
        at = int(rng.integers(0, number))
        near = {
            ids[row]
            for row in range(number)
            if row != at and documents[row] == documents[at] and abs(ordinals[row] - ordinals[at]) <= reach
        }
        found = ruled_out(judged(chunks={ids[at]: 1}), neighbours=reach, table=table)
        assert found == {ids[at]: "known_positive", **dict.fromkeys(near, "neighbour")}


def test_a_corpus_whose_columns_do_not_fit_is_refused() -> None:
    good = {"ids": ["a", "b"], "digests": ["x", "y"], "documents": ["d", "d"], "ordinals": np.arange(2)}
    Corpus(**good, vectors=vectors(1, 2))
    with pytest.raises(InvalidInput, match="columns"):
        Corpus(**good, vectors=vectors(1, 2, 3))
    with pytest.raises(InvalidInput, match="float32"):
        Corpus(**good, vectors=vectors(1, 2).astype(np.float64))
    with pytest.raises(InvalidInput, match="float32"):
        Corpus(**good, vectors=np.zeros(2, np.float32))
    for ids in (["b", "a"], ["a", "a"]):
        with pytest.raises(InvalidInput, match="ascending"):
            Corpus(**{**good, "ids": ids}, vectors=vectors(1, 2))
