"""What the system says has changed below some paths: paths enter, those to be looked at leave. Knows no documents.

It is a hint and no more: changes may be missing, as on network drives, and where the system cannot watch at all there
are none. watchfiles is imported here only.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from ingest.folders.selection import IGNORE_FILE
from ingest.folders.sidecars import FOLDER_FILES, document_of

MOST = 1000  # paths that are worth looking at one by one
QUIET_MS = 300  # that changes wait for more of them: who saves a file rarely does one thing only
LONGEST_MS = 3000  # and no longer
_LOOK_SECONDS = 0.2
_LOST = "\ufffd"  # in the place of bytes that are no text: nobody knows what the path was

log = logging.getLogger(__name__)


class Changes:
    """A context in which a thread listens."""

    def __init__(self, paths: Sequence[Path], stop: threading.Event) -> None:
        self._roots, self._stop = [os.path.abspath(path) for path in paths], stop
        self._lock, self._news = threading.Lock(), threading.Event()
        self._found: set[str] | None = set()  # None = everything
        self._listener: _Listener | None = None

    def __enter__(self) -> Changes:
        return self

    def __exit__(self, *_: object) -> None:
        if self._listener is not None:
            self._listener.end()

    def follow(self) -> None:
        """Listen to the paths as they are now: one that was unmounted and came back is another one."""
        there = {root: identity for root in self._roots if (identity := _identity(root)) is not None}
        if self._listener is None or self._listener.there != there:
            if self._listener is not None:
                self._listener.end()
            self._listener = _Listener(there, self.add)

    def take(self) -> list[Path] | None:
        """What is to be looked at since the last time, in order; None for everything."""
        with self._lock:
            found, self._found = self._found, set()
            self._news.clear()
        return None if found is None else [Path(path) for path in sorted(found)]

    def wait(self, seconds: float) -> None:
        """Until something has changed, `stop` is set, or so many seconds are over."""
        until = time.monotonic() + seconds
        while not self._stop.is_set() and time.monotonic() < until and not self._news.is_set():
            self._news.wait(min(_LOOK_SECONDS, max(0.0, until - time.monotonic())))

    def add(self, paths: Iterable[str]) -> None:
        """Something about these has changed."""
        with self._lock:
            for path in paths:
                if self._found is not None:
                    self._found = self._with(self._found, path)
            if self._found is None or self._found:
                self._news.set()

    def _with(self, found: set[str], path: str) -> set[str] | None:
        """What is to be looked at when this has changed as well; None for everything."""
        root = max((root for root in self._roots if path.startswith(root.rstrip("/") + "/")), key=len, default=None)
        if root is None or _LOST in path or len(found) >= MOST:
            return None
        folder, _, name = path.rpartition("/")
        if name == IGNORE_FILE or name in FOLDER_FILES:
            return None if folder == root.rstrip("/") else found | {folder}
        if any(part.startswith(".") for part in path[len(root) :].split("/")):
            return found
        return found | {f"{folder}/{document_of(name) or name}"}


class _Listener:
    """A thread that hands on what the system says of some paths, until it is told to end."""

    def __init__(self, there: dict[str, tuple[int, int]], tell: Callable[[Iterable[str]], None]) -> None:
        self.there, self._tell, self._ended = there, tell, threading.Event()
        self._thread = threading.Thread(target=self._listen, name="changes", daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._ended.set()
        self._thread.join()

    def _listen(self) -> None:
        try:
            from watchfiles import watch

            told = watch(
                *self.there,
                watch_filter=None,
                debounce=LONGEST_MS,
                step=QUIET_MS,
                stop_event=self._ended,
                rust_timeout=QUIET_MS,
                raise_interrupt=False,
                ignore_permission_denied=True,
            )
            for changes in told if self.there else ():
                self._tell(path for _, path in changes)
        except Exception as error:  # no more watches to be had, no such library: there is still the scan
            log.warning("changes are not heard of as they happen, only found by the full scans: %s", error)


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
