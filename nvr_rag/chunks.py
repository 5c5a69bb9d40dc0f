"""Chunks and where they stand: what an index should hold, and what a searcher may see. `placing` puts them there.

The visibility rule lives here. An index that has applied the log up to `seq` shows, of each document, the newest
version with a number up to `seq`, unless the document was deleted after that version; deletions count at once, however
far an index lags.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import BindParameter, ColumnElement, Connection, and_, bindparam, exists, func, or_, select
from sqlalchemy.orm import aliased

from nvr_rag.access import reading
from nvr_rag.db import tables as t
from nvr_rag.db.session import among, among_bound, bytewise, listed
from nvr_rag.types import Reader

_PAGE = 1000
_COPIES = 8  # of one text, looked at for a vector: they differ in the title or the headings that go with it


@dataclass(frozen=True, kw_only=True, slots=True)
class Version:
    """A version of a document that an index has to hold."""

    id: int
    document_id: str
    seq: int


@dataclass(frozen=True, kw_only=True, slots=True)
class PlacedChunk:
    """A chunk in a version of its document, with what an answer or an index needs to know of both."""

    chunk_id: str
    sha256: str  # of the text
    text: str
    start: int
    end: int
    page: int | None
    headings: Sequence[str]
    version_id: int
    version_seq: int
    ordinal: int  # position in the version, from 0
    document_id: str
    document_sha256: str  # of the source's bytes
    uri: str
    source: str  # the folder that the document came with; "" for one that was put by itself
    title: str
    media_type: str
    metadata: Mapping[str, Any]
    updated_at: datetime  # when this version was stored
    acl: Sequence[str] | None

    def fields(self) -> dict[str, Any]:
        """What filters can ask for."""
        return {
            "document_id": self.document_id,
            "uri": self.uri,
            "source": self.source,
            "title": self.title,
            "media_type": self.media_type,
            "updated_at": self.updated_at.timestamp(),
            "metadata": dict(self.metadata),
        }


def versions_at(connection: Connection, document_ids: Sequence[str], seq: int) -> list[Version]:
    """The version of each of these documents that an index at `seq` shows; documents without one are left out."""
    v = t.DocumentVersion
    statement = (
        select(v.id, v.document_id, v.seq)
        .join(t.Document, t.Document.id == v.document_id)
        .where(among(connection, v.document_id, document_ids), v.seq <= seq, _shown(seq))
        .order_by(v.seq)
    )
    return [Version(id=row.id, document_id=row.document_id, seq=row.seq) for row in connection.execute(statement)]


def characters(connection: Connection, versions: Sequence[Version]) -> dict[int, int]:
    """How long the text of each version is, by version id."""
    v = t.DocumentVersion
    wanted = [version.id for version in versions]
    lengths = select(v.id, func.length(v.text).label("length")).where(among(connection, v.id, wanted))
    rows = connection.execute(lengths)
    return {row.id: row.length for row in rows}


def chunks_of(connection: Connection, versions: Sequence[Version], chunking_id: int) -> Iterator[PlacedChunk]:
    """The chunks of some versions, by version id and in the order of the text, in bounded memory: what fits into one
    page is read at once, and what is left version by version."""
    left = sorted(version.id for version in versions)
    values = {"version_ids": listed(connection, left), "chunking_id": chunking_id}
    rows = connection.execute(_first_page(connection.dialect.name), values).all()
    if len(rows) < _PAGE:
        yield from map(_placed_chunk, rows)
        return
    after, last = rows[-1].ordinal, rows[-1].version_id
    yield from map(_placed_chunk, rows)
    for version_id in left[left.index(last) :]:
        while rows := connection.execute(
            _page(), {"version_id": version_id, "chunking_id": chunking_id, "after": after}
        ).all():
            yield from map(_placed_chunk, rows)
            after = rows[-1].ordinal
        after = -1


Place = tuple[int, int]  # in the log: number of a change, and position in the version that it made
BEGINNING: Place = (0, 0)


def next_chunks(
    connection: Connection, collection_id: int, chunking_id: int, seq: int, place: Place
) -> tuple[list[PlacedChunk], Place | None]:
    """Some of the chunks that an index at `seq` should hold, from a place in the log on, and the place to go on from,
    None at the end. In the order of the log: both engines read it off their indexes, and sort no more than a page."""
    c, v, p = t.Change, t.DocumentVersion, t.Placement
    since, ordinal = place
    page = select(c.seq).where(c.collection_id == collection_id, c.seq >= since, c.seq <= seq).order_by(c.seq)
    end = connection.scalar(select(func.max(page.limit(_PAGE).subquery().c.seq)))
    if end is None:
        return [], None
    rows = connection.execute(
        _placed_chunks()
        .join(c, and_(c.document_id == v.document_id, c.seq == v.seq, c.collection_id == collection_id))
        .where(p.chunking_id == chunking_id, c.seq >= since, c.seq <= end, _shown(seq))
        .where(or_(c.seq > since, p.ordinal >= ordinal))
        .order_by(c.seq, p.ordinal)
        .limit(_PAGE)
    ).all()
    following = (rows[-1].seq, rows[-1].ordinal + 1) if len(rows) == _PAGE else (end + 1, 0)
    return [_placed_chunk(row) for row in rows], following


def held(connection: Connection, collection_id: int, chunking_id: int, seq: int, chunk_ids: Sequence[str]) -> set[str]:
    """Those of the chunks that an index at `seq` should hold."""
    p, v = t.Placement, t.DocumentVersion
    statement = (
        select(p.chunk_id)
        .join(v, v.id == p.version_id)
        .join(t.Document, t.Document.id == v.document_id)
        .where(p.chunk_id.in_(chunk_ids), p.chunking_id == chunking_id)
        .where(t.Document.collection_id == collection_id, v.seq <= seq, _shown(seq))
    )
    return set(connection.scalars(statement))


def known(connection: Connection, chunk_ids: Sequence[str]) -> set[str]:
    """Those of the chunks that the log has, shown or not."""
    return set(connection.scalars(select(t.Chunk.id).where(t.Chunk.id.in_(chunk_ids))))


@cache  # made once: a build asks it for every few documents
def _first_page(dialect: str) -> Any:
    p = t.Placement
    return (
        _placed_chunks()
        .where(among_bound(dialect, p.version_id, "version_ids"), p.chunking_id == bindparam("chunking_id"))
        .order_by(p.version_id, p.ordinal)
        .limit(_PAGE)
    )


@cache
def _page() -> Any:
    p = t.Placement
    return (
        _placed_chunks()
        .where(
            p.version_id == bindparam("version_id"),
            p.chunking_id == bindparam("chunking_id"),
            p.ordinal > bindparam("after"),
        )
        .order_by(p.ordinal)
        .limit(_PAGE)
    )


def all_chunks(connection: Connection, collection_id: int, chunking_id: int, seq: int) -> Iterator[PlacedChunk]:
    """Every chunk that an index at `seq` should hold, in ascending order of chunk id, in bounded memory: the rows are
    streamed, and what the database has to sort it sorts on disk. One transaction, which holds up the tidying of the
    database for as long as it lasts: for what needs one state of the log."""
    p, v = t.Placement, t.DocumentVersion
    statement = (
        _placed_chunks()
        .where(t.Document.collection_id == collection_id, p.chunking_id == chunking_id, v.seq <= seq, _shown(seq))
        .order_by(bytewise(connection, p.chunk_id))
    )
    with connection.execute(statement, execution_options={"yield_per": _PAGE}) as rows:
        for row in rows:
            yield _placed_chunk(row)


def stale_chunks(
    connection: Connection, document_ids: Sequence[str], chunking_id: int, *, purged: int, applied: int
) -> list[str]:
    """Chunks of these documents that an index at `applied`, purged up to `purged`, may still hold and should not."""
    v, p = t.DocumentVersion, t.Placement
    newer = aliased(t.DocumentVersion)
    superseded = exists().where(newer.document_id == v.document_id, newer.seq > v.seq, newer.seq <= purged)
    mine = among(connection, v.document_id, document_ids)
    once = (
        select(p.chunk_id)
        .join(v, v.id == p.version_id)
        .where(mine, p.chunking_id == chunking_id, v.seq <= applied, ~superseded)
    )
    shown = (
        select(p.chunk_id)
        .join(v, v.id == p.version_id)
        .join(t.Document, t.Document.id == v.document_id)
        .where(mine, p.chunking_id == chunking_id, v.seq <= applied, _shown(applied))
    )
    return sorted(set(connection.scalars(once)) - set(connection.scalars(shown)))


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """Through what chunks are looked at: an index that went from `since` to `until` meanwhile, and somebody's eyes."""

    chunking_id: int
    since: int
    until: int
    reader: Reader


