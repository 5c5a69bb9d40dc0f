"""Collections: sets of documents that are searched as one. Names in, rows out; knows no documents and no vectors."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, delete, func, insert, select, update

from nvr_rag.access import reading
from nvr_rag.db import tables as t
from nvr_rag.errors import Conflict, InvalidInput, NoCollection, NotFound
from nvr_rag.types import OWNER, DocumentState, Reader

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, kw_only=True, slots=True)
class CollectionInfo:
    """A collection and how many documents of it are in each state."""

    id: int
    name: str
    language: str  # of the lexical side, e.g. "english"
    head_seq: int  # number of its last change; 0 = none yet
    created_at: datetime
    documents: dict[str, int]  # by DocumentState


def create(connection: Connection, name: str, language: str) -> int:
    """Add an empty collection and return its id. Raises InvalidInput for the name, Conflict when it exists."""
    check_name(name)
    if connection.scalar(select(t.Collection.id).where(t.Collection.name == name)) is not None:
        raise Conflict(f"the collection {name!r} exists already")
    row = connection.execute(insert(t.Collection).values(name=name, language=language).returning(t.Collection.id))
    return int(row.scalar_one())


def check_name(name: str) -> None:
    """Raise InvalidInput unless `name` can name a collection."""
    if not _NAME.fullmatch(name):
        raise InvalidInput(
            f"a collection's name has 1 to 64 letters, digits, '.', '_' or '-' and begins with a letter or digit; "
            f"got {name[:80]!r}",
            field="collection",
        )


def find(connection: Connection, name: str, *, lock: bool = False) -> int:
    """The id of a collection. Raises NoCollection.

    With `lock` other writers of the collection wait until this transaction ends (on SQLite they always do).
    """
    statement = select(t.Collection.id).where(t.Collection.name == name)
    found = None
    if _NAME.fullmatch(name):
        found = connection.scalar(statement.with_for_update() if lock else statement)
    if found is None:
        names = connection.scalars(select(t.Collection.name).order_by(t.Collection.name).limit(20)).all()
        raise NoCollection(name, names)
    return found


def same(connection: Connection, name: str, born: tuple[int, datetime]) -> bool:
    """Whether the collection of this name is still the one that `identity` was asked about. Locks it, as `find` can."""
    try:
        find(connection, name, lock=True)
    except NotFound:
        return False
    return identity(connection, name) == born


def identity(connection: Connection, name: str) -> tuple[int, datetime]:
    """What tells a collection from one of the same name that was made later, and may have the same id."""
    collection_id = find(connection, name)
    statement = select(t.Collection.created_at).where(t.Collection.id == collection_id)
    return collection_id, connection.scalars(statement).one()


def head_seq(connection: Connection, collection_id: int) -> int:
    """The number of the collection's last change; 0 when nothing has changed yet."""
    return int(connection.scalars(select(t.Collection.next_seq).where(t.Collection.id == collection_id)).one()) - 1


def allocate_seq(connection: Connection, collection_id: int, count: int) -> int:
    """Reserve `count` change numbers and return the first.

    The update locks the collection's row until the transaction ends: a later number can only be taken after the
    earlier ones are committed or given up, so that whoever reads the log in order never skips a late committer.
    """
    statement = (
        update(t.Collection)
        .where(t.Collection.id == collection_id)
        .values(next_seq=t.Collection.next_seq + count)
        .returning(t.Collection.next_seq)
    )
    following = connection.scalar(statement)
    if following is None:
        raise NotFound("the collection was deleted meanwhile")
    return int(following) - count


def all_infos(connection: Connection, reader: Reader = OWNER) -> list[CollectionInfo]:
    """Every collection, by name; the documents that a reader may read are counted."""
    counts: dict[int, dict[str, int]] = {}
    by_state = (
        select(t.Document.collection_id, t.Document.state, func.count())
        .where(reading.readable(connection.dialect.name, reading.shape(reader)))
        .group_by(t.Document.collection_id, t.Document.state)
    )
    for collection_id, state, count in connection.execute(by_state, reading.bound(reader)):
        counts.setdefault(collection_id, {})[state] = count
    rows = connection.execute(select(*t.Collection.__table__.c).order_by(t.Collection.name))
    return [
        CollectionInfo(
            id=row.id,
            name=row.name,
            language=row.language,
            head_seq=row.next_seq - 1,
            created_at=row.created_at,
            documents={state: counts.get(row.id, {}).get(state, 0) for state in DocumentState},
        )
        for row in rows
    ]


def info(connection: Connection, name: str, reader: Reader = OWNER) -> CollectionInfo:
    """One collection. Raises NotFound."""
    find(connection, name)
    return next(info for info in all_infos(connection, reader) if info.name == name)


def remove(connection: Connection, name: str) -> None:
    """Delete a collection with its documents, queries and feedback; its indexes retire, for their owner to drop."""
    collection_id = find(connection, name)
    connection.execute(delete(t.Deployment).where(t.Deployment.collection_id == collection_id))
    connection.execute(
        update(t.SearchIndex)
        .where(t.SearchIndex.collection_id == collection_id)
        .values(state="retired", collection_id=None)
    )
    connection.execute(delete(t.Collection).where(t.Collection.id == collection_id))
