"""The commands `ingest` and `up` of the command line: paths in, a report out."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nvr_rag import output
from nvr_rag.commands import common
from nvr_rag.commands.common import AsJson, InCollection

if TYPE_CHECKING:
    from ingest.pipeline import IngestReport, Watcher
    from nvr_rag.upkeep.indexing import Progress

Paths = Annotated[
    list[Path], typer.Argument(metavar="PATH...", help="Folders, files, or JSON Lines files of ready texts.")
]
AllowEmpty = Annotated[
    bool, typer.Option("--allow-empty", help="Delete what is stored of a folder that holds no documents any more.")
]
_SHOWN_FAILURES = 20


def register(app: typer.Typer) -> None:
    """Mount the commands on the command line."""
    app.command("ingest")(ingest_command)
    app.command("up")(up_command)


def ingest_command(
    paths: Paths, collection: InCollection = "default", allow_empty: AllowEmpty = False, as_json: AsJson = False
) -> int:
    """Mirror folders and files into a collection; returns when everything is searchable.

    Only what is new or changed is read; what has gone is deleted. Beside a running server the server does the indexing.
    Stop it whenever you like: the next run goes on.
    """
    from ingest.pipeline import ingest

    with common.open_workspace() as workspace, _watched() as watcher:
        report = ingest(workspace, paths, collection=collection, allow_empty=allow_empty, watcher=watcher)
    _tell(report, collection, as_json=as_json)
    return _judge(report, paths)


def up_command(
    paths: Paths, collection: InCollection = "default", allow_empty: AllowEmpty = False, as_json: AsJson = False
) -> int:
    """Ingest folders and files and serve them: searches are answered from the start, and know more every second.

    Where a server runs on the data folder already, the documents are ingested into that one.
    """
    from nvr_rag.running import processes

    with common.open_workspace() as workspace:
        servers = processes.alive(workspace.database, "serve")
    if servers:
        output.note(f"A server runs on this data folder already: {servers[0].url}")
        return ingest_command(paths, collection, allow_empty, as_json)
    return _serve_and_ingest(paths, collection, allow_empty=allow_empty, as_json=as_json)


def _serve_and_ingest(paths: Sequence[Path], collection: str, *, allow_empty: bool, as_json: bool) -> int:
    """One process, one workspace: the server in the main thread, which hears signals, reading beside it."""
    from ingest.pipeline import check_paths, ingest
    from nvr_rag.api.server import listen, serve
    from nvr_rag.errors import NvrError
    from nvr_rag.running.services import installed

    check_paths(paths)
    stop, codes = threading.Event(), [1]

    def read() -> None:
        try:
            with _watched() as watcher:
                report = ingest(
                    workspace, paths, collection=collection, allow_empty=allow_empty, watcher=watcher, stop=stop
                )
        except NvrError as error:
            output.note(f"Error: {error}")
            if as_json:
                output.emit({"error": {"type": type(error).__name__, "message": str(error)}})
                output.flush()
        else:
            _tell(report, collection, as_json=as_json)
            output.flush()
            codes.append(_judge(report, paths))

    with ExitStack() as open_things:
        workspace = open_things.enter_context(common.open_workspace())
        listener = open_things.enter_context(listen(workspace.settings.api))
        reader = threading.Thread(target=read, name="ingest")

        def ready(url: str) -> None:
            output.note(f"Serving {workspace.home} on {url}; stop with Ctrl-C")
            reader.start()

        try:
            serve(workspace, installed(), listener, ready)
        finally:
            stop.set()
            if reader.ident is not None:
                reader.join()
    return codes[-1]


@contextmanager
def _watched() -> Iterator[Watcher]:
    """A watcher that draws two bars, documents read and changes indexed, when a person looks on."""
    from ingest.pipeline import Watcher

    with output.progress() as bars:
        reading = bars.add_task("Reading documents", total=None)
        indexing = bars.add_task("Indexing", total=None, visible=False)

        def index(progress: Progress) -> None:
            made = f"Indexing ({progress.work.encoded:,} chunks encoded)"
            bars.update(
                indexing, description=made, completed=progress.applied_seq, total=progress.head_seq, visible=True
            )

        yield Watcher(documents=lambda seen: bars.update(reading, completed=seen), index=index)


def _tell(report: IngestReport, collection: str, *, as_json: bool) -> None:
    if as_json:
        output.emit({"collection": collection, **asdict(report), "seen": report.seen})
    else:
        _show(report)


def _show(report: IngestReport) -> None:
    counts = {
        "added": report.added,
        "updated": report.updated,
        "unchanged": report.unchanged,
        "deleted": report.deleted,
        "failed": len(report.failed),
    }
    told = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count) or "nothing to do"
    output.say(f"{report.seen:,} documents in {report.seconds['total']:.1f} s: {told}")
    work = report.work
    if work.chunks or work.deleted:
        output.say(
            f"{work.chunks + work.deleted:,} chunks: {work.encoded:,} encoded, {work.reused:,} vectors reused, "
            f"{work.repainted + work.kept:,} kept, {work.deleted:,} deleted"
        )
    for reason, count in sorted(report.skipped.items()):
        output.say(f"passed over: {count:,} (each {reason})")
    for failure in report.failed[:_SHOWN_FAILURES]:
        output.say(f"failed: {failure.uri} {failure.reason}")
    if len(report.failed) > _SHOWN_FAILURES:
        more = len(report.failed) - _SHOWN_FAILURES
        output.say(f"and {more:,} more; see nvr-rag documents list --state failed")


def _judge(report: IngestReport, paths: Sequence[Path]) -> int:
    """The exit code: 0 only when there was something to do and all of it went well."""
    if report.seen == 0 and report.deleted == 0:
        where = ", ".join(map(str, paths))
        output.note(f"Error: no documents in {where}; name a folder with documents in it, or a file")
        return 1
    return 1 if report.failed else 0
