"""What travels when somebody searches: questions, hits, chunks. No behaviour."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from pydantic import Field

from nvr_rag.api.limits import CollectionName, NoNul, Opaque, bounded_json
from nvr_rag.api.schemas import Answer, Body
from nvr_rag.filters import MAX_CONDITIONS, MAX_IN, MAX_VALUES
from nvr_rag.searching.limits import MAX_CANDIDATES, MAX_CONTEXT, MAX_K, MAX_QUERY_CHARACTERS
from nvr_rag.types import GroupBy, Mode

MAX_SEARCHES = 64  # in one request
MAX_HITS = 10_000  # of all of them together

_LARGEST = 1e30  # scores are far smaller; and every client can hold it


class MmrRequest(Body):
    """Hits that answer and do not repeat each other: maximal marginal relevance (Carbonell & Goldstein, 1998)."""

    diversity: float = Field(
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="0 is the ranking itself; at 1 nothing counts but being unlike the hits before.",
    )
    candidates: int = Field(
        default=100,
        ge=1,
        le=MAX_CANDIDATES,
        description="Among how many of the best the hits are chosen; k of them at least.",
    )


class SearchRequest(Body):
    """A question to one collection."""

    # Its lower limit is the retriever's, who calls a blank query empty too.
    query: Annotated[str, NoNul] = Field(
        max_length=MAX_QUERY_CHARACTERS, description="What to look for.", json_schema_extra={"minLength": 1}
    )
    collection: CollectionName = "default"
    k: int = Field(default=10, ge=1, le=MAX_K, description="How many hits to return, at most.")
    mode: Annotated[Mode, Field(strict=False)] | None = Field(
        default=None, description="Default: what the serving deployment says."
    )
    filter: Annotated[dict[str, Any] | None, bounded_json(depth=24, characters=256_000)] = Field(
        default=None,
        description="Conditions on document_id, uri, source, title, media_type, updated_at and metadata.<name>, such "
        'as {"metadata.year": {"gte": 2020}}; with equals, in, exists, gt, gte, lt, lte, and, or, not. '
        f"At most {MAX_CONDITIONS} conditions, {MAX_IN} values in one list, and {MAX_VALUES} in all lists together, "
        "those of the other searches of a batch included.",
    )
    group_by: Annotated[GroupBy, Field(strict=False)] | None = Field(
        default=None, description="document: the best hit of each document, of k documents."
    )
    context: int = Field(
        default=0, ge=0, le=MAX_CONTEXT, description="Join so many neighbouring chunks on each side to every hit."
    )
    mmr: MmrRequest | None = Field(default=None, description="Default: hits may repeat each other.")
    min_score: float | None = Field(
        default=None,
        ge=-_LARGEST,
        le=_LARGEST,
        allow_inf_nan=False,
        description="Leave out hits that score lower. Scores depend on the mode, the encoder and the reranker.",
    )
    rerank: bool = Field(default=False, description="Put the best candidates in order by the server's cross-encoder.")
    explain: bool = Field(default=False, description="Say of each hit why it ranks where it does.")
    user: Opaque | None = Field(default=None, description="Who asks; opaque, kept with the query.")
    session: Opaque | None = Field(default=None, description="Which conversation; opaque, kept with the query.")


class SearchBatch(Body):
    """Several questions at once, for at most 10,000 hits together: all are answered, or none."""

    searches: list[SearchRequest] = Field(min_length=1, max_length=MAX_SEARCHES)


class DeploymentUsed(Answer):
    """Who answered."""

    id: int
    index: str
    encoder: str = Field(description="Fingerprint of the encoder version.")
    mode: Mode = Field(description="The deployment's own mode.")
    applied_seq: int | None = Field(
        description="Number of the last change of the collection that the index has; null for keys that do not read "
        "every document: it counts what they may not know of."
    )


class HitDocument(Answer):
    """The document of a hit, in the version that the hit is of."""

    id: str
    uri: str
    source: str = Field(description="The folder or feed it was mirrored from; empty when put through the API.")
    title: str
    media_type: str
    metadata: dict[str, Any]
    sha256: str = Field(description="Of the source's bytes.")
    updated_at: datetime | None = Field(description="When this version was stored.")


class SideRank(Answer):
    """Where one side of the index, dense or lexical, had the chunk before fusion."""

    rank: int = Field(description="From 1.")
    score: float


class HitContext(Answer):
    """The text around a chunk. What lies between two hits is given to the better one, so that before, the chunk's own
    span and after of all hits together have no character of a document twice."""

    before: str
    after: str
    start: int = Field(description="Character span in the document's text of all three together, half open.")
    end: int


class StageRank(Answer):
    """Where one stage of the search had the chunk."""

    rank: int | None = Field(description="From 1; null when not among this stage's candidates.")
    score: float | None = Field(description="null when it cannot be told.")


class HitExplanation(Answer):
    """Why a hit ranks where it does. A stage that was not asked is null."""

    dense: StageRank | None = Field(description="Inner product with the query's vector.")
    lexical: StageRank | None = Field(description="BM25; 0 when no word is shared.")
    fused: StageRank | None = Field(description="Of both sides; the rank is among the chunks that may be shown.")
    rerank: StageRank | None = Field(description="Of the cross-encoder.")
    mmr: StageRank | None = Field(description="In the order of being chosen, with the marginal relevance then.")
    weights: dict[str, Any] | None = Field(description="How both sides were fused; null when only one was asked.")


class ChunkAnswer(Answer):
    """A chunk, and what a citation of it needs."""

    chunk_id: str
    text: str
    document: HitDocument
    headings: list[str] = Field(description="Path of headings above the chunk, outermost first.")
    page: int | None = Field(description="From 1; null for documents without pages.")
    start: int = Field(description="Character span in the document's text, half open.")
    end: int
    context: HitContext | None = Field(description="null when not asked for.")


class SearchHit(ChunkAnswer):
    """A chunk that answers."""

    rank: int = Field(description="From 1.")
    score: float = Field(description="Higher is better; comparable within one answer only.")
    dense: SideRank | None = Field(description="null when not among this side's candidates.")
    lexical: SideRank | None = Field(description="null when not among this side's candidates.")
    explain: HitExplanation | None = Field(description="null when not asked for.")


class Took(Answer):
    """Milliseconds by stage."""

    encode: float
    search: float
    hydrate: float
    rerank: float


class SearchAnswer(Answer):
    """The hits, best first."""

    query_id: str = Field(description="Refer to it in feedback.")
    collection: str
    mode: Mode = Field(description="The mode that was used.")
    deployment: DeploymentUsed
    hits: list[SearchHit]
    took_ms: Took


class SearchAnswers(Answer):
    """The answers, in the order of the questions."""

    answers: list[SearchAnswer]