def visible(connection: Connection, chunk_ids: Sequence[str], view: View) -> list[PlacedChunk]:
    """These chunks wherever the index may have shown them during a search.

    When since < until a chunk may come back in several versions of its document; the caller chooses one version a
    document. Chunks that the reader may not see are left out; the order is not defined.
    """
    values = {"chunk_ids": chunk_ids, "chunking_id": view.chunking_id, "since": view.since, "until": view.until}
    statement = _visible(connection.dialect.name, reading.shape(view.reader))
    return [_placed_chunk(row) for row in connection.execute(statement, {**values, **reading.bound(view.reader)})]


def same_text(
    connection: Connection, collection_id: int, digests: Sequence[str], *, but: Sequence[str] = ()
) -> dict[str, list[str]]:
    """Ids of a few chunks of the collection by the sha256 of their text: where a vector may be found again.

    First those of the documents that changed last: the old name of a renamed file has just been deleted.
    """
    order = (t.Document.updated_at.desc(), t.Chunk.id)
    nth = func.row_number().over(partition_by=t.Chunk.sha256, order_by=order).label("nth")
    copies = (
        select(t.Chunk.sha256, t.Chunk.id, nth)
        .join(t.Document, t.Document.id == t.Chunk.document_id)
        .where(
            among(connection, t.Chunk.sha256, digests),
            t.Document.collection_id + 0 == collection_id,  # or SQLite would look through the whole collection
            ~among(connection, t.Chunk.id, but),
        )
        .subquery()
    )
    statement = select(copies.c.sha256, copies.c.id).where(copies.c.nth <= _COPIES).order_by(copies.c.nth)
    found: dict[str, list[str]] = {}
    for row in connection.execute(statement):
        found.setdefault(row.sha256, []).append(row.id)
    return found


