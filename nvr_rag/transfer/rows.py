"""Ids of a few documents enter; what an export says of them leaves: themselves, their chunks, judgments about them.

Knows no file: which lines are written, and in which order, is for `exporting` to say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Connection, Select, select

from nvr_rag.db import tables as t
from nvr_rag.documents import newest_version
from nvr_rag.ids import chunk_id
from nvr_rag.transfer.records import MAX_OCCURRENCE, Part

Json = dict[str, Any]

_OF_A_VERSION = ("sha256", "parser", "media_type", "title", "metadata", "text_format", "page_starts", "text")
_OF_A_PLACE = ("ordinal", "start", "end", "page", "headings")


class DocumentRows:
    """What the database has of a group of documents, as far as it is wanted."""

    def __init__(self, connection: Connection, ids: Sequence[str], parts: frozenset[Part]) -> None:
        self.settings: dict[str, Json] = {}  # of chunkings, by hash
        self._connection = connection
        self._history = bool(parts & {Part.JUDGMENTS, Part.FEEDBACK})
        self._occurrences = Occurrences()
        self.documents = self._read_documents(ids)
        self._places = self._read_places() if parts else {}
        self._chunks = self._read(_chunks(ids), lambda row: row.document_id) if parts else {}
        self._judgments = self._read(_judgments(ids), lambda row: row.document_id) if Part.JUDGMENTS in parts else {}

    def _read(self, statement: Select[Any], key: Callable[[Any], str]) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = {}
        for row in self._connection.execute(statement):
            found.setdefault(key(row), []).append(row)
        return found

    def _read_documents(self, ids: Sequence[str]) -> list[Any]:
        d, v = t.Document, t.DocumentVersion
        own = [d.id, d.uri, d.source, d.state, d.error, d.acl, d.deleted_seq, v.id.label("version_id"), v.seq]
        statement = select(*own, *(v.__table__.c[name] for name in _OF_A_VERSION))
        rows = self._connection.execute(statement.join(v, newest_version(), isouter=True).where(d.id.in_(ids)))
        found = {row["id"]: row for row in rows.mappings()}
        return [found[key] for key in ids]

    def _read_places(self) -> dict[str, list[Any]]:
        p, c = t.Placement, t.Chunking
        versions = [row["version_id"] for row in self.documents if _answers(row)]
        statement = select(*p.__table__.c, c.hash, c.settings).join(c, c.id == p.chunking_id)
        found = self._read(
            statement.where(p.version_id.in_(versions)).order_by(c.hash, p.ordinal), lambda row: row.chunk_id
        )
        self.settings = {row.hash: row.settings for rows in found.values() for row in rows}
        return found

    def document_of(self, row: Any) -> Json:
        """The line of one of `documents`; without a text where no version of it answers."""
        own = {name: row[name] for name in ("id", "uri", "source", "state", "error")}
        if not _answers(row):
            return {**own, "text": None}
        return {**own, "acl": row["acl"], **{name: row[name] for name in _OF_A_VERSION}}

    def chunks_of(self, row: Any) -> list[Json]:
        """The lines of a document's chunks as its newest version has them, in the order of the text; then, where
        judgments or feedback are wanted, those that only they may still name."""
        lines = []
        for chunk in self._chunks.get(row["id"], []):
            places = self._places.get(chunk.id, [])
            if places or self._history:
                lines.append(self._chunk(chunk, places))
        return sorted(lines, key=_order)

    def _chunk(self, chunk: Any, places: Sequence[Any]) -> Json:
        return {
            "id": chunk.id,
            "document": chunk.document_id,
            "sha256": chunk.sha256,
            "occurrence": self._occurrences.find(chunk.document_id, chunk.sha256, chunk.id),
            "places": [
                {"chunking": place.hash, **{name: getattr(place, name) for name in _OF_A_PLACE}} for place in places
            ],
            "text": chunk.text,
        }

    def judgments_of(self, row: Any, chunks: set[str]) -> list[Json]:
        """The lines of the judgments about a document, or about one of these chunks of it."""
        lines = [
            {
                "document": judgment.document_id,
                "origin": judgment.origin,
                "query": judgment.query,
                "query_key": judgment.query_key,
                "chunk": judgment.chunk_id or None,
                "grade": judgment.grade,
                "created_at": judgment.created_at.isoformat(),
            }
            for judgment in self._judgments.get(row["id"], [])
            if not judgment.chunk_id or judgment.chunk_id in chunks
        ]
        return sorted(lines, key=lambda line: (line["origin"], line["query_key"], line["chunk"] or ""))


class Occurrences:
    """Finds out which copy of its text a chunk is: its id was made from that. Remembers what it was asked."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], dict[str, int]] = {}

    def find(self, document: str, digest: str, key: str) -> int | None:
        """The occurrence in the id of a chunk; None where the id was not made so."""
        ids = self._known.setdefault((document, digest), {})
        while key not in ids and len(ids) <= MAX_OCCURRENCE:
            ids[chunk_id(document, digest, len(ids))] = len(ids)
        return ids.get(key)


def _answers(row: Any) -> bool:
    """The newest version was not deleted."""
    return row["seq"] is not None and row["seq"] > row["deleted_seq"]


def _chunks(ids: Sequence[str]) -> Select[Any]:
    return select(*t.Chunk.__table__.c).where(t.Chunk.document_id.in_(ids))


def _judgments(ids: Sequence[str]) -> Select[Any]:
    return select(*t.JudgmentRow.__table__.c).where(t.JudgmentRow.document_id.in_(ids))


def _order(line: Json) -> tuple[bool, list[tuple[str, int]], str]:
    places = [(place["chunking"], place["ordinal"]) for place in line["places"]]
    return not places, places, line["id"]
