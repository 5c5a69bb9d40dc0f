"""How many documents there are to be seen, counted beside the run that sees them, for whoever wants to know how long it
will take. Paths enter, one number leaves; nothing is read but names, and the lines of JSON Lines files."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from ingest.report import IngestOptions
from ingest.sources import SourceFile, walk
from nvr_rag.errors import NvrError

_BLOCK = 1 << 20


class Counting:
    """A context in which a thread counts. It is told once, and never when the block ends before."""

    def __init__(
        self, folders: Sequence[Path], feeds: Sequence[Path], options: IngestOptions, tell: Callable[[int], None]
    ) -> None:
        self._folders, self._feeds, self._options, self._tell = folders, feeds, options, tell
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._count, name="counting", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _count(self) -> None:
        with suppress(OSError, NvrError):  # the run itself will say what is wrong
            total = sum(map(self._files, self._folders)) + sum(map(self._lines, self._feeds))
            if not self._ended.is_set():
                self._tell(total)

    def _files(self, root: Path) -> int:
        number = 0
        for entry in walk(root, self._options.selection, only=self._options.only):
            if self._ended.is_set():
                break
            number += isinstance(entry, SourceFile)
        return number

    def _lines(self, feed: Path) -> int:
        number = 0
        with feed.open("rb") as file:
            while (block := file.read(_BLOCK)) and not self._ended.is_set():
                number += block.count(b"\n")
        return number
