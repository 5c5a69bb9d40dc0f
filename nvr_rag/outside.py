"""Judgments from outside, sent over HTTP: about logged queries and chunks that were not shown. They are kept like those
that are imported from files; each key has an origin of its own, and the last word of an origin counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, delete, func, select

from nvr_rag.access import reading
from nvr_rag.access.callers import Caller
from nvr_rag.db import tables as t
from nvr_rag.db.session import insert_or_update
from nvr_rag.documents import newest_version
from nvr_rag.errors import InvalidInput
from nvr_rag.query_keys import query_key
from nvr_rag.query_log import check_grade, no_query
from nvr_rag.types import Feedback, FeedbackKind

ORIGIN = "outside"  # followed by the id of the key, where there are keys
_KINDS = (FeedbackKind.RELEVANT, FeedbackKind.IRRELEVANT)
_KEY = ("collection_id", "origin", "query_key", "document_id", "chunk_id")


class _Asked(NamedTuple):
    """A logged query."""

    collection_id: int
    text: str


def record_outside(connection: Connection, items: Sequence[Feedback], caller: Caller) -> int:
    """Store judgments; returns how many are new.

    Raises NotFound for a query that is not there, or is of a collection that the caller may not know of, InvalidInput
    for another kind and for a chunk that its collection does not have for this caller.
    """
    asked = _asked(connection, sorted({item.query_id for item in items}), caller)
    homes = _homes(connection, sorted({item.chunk_id or "" for item in items}), caller)
    rows = {}
    for item in items:
        _check(item, asked, homes)
        row = _row(item, asked[item.query_id], homes[item.chunk_id or ""][1], caller)
        rows[tuple(row[name] for name in _KEY)] = row
    collections = {query.collection_id for query in asked.values()}
    before = _count(connection, collections, caller)
    insert_or_update(connection, t.JudgmentRow, list(rows.values()), key=_KEY, values=("query", "grade", "created_at"))
    return _count(connection, collections, caller) - before


def forget(connection: Connection, texts: Sequence[str]) -> int:
    """Remove the judgments about queries of these texts: they have the words in them."""
    j = t.JudgmentRow
    keys = sorted({query_key(text) for text in texts})
    mine = delete(j).where(j.origin.startswith(ORIGIN), j.query_key.in_(keys))
    return int(connection.execute(mine).rowcount) if keys else 0


def _asked(connection: Connection, query_ids: Sequence[str], caller: Caller) -> dict[str, _Asked]:
    """The queries that the caller may judge; not those of a user who was erased, whose text is gone."""
    q, c = t.QueryRow, t.Collection
    statement = select(q.id, q.collection_id, q.text, c.name).join(c, c.id == q.collection_id)
    rows = connection.execute(statement.where(q.id.in_(query_ids), q.text != ""))
    return {row.id: _Asked(row.collection_id, row.text) for row in rows if caller.knows(row.name)}


def _homes(connection: Connection, chunk_ids: Sequence[str], caller: Caller) -> dict[str, tuple[int, str]]:
    """The collection and the document of those chunks that stand in what the caller may read now."""
    d, v, p = t.Document, t.DocumentVersion, t.Placement
    dialect, shape = connection.dialect.name, reading.shape(caller.reader)
    statement = (
        select(p.chunk_id, d.collection_id, d.id)
        .join(v, v.id == p.version_id)
        .join(d, newest_version())
        .where(p.chunk_id.in_(chunk_ids), d.state != "deleted", v.seq > d.deleted_seq)
        .where(reading.readable(dialect, shape), reading.readable(dialect, shape, v.acl))
    )
    rows = connection.execute(statement, reading.bound(caller.reader))
    return {row.chunk_id: (row.collection_id, row.id) for row in rows}


def _check(item: Feedback, asked: Mapping[str, _Asked], homes: Mapping[str, tuple[int, str]]) -> None:
    if item.query_id not in asked:
        raise no_query(item.query_id)
    check_grade(item)
    if item.kind not in _KINDS:
        raise InvalidInput(f"a judgment from outside is relevant or irrelevant, not {item.kind}", field="kind")
    home = homes.get(item.chunk_id or "")
    if home is None or home[0] != asked[item.query_id].collection_id:
        raise InvalidInput(
            f"the query's collection has no chunk {(item.chunk_id or '')[:80]!r} that this key may read",
            field="chunk_id",
        )


def _row(item: Feedback, asked: _Asked, document_id: str, caller: Caller) -> dict[str, Any]:
    relevant = 1 if item.grade is None else item.grade
    return {
        "collection_id": asked.collection_id,
        "origin": _origin(caller),
        "query_key": query_key(asked.text),
        "query": asked.text,
        "document_id": document_id,
        "chunk_id": item.chunk_id or "",
        "grade": 0 if item.kind == FeedbackKind.IRRELEVANT else relevant,
        "created_at": t.now(),
    }


def _origin(caller: Caller) -> str:
    return f"{ORIGIN}-{caller.key_id}" if caller.key_id else ORIGIN


def _count(connection: Connection, collections: set[int], caller: Caller) -> int:
    j = t.JudgmentRow
    mine = select(func.count()).where(j.collection_id.in_(collections), j.origin == _origin(caller))
    return int(connection.scalar(mine) or 0)
