"""Importing judgments: documents are found again, files are refused with file and line, and it is all or nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, select

from nvr_rag import collections, corpus
from nvr_rag.db import tables as t
from nvr_rag.errors import InvalidInput, NotFound
from nvr_rag.ids import document_id
from tests.support import House, document
from training.importing import ImportReport, import_judgments, remove_judgments
from training.judgments import training_queries

TEA_KEY = "d2a2f754e671d0fee6784a7cbc6fd5965c4a7f6725e3366b82abf7b6d78a1d87"  # of "what is tea"
TEA, SEA = "file:///srv/docs/drinks/green%20tea.md", "corpus.jsonl#sea"


@pytest.fixture
def library(house: House) -> House:
    """A collection with documents under all kinds of URIs; that of the sea has two chunks."""
    house.put(document(TEA, "tea"), document(SEA, "blue whale\n\nred fox"), document("doc/7", "seven"))
    house.catch_up()
    return house


def csv_file(folder: Path, content: str | bytes) -> Path:
    path = folder / "judged.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def beir_folder(folder: Path, queries: Mapping[str, str], **splits: str) -> Path:
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"_id": key, "text": text}) for key, text in queries.items()]
    (folder / "queries.jsonl").write_text("\n".join(lines), encoding="utf-8")
    for split, rows in splits.items():
        header = "query-id\tcorpus-id\tscore\n"
        (folder / "qrels" / f"{split}.tsv").write_text(header + rows, encoding="utf-8")
    return folder


def take(house: House, path: Path, **options: Any) -> ImportReport:
    return import_judgments(house.database, "default", path, **{"origin": "test", **options})


def stored(house: House) -> list[tuple[str, str, str, str, int]]:
    """(origin, query, URI, chunk's text, grade) of all judgments, sorted."""
    j, d, c = t.JudgmentRow, t.Document, t.Chunk
    statement = (
        select(j.origin, j.query, d.uri, c.text, j.grade)
        .join(d, d.id == j.document_id)
        .join(c, c.id == j.chunk_id, isouter=True)
    )
    with house.database.read() as connection:
        return sorted((*row[:3], row[3] or "", row[4]) for row in connection.execute(statement))


def chunk(house: House, text: str) -> str:
    with house.database.read() as connection:
        return str(connection.scalars(select(t.Chunk.id).where(t.Chunk.text == text)).one())


# files


def test_a_csv_file_becomes_judgments(library: House, tmp_path: Path) -> None:
    fox = chunk(library, "red fox")
    content = f'Query, Document,chunk,grade\r\n"What is tea, really?",doc/7,,2\r\n\r\nfox,sea,{fox},1\r\nfox,sea,,0\r\n'
    report = take(library, csv_file(tmp_path, b"\xef\xbb\xbf" + content.encode()))
    assert report == ImportReport(origin="test", queries=2, judgments=3, replaced=0, repeated=0, skipped=0, unknown=())
    assert stored(library) == [
        ("test", "What is tea, really?", "doc/7", "", 2),
        ("test", "fox", SEA, "", 0),
        ("test", "fox", SEA, "red fox", 1),
    ]


def test_without_a_column_for_grades_everything_is_relevant(library: House, tmp_path: Path) -> None:
    take(library, csv_file(tmp_path, 'document,query\nsea," a\nquery "\n'))
    assert stored(library) == [("test", "a\nquery", SEA, "", 1)]


def test_an_imported_judgment_is_a_judged_query(library: House, tmp_path: Path) -> None:
    take(library, csv_file(tmp_path, "query,document,grade\nWhat is tea?,doc/7,2\n"))
    with library.database.read() as connection:
        (query,) = training_queries(connection, "default").queries
    assert (query.key, query.text, query.origins) == (TEA_KEY, "What is tea?", ("import:test",))
    assert query.documents == {document_id("default", "doc/7"): 2}


def test_the_same_again_in_other_words_counts_once_and_the_last_word_counts(library: House, tmp_path: Path) -> None:
    report = take(library, csv_file(tmp_path, "query,document,grade\nTea?,sea,1\ntea,corpus.jsonl#sea,0\nTEA,sea,3\n"))
    assert (report.queries, report.judgments, report.repeated) == (1, 1, 2)
    assert stored(library) == [("test", "TEA", SEA, "", 3)]


def test_what_no_database_can_hold_is_replaced(library: House, tmp_path: Path) -> None:
    take(library, csv_file(tmp_path, "query,document\nred\0fox,sea\n"))
    assert [row[1] for row in stored(library)] == ["red\ufffdfox"]
    take(library, beir_folder(tmp_path / "beir", {"q": "red\0fox \udc80"}, test="q\tsea\t1\n"))
    assert [row[1] for row in stored(library)] == ["red\ufffdfox \ufffd"]
    report = take(library, csv_file(tmp_path, "query,document,chunk\nfox,sea,\nfox,sea,c\0\n"))
    assert report.unknown == ("sea chunk c\ufffd",)


@pytest.mark.parametrize(
    ("content", "line", "words"),
    [
        ("query,text\nfox,sea\n", 1, "columns"),
        ("query;document\nfox;sea\n", 1, "columns"),
        ("query,document,grades\nfox,sea,0\n", 1, "columns"),
        ("query,document,query\nfox,sea,fox\n", 1, "columns"),
        ("query,document\nfox,sea\nfox\n", 3, "1 values for 2 columns"),
        ("query,document\nwhat, really,sea\n", 2, "3 values for 2 columns"),
        ("query,document,grade\nfox,sea,1\nfox,sea,good\n", 3, "not 'good'"),
        ("query,document,grade\nfox,sea,-1\n", 2, "not '-1'"),
        ("query,document,grade\nfox,sea,1.5\n", 2, "not '1.5'"),
        ("query,document,grade\nfox,sea,\n", 2, "not ''"),
        ("query,document,grade\nfox,sea,9999999\n", 2, "not 9999999"),
        ("query,document,grade\nfox,sea,٣\n", 2, "not '٣'"),
        ("query,document\n  ,sea\n", 2, "the query is empty"),
        ("query,document\nfox,\n", 2, "no document"),
        (f"query,document\n{'x' * 10_001},sea\n", 2, "10001"),
        ('query,document\nfox,sea\n"fo"x,sea\n', 3, "not CSV"),
        ('query,document\n\n"fox,sea\nfox,sea\n', 3, "not CSV"),
        (b"query,document\nfox,sea\n\xff\xfe,sea\n", 3, "not UTF-8"),
        ("query,document".encode("utf-16"), 1, "not UTF-8"),
    ],
)
def test_a_bad_line_is_named(library: House, tmp_path: Path, content: str | bytes, line: int, words: str) -> None:
    path = csv_file(tmp_path, content)
    with pytest.raises(InvalidInput) as caught:
        take(library, path)
    assert str(caught.value).startswith(f"{path}, line {line}: ")
    assert words in str(caught.value)
    assert stored(library) == []


@pytest.mark.parametrize("content", ["", "\n \n", "query,document\n", "query,document\n\n,\n"])
def test_a_file_without_judgments_is_refused(library: House, tmp_path: Path, content: str) -> None:
    with pytest.raises(InvalidInput, match=r"judged\.csv"):
        take(library, csv_file(tmp_path, content))


def test_a_file_that_is_not_there_is_refused(library: House, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="No such file"):
        take(library, tmp_path / "none.csv")


@pytest.mark.parametrize("origin", ["", "../x", "import:x", "x" * 65, "a b"])
def test_an_origin_has_a_name_that_can_be_typed(library: House, tmp_path: Path, origin: str) -> None:
    with pytest.raises(InvalidInput, match="an origin's name"):
        take(library, csv_file(tmp_path, "query,document\nfox,sea\n"), origin=origin)


# BEIR folders


def test_a_split_of_a_beir_folder_is_imported(library: House, tmp_path: Path) -> None:
    queries = {"q1": "fox", "q2": "tea", "q3": "nobody judges this"}
    folder = beir_folder(tmp_path / "beir", queries, train="q1\tsea\t2\nq1\t7\t0\n", test="q2\tgreen tea\t1\n")
    assert take(library, folder, split="train").judgments == 2
    assert stored(library) == [("test", "fox", SEA, "", 2), ("test", "fox", "doc/7", "", 0)]
    assert take(library, folder, split="test", origin="other").judgments == 1
    assert stored(library)[0] == ("other", "tea", TEA, "", 1)


def test_the_only_split_needs_no_name(library: House, tmp_path: Path) -> None:
    folder = beir_folder(tmp_path / "beir", {"q1": "fox"}, dev="q1\tsea\t1\n")
    assert take(library, folder).judgments == 1
    with pytest.raises(InvalidInput, match="dev, train"):
        take(library, beir_folder(folder, {"q1": "fox"}, train="q1\tsea\t1\n"))
    with pytest.raises(InvalidInput, match=r"'nope'.*dev, train"):
        take(library, folder, split="nope")


def test_a_folder_that_is_no_beir_folder_is_refused(library: House, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"queries\.jsonl and qrels"):
        take(library, tmp_path)
    with pytest.raises(InvalidInput, match="no splits"):
        take(library, csv_file(tmp_path, "query,document\nfox,sea\n"), split="train")
    with pytest.raises(InvalidInput, match=r"queries\.jsonl, query 'q1': the query is empty"):
        take(library, beir_folder(tmp_path / "beir", {"q1": " "}, test="q1\tsea\t1\n"))


# finding documents again


@pytest.mark.parametrize(
    ("name", "uri"),
    [
        (document_id("default", TEA), TEA),
        (TEA, TEA),
        ("green%20tea.md", TEA),
        ("green tea.md", TEA),
        ("green tea", TEA),
        ("drinks/green tea", TEA),
        ("/srv/docs/drinks/green tea.md", TEA),
        ("sea", SEA),
        (SEA, SEA),
        ("7", "doc/7"),
    ],
)
def test_documents_are_found_by_id_by_uri_and_by_the_end_of_it(
    library: House, tmp_path: Path, name: str, uri: str
) -> None:
    take(library, csv_file(tmp_path, f"query,document\nfox,{name}\n"))
    assert [row[2] for row in stored(library)] == [uri]


def test_an_id_goes_before_a_uri_that_ends_with_it(library: House, tmp_path: Path) -> None:
    key = document_id("default", SEA)
    library.put(document(f"trap/{key}", "trap"))
    take(library, csv_file(tmp_path, f"query,document\nfox,{key}\n"))
    assert [row[2] for row in stored(library)] == [SEA]


def test_a_name_that_fits_two_documents_is_refused_with_both(library: House, tmp_path: Path) -> None:
    library.put(document("x/sea.md", "worse fit"), document("a/7", "seven again"), document("a/7.md", "worse fit"))
    take(library, csv_file(tmp_path, "query,document\nfox,sea\n"))
    with pytest.raises(InvalidInput, match=r"line 3: '7' fits several .*, a/7 and doc/7; name"):
        take(library, csv_file(tmp_path, "query,document\nfox,sea\nfox,7\n"))
    assert [row[2] for row in stored(library)] == [SEA]


def test_what_the_collection_does_not_have_is_left_out_and_counted(library: House, tmp_path: Path) -> None:
    library.workspace.create_collection("other")
    library.delete("doc/7")
    unknown = [f"x{i}" for i in range(6)]
    rows = [f"fox,{name}" for name in ["7", "7", *unknown, "sea", document_id("other", "x")]]
    report = take(library, csv_file(tmp_path, "query,document\n" + "\n".join(rows)))
    assert (report.judgments, report.skipped, report.repeated) == (1, 9, 0)
    assert report.unknown == ("7", "x0", "x1", "x2", "x3")


def test_when_nothing_matches_it_says_how_documents_are_found(library: House, tmp_path: Path) -> None:
    path = csv_file(tmp_path, "query,document\nfox,nowhere\n")
    with pytest.raises(InvalidInput, match=r"'nowhere'.*by its id, its URI, or the end of its URI"):
        take(library, path)


def test_chunks_are_those_of_the_document(library: House, tmp_path: Path) -> None:
    fox, gone = chunk(library, "red fox"), document_id("default", "no chunk")
    report = take(library, csv_file(tmp_path, f"query,document,chunk\nfox,sea,{fox}\nfox,sea,{gone}\n"))
    assert (report.judgments, report.skipped, report.unknown) == (1, 1, (f"sea chunk {gone}",))
    with pytest.raises(InvalidInput, match=rf"line 2: the chunk {fox} is not of '7'"):
        take(library, csv_file(tmp_path, f"query,document,chunk\nfox,7,{fox}\n"))


def test_matching_many_documents_is_no_work(house: House, tmp_path: Path) -> None:
    """16,000 names among as many documents: each with each would be 256 million comparisons."""
    count = 16_000
    with house.database.write() as connection:
        collection_id = collections.find(connection, "default")
        uris = [f"file:///corpus/part-{i % 7}/{i}.txt" for i in range(count)]
        row = {"collection_id": collection_id, "state": "ready"}
        documents = [{"id": document_id("default", uri), "uri": uri, **row} for uri in uris]
        connection.execute(insert(t.Document), documents)
    rows = "".join(f"q{i}\t{i}\t1\n" for i in range(count))
    folder = beir_folder(tmp_path / "beir", {f"q{i}": f"query number {i}" for i in range(count)}, train=rows)
    began = time.perf_counter()
    assert take(house, folder).judgments == count
    assert time.perf_counter() - began < 20


# again, and half-way


def test_importing_again_replaces_what_the_origin_said(library: House, tmp_path: Path) -> None:
    first = csv_file(tmp_path, "query,document\nfox,sea\ntea,7\n")
    take(library, first)
    take(library, first, origin="other")
    before = stored(library)
    assert take(library, first).replaced == 2
    assert stored(library) == before
    report = take(library, csv_file(tmp_path, "query,document,grade\nfox,sea,5\n"))
    assert (report.judgments, report.replaced) == (1, 2)
    assert [row for row in stored(library) if row[0] == "test"] == [("test", "fox", SEA, "", 5)]
    assert len([row for row in stored(library) if row[0] == "other"]) == 2


def test_an_import_of_one_collection_leaves_the_others_alone(library: House, tmp_path: Path) -> None:
    path = csv_file(tmp_path, "query,document\nfox,sea\n")
    take(library, path)
    library.workspace.create_collection("other")
    with pytest.raises(InvalidInput, match="has nothing of what"):
        import_judgments(library.database, "other", path, origin="test")
    with pytest.raises(NotFound, match="no collection 'nope'"):
        import_judgments(library.database, "nope", path, origin="test")
    with library.database.write() as connection:
        corpus.put(connection, "other", [document("their/sea", "text")])
    assert import_judgments(library.database, "other", path, origin="test").replaced == 0
    assert sorted(row[2] for row in stored(library)) == [SEA, "their/sea"]
    assert remove_judgments(library.database, "default", "test") == 1
    assert [row[2] for row in stored(library)] == ["their/sea"]


def test_an_import_that_fails_half_way_loses_nothing(library: House, tmp_path: Path) -> None:
    take(library, csv_file(tmp_path, "query,document\ntea,7\n"))
    before = stored(library)
    many = "query,document\n" + "".join(f"fox {i},sea\n" for i in range(1500))
    told = []

    def cut_off(done: int, total: int) -> None:
        told.append((done, total))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        take(library, csv_file(tmp_path, many), progress=cut_off)
    assert told == [(1000, 1500)]
    assert stored(library) == before


def test_progress_is_told_to_the_end(library: House, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    many = "query,document\n" + "".join(f"fox {i},sea\n" for i in range(2500))
    take(library, csv_file(tmp_path, many), progress=lambda done, total: told.append((done, total)))
    assert told == [(1000, 2500), (2000, 2500), (2500, 2500)]


def test_removing_an_origin_removes_its_judgments_only(library: House, tmp_path: Path) -> None:
    path = csv_file(tmp_path, "query,document\nfox,sea\ntea,7\n")
    with pytest.raises(NotFound, match="nothing was imported"):
        remove_judgments(library.database, "default", "test")
    take(library, path)
    take(library, path, origin="other")
    with pytest.raises(NotFound, match=r"'tst'.*there are: other, test"):
        remove_judgments(library.database, "default", "tst")
    assert remove_judgments(library.database, "default", "test") == 2
    assert [row[0] for row in stored(library)] == ["other", "other"]
