"""What mining reads: rows and vectors line up, nothing is in them that not everyone may read, and files are whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import update

from nvr_rag.db import tables as t
from nvr_rag.ids import document_id, sha256_text
from nvr_rag.testing import Crash
from tests.support import House, document
from training import collecting
from training.collecting import (
    export_index,
    read_corpus,
    read_pairs,
    read_queries,
    with_texts,
    write_pairs,
    write_queries,
)
from training.data import Example, JudgedQuery, Passage
from training.mining.records import Corpus, MinedPair, Negative

TEXTS = {"a": "one\n\ntwo\n\nthree", "b": "four", "c": "one\n\nfive"}


@pytest.fixture
def filled(house: House) -> House:
    house.put(*(document(uri, text, title=f"Title {uri}") for uri, text in TEXTS.items()))
    house.catch_up()
    return house


def exported(house: House, folder: Path) -> Corpus:
    count = export_index(house.database, house.index, folder, lambda _rows: None)
    corpus = read_corpus(folder, house.encoder.spec.dimension)
    assert count == len(corpus.ids)
    return corpus


def chunks(house: House) -> dict[str, tuple[str, str]]:
    """URI and text of every chunk that there is, by id."""
    with house.database.read() as connection:
        statement = t.Chunk.__table__.select()
        uris = {document_id("default", uri): uri for uri in TEXTS}
        return {row.id: (uris[row.document_id], row.text) for row in connection.execute(statement)}


# the index


def test_rows_and_vectors_are_those_of_the_same_chunks(filled: House, tmp_path: Path) -> None:
    corpus, known = exported(filled, tmp_path / "corpus"), chunks(filled)
    assert list(corpus.ids) == sorted(known)
    assert len(known) == 6
    inputs = [f"Title {uri}\n{text}" for uri, text in (known[key] for key in corpus.ids)]
    np.testing.assert_array_equal(corpus.vectors, filled.encoder.encode_documents(inputs))
    assert list(corpus.digests) == [sha256_text(known[key][1]) for key in corpus.ids]
    assert list(corpus.documents) == [document_id("default", known[key][0]) for key in corpus.ids]
    assert corpus.ordinals.tolist() == [TEXTS[known[key][0]].split("\n\n").index(known[key][1]) for key in corpus.ids]


def test_what_nobody_or_not_everybody_may_find_is_left_out(filled: House, tmp_path: Path) -> None:
    filled.put(document("secret", "six\n\nseven", acl=["group:board"]))
    filled.put(document("a", "one\n\neight\n\nthree", title="Title a"))  # two has gone
    filled.catch_up()
    filled.delete("b")  # the index has it still
    filled.put(document("late", "nine"))  # the index does not have it yet
    found = exported(filled, tmp_path / "corpus").digests
    assert sorted(found) == sorted(sha256_text(text) for text in ("one", "eight", "three", "one", "five"))


def test_an_empty_index_is_an_empty_corpus(house: House, tmp_path: Path) -> None:
    corpus = exported(house, tmp_path / "corpus")
    assert corpus.vectors.shape == (0, 64)


def test_rows_are_counted_on_the_way(filled: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "_REPORT_EVERY", 2)
    counted: list[int] = []
    export_index(filled.database, filled.index, tmp_path / "corpus", counted.append)
    assert counted == [2, 4, 6]


def test_an_export_that_dies_leaves_nothing_that_could_be_read(
    filled: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(_rows: int) -> None:
        raise Crash

    monkeypatch.setattr(collecting, "_REPORT_EVERY", 1)
    with pytest.raises(Crash):
        export_index(filled.database, filled.index, tmp_path / "corpus", dies)
    assert not [path for path in (tmp_path / "corpus").iterdir() if not path.name.endswith(".partial")]
    assert len(exported(filled, tmp_path / "corpus").ids) == 6
    assert filled.verify().clean  # the index may be changed again


# queries and pairs


def test_queries_survive_their_file(tmp_path: Path) -> None:
    queries = [
        JudgedQuery(key="k1", id="q1", text="wo ist\nder Tee?", chunks={"c1": 2, "c2": 0}, origins=("feedback",)),
        JudgedQuery(key="k2", id="k2", text="\u2028 ", documents={"d1": 1}, origins=("import:x", "import:y")),
    ]
    write_queries(tmp_path / "queries.jsonl", queries)
    found = read_queries(tmp_path / "queries.jsonl")
    assert [(one.key, one.id, one.text, one.chunks, one.documents, tuple(one.origins)) for one in found] == [
        (one.key, one.id, one.text, one.chunks, one.documents, one.origins) for one in queries
    ]


def pair(query: str, positive: str, *negatives: str) -> MinedPair:
    return MinedPair(
        query_key=query,
        positive=positive,
        grade=1,
        positive_score=0.875,
        negatives=tuple(Negative(key, 0.1 + 0.2, "mined") for key in negatives),
        known=frozenset({positive, "copy"}),
    )


def test_pairs_survive_their_file_to_the_last_bit(tmp_path: Path) -> None:
    pairs = [pair("k1", "c1", "c2", "c3"), pair("k2", "c2")]
    write_pairs(tmp_path / "mined.jsonl", pairs)
    assert list(read_pairs(tmp_path / "mined.jsonl")) == pairs


# texts


def test_examples_hold_the_inputs_that_the_encoder_reads(filled: House) -> None:
    ids = {text: key for key, (uri, text) in chunks(filled).items() if uri != "c"}
    queries = {"k1": JudgedQuery(key="k1", id="q1", text="how many?", chunks={ids["two"]: 1})}
    [example] = with_texts(
        filled.database, filled.index, [pair("k1", ids["two"], ids["four"], ids["one"])], queries, filled.encoder.spec
    )
    assert example == Example(
        query_key="k1",
        query="how many?",
        positive=Passage(id=sha256_text("two"), text="Title a\ntwo"),
        negatives=(
            Passage(id=sha256_text("four"), text="Title b\nfour"),
            Passage(id=sha256_text("one"), text="Title a\none"),
        ),
        known=frozenset({ids["two"], "copy"}),
    )


def test_what_has_gone_or_been_closed_since_it_was_mined_is_left_out(filled: House) -> None:
    ids = {text: key for key, (uri, text) in chunks(filled).items() if uri != "c"}
    [five] = [key for key, (_, text) in chunks(filled).items() if text == "five"]
    pairs = [
        pair("k1", ids["two"], ids["one"]),  # its positive goes
        pair("k2", ids["one"], ids["two"], ids["four"], ids["three"]),  # two of its negatives go
        pair("k3", ids["four"], ids["one"]),  # its positive is closed
        pair("k4", five),
    ]
    queries = {one.query_key: JudgedQuery(key=one.query_key, id="", text=one.query_key) for one in pairs}
    filled.put(document("a", "one\n\nthree", title="Title a"))
    filled.catch_up()
    with filled.database.write() as connection:
        key = document_id("default", "b")
        connection.execute(update(t.Document).where(t.Document.id == key).values(acl=["group:board"]))
    found = with_texts(filled.database, filled.index, pairs, queries, filled.encoder.spec)
    assert [(one.query, one.positive.text, [negative.text for negative in one.negatives]) for one in found] == [
        ("k2", "Title a\none", ["Title a\nthree"]),
        ("k4", "Title c\nfive", []),
    ]
