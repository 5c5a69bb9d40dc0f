"""How a thread that must not die goes on when something it needs is away: each thing said once, ever longer waits.

Errors enter; log lines and the seconds to wait leave.
"""

from __future__ import annotations

import logging
import random

from nvr_rag import retries
from nvr_rag.errors import NvrError

log = logging.getLogger("nvr_rag")


class Patience:
    """Of one thread, which is named in the log."""

    def __init__(self, name: str, chance: random.Random | None = None) -> None:
        self._name = name
        self._chance = chance or random.Random()  # noqa: S311
        self._failures = 0
        self.trouble: str | None = None  # what is wrong now, in words

    def failed(self, error: Exception) -> float:
        """Something went wrong; how many seconds to wait before the next try."""
        words = retries.in_words(error)
        if words != self.trouble:
            unforeseen = None if isinstance(error, NvrError) else error
            log.warning("%s failed and tries again: %s", self._name, words, exc_info=unforeseen)
        self.trouble = words
        self._failures += 1
        return retries.OUTAGE.seconds(self._failures, self._chance)

    def succeeded(self) -> None:
        """It works, perhaps again."""
        if self.trouble is not None:
            log.warning("%s goes on", self._name)
        self._failures, self.trouble = 0, None
