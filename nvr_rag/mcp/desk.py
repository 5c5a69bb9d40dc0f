"""Where the tools get their answers: what they need of a server, or of a data folder, for one caller."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from nvr_rag.errors import NvrError
from nvr_rag.types import Feedback, Hit, Passage, Query


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What a query came to."""

    query_id: str  # feedback names it
    hits: Sequence[Hit]  # best first


@dataclass(frozen=True, kw_only=True, slots=True)
class Whole:
    """A document's text as it stands now."""

    sha256: str  # of its source's bytes: of which version it is
    text: str


class Desk(Protocol):
    """Answers one caller, who sees what he may see. Safe to share between threads.

    Every method raises NvrError in words for the caller.
    """

    def collections(self) -> Sequence[str]:
        """Names of the collections that he may know of."""

    def search(self, query: Query) -> Answer:
        """Search and log it. Who reads and who asks is for the desk to say, whatever the query has."""

    def passage(self, collection: str, chunk_id: str, context: int) -> Passage:
        """A chunk as it stands now, with so many neighbours on each side."""

    def document(self, collection: str, document_id: str) -> Whole | None:
        """A document's newest text; None where it was never read."""

    def feedback(self, word: Feedback) -> int:
        """Store feedback; how many rows are new."""

    def told(self, error: NvrError) -> str:
        """What the caller is told of an error."""
