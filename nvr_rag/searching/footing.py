"""What a search stands on at one moment: how far its index is, how far the log, whether anything in the collection is
not for everybody, and whether the index knows for whom it is. One statement: every search asks it twice."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from sqlalchemy import Connection, bindparam, exists, select

from nvr_rag import indexes
from nvr_rag.db import tables as t
from nvr_rag.errors import NotFound


@dataclass(frozen=True, kw_only=True, slots=True)
class Footing:
    """Of one index at one moment."""

    collection_id: int
    seq: int  # of the last change that the index has
    head: int  # of the last change of the collection
    restricted: bool  # some document of the collection has an acl
    painted: bool  # every point says as this release writes it who may read it

    @property
    def level(self) -> bool:
        """The index has all there is."""
        return self.seq >= self.head


def footing(connection: Connection, index_id: int) -> Footing:
    """Raises as `indexes.answers_at`."""
    row = connection.execute(_footing(), {"id": index_id}).first()
    if row is None or (row.rebuilt_to is not None and row.applied_seq < row.rebuilt_to):
        indexes.answers_at(connection, index_id)  # says what is wrong with it
        raise NotFound("the index is gone: its collection was deleted")
    return Footing(
        collection_id=row.id,
        seq=row.applied_seq,
        head=row.next_seq - 1,
        restricted=bool(row.restricted),
        painted=indexes.is_painted(row.store),
    )


@cache
def _footing() -> Any:
    """The statement, made once. Where nothing is restricted, an index over what is tells it at once."""
    i, c, d = t.SearchIndex, t.Collection, t.Document
    restricted = exists().where(d.collection_id == i.collection_id, d.acl.is_not(None)).label("restricted")
    return (
        select(i.applied_seq, i.rebuilt_to, i.store, c.id, c.next_seq, restricted)
        .join(c, c.id == i.collection_id)
        .where(i.id == bindparam("id"))
    )
