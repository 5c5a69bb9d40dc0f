"""What travels over HTTP: request bodies, with a limit on everything, and answers. No behaviour.

Requests are strict: an unknown field is an error, and "10" is not a number.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from nvr_rag.api.limits import (
    MAX_ITEMS,
    MAX_TEXT_CHARACTERS,
    MAX_WAIT_SECONDS,
    CollectionName,
    Identifier,
    NoControls,
    Opaque,
    Uri,
    bounded_json,
)
from nvr_rag.corpus import Outcome
from nvr_rag.query_log import MAX_GRADE
from nvr_rag.types import DocumentState, FeedbackKind, Mode

ONE, MANY = "(one)", "(many)"  # tags of the two shapes of a feedback body; they are left out of error messages

_AnyMode = Annotated[Mode, Field(strict=False)]


class Body(BaseModel):
    """A request body."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Answer(BaseModel):
    """An answer."""

    model_config = ConfigDict(extra="forbid")


class FeedbackItem(Body):
    """What somebody said or did about a hit, or about the answer made from the hits."""

    query_id: Identifier = Field(description="Of a search answer.")
    chunk_id: Identifier | None = Field(
        default=None, description="One of the hits; only answer_good and answer_bad can do without."
    )
    kind: Annotated[FeedbackKind, Field(strict=False)]
    grade: int | None = Field(default=None, ge=0, le=MAX_GRADE, description="How relevant; 0 is not at all.")
    user: Opaque | None = Field(default=None, description="Who said it; opaque. The last word of each user counts.")
    session: Opaque | None = Field(default=None, description="In which conversation; opaque, kept with it.")
    outside: bool = Field(
        default=False,
        description="A judgment about a chunk that was not shown, by somebody who knows; takes the scope train too: "
        "only relevant and irrelevant; a later one about the same query and chunk replaces it.",
    )


class FeedbackBatch(Body):
    """Several at once: all are stored, or none."""

    items: list[FeedbackItem] = Field(min_length=1, max_length=MAX_ITEMS)


def _shape(body: Any) -> str:
    return MANY if isinstance(body, dict) and "items" in body else ONE


FeedbackRequest = Annotated[
    Annotated[FeedbackItem, Tag(ONE)] | Annotated[FeedbackBatch, Tag(MANY)], Discriminator(_shape)
]


class FeedbackAnswer(Answer):
    """What was stored, durably."""

    accepted: int = Field(description="How many were understood and are stored now.")
    new: int = Field(description="How many of them did not replace an earlier word.")


class TextDocument(Body):
    """A document whose text is known."""

    uri: Uri = Field(description="Its identity in the collection: putting it again replaces it.")
    text: str = Field(min_length=1, max_length=MAX_TEXT_CHARACTERS)
    title: Annotated[str, NoControls] = Field(default="", max_length=1000)
    metadata: Annotated[dict[str, Any], bounded_json(depth=6, characters=64_000)] = Field(
        default_factory=dict, description="Any JSON object; filters can ask for metadata.<name>."
    )
    media_type: Annotated[str, NoControls] = Field(
        default="text/plain",
        max_length=200,
        description="text/markdown is cut along headings, source code along lines, everything else along paragraphs.",
    )
    acl: list[Opaque] | None = Field(
        default=None,
        max_length=1000,
        description="The principals who may read it; null: whoever may search the collection; []: nobody. Left out: "
        "those that the key is for; everybody where it names none.",
    )


class PutDocuments(Body):
    """Documents to store: all of them, or none."""

    collection: CollectionName = "default"
    documents: list[TextDocument] = Field(min_length=1, max_length=MAX_ITEMS)
    wait: bool = Field(default=False, description="Answer when the index that serves the collection has them.")
    timeout_seconds: float = Field(default=30.0, ge=0, le=MAX_WAIT_SECONDS, description="How long to wait at most.")


class PutResult(Answer):
    """What putting a document came to."""

    id: str
    uri: str
    outcome: Outcome
    seq: int | None = Field(
        description="Number of the change in its collection; 0 when nothing changed, null for who does not read "
        "everything there."
    )


class PutAnswer(Answer):
    """Stored durably; `indexed` says whether searches find them already."""

    collection: str
    indexed: bool
    documents: list[PutResult] = Field(description="In the order of the request.")


class DocumentInfo(Answer):
    """A document as the corpus log knows it."""

    id: str
    uri: str
    state: DocumentState
    error: str | None = Field(description="Why the last attempt to read it failed.")
    title: str
    media_type: str
    metadata: dict[str, Any]
    source: str = Field(description="The folder or feed it was mirrored from; empty when put through the API.")
    sha256: str
    generation: int = Field(description="1 for the first version; 0 when none was ever stored.")
    seq: int | None = Field(description="Number of its last change; null for who does not read everything there.")
    characters: int
    updated_at: datetime
    acl: list[str] | None = Field(description="The principals who may read it; null: everybody.")