def unsettled(
    connection: Connection, collection_id: int, chunk_ids: Sequence[str], seq: int, *, once_restricted: bool = False
) -> set[str]:
    """Those of the chunks whose document has changed after `seq`: an index at `seq` may be on its way to the change.
    With `once_restricted` only of documents of which some version is not for everybody."""
    v = t.DocumentVersion
    restricted = exists().where(v.document_id == t.Chunk.document_id, v.acl.is_not(None))
    statement = (
        select(t.Chunk.id)
        .join(t.Change, t.Change.document_id == t.Chunk.document_id)
        .where(t.Chunk.id.in_(chunk_ids), t.Change.collection_id == collection_id, t.Change.seq > seq)
    )
    return set(connection.scalars(statement.where(restricted) if once_restricted else statement))


@cache
def _visible(dialect: str, shape: reading.Shape) -> Any:
    """The statement of `visible`, made once: making it takes longer than running it, and every search does."""
    return _placed_chunks().where(
        t.Placement.chunk_id.in_(bindparam("chunk_ids", expanding=True)),
        t.Placement.chunking_id == bindparam("chunking_id"),
        t.DocumentVersion.seq <= bindparam("until"),
        _shown(bindparam("since")),
        reading.readable(dialect, shape),
        reading.readable(dialect, shape, t.DocumentVersion.acl),
    )


def _shown(seq: int | BindParameter[int]) -> ColumnElement[bool]:
    """The version is not superseded by one with a number up to `seq`, and not deleted."""
    v = t.DocumentVersion
    newer = aliased(t.DocumentVersion)
    superseded = exists().where(newer.document_id == v.document_id, newer.seq > v.seq, newer.seq <= seq)
    return and_(~superseded, v.seq > t.Document.deleted_seq, t.Document.state != "deleted")


def _placed_chunks() -> Any:
    p, v = t.Placement, t.DocumentVersion
    return (
        select(
            p.chunk_id,
            t.Chunk.sha256,
            t.Chunk.text,
            p.start,
            p.end,
            p.page,
            p.headings,
            p.ordinal,
            v.id.label("version_id"),
            v.seq,
            v.title,
            v.media_type,
            v.meta,
            v.sha256.label("document_sha256"),
            v.created_at,
            t.Document.id.label("document_id"),
            t.Document.uri,
            t.Document.source,
            v.acl,
        )
        .select_from(p)
        .join(t.Chunk, t.Chunk.id == p.chunk_id)
        .join(v, v.id == p.version_id)
        .join(t.Document, t.Document.id == v.document_id)
    )


def _placed_chunk(row: Any) -> PlacedChunk:
    return PlacedChunk(
        chunk_id=row.chunk_id,
        sha256=row.sha256,
        text=row.text,
        start=row.start,
        end=row.end,
        page=row.page,
        headings=row.headings,
        ordinal=row.ordinal,
        version_id=row.version_id,
        version_seq=row.seq,
        document_id=row.document_id,
        document_sha256=row.document_sha256,
        uri=row.uri,
        source=row.source,
        title=row.title,
        media_type=row.media_type,
        metadata=row.metadata,
        updated_at=row.created_at,
        acl=row.acl,
    )
