"""`nvr-rag export` and `nvr-rag import`: collections as a file of JSON Lines, and back; and from Qdrant collections."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from nvr_rag import output
from nvr_rag.commands import common
from nvr_rag.errors import InvalidInput

if TYPE_CHECKING:
    from nvr_rag.transfer.importing import ImportReport
    from nvr_rag.transfer.qdrant_import import QdrantReport
    from nvr_rag.workspace import Workspace

_STDOUT = "-"


class With(StrEnum):
    """What can go along with the documents."""

    CHUNKS = "chunks"
    JUDGMENTS = "judgments"
    FEEDBACK = "feedback"
    ALL = "all"


def export(
    collection: Annotated[
        list[str] | None, typer.Option("--collection", "-c", help="Only this one; may be repeated.  [default: all]")
    ] = None,
    to: Annotated[str, typer.Option("--output", "-o", help="A file, compressed if it ends in .gz; - is stdout.")] = "-",
    along: Annotated[
        list[With] | None,
        typer.Option("--with", help="What else to write; may be repeated. Feedback names users and their queries."),
    ] = None,
    yes: common.Yes = False,
    as_json: common.AsJson = False,
) -> None:
    """Write collections as JSON Lines, as they are at one moment: for nvr-rag import, and for other programs."""
    from nvr_rag.transfer.exporting import export as write_export
    from nvr_rag.transfer.records import Part

    wanted = [part for part in Part if along and (With.ALL in along or With(part.value) in along)]
    _check_output(to, yes=yes, as_json=as_json)
    with common.open_workspace() as workspace, output.progress() as bars, _opened(to) as out:
        task = bars.add_task("Exporting documents", total=None)
        counts = write_export(
            workspace.database,
            out,
            collection or (),
            parts=wanted,
            report=lambda done, total: bars.update(task, completed=done, total=total),
        )
    left = [part.value for part in Part if part not in wanted]
    if as_json:
        output.emit({"path": to, "counts": counts, "left_out": left})
        return
    told = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count) or "nothing"
    output.note(f"Exported {told}." + (f" Not in the file: {', '.join(left)} (--with all)." if left else ""))


def _check_output(to: str, *, yes: bool, as_json: bool) -> None:
    if to == _STDOUT:
        if as_json:
            raise InvalidInput("with --json give a file: --output FILE", field="output")
        if sys.stdout.isatty():
            raise InvalidInput("an export is not for a terminal; give --output FILE, or a pipe", field="output")
        return
    path = Path(to)
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise InvalidInput(
            f"{path} cannot be written: give the name of a file in a folder that is there", field="output"
        )
    if path.exists() and not yes:
        common.confirm(f"Replace {path}?")


@contextmanager
def _opened(to: str) -> Iterator[BinaryIO]:
    from nvr_rag.transfer.files import whole_file

    if to == _STDOUT:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
    else:
        with whole_file(Path(to)) as file:
            yield file


def import_file(
    path: Annotated[Path | None, typer.Argument(metavar="[FILE]", help="What nvr-rag export has written.")] = None,
    collection: Annotated[
        str | None,
        typer.Option(
            "--collection",
            "-c",
            help="Import the file's one collection under this name; of Qdrant, into this one.  [default: default]",
        ),
    ] = None,
    from_qdrant: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Read from this Qdrant server instead; its key is in QDRANT_API_KEY."),
    ] = None,
    qdrant_collection: Annotated[str | None, typer.Option(metavar="NAME", help="The collection there.")] = None,
    text_key: Annotated[str, typer.Option(help="Where payloads have their text.")] = "page_content",
    metadata_key: Annotated[str, typer.Option(help="Where payloads have their metadata.")] = "metadata",
    uri_key: Annotated[
        list[str] | None,
        typer.Option(
            help="Points that have the same here are one document; '' for none.  [default: source, uri, url, file_path]"
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and say what would be done; do nothing.")] = False,
    as_json: common.AsJson = False,
) -> None:
    """Read what nvr-rag export has written, or the texts of a Qdrant collection; returns when all can be found.

    Everything is checked before anything is stored. Documents that are there already are replaced by what is read;
    nothing is deleted. Stop it whenever you like: running it again goes on.
    """
    if from_qdrant is not None:
        if path is not None or qdrant_collection is None:
            raise InvalidInput("--from-qdrant URL goes with --qdrant-collection NAME, and without a file")
        keys: dict[str, Any] = {"text": text_key, "metadata": metadata_key}
        if uri_key:
            keys["uri"] = [key for key in uri_key if key]
        _import_points(from_qdrant, qdrant_collection, collection or "default", keys, dry_run=dry_run, as_json=as_json)
    elif path is None:
        raise InvalidInput("give a file that nvr-rag export has written, or --from-qdrant URL", field="path")
    else:
        _import_file(path, collection, dry_run=dry_run, as_json=as_json)


def _import_file(path: Path, collection: str | None, *, dry_run: bool, as_json: bool) -> None:
    from nvr_rag.transfer import importing

    with common.open_workspace() as workspace:
        with output.progress() as bars:
            checking = bars.add_task("Checking the file", total=None)
            storing = bars.add_task("Storing documents", total=None, visible=False)
            watcher = importing.Watcher(
                checked=lambda done: bars.update(checking, completed=done),
                stored=lambda done, total: bars.update(storing, completed=done, total=total, visible=True),
            )
            report = importing.import_file(workspace, path, collection=collection, dry_run=dry_run, watcher=watcher)
        if not dry_run:
            bring_up(workspace, report.collections)
    _tell(report, dry_run=dry_run, as_json=as_json)


def _import_points(url: str, name: str, collection: str, keys: dict[str, Any], *, dry_run: bool, as_json: bool) -> None:
    import os

    from nvr_rag.stores.foreign import KEY_VARIABLE, foreign_collection
    from nvr_rag.transfer.points import Keys
    from nvr_rag.transfer.qdrant_import import QdrantWatcher, import_points

    with common.open_workspace() as workspace:
        source = foreign_collection(workspace.settings.qdrant, url, os.environ.get(KEY_VARIABLE), name)
        with output.progress() as bars:
            reading = bars.add_task("Reading points", total=None)
            storing = bars.add_task("Storing documents", total=None, visible=False)
            watcher = QdrantWatcher(
                read=lambda done, total: bars.update(reading, completed=done, total=total),
                stored=lambda done, total: bars.update(storing, completed=done, total=total, visible=True),
            )
            report = import_points(workspace, source, collection, keys=Keys(**keys), dry_run=dry_run, watcher=watcher)
        if not dry_run:
            bring_up(workspace, [collection])
    _tell_points(report, dry_run=dry_run, as_json=as_json)


def bring_up(workspace: Workspace, names: Sequence[str]) -> None:
    """Have the indexes of collections that serve follow the log to its end, with a bar."""
    import threading

    from nvr_rag import collections
    from nvr_rag.chunkings import installed_chunker
    from nvr_rag.upkeep.catching_up import Upkeep, settle

    finished = threading.Event()
    finished.set()
    with output.progress() as bars:
        for name in names:
            with workspace.database.read() as connection:
                found = collections.find(connection, name)
            task = bars.add_task(f"Indexing {name}", total=None)

            def report(progress: Any, task: Any = task) -> None:
                bars.update(task, completed=progress.applied_seq, total=progress.head_seq)

            upkeep = Upkeep(
                workspace=workspace,
                collection_id=found,
                chunker=installed_chunker(),
                stop=threading.Event(),
                report=report,
            )
            settle(upkeep, finished)


def _tell(report: ImportReport, *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        output.emit({"dry_run": dry_run, **asdict(report), "documents": report.documents})
        return
    counts = {name: getattr(report, name) for name in ("added", "updated", "unchanged", "failed")}
    told = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count) or "nothing to do"
    would = "would be " if dry_run else ""
    output.say(f"{output.many(report.documents, 'document')}: {would}{told}")
    if report.judgments or report.queries or report.feedback:
        output.say(
            f"new or changed: {report.judgments:,} judgments, {report.queries:,} queries, {report.feedback:,} feedback"
        )
    for name in report.created:
        output.say(f"new collection: {name}")


def _tell_points(report: QdrantReport, *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        output.emit({"dry_run": dry_run, **asdict(report)})
        return
    counts = {outcome.value: count for outcome, count in report.outcomes.items()}
    told = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)
    would = "would be " if dry_run else ""
    points, documents = output.many(report.points, "point"), output.many(report.documents, "document")
    output.say(f"{points}, {documents} of {report.collection}: {would}{told}")
    if report.without_text:
        output.say(f"without a text: {report.without_text:,} points")
    for key, count in sorted(report.dropped.items()):
        output.say(f"left out, as it cannot be stored: {key} of {count:,} points")
