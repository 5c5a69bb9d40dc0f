"""The records of the HTTP client that nobody else has: what it is given to send, and what it hands out.

Queries, hits and feedback are those of `nvr_rag.types`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Any

from nvr_rag.errors import InvalidInput, StoreUnavailable
from nvr_rag.types import DocumentState, Hit, Mode, Query, SearchResult


class ServerGone(StoreUnavailable):
    """Nothing answers at the address, or not a server of ours: it can be asked nothing, now."""


class Everybody(Enum):
    """A type of one value, for an acl that keeps nobody out."""

    EVERYBODY = "everybody"


EVERYBODY = Everybody.EVERYBODY
Acl = Sequence[str] | Everybody | None  # None = as the key that sends it: its principals, everybody where it has none


def acl_as_json(acl: Acl) -> dict[str, Any]:
    """The field as it is sent; nothing at all where nothing is said. Raises InvalidInput."""
    if acl is None:
        return {}
    if isinstance(acl, str):  # a list of letters otherwise
        raise InvalidInput(f"acl is a list of principals, not one: [{acl[:80]!r}]", field="acl")
    return {"acl": None if isinstance(acl, Everybody) else list(acl)}


@dataclass(frozen=True, kw_only=True, slots=True)
class TextDocument:
    """A document whose text is known, to be put."""

    uri: str  # its identity in the collection: putting it again replaces it
    text: str
    title: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)  # JSON values only; filters can ask for metadata.<name>
    media_type: str = "text/plain"  # decides how it is cut; text/markdown along its headings
    acl: Acl = None  # principals who may read it

    def as_json(self) -> dict[str, Any]:
        names = ("uri", "text", "title", "media_type")
        given = {name: getattr(self, name) for name in names}
        return {**given, "metadata": dict(self.metadata), **acl_as_json(self.acl)}


@dataclass(frozen=True, kw_only=True, slots=True)
class UploadFields:
    """What is said about a file."""

    uri: str | None = None  # default: upload: and the file's name
    title: str = ""  # default: the document's own
    metadata: Mapping[str, Any] = field(default_factory=dict)  # over what the document says of itself
    acl: Acl = None  # principals who may read it

    def as_form(self) -> dict[str, str]:
        given = {"uri": self.uri, "title": self.title or None, "metadata": json.dumps(dict(self.metadata))}
        acl = {name: json.dumps(value) for name, value in acl_as_json(self.acl).items()}
        return {**{name: value for name, value in given.items() if value is not None}, **acl}


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchAnswer:
    """What POST /v1/search answers."""

    query_id: str
    collection: str
    mode: Mode  # that was used
    deployment: Mapping[str, Any]  # id, index, encoder, mode, applied_seq
    hits: Sequence[Hit]  # best first
    took_ms: Mapping[str, float]  # by stage

    @classmethod
    def of(cls, query_id: str, query: Query, result: SearchResult) -> SearchAnswer:
        """The same of a search in this process."""
        used = result.deployment
        return cls(
            query_id=query_id,
            collection=query.collection,
            mode=result.mode,
            deployment={name: getattr(used, name) for name in ("id", "index", "encoder", "mode", "applied_seq")},
            hits=result.hits,
            took_ms={stage: round(1000 * seconds, 3) for stage, seconds in result.seconds.items()},
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class FeedbackAnswer:
    """Feedback that is stored durably."""

    accepted: int  # understood and stored
    new: int  # of them, those that did not replace an earlier word


@dataclass(frozen=True, kw_only=True, slots=True)
class PutResult:
    """What putting a document came to."""

    id: str
    uri: str
    outcome: str  # added, updated, unchanged
    seq: int | None  # number of the change in its collection; 0 = nothing changed, None = not told to this key


@dataclass(frozen=True, kw_only=True, slots=True)
class PutAnswer:
    """Documents that are stored durably."""

    collection: str
    indexed: bool  # searches find them already
    documents: Sequence[PutResult]  # in the order in which they were given


@dataclass(frozen=True, kw_only=True, slots=True)
class Uploaded:
    """What POST /v1/documents answers to a file: it is stored durably."""

    id: str  # of the document
    uri: str
    sha256: str
    job: int  # that parses it
    indexed: bool  # searches find it already
    outcome: str | None  # added, updated, unchanged, failed, superseded; None = it is not parsed yet
    error: str | None  # why it could not be parsed


@dataclass(frozen=True, kw_only=True, slots=True)
class DocumentInfo:
    """A document as the server tells of it."""

    id: str
    uri: str
    state: DocumentState
    error: str | None  # why the last attempt to read it failed
    title: str
    media_type: str
    metadata: Mapping[str, Any]
    source: str  # the folder or feed it was mirrored from; "" = put by hand
    sha256: str
    generation: int  # 1 for the first version; 0 when none was ever stored
    seq: int | None  # number of its last change; None = not told to this key
    characters: int
    updated_at: datetime
    acl: Sequence[str] | None = None  # principals who may read it; None = everybody
    text: str | None = None  # of the newest version; None where it was not asked for, or never read


@dataclass(frozen=True, kw_only=True, slots=True)
class CollectionInfo:
    """A collection as the server tells of it."""

    name: str
    language: str
    head_seq: int | None  # number of its last change; None = not told to this key
    created_at: datetime
    documents: Mapping[str, int]  # how many can be read, by state
    deployment: Mapping[str, Any] | None = None  # that serves it; None in a list
    indexes: Sequence[Mapping[str, Any]] = ()  # how far each live one is; () in a list


@dataclass(frozen=True, kw_only=True, slots=True)
class JobStatus:
    """How a job stands."""

    id: int
    kind: str
    collection: str | None
    state: str  # queued, running, done, failed
    progress: Mapping[str, Any]
    result: Mapping[str, Any] | None  # once it is done
    error: str | None  # why it failed
    cancelled: bool

    @property
    def finished(self) -> bool:
        return self.state in ("done", "failed")


@dataclass(frozen=True, kw_only=True, slots=True)
class Embedded:
    """Texts as vectors."""

    vectors: Sequence[Sequence[float]]  # (N, D), in the order of the texts
    encoder: str  # fingerprint: vectors of two of them cannot be compared
    truncated: Sequence[int]  # which of the texts, from 0, were longer than what the encoder reads


@dataclass(frozen=True, kw_only=True, slots=True)
class Readiness:
    """Whether a server answers searches and changes."""

    ready: bool
    reasons: Sequence[str]  # why not, as far as the key may know
