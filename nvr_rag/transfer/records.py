"""The lines of an export: one JSON object a line, in this order.

    header                   format, version, release, created_at, with (what was asked for)
    collection               name, language, serving {mode, fusion}; then everything of it:
      document               in ascending order of URI, each once; without `text` it could not be read (`error`)
        chunking             hash and settings, before the first chunk that it cuts
        chunk                a piece of the document's text and its places, one for each chunking that has it in the
                             document's newest version; none when only a judgment still names it
        judgment             imported judgments of the document or of a chunk of it
      query                  a query with feedback, its hits and the feedback, in ascending order of id
    trailer                  counts: without it the file was cut off

Deleted documents are not in it. Ids are those of the file's own collection names; they are made anew from URI, hash and
occurrence when a collection gets another name. No behaviour beyond that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from nvr_rag.fusion import FusionSettings
from nvr_rag.ids import chunk_id, document_id
from nvr_rag.types import FeedbackKind, Mode, NewDocument

FORMAT, VERSION = "nvr-rag-export", 1
COUNTED = ("collections", "documents", "chunks", "judgments", "queries", "feedback")
MAX_OCCURRENCE = 1_000_000  # copies of one text in a document that are told apart when ids are made anew


class Part(StrEnum):
    """What an export may hold beside the documents."""

    CHUNKS = "chunks"
    JUDGMENTS = "judgments"
    FEEDBACK = "feedback"


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """The first line."""

    release: str
    created_at: datetime
    parts: Sequence[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class CollectionLine:
    name: str
    language: str
    mode: Mode | None  # of what serves; None = nothing did
    fusion: FusionSettings | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkingLine:
    hash: str
    settings: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class DocumentLine:
    """A document, and what went wrong with it last."""

    id: str  # in the collection of the file
    uri: str
    source: str
    error: str | None  # None = ready
    document: NewDocument | None  # None = no text of it was ever read, or it was deleted before the last attempt


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a chunk stands in the document's text, as one chunking cuts it."""

    chunking: str  # hash
    ordinal: int  # from 0
    start: int
    end: int
    page: int | None
    headings: Sequence[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkRef:
    """What makes a chunk's id, and so finds it again under another collection's name."""

    id: str  # in the collection of the file
    uri: str | None  # of its document; None = the document was deleted, and the id is all there is
    sha256: str = ""
    occurrence: int = 0

    def id_in(self, collection: str) -> str:
        """The chunk's id in a collection of this name."""
        if self.uri is None:
            return self.id
        return chunk_id(document_id(collection, self.uri), self.sha256, self.occurrence)


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkLine:
    ref: ChunkRef
    text: str
    places: Sequence[Place]


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgmentLine:
    origin: str
    query: str
    query_key: str
    chunk: str | None  # id, in the collection of the file
    grade: int
    created_at: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class FeedbackItem:
    chunk: str | None  # id, in the collection of the file
    kind: FeedbackKind
    grade: int | None
    user: str
    created_at: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class QueryLine:
    id: str
    text: str
    k: int
    mode: Mode
    filter: Mapping[str, Any] | None
    user: str | None
    session: str | None
    created_at: datetime
    hits: Sequence[tuple[ChunkRef, float]]
    feedback: Sequence[FeedbackItem]


@dataclass(frozen=True, kw_only=True, slots=True)
class Trailer:
    """The last line."""

    counts: Mapping[str, int]


Line = Header | CollectionLine | ChunkingLine | DocumentLine | ChunkLine | JudgmentLine | QueryLine | Trailer
