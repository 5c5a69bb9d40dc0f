"""`nvr-rag verify`: does each index hold what the log says? Done here, or by the server that owns the index."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nvr_rag import output
from nvr_rag.commands import common
from nvr_rag.errors import ConfigurationError, NvrError, StoreBusy, StoreUnavailable

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from nvr_rag.chunkings import Chunker
    from nvr_rag.indexes import IndexInfo
    from nvr_rag.workspace import Workspace

CHUNKERS = "nvr_rag.chunkers"
POLL_SECONDS = 0.2

Report = Callable[[int], None]


def verify(
    repair: Annotated[bool, typer.Option("--repair", help="Mend what is wrong; rebuild what is lost.")] = False,
    collection: Annotated[str | None, typer.Option("--collection", "-c", help="Only this one.")] = None,
    as_json: common.AsJson = False,
) -> None:
    """Compare every index with the documents stored."""
    with common.open_workspace() as workspace, output.progress() as bars:
        results = []
        for name, index in _live(workspace, collection):
            task = bars.add_task(f"Verifying {name}", total=None)
            found = _verify(workspace, index, repair, _reporter(bars, task))
            results.append({"collection": name, "index_id": index.id, "index": index.name, **found})
            bars.remove_task(task)
    clean = all(result["clean"] for result in results)
    if as_json:
        output.emit({"clean": clean, "indexes": results})
    else:
        _show(results, repair=repair)
    if not clean:
        raise typer.Exit(1)


def _reporter(bars: Progress, task: TaskID) -> Report:
    return lambda count: bars.update(task, completed=count)


def _live(workspace: Workspace, collection: str | None) -> list[tuple[str, IndexInfo]]:
    """Live indexes with the names of their collections. Raises NotFound for an unknown collection."""
    from nvr_rag import collections, indexes

    with workspace.database.read() as connection:
        if collection is not None:
            collections.find(connection, collection)
        return [
            (info.name, index)
            for info in collections.all_infos(connection)
            if collection in (None, info.name)
            for index in indexes.all_infos(connection, info.id)
            if index.state == "live"
        ]


def _verify(workspace: Workspace, index: IndexInfo, repair: bool, report: Report) -> dict[str, Any]:
    """What was found; an index that cannot be compared is no reason to leave the others out."""
    try:
        try:
            return _verify_here(workspace, index.id, repair, report)
        except StoreBusy as error:
            return _verify_there(workspace, index.id, repair, report, error)
    except NvrError as error:
        return {"clean": False, "error": str(error)}
    finally:
        workspace.close_index(index.id)


def _verify_here(workspace: Workspace, index_id: int, repair: bool, report: Report) -> dict[str, Any]:
    from nvr_rag.verification import verify_or_rebuild

    return verify_or_rebuild(workspace, index_id, _chunker(), repair=repair, report=report).as_json()


def _chunker() -> Chunker:
    """The chunker that an installed package offers: a rebuild may have to cut documents that were never cut."""
    for entry in entry_points(group=CHUNKERS, name="default"):
        chunker: Chunker = entry.load()
        return chunker
    raise ConfigurationError(f"no installed package offers a chunker (entry point {CHUNKERS}); install nvr-rag again")


def _verify_there(workspace: Workspace, index_id: int, repair: bool, report: Report, busy: StoreBusy) -> dict[str, Any]:
    """Let the server that owns the index do it, and follow it. Raises StoreBusy when no server runs."""
    from nvr_rag import jobs, processes

    database = workspace.database
    if not processes.alive(database, "serve"):
        raise common.busy(database, busy) from busy
    job_id = jobs.enqueue(database, "verify", {"index_id": index_id, "repair": repair})
    while not (job := jobs.get(database, job_id)).finished:
        report(int(job.progress.get("checked", 0)))
        if not processes.alive(database, "serve"):
            raise StoreUnavailable("the server that owned the index stopped before it had finished; verify again")
        time.sleep(POLL_SECONDS)
    if job.result is None:
        raise StoreUnavailable(f"the server could not verify the index: {job.error}")
    return dict(job.result)


def _show(results: list[dict[str, Any]], *, repair: bool) -> None:
    if not results:
        output.say("There are no indexes to verify.")
        return
    counts = ("checked", "missing", "stale", "foreign")
    rows = [[one["collection"], one["index_id"], *map(one.get, counts), _outcome(one)] for one in results]
    output.table(("collection", "index", *counts, "outcome"), rows)
    for one in results:
        if "error" in one:
            output.note(f"Error: index {one['index_id']} of {one['collection']}: {one['error']}")
    if not repair and not all(one["clean"] for one in results):
        output.note("nvr-rag verify --repair mends it.")


def _outcome(result: dict[str, Any]) -> str:
    if "error" in result:
        return "failed"
    if result.get("rebuilt"):
        return "rebuilt"
    wrong = result["missing"] + result["stale"] + result["foreign"]
    return "good" if wrong == 0 else "repaired" if result["repaired"] else "wrong"
