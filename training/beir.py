"""Folders in the layout of BEIR: a corpus, queries and graded judgments, as most retrieval sets are published.

    corpus.jsonl         {"_id": "...", "title": "...", "text": "..."}
    queries.jsonl        {"_id": "...", "text": "..."}
    qrels/<split>.tsv    query id, corpus id, grade; with or without a line of column names

A folder enters; records leave, or an InvalidInput that names file and line. Corpora are streamed. Nothing here knows an
index or a model; how ids are found again among the documents of a collection is known, by their URIs alone.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from nvr_rag.errors import InvalidInput
from nvr_rag.ids import sha256_json
from training.data import read_lines

_SEPARATORS = re.compile("[#/]")
_EXTENSION = re.compile(r"\.[A-Za-z][A-Za-z0-9]*\Z")


@dataclass(frozen=True, kw_only=True, slots=True)
class BeirDocument:
    """One line of a corpus."""

    id: str
    title: str  # "" = none
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Beir:
    """One split of a BEIR folder; its corpus is read when it is needed."""

    folder: Path
    split: str
    queries: Mapping[str, str]  # id -> text, of the queries that the split judges
    qrels: Mapping[str, Mapping[str, int]]  # query id -> corpus id -> grade; corpus ids may be unknown
    sha256: str  # of these queries and qrels: what two evaluations must share to be compared

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def judged(self) -> set[str]:
        """The corpus ids that the split names."""
        return {key for grades in self.qrels.values() for key in grades}


@dataclass(frozen=True, kw_only=True, slots=True)
class Matches:
    """Which documents of a collection the ids of a folder mean."""

    found: Mapping[str, str]  # corpus id -> document id
    missing: tuple[str, ...]  # ids that no URI fits, ascending
    ambiguous: tuple[str, ...]  # ids that several URIs fit equally well, ascending


def read_beir(folder: Path, split: str = "test") -> Beir:
    """Read the queries and judgments of a split. Raises InvalidInput: what is wrong with which file and line."""
    if not folder.is_dir():
        raise InvalidInput(f"{folder} is not a folder; name one with corpus.jsonl, queries.jsonl and qrels/")
    texts = _queries(folder / "queries.jsonl")
    qrels = _qrels(_qrels_file(folder, split), texts)
    queries = {query: texts[query] for query in qrels}
    sha256 = sha256_json({"queries": queries, "qrels": qrels})
    return Beir(folder=folder, split=split, queries=queries, qrels=qrels, sha256=sha256)


def read_corpus(folder: Path) -> Iterator[BeirDocument]:
    """The documents of a folder in the order of the file, in bounded memory. Raises InvalidInput."""
    path = folder / "corpus.jsonl"
    for number, row in _rows(path):
        id_, text = _string(path, number, row, "_id"), _string(path, number, row, "text")
        title = "" if row.get("title") is None else _string(path, number, row, "title")
        yield BeirDocument(id=id_, title=title, text=text)


def corpus_ids(folder: Path) -> list[str]:
    """All ids of the corpus in the order of the file: reads it to its end, so that what is wrong with it shows before
    long work begins. Raises InvalidInput, also for an id that is there twice."""
    ids: dict[str, None] = {}
    for number, document in enumerate(read_corpus(folder), start=1):
        if document.id in ids:
            raise InvalidInput(f"{folder / 'corpus.jsonl'}, line {number}: the id {document.id!r} is there twice")
        ids[document.id] = None
    if not ids:
        raise InvalidInput(f"{folder / 'corpus.jsonl'} is empty; it needs a document a line")
    return list(ids)


def match_uris(ids: Collection[str], uris: Iterable[tuple[str, str]]) -> Matches:
    """Find the documents that ids mean among (URI, document id) pairs.

    The URI is the id, or ends with "#<id>", with "/<id>", or with "/<id>.<extension>", tried in this order.
    """
    wanted = set(ids)
    best: dict[str, tuple[int, set[str]]] = {}  # id -> how well its URIs fit, 0 best, and their documents
    for uri, document_id in uris:
        for order, name in {*_names(uri), *_names(unquote(uri))}:
            if name not in wanted:
                continue
            known, documents = best.get(name, (order, set()))
            if order == known:
                best[name] = (known, documents | {document_id})
            elif order < known:
                best[name] = (order, {document_id})
    found = {name: min(documents) for name, (_, documents) in sorted(best.items()) if len(documents) == 1}
    ambiguous = tuple(sorted(best.keys() - found.keys()))
    return Matches(found=found, missing=tuple(sorted(wanted - best.keys())), ambiguous=ambiguous)


def _names(uri: str) -> Iterator[tuple[int, str]]:
    """Every id that a URI can stand for, with how well it fits."""
    yield 0, uri
    for separator in _SEPARATORS.finditer(uri):
        rest = uri[separator.end() :]
        yield (1 if separator[0] == "#" else 2), rest
        if separator[0] == "/" and _EXTENSION.search(rest):
            yield 3, _EXTENSION.sub("", rest)


def _queries(path: Path) -> dict[str, str]:
    texts: dict[str, str] = {}
    for number, row in _rows(path):
        id_ = _string(path, number, row, "_id")
        if id_ in texts:
            raise InvalidInput(f"{path}, line {number}: the query {id_!r} is there twice")
        texts[id_] = _string(path, number, row, "text")
    return texts


def _qrels_file(folder: Path, split: str) -> Path:
    there = {path.stem: path for path in sorted((folder / "qrels").glob("*.tsv"))}
    if split not in there:
        known = f"there are: {', '.join(there)}" if there else f"there is no .tsv file in {folder / 'qrels'}"
        raise InvalidInput(f"{folder} has no split {split!r}; {known}", field="split")
    return there[split]


def _qrels(path: Path, queries: Mapping[str, str]) -> dict[str, dict[str, int]]:
    """Grades by query and corpus id. A grade below 0, as some TREC sets have, says irrelevant: it becomes 0."""
    qrels: dict[str, dict[str, int]] = {}
    for number, line in _lines(path):
        fields = line.split("\t")
        if not line or (number == 1 and _are_column_names(fields, queries)):
            continue
        query, id_, grade = _judgment(f"{path}, line {number}", fields, queries)
        if qrels.setdefault(query, {}).setdefault(id_, grade) != grade:
            raise InvalidInput(f"{path}, line {number}: {query!r} and {id_!r} were given another grade before")
    if not qrels:
        raise InvalidInput(f"{path} is empty; it needs a line for each judgment: query id, corpus id, grade")
    return qrels


def _judgment(where: str, fields: list[str], queries: Mapping[str, str]) -> tuple[str, str, int]:
    if len(fields) != 3:
        raise InvalidInput(
            f"{where}: a judgment has query id, corpus id and grade with tabs between, not {len(fields)} values"
        )
    query, id_, grade = fields
    if query not in queries:
        raise InvalidInput(f"{where}: the query {query!r} is not in queries.jsonl")
    try:
        return query, id_, max(0, int(grade))
    except ValueError as error:
        raise InvalidInput(f"{where}: a grade is a whole number, not {grade!r}") from error


def _are_column_names(fields: list[str], queries: Mapping[str, str]) -> bool:
    return fields[0] not in queries and not re.fullmatch(r"\s*[+-]?\d+\s*", fields[-1])


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a JSON Lines file with the numbers of their lines. Raises InvalidInput."""
    try:
        yield from enumerate(read_lines(path), start=1)
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            yield from ((number, line.rstrip("\r\n")) for number, line in enumerate(file, start=1))
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError | UnicodeDecodeError) -> InvalidInput:
    reason = "not UTF-8" if isinstance(error, UnicodeDecodeError) else error.strerror or error
    return InvalidInput(f"{path} cannot be read: {reason}; a BEIR folder has corpus.jsonl, queries.jsonl and qrels/")


def _string(path: Path, number: int, row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    if not isinstance(value, str):
        wrong = f'has a "{name}" that is not a string' if name in row else f'has no "{name}"'
        raise InvalidInput(f"{path}, line {number}: {wrong}")
    return value
