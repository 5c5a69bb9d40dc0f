"""What happened, told to whoever counts it. Here nobody does: commands and workers have no use for it.

Events enter, in words of the product; nothing leaves. nvr_rag.observing.metrics counts them for Prometheus.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from nvr_rag.types import SearchResult


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """An HTTP request that has been answered."""

    route: str  # the template, never the path; "" = it matched none, or was refused before
    method: str
    status: int  # 0 = the client had gone before
    seconds: float
    problem: str | None = None  # the kind of problem that it was answered with


class Meter:
    """Takes note of nothing."""

    def answered(self, request: Request) -> None:
        """A request is over."""

    def occupied(self, in_flight: int) -> None:
        """So many requests are being answered."""

    def queued(self, waiting: int) -> None:
        """So many queries wait to be written into the log."""

    def searched(self, collection: str, result: SearchResult) -> None:
        """A search was answered."""

    def judged(self, kinds: Iterable[str]) -> None:
        """Feedback of these kinds was stored."""

    def looked_up(self, cache: str, *, hit: bool) -> None:
        """Something was in a cache, or was not."""

    def indexed(self, seconds: Mapping[str, float], chunks: Mapping[str, int]) -> None:
        """An index was brought up: time by stage, and chunks by what was done to them, since this was last told."""

    def matched(self, collection: str, index: str, *, matches: bool) -> None:
        """The index that serves a collection has the fingerprint of its encoder, or another one."""
