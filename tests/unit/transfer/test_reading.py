"""Broken export files are refused with the number of the line, before anything is done."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nvr_rag.errors import InvalidInput
from nvr_rag.ids import chunk_id, document_id, sha256_text
from nvr_rag.transfer import files
from nvr_rag.transfer.reading import check

Lines = list[dict[str, Any]]

KEY = document_id("default", "a")
CUT = {
    "max_tokens": 256,
    "tokenizer": "t",
    "document_prompt": "",
    "separator": "\n",
    "context_bytes": 0,
    "method": "structure-1",
}
QUERY_ID = "11111111-2222-3333-4444-555555555555"
MOMENT = "2026-01-31T12:00:00+00:00"


def cut_hash() -> str:
    text = json.dumps(CUT, sort_keys=True, separators=(",", ":"))
    return sha256_text(text)


def document(uri: str = "a", **changes: Any) -> dict[str, Any]:
    return {
        "type": "document",
        "collection": "default",
        "id": document_id("default", uri),
        "uri": uri,
        "source": "",
        "state": "ready",
        "error": None,
        "acl": None,
        "sha256": "0" * 64,
        "parser": "",
        "media_type": "text/plain",
        "title": "",
        "metadata": {},
        "text_format": "plain",
        "page_starts": [],
        "text": "red fox",
        **changes,
    }


def chunk(**changes: Any) -> dict[str, Any]:
    digest = sha256_text("red fox")
    place = {"chunking": cut_hash(), "ordinal": 0, "start": 0, "end": 7, "page": None, "headings": []}
    key = chunk_id(KEY, digest, 0)
    return {
        "type": "chunk",
        "id": key,
        "document": KEY,
        "sha256": digest,
        "occurrence": 0,
        "places": [{**place, **changes.pop("place", {})}],
        "text": "red fox",
        **changes,
    }


def whole() -> Lines:
    """A small file that is good: lines 1 header, 2 collection, 3 chunking, 4 document, 5 chunk, 6 judgment, 7 query."""
    key = chunk_id(KEY, sha256_text("red fox"), 0)
    hit = {"chunk": key, "document": "a", "sha256": sha256_text("red fox"), "occurrence": 0, "score": 1}
    said = {"chunk": key, "kind": "click", "grade": None, "user": "", "created_at": MOMENT}
    judged = {"origin": "desk", "query": "q", "query_key": "1" * 64, "chunk": key, "grade": 1, "created_at": MOMENT}
    asked = {"text": "who?", "k": 10, "mode": "hybrid", "filter": None, "user": None, "session": None}
    counts = {"collections": 1, "documents": 1, "chunks": 1, "judgments": 1, "queries": 1, "feedback": 1}
    fusion = {"method": "rrf", "dense_weight": 1.0, "lexical_weight": 1.0, "rank_constant": 60, "depth": 200}
    return [
        {
            "type": "header",
            "format": "nvr-rag-export",
            "version": 1,
            "release": "0.1.0",
            "created_at": MOMENT,
            "with": ["chunks"],
        },
        {
            "type": "collection",
            "name": "default",
            "language": "english",
            "serving": {"mode": "hybrid", "fusion": fusion},
        },
        {"type": "chunking", "hash": cut_hash(), "settings": CUT},
        document(),
        chunk(),
        {"type": "judgment", "document": KEY, **judged},
        {
            "type": "query",
            "collection": "default",
            "id": QUERY_ID,
            **asked,
            "created_at": MOMENT,
            "hits": [hit],
            "feedback": [said],
        },
        {"type": "trailer", "counts": counts},
    ]


def write(path: Path, lines: Lines) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def changed(number: int, **fields: Any) -> Callable[[Lines], Lines]:
    """The good file with other fields in one line, counted from 1."""
    return lambda lines: [*lines[: number - 1], {**lines[number - 1], **fields}, *lines[number:]]


def without(number: int, field: str) -> Callable[[Lines], Lines]:
    def change(lines: Lines) -> Lines:
        del lines[number - 1][field]
        return lines

    return change


def test_a_good_file_is_read(tmp_path: Path) -> None:
    contents = check(write(tmp_path / "x.jsonl", whole()))
    assert contents.counts == whole()[-1]["counts"]
    assert [line.name for line in contents.collections] == ["default"]
    assert contents.header.release == "0.1.0"


def test_a_compressed_file_is_read_whatever_its_name(tmp_path: Path) -> None:
    plain = write(tmp_path / "plain", whole()).read_bytes()
    (tmp_path / "packed").write_bytes(gzip.compress(plain))
    assert check(tmp_path / "packed") == check(tmp_path / "plain")


@pytest.mark.parametrize(
    ("line", "message", "change"),
    [
        (1, "nvr-rag export", changed(1, format="other")),
        (1, "upgrade", changed(1, version=2)),
        (1, "version", changed(1, version=0)),
        (1, "version", changed(1, version="1")),
        (1, "version", changed(1, version=True)),
        (1, "time", changed(1, created_at="2026-01-31T12:00:00")),
        (1, "first line", lambda lines: lines[1:]),
        (2, "first line", lambda lines: [lines[0], *lines]),
        (2, "type is one of", changed(2, type="colection")),
        (2, "name", changed(2, name="../x")),
        (2, "comes first", lambda lines: [lines[0], document()]),
        (2, "rrf or weighted", changed(2, serving={"mode": "hybrid", "fusion": {"method": "sum"}})),
        (2, "unknown settings", changed(2, serving={"mode": "hybrid", "fusion": {"weight": 1}})),
        (2, "mode", changed(2, serving={"mode": "both", "fusion": {}})),
        (3, "hash", changed(3, settings=CUT | {"max_tokens": 512})),
        (3, "twice", lambda lines: [*lines[:2], lines[1], *lines[2:]]),
        (3, "incomplete", changed(3, settings={"max_tokens": 1})),
        (4, "missing", without(4, "sha256")),
        (4, "unknown field 'sha265'", changed(4, sha265="")),
        (4, "sha256", changed(4, sha256="0" * 63)),
        (4, "URI", changed(4, uri="")),
        (4, "URI", changed(4, uri="a" * 4097)),
        (4, "id", changed(4, uri="b")),
        (4, "another collection", changed(4, collection="other")),
        (4, "state", changed(4, state="deleted")),
        (4, "state", changed(4, state="failed")),
        (4, "state", changed(4, error="broken")),
        (4, "ready has a text", changed(4, text=None)),
        (4, "NUL", changed(4, text="a\x00b")),
        (4, "surrogate", changed(4, title="\ud800")),
        (4, "acl", changed(4, acl="anna")),
        (4, "acl", changed(4, acl=["anna", 1])),
        (4, "page_starts", changed(4, page_starts=[8])),
        (4, "page_starts", changed(4, page_starts=[3, 1])),
        (4, "page_starts", changed(4, page_starts=[True])),
        (4, "metadata", changed(4, metadata=[])),
        (4, "text_format", changed(4, text_format="pdf")),
        (5, "outside", changed(5, places=[chunk(place={"end": 8})["places"][0]])),
        (5, "outside", changed(5, places=[chunk(place={"start": 7, "end": 3})["places"][0]])),
        (5, "not what its document says", changed(5, places=[chunk(place={"end": 3})["places"][0]])),
        (5, "not described", changed(5, places=[chunk(place={"chunking": "2" * 64})["places"][0]])),
        (5, "sha256", changed(5, text="red cat")),
        (5, "id", changed(5, occurrence=1)),
        (5, "occurrence", changed(5, occurrence=10**9)),
        (5, "not before this one", changed(5, document=document_id("default", "b"))),
        (4, "not whole", changed(5, places=[chunk(place={"ordinal": 1})["places"][0]])),
        (6, "twice", lambda lines: [*lines[:5], lines[4], *lines[5:]]),
        (7, "twice", lambda lines: [*lines[:6], lines[5], *lines[6:]]),
        (6, "grade", changed(6, grade=-1)),
        (6, "grade", changed(6, grade=1.5)),
        (6, "not described", changed(6, chunk=QUERY_ID)),
        (7, "k", changed(7, k=0)),
        (7, "filter", changed(7, filter=[])),
        (7, "characters", changed(7, text="a" * 10_001)),
        (7, "score", changed(7, hits=[{"chunk": QUERY_ID, "document": None, "score": "1"}])),
        (7, "kind", changed(7, feedback=[{"chunk": None, "kind": "like"}])),
        (8, "ascending", lambda lines: [*lines[:7], lines[6], *lines[7:]]),
        (8, "before its queries", lambda lines: [*lines[:7], document("b"), *lines[7:]]),
        (8, "1 documents and has 2", lambda lines: [*lines[:6], document("b"), lines[7]]),
        (6, "ascending", lambda lines: [*lines[:5], document("A"), lines[7]]),
        (8, "2 chunks and has 1", changed(8, counts=whole()[-1]["counts"] | {"chunks": 2})),
        (9, "after the last line", lambda lines: [*lines, lines[3]]),
    ],
)
def test_what_is_wrong_is_said_with_its_line(
    tmp_path: Path, line: int, message: str, change: Callable[[Lines], Lines]
) -> None:
    path = write(tmp_path / "x.jsonl", change(whole()))
    with pytest.raises(InvalidInput, match=message) as caught:
        check(path)
    assert re.search(rf"x\.jsonl, line {line}[:,]", str(caught.value))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"\n", "line 1: not JSON"),
        (b"[1]\n", "line 1: a JSON object"),
        (b"null\n", "line 1: a JSON object"),
        (b'{"type": 1}\n', "line 1: the field 'type'"),
        (b"\xff\xfe\n", "line 1: not UTF-8"),
        (b'{"type": "header", "version": NaN}\n', "line 1: not JSON"),
        (b"[" * 100_000 + b"]" * 100_000, "line 1: JSON nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}\n", "line 1: not JSON"),
        (b"%PDF-1.7\n", "line 1: not JSON"),
    ],
)
def test_files_that_are_no_exports(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(InvalidInput, match=message):
        check(tmp_path / "x")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="No such file"):
        check(tmp_path / "x")
    with pytest.raises(InvalidInput, match="directory"):
        check(tmp_path)


@pytest.mark.parametrize("packed", [False, True])
def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path, packed: bool) -> None:
    content = write(tmp_path / "x", whole()).read_bytes()
    content = gzip.compress(content) if packed else content
    last = len(content) - 1 if packed else len(content) - 2  # without its last line feed a plain file is whole
    for end in [*range(0, last, 37), last]:
        (tmp_path / "cut").write_bytes(content[:end])
        with pytest.raises(InvalidInput):
            check(tmp_path / "cut")


def test_a_file_damaged_anywhere_while_compressed_is_refused(tmp_path: Path) -> None:
    content = bytearray(gzip.compress(write(tmp_path / "x", whole()).read_bytes()))
    for at in range(20, len(content) - 4, 23):
        damaged = bytearray(content)
        damaged[at] ^= 0x10
        (tmp_path / "damaged").write_bytes(damaged)
        with pytest.raises(InvalidInput):
            check(tmp_path / "damaged")


def test_a_line_that_is_too_long_is_refused_and_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_LINE_BYTES", 2000)
    lines = whole()
    lines[3]["text"] = "a" * 3000
    with pytest.raises(InvalidInput, match="line 4: longer than 2000 bytes"):
        check(write(tmp_path / "x", lines))


def test_metadata_may_not_be_deeper_than_can_be_stored(tmp_path: Path) -> None:
    deep: Any = 1
    for _ in range(17):
        deep = {"a": deep}
    with pytest.raises(InvalidInput, match=r"line 4: .*16 levels"):
        check(write(tmp_path / "x", changed(4, metadata=deep)(whole())))
