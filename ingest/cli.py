"""The commands `ingest` and `up` of the command line: paths in, a report out."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ingest import telling
from nvr_rag import output
from nvr_rag.commands import common
from nvr_rag.commands.common import AsJson, InCollection
from nvr_rag.errors import InvalidInput

if TYPE_CHECKING:
    from ingest.report import IngestOptions

INTERRUPTED = 130

Paths = Annotated[
    list[Path], typer.Argument(metavar="PATH...", help="Folders, files, or JSON Lines files of ready texts.")
]
AllowEmpty = Annotated[
    bool, typer.Option("--allow-empty", help="Delete what is stored of a folder that holds no documents any more.")
]
Include = Annotated[
    list[str] | None,
    typer.Option(
        "--include", metavar="GLOB", help="Only files that match, such as '*.pdf' or 'reports/'. May be repeated."
    ),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        "--exclude", metavar="GLOB", help="No files or folders that match, as in a .gitignore. May be repeated."
    ),
]
Reread = Annotated[
    bool, typer.Option("--reread", help="Read every file, also where size and times say that it has not changed.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")]
WatchOption = Annotated[
    bool, typer.Option("--watch", help="Go on until stopped: take in what changes, as soon as it does.")
]
ScanEvery = Annotated[
    float,
    typer.Option(metavar="SECONDS", min=1, help="With --watch: how often everything is looked at as well."),
]


def register(app: typer.Typer) -> None:
    """Mount the commands on the command line."""
    app.command("ingest")(ingest_command)
    app.command("up")(up_command)


def ingest_command(
    paths: Paths,
    collection: InCollection = "default",
    include: Include = None,
    exclude: Exclude = None,
    allow_empty: AllowEmpty = False,
    reread: Reread = False,
    dry_run: DryRun = False,
    watch: WatchOption = False,
    scan_every: ScanEvery = 300.0,
    as_json: AsJson = False,
) -> int:
    """Mirror folders and files into a collection; returns when everything is searchable.

    Only what is new or changed is read; what has gone, or is excluded, is deleted. A .nvrignore in a folder says what
    to pass over, as a .gitignore does. Beside a running server the server does the indexing. Stop it whenever you like:
    the next run goes on.
    """
    options = _options(include, exclude, reread=reread)
    if dry_run and watch:
        raise InvalidInput("--dry-run looks once, and --watch does not end; say one of them", field="watch")
    if dry_run:
        return _plan(paths, collection, options, allow_empty=allow_empty, as_json=as_json)
    if watch:
        return _watch(paths, collection, options, scan_every, allow_empty=allow_empty, as_json=as_json)
    return _ingest(paths, collection, options, allow_empty=allow_empty, as_json=as_json)


def _options(include: Sequence[str] | None, exclude: Sequence[str] | None, *, reread: bool = False) -> IngestOptions:
    from ingest.folders.selection import Selection
    from ingest.report import IngestOptions

    selection = Selection(include=tuple(include or ()), exclude=tuple(exclude or ()))
    return IngestOptions(selection=selection, reread=reread)


def _ingest(paths: Sequence[Path], collection: str, options: IngestOptions, *, allow_empty: bool, as_json: bool) -> int:
    from ingest.pipeline import ingest
    from nvr_rag.running.signals import stopped_by_signals

    with common.open_workspace() as workspace, telling.watched() as watcher, stopped_by_signals(_stopping) as stop:
        report = ingest(
            workspace,
            paths,
            collection=collection,
            allow_empty=allow_empty,
            options=options,
            watcher=watcher,
            stop=stop,
        )
    telling.tell(report, collection, as_json=as_json)
    if report.stopped:
        _end_stopped()
    return telling.judge(report, paths)


def _plan(paths: Sequence[Path], collection: str, options: IngestOptions, *, allow_empty: bool, as_json: bool) -> int:
    from ingest.planning import plan

    with common.open_workspace() as workspace:
        found = plan(workspace, paths, collection=collection, allow_empty=allow_empty, options=options)
    telling.tell_plan(found, collection, as_json=as_json)
    return 1 if found.failed or found.refused else 0


def _watch(
    paths: Sequence[Path], collection: str, options: IngestOptions, seconds: float, *, allow_empty: bool, as_json: bool
) -> int:
    """What is wrong from the start is an error; what goes wrong later is told and waited for."""
    from ingest.pipeline import check_paths
    from ingest.watch import Watch, watch
    from nvr_rag import collections
    from nvr_rag.running.signals import stopped_by_signals

    check_paths(paths)
    options.selection.rules()
    collections.check_name(collection)
    runs = telling.Runs(as_json=as_json)

    with common.open_workspace() as workspace, telling.watched() as watcher, stopped_by_signals(_stopping) as stop:
        output.note(f"Watching {', '.join(map(str, paths))}; stop with Ctrl-C")
        what = Watch(
            paths=paths,
            collection=collection,
            allow_empty=allow_empty,
            options=options,
            scan_seconds=seconds,
            on_report=runs.tell,
            on_error=lambda words: output.note(f"Error: {words}"),
            watcher=watcher,
        )
        watch(workspace, what, stop)
    runs.end(collection)
    return 0


def _stopping() -> None:
    output.note("Stopping: what is half done is finished by the next run. Ctrl-C again ends it at once.")


def _end_stopped() -> None:
    """With the exit code of Ctrl-C; everything has been said."""
    output.note("Stopped by Ctrl-C; the next run goes on from here.")
    output.flush()
    raise SystemExit(INTERRUPTED)


def up_command(
    paths: Paths,
    collection: InCollection = "default",
    include: Include = None,
    exclude: Exclude = None,
    allow_empty: AllowEmpty = False,
    as_json: AsJson = False,
) -> int:
    """Ingest folders and files and serve them: searches are answered from the start, and know more every second.

    Where a server runs on the data folder already, the documents are ingested into that one.
    """
    from nvr_rag.running import processes

    options = _options(include, exclude)
    with common.open_workspace() as workspace:
        servers = processes.alive(workspace.database, "serve")
    if servers:
        output.note(f"A server runs on this data folder already: {servers[0].url}")
        return _ingest(paths, collection, options, allow_empty=allow_empty, as_json=as_json)
    return _serve_and_ingest(paths, collection, options, allow_empty=allow_empty, as_json=as_json)


def _serve_and_ingest(
    paths: Sequence[Path], collection: str, options: IngestOptions, *, allow_empty: bool, as_json: bool
) -> int:
    """One process, one workspace: the server in the main thread, which hears signals, reading beside it."""
    from ingest.pipeline import check_paths, ingest
    from nvr_rag.api.listening import listen
    from nvr_rag.api.server import serve
    from nvr_rag.errors import NvrError
    from nvr_rag.running.services import installed

    check_paths(paths)
    options.selection.rules()
    stop, codes = threading.Event(), [1]

    def read() -> None:
        try:
            with telling.watched() as watcher:
                report = ingest(
                    workspace,
                    paths,
                    collection=collection,
                    allow_empty=allow_empty,
                    options=options,
                    watcher=watcher,
                    stop=stop,
                )
        except NvrError as error:
            output.note(f"Error: {error}")
            if as_json:
                output.emit({"error": {"type": type(error).__name__, "message": str(error)}})
                output.flush()
        else:
            telling.tell(report, collection, as_json=as_json)
            output.flush()
            codes.append(telling.judge(report, paths))

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
