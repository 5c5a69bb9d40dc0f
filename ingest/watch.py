"""Keeping a collection level with its sources for as long as a process runs: `nvr-rag ingest --watch`.

What the system says of changes decides what is looked at; a full scan now and then mends what it did not say, as on
network drives, where it says nothing. One run at a time, each by `ingest.pipeline`. What goes wrong is told, waited for
and tried again; a source that has vanished deletes nothing. It ends when it is told to.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from ingest.folders.changes import Changes
from ingest.folders.stamps import FileState
from ingest.pipeline import ingest
from ingest.report import IngestOptions, IngestReport, Watcher
from ingest.sources import status_of
from nvr_rag.errors import InvalidInput, NvrError
from nvr_rag.retries import in_words
from nvr_rag.running.patience import Patience
from nvr_rag.upkeep.catching_up import lags
from nvr_rag.workspace import Workspace

SCAN_SECONDS = 300.0
_SHARE = 10.0  # a large source is scanned less often: for a tenth of the time at most


@dataclass(frozen=True, kw_only=True, slots=True)
class Watch:
    """What is watched, and whom to tell."""

    paths: Sequence[Path]
    collection: str = "default"
    allow_empty: bool = False
    options: IngestOptions
    scan_seconds: float = SCAN_SECONDS  # between two full scans
    on_report: Callable[[IngestReport, bool], None]  # after every run; whether it looked at everything
    on_error: Callable[[str], None]  # in words, once for each thing that goes wrong
    watcher: Watcher


def watch(workspace: Workspace, what: Watch, stop: threading.Event) -> None:
    """Until `stop` is set. Nothing that goes wrong ends it; what is wrong from the start is for `ingest` to say."""
    _Watching(workspace, what, stop).run()


class _Watching:
    def __init__(self, workspace: Workspace, what: Watch, stop: threading.Event) -> None:
        self._workspace, self._what, self._stop = workspace, what, stop
        self._patience = Patience("watching")
        self._new = what.options.create  # the collection; one that is deleted later is not made again
        self._said: Sequence[str] = ()  # what was wrong the last time
        # A hostile file that takes a minute to fail must not take it again with every scan.
        self._failed: MutableMapping[str, tuple[FileState, str]] = {}

    def run(self) -> None:
        due = time.monotonic()  # the next full scan
        with Changes(self._what.paths, self._stop) as changes:
            while not self._stop.is_set():
                changes.follow()
                if time.monotonic() >= due:
                    changes.take()  # what has changed until now is seen by the scan
                    due = time.monotonic() + self._try(())
                elif (some := changes.take()) is None:
                    due = time.monotonic()
                elif some:
                    due = min(due, time.monotonic() + self._try(some))
                changes.wait(due - time.monotonic())

    def _try(self, only: Sequence[Path]) -> float:
        """Run once; after how many seconds the next full scan is due."""
        seconds = self._what.scan_seconds
        away = {path: words for path in self._what.paths if (words := _away(path)) is not None}
        troubles, there = list(away.values()), [path for path in self._what.paths if path not in away]
        try:
            if there:
                seconds = max(seconds, _SHARE * self._run(there, only))
            self._patience.succeeded()
        except Exception as error:  # whatever it is, the next scan may find it gone
            troubles += [words for path in there if (words := _away(path)) is not None] or [in_words(error)]
            if isinstance(error, NvrError) and error.retry:
                seconds = min(seconds, self._patience.failed(error))
        self._tell(troubles)
        return seconds

    def _run(self, paths: Sequence[Path], only: Sequence[Path]) -> float:
        """How many seconds it took to look around."""
        what = self._what
        try:
            report = ingest(
                self._workspace,
                paths,
                collection=what.collection,
                allow_empty=what.allow_empty,
                options=replace(what.options, only=only, failed_before=self._failed, create=self._new),
                watcher=what.watcher,
                stop=self._stop,
            )
            self._new = False
            what.on_report(report, not only)
            return report.seconds.get("walk", 0.0)
        finally:
            self._let_go()

    def _let_go(self) -> None:
        """Close the indexes until the next run: a server that is started meanwhile is to have them."""
        with suppress(NvrError):
            for lag in lags(self._workspace):
                self._workspace.close_index(lag.index.id)

    def _tell(self, troubles: Sequence[str]) -> None:
        for words in troubles:
            if words not in self._said:
                self._what.on_error(words)
        self._said = troubles


def _away(path: Path) -> str | None:
    """Why there is nothing to be looked at, in words; None where there is."""
    try:
        status_of(path)
    except InvalidInput as error:
        return f"{error}; nothing is deleted meanwhile"
    return None
