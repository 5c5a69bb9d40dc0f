"""Texts that no index needs any more: versions that were replaced, cuts for indexes that are gone, loose chunks.

A version may go once every live index of its collection has purged what replaced it: until then it is what an index
shows, or what tells an index which of its points are stale. Each transaction is small and locks the collection's row,
so that no index begins in the middle of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, delete, exists, func, or_, select
from sqlalchemy.orm import aliased

from nvr_rag.db import clock
from nvr_rag.db import tables as t
from nvr_rag.db.session import Database

BATCH = 200  # versions in one transaction, or chunks

Pause = Callable[[], bool]  # whether to leave the rest for later


def remove_versions(database: Database, days: float, *, dry_run: bool, pause: Pause) -> tuple[int, int]:
    """Delete versions that were replaced, or whose document was deleted, longer ago than that; how many, and how many
    characters of text."""
    v, count, size = t.DocumentVersion, 0, 0
    for collection_id in _collections(database):
        with database.read() as connection:
            gone = _replaced(connection, collection_id, days)
            if gone is None:
                continue
            measured = select(func.count(), func.coalesce(func.sum(func.length(v.text)), 0)).where(gone)
            found, characters = connection.execute(measured).one()
        size += characters
        count += found if dry_run else _delete_versions(database, collection_id, days, pause)
    return count, size


def _delete_versions(database: Database, collection_id: int, days: float, pause: Pause) -> int:
    v = t.DocumentVersion

    def some(connection: Connection) -> int:
        _lock(connection, collection_id)
        gone = _replaced(connection, collection_id, days)
        if gone is None:
            return 0
        ids = connection.scalars(select(v.id).where(gone).order_by(v.id).limit(BATCH)).all()
        connection.execute(delete(v).where(v.id.in_(ids)))
        return len(ids)

    return delete_in_batches(database, pause, some)


def _replaced(connection: Connection, collection_id: int, days: float) -> ColumnElement[bool] | None:
    """What is true of the versions that may go; None when nothing is known of what indexes need."""
    i, d, v, newer = t.SearchIndex, t.Document, t.DocumentVersion, aliased(t.DocumentVersion)
    live = select(func.min(i.purged_seq)).where(i.collection_id == collection_id, i.state == "live")
    purged = connection.scalar(live)
    if purged is None:
        return None
    limit = clock.now(connection) - timedelta(days=days)
    replaced = exists().where(
        newer.document_id == v.document_id, newer.seq > v.seq, newer.seq <= purged, newer.created_at < limit
    )
    deleted = exists().where(
        d.id == v.document_id, d.deleted_seq > v.seq, d.deleted_seq <= purged, d.updated_at < limit
    )
    mine = v.document_id.in_(select(d.id).where(d.collection_id == collection_id))
    return and_(mine, or_(replaced, deleted))


def remove_cuts(database: Database, days: float, *, dry_run: bool, pause: Pause) -> int:
    """Forget how versions were cut for indexes that were dropped longer ago than that; how many versions.

    Where people have judged a chunk of it a cut stays: it is how their judgment is found in the text of today.
    """
    count = 0
    for collection_id in _collections(database):
        if dry_run:
            with database.read() as connection:
                unused = _unused(connection, collection_id, days)
                count += connection.scalar(select(func.count()).select_from(t.Placed).where(unused)) or 0
        else:
            count += _delete_cuts(database, collection_id, days, pause)
    return count


def _delete_cuts(database: Database, collection_id: int, days: float, pause: Pause) -> int:
    cut, p = t.Placed, t.Placement

    def some(connection: Connection) -> int:
        _lock(connection, collection_id)
        unused = _unused(connection, collection_id, days)
        found = connection.execute(select(cut.version_id, cut.chunking_id).where(unused).limit(BATCH)).all()
        for chunking in {row.chunking_id for row in found}:
            ids = [row.version_id for row in found if row.chunking_id == chunking]
            for table in (p, cut):
                connection.execute(delete(table).where(table.version_id.in_(ids), table.chunking_id == chunking))
        return len(found)

    return delete_in_batches(database, pause, some)


def _unused(connection: Connection, collection_id: int, days: float) -> ColumnElement[bool]:
    """What is true of the rows of `placed` that may go."""
    i, d, v, cut, p = t.SearchIndex, t.Document, t.DocumentVersion, t.Placed, t.Placement
    limit = clock.now(connection) - timedelta(days=days)
    fresh = or_(i.state == "live", i.dropped_at.is_(None), i.dropped_at >= limit)
    used = select(i.chunking_id).where(i.collection_id == collection_id, fresh)
    mine = select(v.id).join(d, d.id == v.document_id).where(d.collection_id == collection_id)
    judged = select(p.version_id).where(p.chunking_id == cut.chunking_id, p.chunk_id.in_(_judged()))
    return and_(cut.chunking_id.not_in(used), cut.version_id.in_(mine), cut.version_id.not_in(judged.correlate(cut)))


def remove_chunks(database: Database, *, dry_run: bool, pause: Pause) -> tuple[int, int]:
    """Delete chunks that stand nowhere and that nobody has judged; how many, and how many characters."""
    c = t.Chunk
    loose = and_(~exists().where(t.Placement.chunk_id == c.id), c.id.not_in(_judged()))
    with database.read() as connection:
        measured = select(func.count(), func.coalesce(func.sum(func.length(c.text)), 0)).where(loose)
        count, size = connection.execute(measured).one()
    if dry_run or not count:
        return count, size

    def some(connection: Connection) -> int:
        found = connection.execute(select(c.id, c.document_id).where(loose).limit(BATCH)).all()
        _lock_documents(connection, sorted({row.document_id for row in found}))
        doomed = delete(c).where(c.id.in_([row.id for row in found]), loose)
        return connection.execute(doomed).rowcount

    return delete_in_batches(database, pause, some), size


def delete_in_batches(database: Database, pause: Pause, some: Callable[[Connection], int]) -> int:
    """Do `some` in a transaction each, until it finds nothing to delete; how much it deleted in all."""
    count = 0
    while not pause():
        with database.write() as connection:
            deleted = some(connection)
        count += deleted
        if not deleted:
            break
    return count


def _judged() -> Any:
    """Ids of chunks that people have said something about."""
    f, j = t.FeedbackRow, t.JudgmentRow
    return select(f.chunk_id).where(f.chunk_id != "").union(select(j.chunk_id).where(j.chunk_id != ""))


def _collections(database: Database) -> Iterator[int]:
    with database.read() as connection:
        found = connection.scalars(select(t.Collection.id).order_by(t.Collection.id)).all()
    yield from found


def _lock(connection: Connection, collection_id: int) -> None:
    """Let no index begin until the transaction ends: whoever makes one locks the collection's row first."""
    connection.execute(select(t.Collection.id).where(t.Collection.id == collection_id).with_for_update())


def _lock_documents(connection: Connection, document_ids: Sequence[str]) -> None:
    """Wait for whoever is placing chunks of these documents, and let nobody begin: see nvr_rag.placing."""
    d = t.Document
    connection.execute(select(d.id).where(d.id.in_(document_ids)).order_by(d.id).with_for_update())
