"""What is stored of documents, read: one, many, or those that were mirrored from a place. What is
written here is only whether they can be found, when another index answers for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, RowMapping, Select, and_, func, or_, select, update

from nvr_rag import collections
from nvr_rag.access import reading
from nvr_rag.db import tables as t
from nvr_rag.db.session import bytewise
from nvr_rag.errors import NotFound
from nvr_rag.storable import storable
from nvr_rag.types import OWNER, Document, DocumentState, ParsedText, Reader, TextFormat

_PAGE = 1000
_AFTER_SLASH = "0"  # the character that follows "/": every URI below a folder sorts between the two


@dataclass(frozen=True, kw_only=True, slots=True)
class Known:
    """What a sync needs to decide whether a source document has to be read again."""

    uri: str
    document_id: str
    sha256: str  # of the newest version's source bytes; "" = there is none
    parser: str  # likewise
    state: DocumentState
    error: str | None  # why the last attempt failed
    source: str  # where it was mirrored from
    acl: Sequence[str] | None


def known(connection: Connection, collection: str, root: str) -> Iterator[Known]:
    """What has a source and lies at or below the URI `root`, in no order and bounded memory, deleted documents left
    out.

    Documents that somebody put by hand have no source, and do not belong to any root.
    """
    collection_id = collections.find(connection, collection)
    folder, uri = root.rstrip("/") + "/", bytewise(connection, t.Document.uri)
    statement = (
        select(
            t.Document.uri,
            t.Document.id,
            t.Document.state,
            t.Document.error,
            t.Document.source,
            t.Document.acl,
            t.DocumentVersion.sha256,
            t.DocumentVersion.parser,
        )
        .join(t.DocumentVersion, and_(newest_version(), t.DocumentVersion.seq > t.Document.deleted_seq), isouter=True)
        .where(
            t.Document.collection_id == collection_id,
            t.Document.source != "",
            or_(uri == root, and_(uri >= folder, uri < folder[:-1] + _AFTER_SLASH)),
            t.Document.state != DocumentState.DELETED,
        )
    )
    with connection.execute(statement, execution_options={"yield_per": _PAGE}) as rows:
        for row in rows:
            yield Known(
                uri=row.uri,
                document_id=row.id,
                sha256=row.sha256 or "",
                parser=row.parser or "",
                state=DocumentState(row.state),
                error=row.error,
                source=row.source,
                acl=row.acl,
            )


def parsed(connection: Connection, key: str) -> ParsedText:
    """The newest version of a document as its parser left it. Raises NotFound when it has none."""
    v = t.DocumentVersion
    statement = select(*v.__table__.c).join(t.Document, newest_version()).where(t.Document.id == key)
    row = connection.execute(statement).mappings().first()
    if row is None:
        raise NotFound(f"the document {key} has no text")
    return ParsedText(
        text=row["text"],
        format=TextFormat(row["text_format"]),
        media_type=row["media_type"],
        title=row["title"],
        page_starts=row["page_starts"],
        metadata=row["metadata"],
    )


def get(connection: Connection, collection: str, key: str, *, reader: Reader = OWNER) -> Document:
    """One document by its id or its URI, deleted ones too. Raises NotFound, also for one that is not for the reader."""
    collection_id, key = collections.find(connection, collection), storable(key)
    named = or_(t.Document.id == key, t.Document.uri == key)
    # An id before a URI that looks like it: whoever stores documents chooses URIs.
    statement = _documents(collection_id).where(named, _readable(connection, reader)).order_by(t.Document.id != key)
    row = connection.execute(statement, reading.bound(reader)).mappings().first()
    if row is None:
        raise NotFound(f"no document {key[:200]!r} in the collection {collection!r}")
    return _document(collection, row)


def list_documents(
    connection: Connection,
    collection: str,
    *,
    state: DocumentState | None = None,
    after: str = "",
    limit: int = 100,
    reader: Reader = OWNER,
) -> list[Document]:
    """Documents by URI, from the first URI greater than `after`; deleted ones only when asked for, and never one
    that is not for the reader."""
    collection_id = collections.find(connection, collection)
    wanted = t.Document.state == state if state else t.Document.state != DocumentState.DELETED
    wanted = and_(wanted, t.Document.uri > after, _readable(connection, reader))
    statement = _documents(collection_id).where(wanted).order_by(t.Document.uri).limit(limit)
    return [_document(collection, row) for row in connection.execute(statement, reading.bound(reader)).mappings()]


def text_of(connection: Connection, key: str) -> str:
    """The parsed text of a document's newest version. Raises NotFound."""
    statement = select(t.DocumentVersion.text).join(t.Document, newest_version()).where(t.Document.id == key)
    text = connection.scalar(statement)
    if text is None:
        raise NotFound(f"the document {key} has no text")
    return text


def _readable(connection: Connection, reader: Reader) -> Any:
    return reading.readable(connection.dialect.name, reading.shape(reader))


def newest_version() -> Any:
    """Joins a document to its newest version: the one of the document's generation."""
    return and_(t.DocumentVersion.document_id == t.Document.id, t.DocumentVersion.generation == t.Document.generation)


def serving_chunking(collection_id: int) -> Any:
    """The chunking of the index that answers for a collection, as a subquery: what it cannot cut cannot be found."""
    i = t.SearchIndex
    return (
        select(i.chunking_id)
        .join(t.Deployment, t.Deployment.index_id == i.id)
        .where(t.Deployment.collection_id == collection_id, t.Deployment.state == "serving")
        .scalar_subquery()
    )


def restate(connection: Connection, collection_id: int) -> None:
    """Once another chunking serves: what it cannot cut has failed, and what only another could not cut is well."""
    d, p = t.Document, t.Placed
    serving = serving_chunking(collection_id)
    cut = select(p.error).join(t.DocumentVersion, t.DocumentVersion.id == p.version_id).where(newest_version())
    now = cut.where(p.chunking_id == serving).correlate(d).scalar_subquery()
    mine = update(d).where(d.collection_id == collection_id)
    connection.execute(
        mine.where(d.state == DocumentState.FAILED, now.is_(None), d.error.in_(cut.correlate(d)))
        .values(state=DocumentState.READY, error=None)
        .execution_options(synchronize_session=False)
    )
    connection.execute(
        mine.where(d.state == DocumentState.READY, now.is_not(None))
        .values(state=DocumentState.FAILED, error=now)
        .execution_options(synchronize_session=False)
    )


def _documents(collection_id: int) -> Select[Any]:
    v = t.DocumentVersion
    return (
        select(
            *t.Document.__table__.c,  # the acl among them
            v.seq,
            v.sha256,
            v.parser,
            v.media_type,
            v.title,
            v.meta,
            func.length(v.text).label("characters"),
        )
        .join(v, newest_version(), isouter=True)
        .where(t.Document.collection_id == collection_id)
    )


def _document(collection: str, row: RowMapping) -> Document:
    return Document(
        id=row["id"],
        collection=collection,
        uri=row["uri"],
        source=row["source"],
        state=DocumentState(row["state"]),
        error=row["error"],
        title=row["title"] or "",
        media_type=row["media_type"] or "",
        metadata=row["metadata"] or {},
        sha256=row["sha256"] or "",
        parser=row["parser"] or "",
        generation=row["generation"],
        seq=max(row["seq"] or 0, row["deleted_seq"]),
        characters=row["characters"] or 0,
        updated_at=row["updated_at"],
        acl=row["acl"],
    )
