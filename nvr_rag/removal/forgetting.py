"""What the query log forgets: hits and filters that name what was erased, and the words of users who were.

Names enter; rows are rewritten. Knows nothing of documents, and keeps no record.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, select, update

from nvr_rag.db import tables as t
from nvr_rag.db.session import Database

ERASED = "(erased)"
_TELLING = 8  # characters from which a name within words is surely that name
_LOOKUP = 500  # ids in one IN (...)
_PAGE = 1000  # logged queries looked through at a time
_LATE = timedelta(minutes=5)  # a search that began before an erasure may be logged so much after it


def parts(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    """Slices that fit into one statement on every engine."""
    for start in range(0, len(ids), _LOOKUP):
        yield ids[start : start + _LOOKUP]


def queries_naming(database: Database, collection_id: int, names: Collection[str]) -> dict[str, set[str]]:
    """Logged queries whose hits or filters name something: id -> what they name. A page is a transaction."""
    q = t.QueryRow
    found: dict[str, set[str]] = {}
    after = ""
    while True:
        with database.read() as connection:
            rows = connection.execute(
                select(q.id, q.hits, q.filter)
                .where(q.collection_id == collection_id, q.id > after)
                .order_by(q.id)
                .limit(_PAGE)
            ).all()
        found.update(_naming(rows, names))
        if len(rows) < _PAGE:
            return found
        after = rows[-1].id


def recent(connection: Connection, collection_id: int, names: Collection[str], since: datetime) -> dict[str, set[str]]:
    q = t.QueryRow
    recent = select(q.id, q.hits, q.filter).where(q.collection_id == collection_id, q.created_at > since - _LATE)
    return _naming(connection.execute(recent), names)


def _naming(rows: Iterable[Any], names: Collection[str]) -> dict[str, set[str]]:
    found = {row.id: {hit[0] for hit in row.hits} | set(_strings(row.filter)) for row in rows}
    return {key: named & set(names) for key, named in found.items() if not named.isdisjoint(names)}


def out_of_jobs(connection: Connection, collection: str, names: Collection[str]) -> None:
    """Take names out of what jobs about a collection are about and have told, and out of what uploads were answered."""
    j, i = t.Job, t.Idempotency
    told = select(j.id, j.payload, j.progress, j.result, j.error, j.failures)
    for row in connection.execute(told.where(j.payload["collection"].as_string() == collection)).all():
        values = {name: getattr(row, name) for name in ("progress", "result", "error", "failures")}
        clean = {name: _blank(value, names) for name, value in values.items()}
        values["payload"], clean["payload"] = row.payload, _without_files(row.payload, names)
        if clean != values:
            connection.execute(update(j).where(j.id == row.id).values(**clean))
    for row in connection.execute(select(i.key, i.answer)).all():
        answer = _blank(row.answer, names)
        if answer != row.answer:
            connection.execute(update(i).where(i.key == row.key).values(answer=answer))


def _without_files(payload: Any, names: Collection[str]) -> Any:
    """What an upload is about, without the document and the hash of its file."""
    if not isinstance(payload.get("files"), list):
        return payload
    files = [{**one, "document": "", "sha256": ""} if one.get("document") in names else one for one in payload["files"]]
    return {**payload, "files": files}


def _blank(value: Any, names: Collection[str]) -> Any:
    """A JSON value that does not name them: as a document's id or URI, or within words."""
    if isinstance(value, dict):
        named = {key: item for key, item in value.items() if key in ("id", "uri") and item in names}
        return {key: ERASED if key in named else _blank(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [_blank(item, names) for item in value]
    if isinstance(value, str):
        for name in names:
            if len(name) >= _TELLING:
                value = value.replace(name, ERASED)
    return value


def _strings(value: Any) -> Iterator[str]:
    """Every text in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _strings(one)
    elif isinstance(value, Sequence):
        for one in value:
            yield from _strings(one)


def without(connection: Connection, found: Mapping[str, set[str]], names: Collection[str]) -> Mapping[str, set[str]]:
    """Take the hits that are named out of logged queries, and filters that name them; what was found."""
    q = t.QueryRow
    for part in parts(sorted(found)):
        for row in connection.execute(select(q.id, q.hits, q.filter).where(q.id.in_(part))).all():
            hits = [hit for hit in row.hits if hit[0] not in names]
            named = not set(_strings(row.filter)).isdisjoint(names)
            values = {"hits": hits, "filter": None if named else row.filter}
            connection.execute(update(q).where(q.id == row.id).values(**values))
    return found


def blanked(connection: Connection, asked: Sequence[str]) -> set[str]:
    """Take everything but the hits out of those queries that others have said something about; which those are."""
    q, f = t.QueryRow, t.FeedbackRow
    kept: set[str] = set()
    for part in parts(asked):
        kept |= set(connection.scalars(select(f.query_id).where(f.query_id.in_(part)).distinct()))
    for part in parts(sorted(kept)):
        values = {"text": "", "user": None, "session": None, "filter": None}
        connection.execute(update(q).where(q.id.in_(part)).values(**values))
    return kept
