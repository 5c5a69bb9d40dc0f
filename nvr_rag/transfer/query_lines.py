"""Queries with feedback enter from the database; what an export says of them leaves, in ascending order of id.

A hit is told by what makes its chunk's id, so that it can be found again under another collection's name; one whose
document was deleted by its id alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import Connection, exists, select

from nvr_rag.db import tables as t
from nvr_rag.transfer.rows import Occurrences
from nvr_rag.types import DocumentState

Json = dict[str, Any]

_PAGE = 200  # queries in memory at a time
_LOOKUP = 500  # ids in one IN (...)


def query_lines(connection: Connection, collection_id: int) -> Iterator[Json]:
    """The lines of a collection's queries that somebody said something about."""
    q, after = t.QueryRow, ""
    told = exists().where(t.FeedbackRow.query_id == q.id)
    statement = select(*q.__table__.c).where(q.collection_id == collection_id, told).order_by(q.id).limit(_PAGE)
    while True:
        rows = connection.execute(statement.where(q.id > after)).all()
        yield from _page(connection, collection_id, rows)
        if len(rows) < _PAGE:
            return
        after = rows[-1].id


def _page(connection: Connection, collection_id: int, rows: Sequence[Any]) -> Iterator[Json]:
    feedback = _feedback(connection, [row.id for row in rows])
    refs = _refs(connection, collection_id, sorted({hit[0] for row in rows for hit in row.hits}))
    for row in rows:
        yield {
            "id": row.id,
            "text": row.text,
            "k": row.k,
            "mode": row.mode,
            "filter": row.filter,
            "user": row.user,
            "session": row.session,
            "created_at": row.created_at.isoformat(),
            "hits": [{**refs.get(hit[0], {"chunk": hit[0], "document": None}), "score": hit[1]} for hit in row.hits],
            "feedback": feedback[row.id],
        }


def _feedback(connection: Connection, ids: Sequence[str]) -> dict[str, list[Json]]:
    f = t.FeedbackRow
    found: dict[str, list[Json]] = {}
    for row in connection.execute(select(*f.__table__.c).where(f.query_id.in_(ids))):
        line = {"chunk": row.chunk_id or None, "kind": row.kind, "grade": row.grade, "user": row.user}
        found.setdefault(row.query_id, []).append({**line, "created_at": row.created_at.isoformat()})
    for lines in found.values():
        lines.sort(key=lambda line: (line["chunk"] or "", line["kind"], line["user"]))
    return found


def _refs(connection: Connection, collection_id: int, ids: Sequence[str]) -> dict[str, Json]:
    """How the chunks of documents that are not deleted are told, by id."""
    c, d, occurrences = t.Chunk, t.Document, Occurrences()
    statement = select(c.id, c.sha256, c.document_id, d.uri).join(d, d.id == c.document_id)
    found: dict[str, Json] = {}
    for start in range(0, len(ids), _LOOKUP):
        part = c.id.in_(ids[start : start + _LOOKUP])
        for row in connection.execute(
            statement.where(part, d.collection_id == collection_id, d.state != DocumentState.DELETED)
        ):
            number = occurrences.find(row.document_id, row.sha256, row.id)
            found[row.id] = {"chunk": row.id, "document": row.uri, "sha256": row.sha256, "occurrence": number}
    return found