class DocumentDetail(DocumentInfo):
    """A document, with its text if asked for."""

    collection: str
    text: str | None = Field(default=None, description="Of the newest version; null when not asked for, or never read.")


class DocumentPage(Answer):
    """Documents in the order of their URIs."""

    documents: list[DocumentInfo]
    next: str | None = Field(description="Send it as `after` for the next page; null on the last one.")


class Deleted(Answer):
    """What is gone, at once for every search."""

    deleted: list[str] = Field(description="Ids of documents, or the name of a collection.")


class NewCollection(Body):
    """A collection to make."""

    name: CollectionName
    language: str = Field(default="english", max_length=32, description="Of the lexical side; none for no language.")
    mode: _AnyMode = Field(default=Mode.HYBRID, description="How it answers when a search does not say.")


class FusionChange(Body):
    """How both sides become one ranking; what is left out stays."""

    method: Literal["rrf", "weighted"] | None = Field(default=None, description="Reciprocal rank or weighted mean.")
    dense_weight: float | None = Field(default=None, ge=0, le=1000, allow_inf_nan=False)
    lexical_weight: float | None = Field(default=None, ge=0, le=1000, allow_inf_nan=False)
    rank_constant: int | None = Field(default=None, ge=1, le=10_000, description="Of reciprocal rank fusion.")
    depth: int | None = Field(default=None, ge=1, le=10_000, description="Candidates examined on each side, at least.")


class CollectionChange(Body):
    """How a collection shall answer from now on; what is left out stays."""

    mode: _AnyMode | None = None
    fusion: FusionChange | None = None


class CollectionSummary(Answer):
    """A collection and its documents, counted by state."""

    name: str
    language: str
    head_seq: int | None = Field(
        description="Number of its last change; 0 when there was none, null for who does not read everything there."
    )
    created_at: datetime
    documents: dict[str, int] = Field(description="Those that the caller may read.")


class CollectionList(Answer):
    """All collections, by name."""

    collections: list[CollectionSummary]


class FusionInfo(Answer):
    """How both sides become one ranking."""

    method: str
    dense_weight: float
    lexical_weight: float
    rank_constant: int
    depth: int


class ServingDeployment(Answer):
    """How a collection answers."""

    id: int
    index: str
    mode: Mode
    fusion: FusionInfo
    created_at: datetime


class IndexState(Answer):
    """How far an index follows the log."""

    name: str
    encoder: str = Field(description="Fingerprint of the encoder version.")
    applied_seq: int | None = Field(description="null for who does not read everything there.")
    lag: int | None = Field(
        description="Changes of the collection that the index does not have yet; null for who does not read everything."
    )


class CollectionDetail(CollectionSummary):
    """A collection, how it answers, and how far its live indexes are."""

    deployment: ServingDeployment
    indexes: list[IndexState]


class RetrainRequest(Body):
    """A lap of the feedback loop."""

    collection: CollectionName = "default"
    recipe: str | None = Field(
        default=None,
        pattern="^[A-Za-z0-9_-]{1,64}$",
        description="Name of a recipe that comes with nvr-rag; default: what the settings say.",
    )
    rule: Literal["naive", "margin-pos", "perc-pos"] | None = Field(
        default=None, description="Which candidates may be negatives; default: what the recipe says."
    )
    dry_run: bool = Field(default=False, description="Collect and mine only.")
    promote: bool = Field(default=False, description="Let the candidate serve when the gate accepts it.")


class JobInfo(Answer):
    """Work that the server does in the background."""

    id: int
    kind: str
    collection: str | None
    state: Literal["queued", "running", "done", "failed"]
    progress: dict[str, Any] = Field(description="How far it is; what it holds depends on the kind.")
    result: dict[str, Any] | None = Field(description="What came of it, once it is done.")
    error: str | None = Field(description="Why it failed.")
    cancelled: bool = Field(description="Somebody has asked to cancel it.")
    attempts: int = Field(description="How often it has been begun.")
    created_at: datetime
    due_at: datetime | None = Field(description="It waits until then.")
    finished_at: datetime | None


class Alive(Answer):
    """The process runs."""

    status: Literal["alive"] = "alive"


class Ready(Answer):
    """Searches and changes are answered."""

    status: Literal["ready"] = "ready"


class Problem(Answer):
    """An error as RFC 9457 has it."""

    type: str = Field(description="Kind of problem; about:blank when the status says it all.")
    title: str
    status: int
    detail: str = Field(description="What is wrong and what to do, for a person.")
    field: str | None = Field(default=None, description="The field of the request that is wrong.")
    reasons: list[str] | None = Field(default=None, description="Everything that is wrong, where that is a list.")
    message: str | None = Field(
        default=None, description="detail once more, where clients of OpenAI's API look for it."
    )
    request_id: str = Field(description="Also in the header X-Request-ID and in the server's log.")
