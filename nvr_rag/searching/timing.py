"""How long a search takes, by stage, and until when it may. Knows nothing of what is done in them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from nvr_rag.errors import TimedOut

STAGES = ("encode", "search", "hydrate", "rerank")


class Watch:
    """Of one search."""

    def __init__(self, deadline: float | None = None) -> None:
        """`deadline` as time.monotonic counts; None = it may take as long as it takes."""
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self._deadline = deadline

    def check(self) -> None:
        """Raise TimedOut when the time is over."""
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise TimedOut(
                "the search took longer than the server spends on one; try again, or ask for less: a smaller k, fewer "
                "candidates, no reranking"
            )

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Count what the block takes, if there is time to begin it. Raises TimedOut."""
        self.check()
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - begun
