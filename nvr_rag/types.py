"""The records that the parts of the system hand to each other, in the field's words.

Frozen and keyword-only; no behaviour beyond what a value can say about itself. Nothing here knows a database, a vector
store or a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

Metadata = Mapping[str, Any]


class Mode(StrEnum):
    """Which sides of an index answer a query."""

    DENSE = "dense"
    LEXICAL = "lexical"
    HYBRID = "hybrid"


class TextFormat(StrEnum):
    """How a parsed text is built, which decides where it may be cut."""

    MARKDOWN = "markdown"  # headings, tables and fenced code are marked
    PLAIN = "plain"  # paragraphs and sentences only
    CODE = "code"  # lines and blocks of source code


class DocumentState(StrEnum):
    """What the last attempt at a document came to; see the table `document` for the transitions."""

    READY = "ready"
    FAILED = "failed"
    DELETED = "deleted"


class FeedbackKind(StrEnum):
    """What a user said or did about a hit; kinds are never mixed into one number here."""

    RELEVANT = "relevant"
    IRRELEVANT = "irrelevant"
    CLICK = "click"
    CITED = "cited"
    ANSWER_GOOD = "answer_good"
    ANSWER_BAD = "answer_bad"


@dataclass(frozen=True, kw_only=True, slots=True)
class Reader:
    """Who reads: a document with an acl is shown to those who are one of its principals, one without to everybody."""

    principals: frozenset[str] = frozenset()
    everything: bool = False  # every document, whatever its acl says

    def may_read(self, acl: Sequence[str] | None) -> bool:
        """Whether a document with this acl is shown."""
        return self.everything or acl is None or not self.principals.isdisjoint(acl)


ANYBODY = Reader()  # proves nothing: documents without an acl
OWNER = Reader(everything=True)  # of the data: commands, and work that shows nobody what it reads


@dataclass(frozen=True, kw_only=True, slots=True)
class ParsedText:
    """The text of one document as the parser left it; spans everywhere point into `text`."""

    text: str
    format: TextFormat
    media_type: str  # e.g. "application/pdf"
    title: str = ""
    page_starts: Sequence[int] = ()  # character offset at which each page begins, ascending; empty = no pages
    metadata: Metadata = field(default_factory=dict)  # JSON values only
    notes: Sequence[str] = ()  # what the parser could not do, in words for a person


@dataclass(frozen=True, kw_only=True, slots=True)
class NewDocument:
    """A document on its way into the corpus log."""

    uri: str  # identity within a collection, e.g. "file:///srv/handbook/roll-back.md"
    sha256: str  # of the source bytes, hex
    parsed: ParsedText
    parser: str = ""  # name and version of what made the text; a change of it makes a new version
    source: str = ""  # the folder or feed it was mirrored from; "" = put by hand
    acl: Sequence[str] | None = None  # principals who may read it; None = everyone


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """A document as the corpus log knows it, with its newest version."""

    id: str  # uuid
    collection: str
    uri: str
    source: str
    state: DocumentState
    error: str | None  # why the last attempt failed
    title: str
    media_type: str
    metadata: Metadata
    sha256: str
    parser: str
    generation: int  # 1 for the first version; 0 when no version was ever stored
    seq: int  # of the newest version or of the deletion
    characters: int  # length of the newest version's text
    updated_at: datetime
    acl: Sequence[str] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkDraft:
    """One piece of a text as a chunker cuts it: `text` is exactly `parsed.text[start:end]`, or that text
    with a repeated table header in front."""

    text: str
    start: int  # character span in the parsed text, half open
    end: int
    headings: Sequence[str] = ()  # path from the outermost heading
    page: int | None = None  # 1-based, of the first character


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """A stored chunk at the place where a version of its document has it."""

    id: str  # uuid5(document_id, sha256(text), occurrence)
    document_id: str
    ordinal: int  # position in the document, from 0
    text: str
    start: int
    end: int
    headings: Sequence[str]
    page: int | None


class GroupBy(StrEnum):
    """Of what an answer has one hit each."""

    DOCUMENT = "document"


@dataclass(frozen=True, kw_only=True, slots=True)
class Mmr:
    """Hits that answer and do not repeat each other: maximal marginal relevance (Carbonell & Goldstein, SIGIR 1998)."""

    diversity: float  # 0 = the ranking itself, 1 = nothing counts but being unlike the hits before
    candidates: int = 100  # first ones of the ranking, at least k, among which is chosen


@dataclass(frozen=True, kw_only=True, slots=True)
class Query:
    """A question to one collection."""

    text: str
    collection: str = "default"
    k: int = 10
    mode: Mode | None = None  # None = what the serving deployment says
    filter: Mapping[str, Any] | None = None  # see nvr_rag.filters
    group_by: GroupBy | None = None  # the best hit of each; None = every chunk for itself
    context: int = 0  # neighbouring chunks on each side, joined to each hit
    mmr: Mmr | None = None
    min_score: float | None = None  # hits with a lower final score are left out
    rerank: bool = False  # by the cross-encoder that the settings name
    explain: bool = False  # hits say why they rank
    user: str | None = None  # opaque
    session: str | None = None  # opaque
    reader: Reader = ANYBODY  # who is shown the hits
    asker: str = ""  # who may give feedback on the answer; see nvr_rag.access.callers


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """The text around a hit in its document. What lies between two hits of one answer is given to the better one:
    `before`, the chunk's own span and `after` of all hits together have no character of a document twice."""

    before: str
    after: str
    start: int  # character span of all three together, half open
    end: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """Where one stage of a search had a chunk."""

    rank: int | None  # from 1; None = not among this stage's candidates
    score: float | None  # None = cannot be told


