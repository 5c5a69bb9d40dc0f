"""Erasing for good, in the database: what is said about a document, or by a user, goes in one transaction, together
with a record of it.

Documents and users enter; records leave. Nothing is left in a row but what others have said, and the record: a hash of
what was erased, how much it was, and, until it is done, what is still to be removed from indexes and files. That is the
business of `erasing`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select, update

from nvr_rag import collections, indexes, outside
from nvr_rag.db import clock
from nvr_rag.db import tables as t
from nvr_rag.db.session import Database
from nvr_rag.errors import NotFound
from nvr_rag.ids import sha256_text
from nvr_rag.removal import forgetting
from nvr_rag.removal.forgetting import parts
from nvr_rag.storable import storable


@dataclass(frozen=True, kw_only=True, slots=True)
class Erasure:
    """The record of an erasure."""

    id: int
    kind: str  # document, user
    subject: str  # sha256 of the document id or of the user
    collection: str | None
    pending: Mapping[str, Any] | None  # see `_pending`; None = everything is done
    removed: Mapping[str, Any]  # what -> how many, and "encoders": fingerprints of those that were trained with it
    created_at: datetime
    finished_at: datetime | None

    def as_json(self) -> dict[str, Any]:
        """For people: what is pending as counts, times as ISO 8601."""
        return {
            "id": self.id,
            "kind": self.kind,
            "subject": self.subject,
            "collection": self.collection,
            "removed": dict(self.removed),
            "pending": left(self.pending),
            "created_at": self.created_at.isoformat(),
            "finished_at": self.finished_at.isoformat() if self.finished_at else None,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """A document that is to be erased, and all that goes by another name because of it."""

    id: str
    uri: str
    chunks: Sequence[str]  # ids of every chunk that it ever had
    digests: Sequence[str]  # sha256 of their texts


def left(pending: Mapping[str, Any] | None) -> list[str]:
    """What is still to be removed, in words."""
    if pending is None:
        return []
    words = [f"index {index_id}" for index_id in pending["indexes"]] + ["files"] * pending["files"]
    # Its file is written anew once more at the very end, without the ids below.
    return words + ["database"] * (pending["database"] == "texts" or not words)


def find_documents(connection: Connection, collection: str, keys: Sequence[str]) -> dict[str, Found]:
    """Documents by id or URI, deleted ones as well; those that are not there are left out. Raises NotFound for the
    collection."""
    from nvr_rag import documents

    collections.find(connection, collection)
    found = {}
    for key in dict.fromkeys(keys):
        try:
            document = documents.get(connection, collection, key)
        except NotFound:
            continue
        rows = connection.execute(select(t.Chunk.id, t.Chunk.sha256).where(t.Chunk.document_id == document.id)).all()
        found[key] = Found(
            id=document.id,
            uri=document.uri,
            chunks=sorted(row.id for row in rows),
            digests=sorted({row.sha256 for row in rows}),
        )
    return found


def erase_documents(
    database: Database, collection: str, found: Iterable[Found], encoders: Sequence[str] = ()
) -> list[Erasure]:
    """Remove documents with all their versions, and whatever names them; one record each.

    `encoders` are those that were trained with their texts: they are noted. Raises NotFound for the collection.
    """
    documents = {one.id: one for one in found}
    with database.read() as connection:
        collection_id = collections.find(connection, collection)
        begun = clock.now(connection)
    names = {name for one in documents.values() for name in (one.id, one.uri, *one.chunks)}
    shown = forgetting.queries_naming(
        database, collection_id, names
    )  # first: it may take long, and nobody waits for it
    with database.write() as connection:
        collection_id = collections.find(connection, collection, lock=True)
        late = forgetting.recent(connection, collection_id, names, begun)
        queries = forgetting.without(connection, {**shown, **late}, names)
        ids = [
            _erase_document(connection, collection, collection_id, one, queries, encoders) for one in documents.values()
        ]
        return [_get(connection, record) for record in ids]


def forget_late(connection: Connection, record: Erasure) -> None:
    """Remove what searches that were under way have logged of a document after it was erased."""
    if record.kind != "document" or record.pending is None or record.collection is None:
        return
    try:
        collection_id = collections.find(connection, record.collection)
    except NotFound:
        return
    chunks = set(record.pending["chunks"])
    chunks -= _known(connection, chunks)  # it is back
    names = {record.pending["document"], *chunks} - {""}
    forgetting.without(connection, forgetting.recent(connection, collection_id, names, record.created_at), names)
    for part in parts(sorted(chunks)):
        connection.execute(delete(t.FeedbackRow).where(t.FeedbackRow.chunk_id.in_(part)))


def texts_of_user(connection: Connection, user: str) -> list[str]:
    """The texts of what a user has asked, or has said something about."""
    q, f = t.QueryRow, t.FeedbackRow
    asked = select(q.text).where(q.user == storable(user))
    judged = select(q.text).join(f, f.query_id == q.id).where(f.user == storable(user))
    return sorted(set(connection.scalars(asked.union(judged))))


def erase_user(database: Database, user: str, names: Sequence[str] = (), encoders: Sequence[str] = ()) -> Erasure:
    """Remove what a user has asked and said; what others have said stays, and so does, without its text, a query that
    they have said it about.

    `names` is how files call those queries. Raises NotFound when the log knows no such user.
    """
    user = storable(user)
    q, f = t.QueryRow, t.FeedbackRow
    with database.write() as connection:
        asked = list(connection.scalars(select(q.id).where(q.user == user)))
        judged = list(connection.scalars(select(f.query_id).where(f.user == user).distinct()))
        if not asked and not judged:
            raise NotFound(f"the query log knows no user {user[:80]!r}; names are compared to the letter")
        feedback = connection.execute(delete(f).where(f.user == user)).rowcount
        for part in parts(asked):  # unsigned feedback on a query is the asker's
            feedback += connection.execute(delete(f).where(f.query_id.in_(part), f.user == "")).rowcount
        for part in parts(asked):
            feedback += outside.forget(connection, list(connection.scalars(select(q.text).where(q.id.in_(part)))))
        kept = forgetting.blanked(connection, asked)
        for part in parts([key for key in asked if key not in kept]):
            connection.execute(delete(q).where(q.id.in_(part)))
        pending = _pending(names=[*asked, *judged, *names])
        removed = {"queries": len(asked), "feedback": feedback, "encoders": list(encoders)}
        return _get(connection, _record(connection, "user", user, None, pending, removed))


def unfinished(connection: Connection) -> list[Erasure]:
    """Erasures of which something is still to be removed, oldest first."""
    return [one for one in all_records(connection) if one.pending is not None]


def all_records(connection: Connection) -> list[Erasure]:
    """Every erasure, oldest first."""
    e = t.Erasure
    return [Erasure(**row._mapping) for row in connection.execute(select(*e.__table__.c).order_by(e.id))]


def pending_chunks(connection: Connection) -> set[str]:
    """Chunks that were erased and may still be in an index."""
    e = t.Erasure
    rows = connection.scalars(select(e.pending).where(e.pending.is_not(None)))
    return {chunk for pending in rows for chunk in pending["chunks"]}


def done(connection: Connection, record_id: int, **parts: Any) -> Erasure:
    """Record that a part of what was pending is done: `index`=id, `files`=True, `database`=True."""
    e = t.Erasure
    pending = connection.scalar(select(e.pending).where(e.id == record_id).with_for_update())
    if pending is not None:
        pending = {**pending, "indexes": [one for one in pending["indexes"] if one != parts.get("index")]}
        pending["files"] = pending["files"] and not parts.get("files")
        pending["database"] = "ids" if parts.get("database") else pending["database"]
        over = bool(parts.get("database")) and not pending["names"]
        values = {"pending": None, "finished_at": clock.now(connection)} if over else {"pending": pending}
        connection.execute(update(e).where(e.id == record_id).values(**values))
    return _get(connection, record_id)


def without_ids(connection: Connection, record: Erasure) -> None:
    """Take out of a record what was needed to find things, where everything is found."""
    if record.pending is not None and not record.pending["indexes"] and not record.pending["files"]:
        pending = {**record.pending, "document": "", "chunks": [], "names": []}
        connection.execute(update(t.Erasure).where(t.Erasure.id == record.id).values(pending=pending))


def _erase_document(
    connection: Connection,
    collection: str,
    collection_id: int,
    one: Found,
    queries: Mapping[str, set[str]],
    encoders: Sequence[str],
) -> int:
    """Remove one document in a transaction that holds its collection; the id of the record."""
    d, v, j, f = t.Document, t.DocumentVersion, t.JudgmentRow, t.FeedbackRow
    connection.execute(select(d.id).where(d.id == one.id).with_for_update())
    rows = connection.execute(select(t.Chunk.id, t.Chunk.sha256).where(t.Chunk.document_id == one.id)).all()
    chunks = sorted({row.id for row in rows} | set(one.chunks))
    feedback = 0
    for part in parts(chunks):
        feedback += connection.execute(delete(f).where(f.chunk_id.in_(part))).rowcount
    counted = {
        "versions": select(func.count()).select_from(v).where(v.document_id == one.id),
        "judgments": select(func.count()).select_from(j).where(j.document_id == one.id),
    }
    removed: dict[str, Any] = {name: connection.scalar(statement) for name, statement in counted.items()}
    removed |= {"chunks": len(rows), "feedback": feedback, "encoders": list(encoders)}
    removed["queries"] = sum(
        not named.isdisjoint((one.id, one.uri, *chunks)) for named in queries.values()
    )  # that showed it
    connection.execute(delete(d).where(d.id == one.id))  # and by its foreign keys all that hangs on it
    connection.execute(delete(t.Upload).where(t.Upload.document_id == one.id))  # its file is of no use without it
    forgetting.out_of_jobs(connection, collection, {one.id, one.uri})
    kept = [info.id for info in indexes.kept(connection, collection_id)]
    digests = sorted({row.sha256 for row in rows} | set(one.digests))
    pending = _pending(document=one.id, chunks=chunks, names=[one.id, *chunks, *digests], kept=kept)
    return _record(connection, "document", one.id, collection, pending, removed)


def _pending(
    *, names: Sequence[str], document: str = "", chunks: Sequence[str] = (), kept: Sequence[int] = ()
) -> dict[str, Any]:
    """What is to be done outside the transaction. Ids and hashes only: nothing in it can be read."""
    return {
        "document": document,
        "chunks": list(chunks),  # points to be removed
        "indexes": list(kept),  # ids of those that may have them
        "names": sorted(set(names)),  # what files of other packages may call it
        "files": True,  # they are still to be looked through
        "database": "texts",  # its file is still to be written anew; then "ids": once more, without what is above
    }


def _record(connection: Connection, kind: str, subject: str, collection: str | None, pending: Any, removed: Any) -> int:
    values = {
        "kind": kind,
        "subject": sha256_text(subject),
        "collection": collection,
        "pending": pending,
        "removed": removed,
        "created_at": clock.now(connection),
    }
    return int(connection.execute(insert(t.Erasure).values(**values).returning(t.Erasure.id)).scalar_one())


def _get(connection: Connection, record_id: int) -> Erasure:
    e = t.Erasure
    row = connection.execute(select(*e.__table__.c).where(e.id == record_id)).first()
    if row is None:
        raise NotFound(f"no erasure {record_id}; nvr-rag erasures list shows them")
    return Erasure(**row._mapping)


def _known(connection: Connection, names: Collection[str]) -> set[str]:
    found: set[str] = set()
    for part in parts(sorted(names)):
        found |= set(connection.scalars(select(t.Chunk.id).where(t.Chunk.id.in_(part))))
    return found
