"""BEIR folders: what is read, what is refused and where, and whose URI an id is."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from nvr_rag.errors import InvalidInput
from training.beir import BeirDocument, corpus_ids, match_uris, read_beir, read_corpus

CORPUS = [{"_id": "d1", "title": "Tea", "text": "hot"}, {"_id": "d2", "title": "", "text": "cold"}]
QUERIES = [{"_id": "q1", "text": "warm drinks"}, {"_id": "q2", "text": "ice"}, {"_id": "q3", "text": "not judged"}]
QRELS = "query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td2\t0\nq2\tgone\t1\n"


def write(folder: Path, name: str, rows: Iterable[dict[str, Any]]) -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "drinks"
    (folder / "qrels").mkdir(parents=True)
    write(folder, "corpus.jsonl", CORPUS)
    write(folder, "queries.jsonl", QUERIES)
    (folder / "qrels" / "test.tsv").write_text(QRELS)
    (folder / "qrels" / "dev.tsv").write_text("q2\td2\t1\n")
    return folder


def test_a_split_has_its_queries_and_grades(folder: Path) -> None:
    data = read_beir(folder)
    assert (data.name, data.split) == ("drinks", "test")
    assert data.qrels == {"q1": {"d1": 2, "d2": 0}, "q2": {"gone": 1}}
    assert data.queries == {"q1": "warm drinks", "q2": "ice"}
    assert data.judged == {"d1", "d2", "gone"}


def test_the_line_of_names_may_be_missing(folder: Path) -> None:
    assert read_beir(folder, "dev").qrels == {"q2": {"d2": 1}}


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_line_ends_and_empty_lines_do_not_matter(folder: Path, ending: str) -> None:
    lines = QRELS.split("\n", 1)[1]  # no names
    (folder / "qrels" / "test.tsv").write_bytes(("\ufeff" + lines + "\n\n").replace("\n", ending).encode())
    assert read_beir(folder).qrels == {"q1": {"d1": 2, "d2": 0}, "q2": {"gone": 1}}


def test_a_negative_grade_says_irrelevant(folder: Path) -> None:
    (folder / "qrels" / "test.tsv").write_text("q1\td1\t-2\nq1\td2\t1\n")
    assert read_beir(folder).qrels == {"q1": {"d1": 0, "d2": 1}}


def test_the_corpus_is_read_in_the_order_of_the_file(folder: Path) -> None:
    write(
        folder, "corpus.jsonl", [*CORPUS, {"_id": "d0", "text": "no title"}, {"_id": "d9", "title": None, "text": ""}]
    )
    assert list(read_corpus(folder)) == [
        BeirDocument(id="d1", title="Tea", text="hot"),
        BeirDocument(id="d2", title="", text="cold"),
        BeirDocument(id="d0", title="", text="no title"),
        BeirDocument(id="d9", title="", text=""),
    ]
    assert corpus_ids(folder) == ["d1", "d2", "d0", "d9"]


def test_the_corpus_is_streamed(folder: Path) -> None:
    with (folder / "corpus.jsonl").open("a") as file:
        file.write("broken\n")
    documents = read_corpus(folder)
    assert [next(documents).id, next(documents).id] == ["d1", "d2"]
    with pytest.raises(InvalidInput, match=r"corpus\.jsonl, line 3: not JSON"):
        next(documents)


# what two evaluations must share


def test_the_hash_is_that_of_the_judged_queries_and_grades(folder: Path) -> None:
    before = read_beir(folder).sha256
    write(folder, "corpus.jsonl", CORPUS[:1])
    write(folder, "queries.jsonl", reversed(QUERIES[:2]))  # the third is judged by nobody
    (folder / "qrels" / "test.tsv").write_text("q2\tgone\t1\nq1\td2\t0\nq1\td1\t2\n")
    assert read_beir(folder).sha256 == before


@pytest.mark.parametrize(
    ("queries", "qrels"),
    [
        ([{"_id": "q1", "text": "warmer"}, *QUERIES[1:]], QRELS),
        (QUERIES, QRELS.replace("d1\t2", "d1\t1")),
        (QUERIES, QRELS.replace("d1\t2", "d3\t2")),
        (QUERIES, QRELS + "q3\td1\t1\n"),
    ],
)
def test_another_question_or_grade_has_another_hash(folder: Path, queries: list[dict[str, Any]], qrels: str) -> None:
    before = read_beir(folder).sha256
    write(folder, "queries.jsonl", queries)
    (folder / "qrels" / "test.tsv").write_text(qrels)
    assert read_beir(folder).sha256 != before


# what is refused


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("queries.jsonl", '{"_id": "q1", "text": "a"}\n{"_id": "q2"}\n', r'queries\.jsonl, line 2: has no "text"'),
        ("queries.jsonl", '{"text": "a"}\n', r'queries\.jsonl, line 1: has no "_id"'),
        ("queries.jsonl", '{"_id": 7, "text": "a"}\n', r'line 1: has a "_id" that is not a string'),
        ("queries.jsonl", '{"_id": "q1", "text": "a"}\nq2\n', r"queries\.jsonl, line 2: not JSON"),
        ("queries.jsonl", '["q1"]\n', r"queries\.jsonl, line 1: not a JSON object"),
        ("queries.jsonl", '{"_id": "q1", "text": "a"}\n' * 2, r"line 2: the query 'q1' is there twice"),
        ("qrels/test.tsv", QRELS + "q2\td1\thigh\n", r"test\.tsv, line 5: a grade is a whole number, not 'high'"),
        ("qrels/test.tsv", "q1\td1\tscore\n", r"test\.tsv, line 1: a grade is a whole number, not 'score'"),
        ("qrels/test.tsv", QRELS + "q2\td1\t0.5\n", r"line 5: a grade is a whole number, not '0\.5'"),
        ("qrels/test.tsv", QRELS + "q7\td1\t1\n", r"test\.tsv, line 5: the query 'q7' is not in queries\.jsonl"),
        ("qrels/test.tsv", QRELS + "q1\t0\td1\t1\n", r"line 5: a judgment has .* not 4 values"),
        ("qrels/test.tsv", QRELS + "q1 d1 1\n", r"line 5: a judgment has .* not 1 values"),
        ("qrels/test.tsv", QRELS + "q1\td1\t1\n", r"line 5: 'q1' and 'd1' were given another grade before"),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\n", r"test\.tsv is empty"),
        ("qrels/test.tsv", "", r"test\.tsv is empty"),
    ],
)
def test_what_is_wrong_is_told_with_file_and_line(folder: Path, name: str, content: str, message: str) -> None:
    (folder / name).write_text(content)
    with pytest.raises(InvalidInput, match=message):
        read_beir(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"_id": "d1", "title": "a"}\n', r'corpus\.jsonl, line 1: has no "text"'),
        ('{"_id": "d1", "title": 3, "text": "a"}\n', r'line 1: has a "title" that is not a string'),
        ('{"_id": "d1", "text": "a"}\n' * 2, r"corpus\.jsonl, line 2: the id 'd1' is there twice"),
        ("", r"corpus\.jsonl is empty"),
    ],
)
def test_a_bad_corpus_is_told_before_any_work(folder: Path, content: str, message: str) -> None:
    (folder / "corpus.jsonl").write_text(content)
    with pytest.raises(InvalidInput, match=message):
        corpus_ids(folder)


def test_missing_files_are_named(folder: Path) -> None:
    (folder / "corpus.jsonl").unlink()
    with pytest.raises(InvalidInput, match=r"corpus\.jsonl cannot be read: No such file"):
        corpus_ids(folder)
    (folder / "queries.jsonl").write_bytes(b'{"_id": "q1", "text": "\xff"}\n')
    with pytest.raises(InvalidInput, match=r"queries\.jsonl cannot be read: not UTF-8"):
        read_beir(folder)
    with pytest.raises(InvalidInput, match="is not a folder"):
        read_beir(folder / "nowhere")


def test_an_unknown_split_is_refused_with_those_there_are(folder: Path) -> None:
    with pytest.raises(InvalidInput, match=r"no split 'train'; there are: dev, test"):
        read_beir(folder, "train")
    for file in (folder / "qrels").iterdir():
        file.unlink()
    with pytest.raises(InvalidInput, match=r"no split 'test'; there is no \.tsv file in .*qrels"):
        read_beir(folder)


# whose URI an id is


@pytest.mark.parametrize(
    ("id_", "uri"),
    [
        ("31715818", "31715818"),
        ("7", "file:///data/corpus.jsonl#7"),
        ("7", "file:///data/7"),
        ("7", "file:///data/7.md"),
        ("7", "https://example.org/a/7.html"),
        ("a/b", "file:///data/a/b.txt"),
        ("a b", "file:///data/a%20b.txt"),
        ("10.1000/x.y", "https://doi.example.org/10.1000/x.y"),
    ],
)
def test_the_uris_that_an_id_fits(id_: str, uri: str) -> None:
    matches = match_uris([id_], [(uri, "doc"), ("file:///else/where.md", "other")])
    assert (matches.found, matches.missing, matches.ambiguous) == ({id_: "doc"}, (), ())


@pytest.mark.parametrize("uri", ["file:///data/17", "file:///data/7a.md", "file:///7/data.md", "file:///7.2", "7.md"])
def test_the_uris_that_an_id_does_not_fit(uri: str) -> None:
    assert match_uris(["7"], [(uri, "doc")]).missing == ("7",)


def test_the_closest_fit_counts_and_a_draw_counts_for_nobody() -> None:
    uris = [
        ("1", "exact"),
        ("x#1", "worse"),
        ("x#2", "fragment"),
        ("y/2", "worse"),
        ("5.md", "not at all"),
        ("y/5", "folder"),
        ("z/5.md", "worse"),
        ("y/3.md", "draw"),
        ("z/3.txt", "draw as well"),
    ]
    matches = match_uris({"1", "2", "3", "4", "5"}, uris)
    assert matches.found == {"1": "exact", "2": "fragment", "5": "folder"}
    assert (matches.missing, matches.ambiguous) == (("4",), ("3",))
    assert match_uris({"1", "2", "3", "4", "5"}, reversed(uris)) == matches
