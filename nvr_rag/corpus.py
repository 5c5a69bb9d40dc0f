"""The corpus log: the truth about documents. Parsed texts enter; versions, changes and chunks leave.

Every change gets a number (`seq`) in the transaction that makes it, and is durable when the call returns. It knows
nothing of vectors: indexes follow it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, RowMapping, Table, bindparam, delete, insert, select, update

from nvr_rag import collections
from nvr_rag.db import tables as t
from nvr_rag.documents import newest_version, serving_chunking
from nvr_rag.errors import Conflict, InvalidInput
from nvr_rag.ids import document_id, sha256_json
from nvr_rag.storable import storable, storable_json
from nvr_rag.types import OWNER, DocumentState, NewDocument, Reader

MAX_URI_CHARACTERS = 4096
_LOOKUP = 500  # ids in one IN (...), well under every engine's limit


class Outcome(StrEnum):
    """What putting a document came to."""

    ADDED = "added"
    UPDATED = "updated"
    UNCHANGED = "unchanged"


@dataclass(frozen=True, kw_only=True, slots=True)
class Put:
    """The answer to one put."""

    document_id: str
    outcome: Outcome
    seq: int  # of the change; 0 when nothing changed


def put(
    connection: Connection, collection: str, documents: Sequence[NewDocument], *, reader: Reader = OWNER
) -> list[Put]:
    """Store documents, in order; one that says what its newest version says, and comes from the same source, changes
    nothing.

    Raises NotFound (collection), InvalidInput (a URI or metadata that cannot be stored, a URI twice in one call),
    Conflict where there is a document that the reader may not read.
    """
    documents = [_storable_document(document) for document in documents]
    collection_id = collections.find(connection, collection, lock=True)
    ids = [identify(collection, document.uri) for document in documents]
    if len(set(ids)) != len(ids):
        raise InvalidInput("a URI may appear once in one call", field="uri")
    current = _current(connection, ids)
    for row in current.values():
        _check_readable(row, reader)
    changed = [i for i, key in enumerate(ids) if not _says_the_same(current.get(key), documents[i])]
    seq = collections.allocate_seq(connection, collection_id, len(changed)) if changed else 0
    changes = [
        _Change(key=ids[i], seq=number, document=documents[i], row=current.get(ids[i]))
        for number, i in enumerate(changed, start=seq)
    ]
    _store(connection, collection_id, changes)
    answers = {
        i: Put(document_id=change.key, outcome=change.outcome, seq=change.seq)
        for i, change in zip(changed, changes, strict=True)
    }
    for i in set(range(len(ids))) - set(changed):
        _refresh(connection, current[ids[i]])
    return [answers.get(i, Put(document_id=key, outcome=Outcome.UNCHANGED, seq=0)) for i, key in enumerate(ids)]


def check_free(connection: Connection, ids: Sequence[str], reader: Reader) -> None:
    """Raise Conflict where one of these documents is there, deleted or not, and the reader may not read it."""
    for part in _parts(ids):
        statement = select(t.Document.uri, t.Document.acl).where(t.Document.id.in_(part))
        for row in connection.execute(statement).mappings():
            _check_readable(row, reader)


def taken(uri: str) -> Conflict:
    """What whoever would write over something that he may not read is told."""
    return Conflict(f"the URI {uri[:200]!r} is taken by a document that this key may not read; take another one")


def _check_readable(row: RowMapping, reader: Reader) -> None:
    if not reader.may_read(row["acl"]):
        raise taken(row["uri"])


def fail(
    connection: Connection,
    collection: str,
    *,
    uri: str,
    source: str,
    error: str,
    acl: Sequence[str] | None = None,
    reader: Reader = OWNER,
) -> None:
    """Record that a document could not be read. An older version of it goes on answering, to those of its readers who
    are in `acl` as well: what is said of who may read it holds at once, and shows nobody more of the older one.

    Raises Conflict where there is one that the reader may not read.
    """
    collection_id = collections.find(connection, collection, lock=True)
    key = identify(collection, uri)
    check_free(connection, [key], reader)
    fields = {"state": "failed", "source": storable(source), "error": storable(error), "updated_at": t.now()}
    acl = None if acl is None else [storable(principal) for principal in acl]
    row = _current(connection, [key]).get(key)
    if row is None:
        values = {**fields, "id": key, "collection_id": collection_id, "uri": uri, "acl": acl}
        connection.execute(insert(t.Document).values(values))
    else:
        values = {**fields, "acl": acl if row["generation"] == 0 else _both(row["acl"], acl)}
        if _answers(row):  # indexes have it with the source that it came from
            values["source"] = row["source"]
        connection.execute(update(t.Document).where(t.Document.id == key).values(values))


def _both(one: Sequence[str] | None, other: Sequence[str] | None) -> list[str] | None:
    """An acl for those alone who are in two of them."""
    if one is None:
        return None if other is None else list(other)
    return [principal for principal in one if other is None or principal in other]


def mark_failed(connection: Connection, key: str, seq: int, error: str) -> None:
    """Record that the version `seq` of a document is of no use, unless a newer one is there or it was deleted."""
    v = t.DocumentVersion
    newest = select(v.seq).where(v.document_id == key, v.generation == t.Document.generation).scalar_subquery()
    connection.execute(
        update(t.Document)
        .where(t.Document.id == key, t.Document.state != DocumentState.DELETED, newest == seq)
        .values(state="failed", error=storable(error), updated_at=t.now())
    )


def delete_documents(
    connection: Connection, collection: str, ids: Sequence[str], *, reader: Reader = OWNER
) -> list[str]:
    """Mark documents as deleted, at once for every reader; returns the ids that were there, in the order given. One
    that `reader` may not read is as good as none.

    A document that could never be read is forgotten altogether: no index has ever heard of it.
    """
    collection_id = collections.find(connection, collection, lock=True)
    generations = _generations(connection, collection_id, ids, reader)
    doomed = [key for key in dict.fromkeys(ids) if key in generations]
    unread = [key for key in doomed if generations[key] == 0]
    for part in _parts(unread):
        connection.execute(delete(t.Document).where(t.Document.id.in_(part)))
    marked = [key for key in doomed if generations[key] > 0]
    seq = collections.allocate_seq(connection, collection_id, len(marked)) if marked else 0
    for number, key in enumerate(marked, start=seq):
        connection.execute(
            update(t.Document)
            .where(t.Document.id == key)
            .values(state="deleted", error=None, deleted_seq=number, updated_at=t.now())
        )
        _log(connection, collection_id, number, key, "delete")
    return doomed


def _generations(connection: Connection, collection_id: int, ids: Sequence[str], reader: Reader) -> dict[str, int]:
    """Of those documents that are there, for this reader, and not deleted."""
    found: dict[str, int] = {}
    for part in _parts(ids):
        rows = connection.execute(
            select(t.Document.id, t.Document.generation, t.Document.acl).where(
                t.Document.id.in_(part),
                t.Document.collection_id == collection_id,
                t.Document.state != DocumentState.DELETED,
            )
        )
        found.update((row.id, row.generation) for row in rows if reader.may_read(row.acl))
    return found


def changed_since(
    connection: Connection, collection_id: int, seq: int, limit: int, *, until: int | None = None
) -> tuple[list[str], int]:
    """The documents that the next `limit` changes after `seq` touch, each once, and how far one is with them; with
    `until`, only those up to that number.

    Changes of what was erased are not in the log any more: when no more follow, one is at its head.
    """
    end = collections.head_seq(connection, collection_id) if until is None else until
    rows = connection.execute(
        select(t.Change.seq, t.Change.document_id)
        .where(t.Change.collection_id == collection_id, t.Change.seq > seq, t.Change.seq <= end)
        .order_by(t.Change.seq)
        .limit(limit)
    ).all()
    upto = rows[-1].seq if len(rows) == limit else max(seq, end)
    return list(dict.fromkeys(row.document_id for row in rows)), upto


def _storable_document(document: NewDocument) -> NewDocument:
    parsed = document.parsed
    return replace(
        document,
        parser=storable(document.parser),
        source=storable(document.source),
        acl=[storable(principal) for principal in document.acl] if document.acl is not None else None,
        parsed=replace(
            parsed,
            text=storable(parsed.text),
            media_type=storable(parsed.media_type),
            title=storable(parsed.title),
            metadata=storable_json(parsed.metadata),
        ),
    )


def identify(collection: str, uri: str) -> str:
    """The id of the document at a URI. Raises InvalidInput for a URI that cannot be stored."""
    if not uri or len(uri) > MAX_URI_CHARACTERS or storable(uri) != uri:
        raise InvalidInput(
            f"a URI has 1 to {MAX_URI_CHARACTERS} characters without NUL or lone surrogates; got {uri[:80]!r}",
            field="uri",
        )
    return document_id(collection, uri)


def _current(connection: Connection, ids: Sequence[str]) -> dict[str, RowMapping]:
    """Documents with what their newest versions say, text left out."""
    found: dict[str, RowMapping] = {}
    v = t.DocumentVersion
    for part in _parts(ids):
        statement = (
            select(
                *t.Document.__table__.c,
                v.seq,
                v.sha256,
                v.parser,
                v.media_type,
                v.title,
                v.meta,
                v.text_format,
            )
            .join(v, newest_version(), isouter=True)
            .where(t.Document.id.in_(part))
        )
        found.update((row["id"], row) for row in connection.execute(statement).mappings())
    return found


def _answers(row: RowMapping | None) -> bool:
    """The document has a version that was not deleted."""
    return row is not None and row["seq"] is not None and row["seq"] > row["deleted_seq"]


def _says_the_same(row: RowMapping | None, document: NewDocument) -> bool:
    """Equal source bytes and parser mean equal text; what can differ without them is compared."""
    if row is None or not _answers(row):
        return False
    parsed = document.parsed
    return bool(
        (row["sha256"], row["parser"], row["acl"]) == (document.sha256, document.parser, document.acl)
        and row["source"] == document.source
        and (row["media_type"], row["title"], row["text_format"]) == (parsed.media_type, parsed.title, parsed.format)
        and sha256_json(row["metadata"]) == sha256_json(parsed.metadata)  # 1, 1.0 and true are equal in Python
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Change:
    """A new version on its way into the log."""

    key: str  # the document's id
    seq: int
    document: NewDocument
    row: RowMapping | None  # what is there of the document

    @property
    def generation(self) -> int:
        return (self.row["generation"] if self.row else 0) + 1

    @property
    def outcome(self) -> Outcome:
        return Outcome.UPDATED if _answers(self.row) else Outcome.ADDED


def _store(connection: Connection, collection_id: int, changes: Sequence[_Change]) -> None:
    """A statement for all of them in each table: one for each would take longer to make than to run."""
    d, v, c = (_table(kind) for kind in (t.Document, t.DocumentVersion, t.Change))
    added = [_document_row(change) for change in changes if change.row is None]
    replaced = [_document_row(change) for change in changes if change.row is not None]
    if added:
        rows = [{**row, "collection_id": collection_id} for row in added]
        connection.execute(insert(d), [{**row, "id": row.pop("key")} for row in rows])
    if replaced:
        values: dict[str, Any] = {name: bindparam(name) for name in replaced[0] if name not in ("key", "uri")}
        connection.execute(update(d).where(d.c.id == bindparam("key")).values(values), replaced)
    if changes:
        connection.execute(insert(v), [_version_row(change) for change in changes])
        logged = {"collection_id": collection_id, "kind": "put"}
        connection.execute(insert(c), [{**logged, "seq": one.seq, "document_id": one.key} for one in changes])


def _table(kind: type[t.Base]) -> Table:
    assert isinstance(kind.__table__, Table)
    return kind.__table__


def _document_row(change: _Change) -> dict[str, Any]:
    return {
        "key": change.key,
        "uri": change.document.uri,
        "source": change.document.source,
        "state": "ready",
        "error": None,
        "acl": change.document.acl,
        "generation": change.generation,
        "updated_at": t.now(),
    }


def _version_row(change: _Change) -> dict[str, Any]:
    document, parsed = change.document, change.document.parsed
    return {
        "document_id": change.key,
        "generation": change.generation,
        "seq": change.seq,
        "sha256": document.sha256,
        "parser": document.parser,
        "media_type": parsed.media_type,
        "title": parsed.title,
        "metadata": parsed.metadata,
        "text": parsed.text,
        "text_format": parsed.format,
        "page_starts": list(parsed.page_starts),
        "acl": document.acl,
    }


def _log(connection: Connection, collection_id: int, seq: int, key: str, kind: str) -> None:
    connection.execute(insert(t.Change).values(collection_id=collection_id, seq=seq, document_id=key, kind=kind))


def _refresh(connection: Connection, row: RowMapping) -> None:
    """A document that failed and now reads as its newest version does is well again, unless that version cannot be
    cut."""
    if row["state"] != DocumentState.READY:
        v = t.DocumentVersion
        error = connection.scalar(
            select(t.Placed.error)
            .join(v, v.id == t.Placed.version_id)
            .where(
                v.document_id == row["id"],
                v.seq == row["seq"],
                t.Placed.chunking_id == serving_chunking(row["collection_id"]),
            )
        )
        state = DocumentState.FAILED if error else DocumentState.READY
        connection.execute(
            update(t.Document).where(t.Document.id == row["id"]).values(state=state, error=error, updated_at=t.now())
        )


def _parts(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(ids), _LOOKUP):
        yield ids[start : start + _LOOKUP]
