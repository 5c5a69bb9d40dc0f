"""What has become of what was judged: ids of chunks and documents enter, whether they can still be found leaves.

Judgments outlive what they are about: documents are deleted, closed and edited, and a new chunking cuts them elsewhere.
Knows no queries and no grades.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from typing import Any

from sqlalchemy import Connection, and_, bindparam, select

from nvr_rag.db import tables as t
from nvr_rag.documents import newest_version

_LOOKUP = 1000  # ids in one IN (...), under every engine's limit


class Standing(StrEnum):
    """Whether a search can find a judged chunk or document."""

    THERE = "there"  # in its document's newest version, cut as the serving index cuts it
    LIFTED = "lifted"  # its text is in the newest version, but the serving index cuts that in another way
    GONE = "gone"
    FORBIDDEN = "forbidden"  # its document is not for everyone


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """A judged chunk or document."""

    standing: Standing
    document_id: str  # "" where the chunk is unknown


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkFact:
    """What measuring needs to know of a chunk."""

    document_id: str
    sha256: str  # of its text: exact copies share it


def chunk_facts(connection: Connection, chunk_ids: Sequence[str]) -> dict[str, ChunkFact]:
    """The document and the text's digest of each of these chunks that exists, whether or not it can be found."""
    c = t.Chunk
    statement = select(c.id, c.document_id, c.sha256).where(c.id.in_(bindparam("ids", expanding=True)))
    return {
        row.id: ChunkFact(document_id=row.document_id, sha256=row.sha256)
        for row in _each_thousand(connection, statement, chunk_ids, {})
    }


def chunks_found(connection: Connection, chunking_id: int, chunk_ids: Sequence[str]) -> dict[str, Found]:
    """What has become of these chunks, for an index with this chunking; unknown ones are gone."""
    d, v, p = t.Document, t.DocumentVersion, t.Placement
    statement = (
        select(p.chunk_id, p.chunking_id, d.id, d.acl.is_(None).label("open"))
        .join(v, v.id == p.version_id)
        .join(d, newest_version())
        .where(p.chunk_id.in_(bindparam("ids", expanding=True)), v.seq > d.deleted_seq)
    )
    found = {key: Found(standing=Standing.GONE, document_id="") for key in chunk_ids}
    for row in _each_thousand(connection, statement, chunk_ids, {}):
        if not row.open:
            standing = Standing.FORBIDDEN
        elif row.chunking_id == chunking_id or found[row.chunk_id].standing is Standing.THERE:
            standing = Standing.THERE
        else:
            standing = Standing.LIFTED
        found[row.chunk_id] = Found(standing=standing, document_id=row.id)
    return found


def documents_found(connection: Connection, chunking_id: int, document_ids: Sequence[str]) -> dict[str, Found]:
    """The same for whole documents. One without any text, or whose text this chunking could not cut, is gone."""
    d, v, cut = t.Document, t.DocumentVersion, t.Placed
    statement = (
        select(d.id, d.acl.is_(None).label("open"))
        .join(v, newest_version())
        .join(cut, and_(cut.version_id == v.id, cut.chunking_id == bindparam("chunking_id")), isouter=True)
        .where(d.id.in_(bindparam("ids", expanding=True)), v.seq > d.deleted_seq, cut.error.is_(None))
    )
    found = {key: Found(standing=Standing.GONE, document_id=key) for key in document_ids}
    for row in _each_thousand(connection, statement, document_ids, {"chunking_id": chunking_id}):
        standing = Standing.THERE if row.open else Standing.FORBIDDEN
        found[row.id] = Found(standing=standing, document_id=row.id)
    return found


def _each_thousand(connection: Connection, statement: Any, ids: Sequence[str], values: dict[str, Any]) -> Iterator[Any]:
    rest = iter(sorted(set(ids)))
    while part := list(islice(rest, _LOOKUP)):
        yield from connection.execute(statement, {**values, "ids": part})
