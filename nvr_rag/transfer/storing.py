"""Documents of an export enter, a few at a time, with their chunks and judgments; they are in the database afterwards.

Every function works in the caller's transaction, and doing it again changes nothing. Knows no file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, and_, select

from nvr_rag import corpus, indexes
from nvr_rag.chunkings import ChunkingSettings
from nvr_rag.chunks import Version
from nvr_rag.corpus import Outcome
from nvr_rag.db import tables as t
from nvr_rag.db.session import insert_ignore, insert_or_update
from nvr_rag.ids import document_id, sha256_json
from nvr_rag.placing import Cutting, place
from nvr_rag.transfer.reading import Bundle, cuts
from nvr_rag.transfer.records import DocumentLine
from nvr_rag.transfer.rows import DocumentRows
from nvr_rag.types import ChunkDraft, DocumentState

_SAID = ("sha256", "parser", "acl", "media_type", "title", "text_format")  # of a document, apart from its metadata


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """The collection that lines go into."""

    name: str  # here
    there: str  # its name in the file
    id: int | None  # None = not made, because this is a dry run

    def document(self, uri: str) -> str:
        """The id of a document here."""
        return document_id(self.name, uri)


def store_documents(connection: Connection, target: Target, bundles: Sequence[Bundle]) -> list[Outcome | None]:
    """Put documents and their chunks; returns what each came to, None for one that had failed."""
    well = [one for one in bundles if one.line.error is None and one.line.document is not None]
    puts = corpus.put(connection, target.name, [one.line.document for one in well if one.line.document is not None])
    outcomes: dict[str, Outcome | None] = {one.line.uri: put.outcome for one, put in zip(well, puts, strict=True)}
    new = {one.line.uri: put.seq for one, put in zip(well, puts, strict=True) if put.seq}
    for one in bundles:
        if one.line.error is not None:
            seq = _fail(connection, target, one.line)
            outcomes[one.line.uri] = None
            new.update({one.line.uri: seq} if seq else {})
    for one in bundles:
        _store_chunks(connection, target, one, new.get(one.line.uri))
    return [outcomes[one.line.uri] for one in bundles]


def _fail(connection: Connection, target: Target, line: DocumentLine) -> int:
    """A document that had failed has failed here too, its text stored as far as there is one; the number of the change
    that this made, 0 for none."""
    assert line.error is not None  # it would not have failed
    if _failed_already(connection, target, line):
        return 0
    puts = corpus.put(connection, target.name, [line.document]) if line.document else []
    corpus.fail(connection, target.name, uri=line.uri, source=line.source, error=line.error)
    return sum(put.seq for put in puts)


def _failed_already(connection: Connection, target: Target, line: DocumentLine) -> bool:
    key = target.document(line.uri)
    there = connection.scalar(select(t.Document.state).where(t.Document.id == key))
    if there != DocumentState.FAILED:
        return False
    rows = DocumentRows(connection, [key], frozenset())
    stored = rows.document_of(rows.documents[0])
    if (stored["error"], stored["source"]) != (line.error, line.source):
        return False
    return line.document is None or _says(stored, line)


def _says(stored: dict[str, Any], line: DocumentLine) -> bool:
    """What is stored of a document says what the file says of it."""
    assert line.document is not None
    new, parsed = line.document, line.document.parsed
    said = (new.sha256, new.parser, new.acl, parsed.media_type, parsed.title, parsed.format)
    same = tuple(stored.get(name) for name in _SAID) == said
    return same and sha256_json(stored["metadata"]) == sha256_json(parsed.metadata)


def _store_chunks(connection: Connection, target: Target, bundle: Bundle, seq: int | None) -> None:
    """Keep the chunks that the file has; `seq` is the number of the document's new version, None where it has none."""
    key = target.document(bundle.line.uri)
    rows = [
        {"id": one.ref.id_in(target.name), "document_id": key, "sha256": one.ref.sha256, "text": one.text}
        for one in bundle.chunks
    ]
    insert_ignore(connection, t.Chunk, rows)
    cut_by = cuts(bundle.chunks)
    if seq is None or not cut_by:
        return
    v = t.DocumentVersion
    version = connection.scalar(select(v.id).where(and_(v.document_id == key, v.seq == seq)))
    assert version is not None  # it was put in this transaction
    for chunking, cut in cut_by.items():
        drafts = [
            ChunkDraft(text=chunk.text, start=place.start, end=place.end, headings=place.headings, page=place.page)
            for place, chunk in cut
        ]
        chunking_id = indexes.chunking_id(connection, ChunkingSettings(**bundle.chunkings[chunking]))
        cutting = Cutting(version=Version(id=version, document_id=key, seq=seq), drafts=drafts)
        place(connection, chunking_id, cutting)


def store_judgments(connection: Connection, target: Target, bundles: Sequence[Bundle]) -> int:
    """Keep judgments that are new, or newer than what the same origin has said here; returns how many."""
    rows = [row for one in bundles for row in _judgments(target, one)]
    j = t.JudgmentRow
    ids = sorted({row["document_id"] for row in rows})
    there = select(*j.__table__.c).where(j.collection_id == target.id, j.document_id.in_(ids))
    said = {tuple(row[name] for name in _JUDGED): row["created_at"] for row in connection.execute(there).mappings()}
    fresh = [row for row in rows if _is_newer(row, said.get(tuple(row[name] for name in _JUDGED)))]
    insert_or_update(connection, j, fresh, key=("collection_id", *_JUDGED), values=("query", "grade", "created_at"))
    return len(fresh)


_JUDGED = ("origin", "query_key", "document_id", "chunk_id")


def _is_newer(row: dict[str, Any], there: Any) -> bool:
    return there is None or row["created_at"] > there


def _judgments(target: Target, bundle: Bundle) -> Iterator[dict[str, Any]]:
    ids = {chunk.ref.id: chunk.ref.id_in(target.name) for chunk in bundle.chunks}
    for line in bundle.judgments:
        yield {
            "collection_id": target.id,
            "origin": line.origin,
            "query_key": line.query_key,
            "query": line.query,
            "document_id": target.document(bundle.line.uri),
            "chunk_id": ids[line.chunk] if line.chunk else "",
            "grade": line.grade,
            "created_at": line.created_at,
        }