@dataclass(frozen=True, kw_only=True, slots=True)
class Explanation:
    """Why a hit ranks where it does, stage by stage; a stage that was not asked is None."""

    dense: Standing | None
    lexical: Standing | None
    fused: Standing | None  # of both sides; rank among the chunks that may be shown
    rerank: Standing | None
    mmr: Standing | None  # in the order of being chosen, with the marginal relevance at that moment
    weights: Mapping[str, Any] | None  # the deployment's fusion settings, where both sides were fused


@dataclass(frozen=True, kw_only=True, slots=True)
class Passage:
    """A chunk and where it stands: what a citation needs."""

    chunk_id: str
    text: str
    document_id: str
    uri: str
    title: str
    media_type: str
    metadata: Metadata
    headings: Sequence[str]  # path from the outermost one
    page: int | None  # from 1
    start: int  # character span in the document's text, half open
    end: int
    source: str = ""  # the folder or feed that the document was mirrored from; "" = put by hand
    sha256: str = ""  # of the source's bytes, hex
    updated_at: datetime | None = None  # when this version of the document was stored
    context: Context | None = None  # None = not asked for


@dataclass(frozen=True, kw_only=True, slots=True)
class Hit(Passage):
    """One answer to a query: a chunk, where it stands, and why it ranks."""

    rank: int  # from 1
    score: float  # higher is better; comparable only within one answer
    explain: Explanation | None = None  # None = not asked for
    dense_rank: int | None = None  # rank on each side before fusion; None = not among that side's candidates
    dense_score: float | None = None
    lexical_rank: int | None = None
    lexical_score: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class DeploymentRef:
    """Who answered: enough to tell two answers apart and to repeat one."""

    id: int
    collection_id: int
    index: str
    encoder: str  # fingerprint
    mode: Mode
    applied_seq: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchResult:
    """The hits of one query, best first."""

    hits: Sequence[Hit]
    deployment: DeploymentRef
    mode: Mode  # the mode that was used
    seconds: Mapping[str, float]  # time spent by stage: encode, search, hydrate, rerank


@dataclass(frozen=True, kw_only=True, slots=True)
class Feedback:
    """What somebody said about one hit of one logged query."""

    query_id: str
    kind: FeedbackKind
    chunk_id: str | None = None  # None only for answer_good and answer_bad
    grade: int | None = None  # >= 0
    user: str | None = None  # opaque
    session: str | None = None  # opaque


def text_format_of(media_type: str) -> TextFormat:
    """How a text that comes with no more than a media type is to be cut."""
    if media_type in ("text/markdown", "text/x-markdown"):
        return TextFormat.MARKDOWN
    if media_type.startswith("text/x-") or media_type in ("application/javascript", "text/javascript", "text/css"):
        return TextFormat.CODE
    return TextFormat.PLAIN
