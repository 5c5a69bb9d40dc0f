"""Judgments from outside: a BEIR folder or a CSV file enters, rows of the table `judgment` leave, all of them or none.

Documents are found again in the collection by id or URI. Importing under the same origin again replaces what that
origin said before. Knows nothing of what judgments are used for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

from sqlalchemy import Connection, delete, insert, select

from nvr_rag import collections
from nvr_rag.db import tables as t
from nvr_rag.db.session import Database
from nvr_rag.errors import InvalidInput, NotFound
from nvr_rag.types import DocumentState
from training.beir import match_uris
from training.judgment_files import JudgmentLine, read_judgments
from training.splits import query_key
from training.standing import chunk_facts

Progress = Callable[[int, int], None]  # how many judgments are stored, of how many

_BATCH = 1000  # rows in one INSERT
_EXAMPLES = 5
_ORIGIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportReport:
    """What an import came to."""

    origin: str
    queries: int  # distinct, after normalising
    judgments: int  # stored
    replaced: int  # judgments of the same origin that were there before
    repeated: int  # that a later one about the same query and document replaced
    skipped: int  # whose document, or chunk, the collection does not have
    unknown: Sequence[str]  # up to 5 of those


def import_judgments(
    database: Database,
    collection: str,
    path: Path,
    *,
    origin: str,
    split: str | None = None,
    progress: Progress | None = None,
) -> ImportReport:
    """Import the judgments of a file or folder that `read_judgments` reads; those of documents that the collection does
    not have are left out and counted.

    Raises NotFound (collection), InvalidInput: what is wrong with which file and line, or that nothing matches.
    """
    _check_origin(origin)
    lines = read_judgments(path, split)
    with database.write() as connection:
        collection_id = collections.find(connection, collection, lock=True)
        named = _documents(connection, collection, collection_id, lines)
        rows, unknown = _rows(connection, lines, named)
        if not rows:
            raise _nothing(path, collection, unknown)
        replaced = _remove(connection, collection_id, origin)
        _store(connection, collection_id, origin, rows, progress)
    return ImportReport(
        origin=origin,
        queries=len({key for key, _, _ in rows}),
        judgments=len(rows),
        replaced=replaced,
        repeated=len(lines) - len(unknown) - len(rows),
        skipped=len(unknown),
        unknown=tuple(dict.fromkeys(unknown))[:_EXAMPLES],
    )


def remove_judgments(database: Database, collection: str, origin: str) -> int:
    """Forget what was imported under this origin; returns how many judgments. Raises NotFound, naming the origins."""
    with database.write() as connection:
        collection_id = collections.find(connection, collection, lock=True)
        there = _imported(connection, collection_id)
        if origin not in there:
            known = f"there are: {', '.join(there)}" if there else "nothing was imported"
            raise NotFound(f"no imported judgments of origin {origin[:80]!r} in the collection {collection!r}; {known}")
        return _remove(connection, collection_id, origin)


def _imported(connection: Connection, collection_id: int) -> list[str]:
    j = t.JudgmentRow
    statement = select(j.origin).where(j.collection_id == collection_id).distinct().order_by(j.origin)
    return list(connection.scalars(statement))


def _check_origin(origin: str) -> None:
    if not _ORIGIN.fullmatch(origin):
        raise InvalidInput(
            f"an origin's name has 1 to 64 letters, digits, '.', '_' or '-' and begins with a letter or digit; got "
            f"{origin[:80]!r}",
            field="origin",
        )


def _documents(
    connection: Connection, collection: str, collection_id: int, lines: Sequence[JudgmentLine]
) -> Mapping[str, str]:
    """The id of each document that the lines name and the collection has, by the name that they use."""
    d = t.Document
    statement = select(d.uri, d.id).where(d.collection_id == collection_id, d.state != DocumentState.DELETED)
    pairs = sorted((row.uri, row.id) for row in connection.execute(statement))
    ids = {id_ for _, id_ in pairs}
    names = {line.document for line in lines}
    matches = match_uris(names - ids, pairs)
    if matches.ambiguous:
        name = matches.ambiguous[0]
        where = next(line.where for line in lines if line.document == name)
        first, second = _rivals(name, pairs)
        raise InvalidInput(
            f"{where}: {name!r} fits several documents of the collection {collection!r}, {first} and {second}; name "
            "documents by their whole URI or their id",
            field="document",
        )
    return {**matches.found, **{name: name for name in names & ids}}


def _rivals(name: str, pairs: Sequence[tuple[str, str]]) -> tuple[str, str]:
    """Two URIs that an ambiguous name fits best, and equally well."""
    fitting = [pair for pair in pairs if match_uris([name], [pair]).found]
    best = reduce(lambda one, two: two if match_uris([name], [one, two]).found.get(name) == two[1] else one, fitting)
    return best[0], next(pair[0] for pair in fitting if match_uris([name], [best, pair]).ambiguous)


def _rows(
    connection: Connection, lines: Sequence[JudgmentLine], documents: Mapping[str, str]
) -> tuple[dict[tuple[str, str, str], JudgmentLine], list[str]]:
    """The lines by query key, document id and chunk id, of those that say the same thing the last; and the names that
    the collection does not know, one for each line that is left out."""
    facts = chunk_facts(connection, [line.chunk for line in lines if line.chunk])
    rows: dict[tuple[str, str, str], JudgmentLine] = {}
    unknown: list[str] = []
    for line in lines:
        document_id = documents.get(line.document)
        if document_id is None:
            unknown.append(line.document)
        elif line.chunk and line.chunk not in facts:
            unknown.append(f"{line.document} chunk {line.chunk}")
        elif line.chunk and facts[line.chunk].document_id != document_id:
            raise InvalidInput(f"{line.where}: the chunk {line.chunk} is not of {line.document!r}", field="chunk")
        else:
            rows[query_key(line.query), document_id, line.chunk] = line
    return rows, unknown


def _nothing(path: Path, collection: str, unknown: Sequence[str]) -> InvalidInput:
    examples = ", ".join(repr(name) for name in list(dict.fromkeys(unknown))[:_EXAMPLES])
    return InvalidInput(
        f"the collection {collection!r} has nothing of what {path} judges, such as {examples}. A document is found by "
        "its id, its URI, or the end of its URI after '#' or '/', with or without the extension; ingest the documents "
        "first, or name another collection",
        field="path",
    )


def _remove(connection: Connection, collection_id: int, origin: str) -> int:
    j = t.JudgmentRow
    return connection.execute(delete(j).where(j.collection_id == collection_id, j.origin == origin)).rowcount


def _store(
    connection: Connection,
    collection_id: int,
    origin: str,
    rows: Mapping[tuple[str, str, str], JudgmentLine],
    progress: Progress | None,
) -> None:
    moment = t.now()  # one for all: they were said together
    values = [
        {
            "collection_id": collection_id,
            "origin": origin,
            "query_key": key,
            "query": line.query,
            "document_id": document_id,
            "chunk_id": chunk_id,
            "grade": line.grade,
            "created_at": moment,
        }
        for (key, document_id, chunk_id), line in rows.items()
    ]
    for start in range(0, len(values), _BATCH):
        connection.execute(insert(t.JudgmentRow), values[start : start + _BATCH])
        if progress is not None:
            progress(min(start + _BATCH, len(values)), len(values))
