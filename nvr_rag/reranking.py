"""The seam to cross-encoders: what puts candidates in order by reading each together with the query."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Reranker(Protocol):
    """A cross-encoder. Any number of threads may use it at once."""

    @property
    def fingerprint(self) -> str:
        """Names everything that decides about its scores."""

    def score(self, query: str, texts: Sequence[str]) -> list[float]:
        """How well each text answers the query, higher is better, in the order given. What is longer than the model
        reads is cut. Raises EncoderError."""
