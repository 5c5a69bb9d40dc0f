"""`nvr-rag verify`: does each index hold what the log says? Done here, or by the server that owns the index."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nvr_rag import output
from nvr_rag.commands import common
from nvr_rag.errors import NvrError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from nvr_rag.indexes import IndexInfo
    from nvr_rag.workspace import Workspace

Report = Callable[[int], None]
_WRONG = ("missing", "stale", "corrupt", "foreign")


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
    from nvr_rag.chunkings import installed_chunker
    from nvr_rag.upkeep.verification import verify_by_owner

    try:
        return verify_by_owner(workspace, index.id, installed_chunker(), repair=repair, report=report)
    except NvrError as error:
        return {"clean": False, "error": str(error)}
    finally:
        workspace.close_index(index.id)


def _show(results: list[dict[str, Any]], *, repair: bool) -> None:
    if not results:
        output.say("There are no indexes to verify.")
        return
    counts = ("checked", *_WRONG)
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
    if result["clean"]:
        return "repaired" if any(map(result.get, _WRONG)) else "good"
    return "unfinished" if result["unfinished"] else "wrong"
