"""What the command line says of a run: a bar while it lasts, a report when it is over, in words or as JSON."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from nvr_rag import output

if TYPE_CHECKING:
    from ingest.report import Failure, IngestReport, Plan, Stand, Watcher

_SHOWN = 20  # of each kind, before one is referred to --json
_WHERE = "nvr-rag documents list --state failed"  # what failed is named in full
_PACE_SECONDS = 2.0  # after which there is a rate to speak of


@contextmanager
def watched() -> Iterator[Watcher]:
    """A watcher that draws one bar over everything, when a person looks on: a document counts once it can be found."""
    from ingest.report import Watcher

    with output.progress() as bars:
        if bars.disable:
            yield Watcher()
            return
        pace = _Pace()
        bar = bars.add_task("Ingesting", total=None)

        def stand(now: Stand) -> None:
            bars.update(bar, description=pace.words(now), completed=now.done, total=now.total)

        yield Watcher(stand=stand)


class _Pace:
    """How fast a run goes; safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._begun: tuple[float, int] | None = None  # when, and how many documents were done then

    def words(self, now: Stand) -> str:
        """For the bar: what is done, the rate, and the time left where that is known."""
        chunks = f", {now.encoded:,} chunks encoded" if now.encoded else ""
        with self._lock:
            if self._begun is None or now.done < self._begun[1]:
                self._begun = time.monotonic(), now.done
            since, first = self._begun
        seconds, done = time.monotonic() - since, now.done - first
        if seconds < _PACE_SECONDS or not done:
            return f"Ingesting{chunks}"
        rate = done / seconds
        left = "" if now.total is None else f", {output.duration((now.total - now.done) / rate)} left"
        return f"Ingesting ({rate:,.1f} documents a second{left}{chunks})"


def tell(report: IngestReport, collection: str, *, as_json: bool) -> None:
    """The report of a run."""
    if as_json:
        output.emit({"collection": collection, **asdict(report), "seen": report.seen})
    else:
        _show(report)


def tell_plan(plan: Plan, collection: str, *, as_json: bool) -> None:
    """What a run would do."""
    if as_json:
        output.emit({"collection": collection, "dry_run": True, **asdict(plan), "seen": plan.seen})
        return
    counts = {"to add": len(plan.add), "to update": len(plan.update), "unchanged": plan.unchanged}
    counts |= {"to delete": len(plan.delete), "failed": len(plan.failed)}
    output.say(f"{output.many(plan.seen, 'document')}: {_counted(counts)}. Nothing was done.")
    for verb, uris in (("add", plan.add), ("update", plan.update), ("delete", plan.delete)):
        for uri in uris[:_SHOWN]:
            output.say(f"{verb}: {uri}")
        if len(uris) > _SHOWN:
            output.say(f"and {len(uris) - _SHOWN:,} more to {verb}; see --json")
    _show_skipped(plan.skipped)
    _show_failed(plan.failed, "--json")
    for reason in plan.refused:
        output.say(f"refused: {reason}")


class Runs:
    """What many runs over the same paths come to: a line for each in which anything happened, or one JSON document."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json, self._runs = as_json, 0
        self._done = dict.fromkeys(("added", "updated", "deleted"), 0)
        self._failed: dict[str, Failure] = {}  # by URI; as far as is known now

    def tell(self, report: IngestReport, whole: bool) -> None:
        """One run is over, over everything or over what had changed."""
        self._runs += 1
        for name in self._done:
            self._done[name] += getattr(report, name)
        new = [one for one in report.failed if self._failed.get(one.uri) != one]
        self._failed = {**({} if whole else self._failed), **{one.uri: one for one in report.failed}}
        if not self._as_json and (report.added or report.updated or report.deleted or new):
            output.say(f"{time.strftime('%H:%M:%S')} {_counted(_counts(report))}")
            _show_failed(new, _WHERE)
            output.flush()

    def end(self, collection: str) -> None:
        """There are no more."""
        if self._as_json:
            failed = [asdict(failure) for failure in self._failed.values()]
            output.emit({"collection": collection, "runs": self._runs, **self._done, "failed": failed})


def judge(report: IngestReport, paths: Sequence[Path]) -> int:
    """The exit code: 0 only when there was something to do and all of it went well."""
    if report.seen == 0 and report.deleted == 0:
        where = ", ".join(map(str, paths))
        output.note(f"Error: no documents in {where}; name a folder with documents in it, or a file")
        return 1
    return 1 if report.failed else 0


def _show(report: IngestReport) -> None:
    seen = output.many(report.seen, "document")
    output.say(f"{seen} in {report.seconds['total']:.1f} s: {_counted(_counts(report))}")
    work = report.work
    if work.chunks or work.deleted:
        output.say(
            f"{output.many(work.chunks + work.deleted, 'chunk')}: {work.encoded:,} encoded, "
            f"{work.reused:,} vectors reused, {work.repainted + work.kept:,} kept, {work.deleted:,} deleted"
        )
    if report.restricted:
        output.say(f"{report.restricted:,} of the new documents have an acl: nobody finds them who cannot prove a name")
    _show_skipped(report.skipped)
    _show_failed(report.failed, _WHERE)


def _counts(report: IngestReport) -> dict[str, int]:
    return {
        "added": report.added,
        "updated": report.updated,
        "unchanged": report.unchanged,
        "deleted": report.deleted,
        "failed": len(report.failed),
    }


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items() if count) or "nothing to do"


def _show_skipped(skipped: dict[str, int]) -> None:
    for reason, count in sorted(skipped.items()):
        output.say(f"passed over: {count:,} (each {reason})")


def _show_failed(failed: Sequence[Failure], where: str) -> None:
    for failure in failed[:_SHOWN]:
        output.say(f"failed: {failure.uri} {failure.reason}")
    if len(failed) > _SHOWN:
        output.say(f"and {len(failed) - _SHOWN:,} more; see {where}")
