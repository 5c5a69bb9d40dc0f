"""Cutting results on their way into the log: versions that nobody has cut yet, their texts, the chunks made of them.

Whoever places chunks of a document holds it, so that it is not removed meanwhile, and its version, so that nobody else
cuts it. Knows no chunker and no index.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from sqlalchemy import Connection, bindparam, insert, select

from nvr_rag.chunks import Version
from nvr_rag.db import tables as t
from nvr_rag.db.session import among_bound, insert_ignore, listed
from nvr_rag.errors import NotFound
from nvr_rag.ids import chunk_id, sha256_text
from nvr_rag.types import ChunkDraft, ParsedText, TextFormat


@dataclass(frozen=True, kw_only=True, slots=True)
class Cutting:
    """How a version was cut."""

    version: Version
    drafts: Sequence[ChunkDraft]
    error: str | None = None  # why it could not be; then there are no drafts


def unplaced(connection: Connection, versions: Sequence[Version], chunking_id: int) -> list[Version]:
    """Those of the versions that the chunking has not cut yet."""
    done = _done(connection, [version.id for version in versions], chunking_id)
    return [version for version in versions if version.id not in done]


def parsed_texts(connection: Connection, versions: Sequence[Version]) -> list[ParsedText]:
    """The text of each version, as the parser left it. Raises NotFound when one was removed meanwhile."""
    wanted = listed(connection, [version.id for version in versions])
    rows = connection.execute(_whole_versions(connection.dialect.name), {"version_ids": wanted})
    found = {row.id: row for row in rows}
    missing = next((version for version in versions if version.id not in found), None)
    if missing is not None:
        raise _gone(missing)
    return [_parsed_text(found[version.id]) for version in versions]


def parsed_text(connection: Connection, version: Version) -> ParsedText:
    """The text of a version. Raises NotFound."""
    return parsed_texts(connection, [version])[0]


def place(connection: Connection, chunking_id: int, cutting: Cutting) -> None:
    """Store how a chunking cuts a version, or why it cannot. Doing it again is fine: the first time counts.

    Waits for whoever is at the document. Raises NotFound when it was removed meanwhile.
    """
    document, version = _holding()
    connection.execute(document, {"document_id": cutting.version.document_id})
    if connection.scalar(version, {"version_id": cutting.version.id}) is None:
        raise _gone(cutting.version)
    _store(connection, chunking_id, [cutting])


def place_free(connection: Connection, chunking_id: int, cuttings: Sequence[Cutting]) -> list[Cutting]:
    """The same for many documents at once. Nobody is waited for, as two who held several each could wait for each other
    for ever; returns those that are somebody else's at the moment, or gone."""
    documents, versions = _holding_free(connection.dialect.name)
    ids = listed(connection, [one.version.document_id for one in cuttings])
    found = set(connection.scalars(documents, {"document_ids": ids}))
    wanted = [one.version.id for one in cuttings if one.version.document_id in found]
    held = set(connection.scalars(versions, {"version_ids": listed(connection, wanted)}))
    _store(connection, chunking_id, [one for one in cuttings if one.version.id in held])
    return [one for one in cuttings if one.version.id not in held]


def _store(connection: Connection, chunking_id: int, cuttings: Sequence[Cutting]) -> None:
    done = _done(connection, [one.version.id for one in cuttings], chunking_id)
    cuttings = [one for one in cuttings if one.version.id not in done]
    chunks: list[Mapping[str, Any]] = []
    placements: list[Mapping[str, Any]] = []
    for cutting in cuttings:
        for ordinal, chunk in enumerate(_chunks(cutting)):
            chunks.append(chunk)
            placements.append(_placement(cutting, ordinal, chunk["id"], chunking_id))
    chunks.sort(key=lambda chunk: str(chunk["id"]))  # two versions of a document share some: everybody in one order
    insert_ignore(connection, t.Chunk, chunks)
    if placements:
        connection.execute(_placements(), placements)
    placed = [{"version_id": one.version.id, "chunking_id": chunking_id, "error": one.error} for one in cuttings]
    if placed:
        connection.execute(_placed(), placed)


def _chunks(cutting: Cutting) -> Iterator[Mapping[str, Any]]:
    seen: dict[str, int] = {}
    document_id = cutting.version.document_id
    for draft in cutting.drafts:
        digest = sha256_text(draft.text)
        key = chunk_id(document_id, digest, seen.get(digest, 0))
        seen[digest] = seen.get(digest, 0) + 1
        yield {"id": key, "document_id": document_id, "sha256": digest, "text": draft.text}


def _placement(cutting: Cutting, ordinal: int, key: str, chunking_id: int) -> Mapping[str, Any]:
    draft = cutting.drafts[ordinal]
    return {
        "version_id": cutting.version.id,
        "chunking_id": chunking_id,
        "ordinal": ordinal,
        "chunk_id": key,
        "start": draft.start,
        "end": draft.end,
        "page": draft.page,
        "headings": list(draft.headings),
    }


def _done(connection: Connection, version_ids: Sequence[int], chunking_id: int) -> set[int]:
    values = {"version_ids": listed(connection, version_ids), "chunking_id": chunking_id}
    return set(connection.scalars(_already(connection.dialect.name), values))


def _parsed_text(row: Any) -> ParsedText:
    return ParsedText(
        text=row.text,
        format=TextFormat(row.text_format),
        media_type=row.media_type,
        title=row.title,
        page_starts=row.page_starts,
        metadata=row.metadata,
    )


def _gone(version: Version) -> NotFound:
    return NotFound(f"the document {version.document_id} was deleted with its collection")


# The statements, made once: making one takes longer than running it, and a build runs them all the time.


@cache
def _holding() -> tuple[Any, Any]:
    """A document, then its version: whoever removes one does so in that order."""
    d, v = t.Document, t.DocumentVersion
    document = select(d.id).where(d.id == bindparam("document_id")).with_for_update(read=True, key_share=True)
    return document, select(v.id).where(v.id == bindparam("version_id")).with_for_update()


@cache
def _holding_free(dialect: str) -> tuple[Any, Any]:
    d, v = t.Document, t.DocumentVersion
    documents = select(d.id).where(among_bound(dialect, d.id, "document_ids"))
    versions = select(v.id).where(among_bound(dialect, v.id, "version_ids"))
    return (
        documents.with_for_update(read=True, key_share=True, skip_locked=True),
        versions.with_for_update(skip_locked=True),
    )


@cache
def _already(dialect: str) -> Any:
    p = t.Placed
    return select(p.version_id).where(
        p.chunking_id == bindparam("chunking_id"), among_bound(dialect, p.version_id, "version_ids")
    )


@cache
def _placements() -> Any:
    return insert(t.Placement)


@cache
def _placed() -> Any:
    return insert(t.Placed)


@cache
def _whole_versions(dialect: str) -> Any:
    v = t.DocumentVersion
    return select(*v.__table__.c).where(among_bound(dialect, v.id, "version_ids"))
