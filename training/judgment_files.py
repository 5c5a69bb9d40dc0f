"""Files of judgments: a BEIR folder or a CSV file enters, its judgments leave, or an InvalidInput naming file and line.

Knows no database: which documents are meant is for others to find out.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nvr_rag.errors import InvalidInput
from nvr_rag.query_log import MAX_GRADE
from nvr_rag.retriever import MAX_QUERY_CHARACTERS
from nvr_rag.storable import storable
from training.beir import read_beir

_NEEDED, _OPTIONAL = ("query", "document"), ("chunk", "grade")
_GRADE = re.compile(r"[0-9]{1,7}")


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgmentLine:
    """One judgment as a file has it."""

    query: str
    document: str  # id, URI or end of a URI
    chunk: str  # id; "" = the document as a whole
    grade: int
    where: str  # file and line, for messages


def read_judgments(path: Path, split: str | None = None) -> list[JudgmentLine]:
    """The judgments of a CSV file with the columns query, document and perhaps chunk and grade, or of one split of a
    BEIR folder (may be left out where there is but one). Texts are storable. Raises InvalidInput."""
    return _beir(path, split) if path.is_dir() else list(_csv(path, split))


def _beir(folder: Path, split: str | None) -> list[JudgmentLine]:
    beir = read_beir(folder, split or _only_split(folder))
    texts = {
        query: _query(storable(text), f"{folder / 'queries.jsonl'}, query {query!r}")
        for query, text in beir.queries.items()
    }
    where = f"{folder}, split {beir.split}"
    return [
        JudgmentLine(
            query=texts[query], document=storable(document), chunk="", grade=_in_range(grade, where), where=where
        )
        for query, grades in beir.qrels.items()
        for document, grade in grades.items()
    ]


def _only_split(folder: Path) -> str:
    there = sorted(path.stem for path in (folder / "qrels").glob("*.tsv"))
    if len(there) != 1:
        known = f"--split with one of: {', '.join(there)}" if there else "a folder with queries.jsonl and qrels/*.tsv"
        raise InvalidInput(f"{folder} has {len(there)} files of judgments; give {known}", field="split")
    return there[0]


def _csv(path: Path, split: str | None) -> Iterator[JudgmentLine]:
    if split is not None:
        raise InvalidInput(f"{path} is not a folder and has no splits; leave out --split", field="split")
    records = _records(path, _text(path))
    where, header = next(records, (str(path), []))
    columns = [name.strip().lower() for name in header]
    _check_columns(where, columns)
    empty = True
    for where, record in records:
        if len(record) != len(columns):
            raise InvalidInput(f"{where}: {len(record)} values for {len(columns)} columns; quote values with commas")
        yield _line(where, dict(zip(columns, record, strict=True)))
        empty = False
    if empty:
        raise InvalidInput(f"{path} holds no judgments; write a line for each below {','.join(columns)}")


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InvalidInput(
            f"{path} cannot be read: {error.strerror or error}; give a CSV file or a BEIR folder", field="path"
        ) from error
    try:
        return storable(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InvalidInput(f"{path}, line {line}: not UTF-8 text; save it as CSV in UTF-8", field="path") from error


def _records(path: Path, text: str) -> Iterator[tuple[str, list[str]]]:
    """The records that are not empty, each with file and line where it begins."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    while True:
        where = f"{path}, line {reader.line_num + 1}"
        try:
            record = next(reader, None)
        except csv.Error as error:
            raise InvalidInput(f"{where}: not CSV ({error})", field="path") from error
        if record is None:
            return
        if any(value.strip() for value in record):
            yield where, record


def _check_columns(where: str, columns: Sequence[str]) -> None:
    missing = [name for name in _NEEDED if name not in columns]
    strange = [name for name in columns if name not in (*_NEEDED, *_OPTIONAL)]
    if missing or strange or len(set(columns)) != len(columns):
        got = ",".join(columns)[:200]
        raise InvalidInput(
            f"{where}: the first line names the columns, query,document and if wanted chunk and grade, with commas "
            f"between and each once; got {got!r}",
            field="path",
        )


def _line(where: str, record: Mapping[str, str]) -> JudgmentLine:
    document, grade = record["document"].strip(), record.get("grade", "1").strip()
    if not document:
        raise InvalidInput(f"{where}: no document; name it by its id or its URI", field="document")
    if not _GRADE.fullmatch(grade):
        raise InvalidInput(
            f"{where}: a grade is a whole number from 0 (irrelevant) to {MAX_GRADE}, not {grade[:80]!r}", field="grade"
        )
    return JudgmentLine(
        query=_query(record["query"], where),
        document=document,
        chunk=record.get("chunk", "").strip(),
        grade=_in_range(int(grade), where),
        where=where,
    )


def _query(text: str, where: str) -> str:
    if not text.strip():
        raise InvalidInput(f"{where}: the query is empty; write what was asked", field="query")
    if len(text) > MAX_QUERY_CHARACTERS:
        raise InvalidInput(
            f"{where}: a query has at most {MAX_QUERY_CHARACTERS} characters, this one has {len(text)}", field="query"
        )
    return text.strip()


def _in_range(grade: int, where: str) -> int:
    if not 0 <= grade <= MAX_GRADE:
        raise InvalidInput(f"{where}: a grade is a number from 0 to {MAX_GRADE}, not {grade}", field="grade")
    return grade
