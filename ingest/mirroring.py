"""Jobs that mirror a path of this machine into a collection: what was asked for enters, the report leaves as JSON.

Where the path may not be read here, or is not there, another machine may see it: the job is left to others, and ends
once every machine that takes such jobs has said so. How far it is, and how long it will take, is told through the job.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ingest.folders.selection import Selection
from ingest.pipeline import IngestOptions, IngestReport, Stand, Watcher, check_paths, ingest
from nvr_rag import collections, roots
from nvr_rag.errors import ConfigurationError, Conflict, InvalidInput, NotFound, NotHere
from nvr_rag.running import processes
from nvr_rag.running.working import Task
from nvr_rag.workspace import Workspace

KIND = "ingest"
MAX_FAILURES = 100  # that a result names; all are counted, and GET /v1/documents?state=failed lists them
SAFE_SECONDS = 30.0  # between two words that something need not be done again
_LOOKED = "not_here"  # in the progress: host -> why it cannot


def mirror(task: Task) -> dict[str, Any]:
    """Mirror a path: {"collection", "made", "source", "include", "exclude", "allow_empty"}."""
    payload = task.job.payload
    try:
        collection, made = str(payload["collection"]), str(payload["made"])
        source, allow_empty = str(payload["source"]), bool(payload.get("allow_empty"))
        selection = selection_of(payload)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigurationError(f"job {task.job.id} was made by another release ({error!r}); ask again") from error
    path = _seen(task, source)
    _check_collection(task.workspace, collection, made)
    try:
        report = ingest(
            task.workspace,
            [path],
            collection=collection,
            allow_empty=allow_empty,
            options=IngestOptions(selection=selection, create=False),
            watcher=Watcher(stand=_Teller(task).tell),
            stop=task.stop,
        )
    finally:
        _let_go(task.workspace)
    task.check()  # what was stopped is not done
    task.tell({"done": report.seen, "total": report.seen, "words": "documents"})
    task.advanced()
    return as_json(report)


def check(workspace: Workspace, payload: Mapping[str, Any]) -> None:
    """Raise InvalidInput for a path that is not there where no other machine could see it, and for bad patterns."""
    selection_of(payload).rules()
    try:
        check_paths([Path(str(payload["source"]))])
    except InvalidInput:
        if _hosts(workspace) <= {socket.gethostname()}:
            raise


def selection_of(payload: Mapping[str, Any]) -> Selection:
    return Selection(include=tuple(payload.get("include") or ()), exclude=tuple(payload.get("exclude") or ()))


def as_json(report: IngestReport) -> dict[str, Any]:
    """A report for those who asked: counted, and not longer than people read."""
    counts = {
        name: getattr(report, name) for name in ("seen", "added", "updated", "unchanged", "deleted", "restricted")
    }
    return {
        **counts,
        "failed": len(report.failed),
        "failures": [asdict(one) for one in report.failed[:MAX_FAILURES]],
        "skipped": dict(report.skipped),
        "chunks": {name: getattr(report.work, name) for name in ("encoded", "reused", "deleted")},
        "seconds": {name: round(seconds, 3) for name, seconds in report.seconds.items()},
    }


def _seen(task: Task, source: str) -> Path:
    """The path, where this machine may read it and has it. Raises NotHere, or, when nobody has it, NotFound."""
    try:
        path = roots.allowed(source, task.workspace.settings.ingest.roots)
        check_paths([path])
        return path
    except (Conflict, InvalidInput) as error:
        here = socket.gethostname()
        looked = {**dict(task.job.progress.get(_LOOKED) or {}), here: str(error)}
        if not _hosts(task.workspace) <= set(looked):
            task.tell({_LOOKED: looked, "words": "waits for a machine that has it"})
            task.advanced()  # so that it is remembered: nobody need look here again
            raise NotHere(f"not on {here}: {error}") from error
        words = "; ".join(f"{host}: {why}" for host, why in sorted(looked.items()))
        raise NotFound(f"{source} cannot be ingested by any machine that takes such jobs: {words}") from error


def _hosts(workspace: Workspace) -> set[str]:
    """The machines that take such jobs."""
    return {one.host for one in processes.taking(workspace.database, KIND)}


def _let_go(workspace: Workspace) -> None:
    """Close the indexes that this run has opened, unless somebody here goes on with them: another process may wait for
    one, and whoever owns it without bringing it up keeps it waiting."""
    if not (workspace.serves or workspace.tended):
        workspace.release()


def _check_collection(workspace: Workspace, name: str, made: str) -> None:
    """Raise NotFound unless it is the collection that was there when the job was asked for."""
    with workspace.database.read() as connection:
        if collections.info(connection, name).created_at.isoformat() != made:
            raise NotFound(f"the collection {name!r} was deleted and made anew; ask again for what it is to hold")


class _Teller:
    """Tells through a job how far it is."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._begun = self._safe = time.monotonic()
        self._first: int | None = None  # documents that were done when it began to be told

    def tell(self, stand: Stand) -> None:
        progress: dict[str, Any] = {
            "stage": "reading" if stand.total is None or stand.seen < stand.total else "indexing",
            "done": stand.done,
            "total": stand.total,
            "words": "documents",
            "seen": stand.seen,
            "chunks_encoded": stand.encoded,
        }
        self._task.tell({name: value for name, value in {**progress, **self._pace(stand)}.items() if value is not None})
        if stand.done and time.monotonic() - self._safe >= SAFE_SECONDS:
            self._safe = time.monotonic()
            self._task.advanced()

    def _pace(self, stand: Stand) -> dict[str, float | None]:
        if self._first is None:
            self._first = stand.done
        seconds, done = time.monotonic() - self._begun, stand.done - self._first
        if seconds <= 0 or done <= 0:
            return {}
        left = None if stand.total is None else round((stand.total - stand.done) * seconds / done, 1)
        return {"documents_per_second": round(done / seconds, 2), "seconds_left": left}
