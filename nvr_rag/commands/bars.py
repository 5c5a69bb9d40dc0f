"""Bars of long work that several commands show."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvr_rag import output

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

    from nvr_rag.upkeep.progress import Progress


class IndexBar:
    """A progress bar that follows an index."""

    def __init__(self, bars: Bars, name: str) -> None:
        self._bars, self._name = bars, name
        self._task = bars.add_task(name, total=None)

    def say(self, words: str) -> None:
        """Name what is done now."""
        self._name = words
        self._bars.update(self._task, description=words)

    def __call__(self, progress: Progress) -> None:
        pace = progress.pace
        words = output.pace(pace.chunks_per_second, pace.seconds_left) if pace else ""
        name = f"{self._name} ({words})" if words else self._name
        self._bars.update(self._task, description=name, completed=progress.applied_seq, total=progress.head_seq)
