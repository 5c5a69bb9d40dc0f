"""Queries of an export enter, a few at a time, with what was said about their hits; they are in the log afterwards.

Works in the caller's transaction, and doing it again changes nothing. Knows no file.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, select

from nvr_rag import deployments
from nvr_rag.db import tables as t
from nvr_rag.db.session import insert_ignore, insert_or_update
from nvr_rag.errors import Conflict
from nvr_rag.transfer.records import QueryLine
from nvr_rag.transfer.storing import Target

_SAID = ("query_id", "chunk_id", "kind", "user")


def store_queries(connection: Connection, target: Target, lines: Sequence[QueryLine]) -> tuple[int, int]:
    """Log queries as if what serves now had answered them; returns how many are new, and how much of the feedback is
    new, or newer than what is there. Raises Conflict for a query that another collection has."""
    ids = [_query_id(target, line) for line in lines]
    q = t.QueryRow
    owners = {
        row.id: row.collection_id for row in connection.execute(select(q.id, q.collection_id).where(q.id.in_(ids)))
    }
    for key, owner in owners.items():
        if owner != target.id:
            raise Conflict(
                f"the query {key} is logged in another collection already; import into that one, or under another name "
                "(--collection)"
            )
    serving = deployments.serving(connection, target.name).id
    new = [_query(target, key, line, serving) for key, line in zip(ids, lines, strict=True) if key not in owners]
    insert_ignore(connection, q, new)
    said = [row for key, line in zip(ids, lines, strict=True) for row in _feedback(target, key, line)]
    return len(new), _store_feedback(connection, ids, said)


def _store_feedback(connection: Connection, ids: Sequence[str], rows: Sequence[dict[str, Any]]) -> int:
    f = t.FeedbackRow
    stored = connection.execute(select(*f.__table__.c).where(f.query_id.in_(ids))).mappings()
    there = {tuple(row[name] for name in _SAID): row["created_at"] for row in stored}
    fresh = []
    for row in rows:
        before = there.get(tuple(row[name] for name in _SAID))
        if before is None or row["created_at"] > before:
            fresh.append(row)
    insert_or_update(connection, f, fresh, key=_SAID, values=("grade", "created_at"))
    return len(fresh)


def _query_id(target: Target, line: QueryLine) -> str:
    """Its own id; one made from it where the collection has another name, as the database may have both."""
    return line.id if target.name == target.there else str(uuid.uuid5(uuid.UUID(line.id), target.name))


def _query(target: Target, key: str, line: QueryLine, deployment: int) -> dict[str, Any]:
    return {
        "id": key,
        "collection_id": target.id,
        "deployment_id": deployment,
        "text": line.text,
        "k": line.k,
        "mode": line.mode,
        "filter": line.filter,
        "user": line.user,
        "session": line.session,
        "hits": [[ref.id_in(target.name), score] for ref, score in line.hits],
        "created_at": line.created_at,
    }


def _feedback(target: Target, key: str, line: QueryLine) -> list[dict[str, Any]]:
    ids = {ref.id: ref.id_in(target.name) for ref, _ in line.hits}
    return [
        {
            "query_id": key,
            "chunk_id": ids.get(item.chunk, item.chunk) if item.chunk else "",
            "kind": item.kind,
            "grade": item.grade,
            "user": item.user,
            "created_at": item.created_at,
        }
        for item in line.feedback
    ]
