"""`nvr-rag index compact`: write the index that serves anew, smaller and faster, and switch to it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from nvr_rag import output
from nvr_rag.commands import common
from nvr_rag.commands.bars import IndexBar
from nvr_rag.errors import Conflict, StoreUnavailable

if TYPE_CHECKING:
    from nvr_rag.workspace import Workspace

POLL_SECONDS = 0.2


def compact(
    collection: common.InCollection = "default", yes: common.Yes = False, as_json: common.AsJson = False
) -> None:
    """Write the index that serves anew from the documents, with the vectors it has, and switch to it.

    That frees what was deleted from it, and makes searches of a large index fast. Nothing is encoded again, and the
    answers stay the same. Beside a running server the server does it. Stop it whenever you like: the same command goes
    on.
    """
    from nvr_rag.running import processes
    from nvr_rag.upkeep.compaction import KIND

    with common.open_workspace() as workspace:
        _ask(workspace, collection, yes=yes)
        others = bool(processes.taking(workspace.database, KIND))
        found = (_watch if others else _run)(workspace, collection)
    if as_json:
        output.emit(found)
    else:
        _tell(found)


def _ask(workspace: Workspace, collection: str, *, yes: bool) -> None:
    """Ask where another index can be gone back to now: of those beside the serving one only one is kept."""
    from nvr_rag.upkeep.compaction import gives_up

    lost = gives_up(workspace, collection)
    if lost and not yes:
        names = ", ".join(str(one.id) for one in lost)
        common.confirm(
            f"Compact the index of {collection}? It can be gone back to afterwards, and deployment {names} no longer."
        )


def _run(workspace: Workspace, collection: str) -> dict[str, Any]:
    from nvr_rag.chunkings import installed_chunker
    from nvr_rag.errors import StoreBusy
    from nvr_rag.running import processes
    from nvr_rag.upkeep import compaction

    with output.progress() as bars:
        bar = IndexBar(bars, "Compacting")
        try:
            done = compaction.compact(workspace, collection, installed_chunker(), tell=bar.say, report=bar)
        except StoreBusy as error:
            raise processes.busy(workspace.database, error) from error
    return done.as_json()


def _watch(workspace: Workspace, collection: str) -> dict[str, Any]:
    """Have the owner of the index do it, and follow how far it is."""
    from nvr_rag import jobs
    from nvr_rag.running import processes
    from nvr_rag.upkeep.compaction import KIND

    job_id = _asked(workspace, collection)
    with output.progress() as bars:
        task = bars.add_task("Compacting", total=None)
        while not (job := jobs.get(workspace.database, job_id)).finished:
            told = job.progress
            bars.update(
                task,
                description=str(told.get("words") or "Compacting"),
                completed=told.get("done", 0),
                total=told.get("total"),
            )
            if not processes.taking(workspace.database, KIND):
                raise StoreUnavailable("the server stopped before it had finished; run the same command again")
            time.sleep(POLL_SECONDS)
    if job.result is None:
        raise Conflict(f"the server could not compact the index: {job.error}")
    return dict(job.result)


def _asked(workspace: Workspace, collection: str) -> int:
    """The job that compacts a collection: one that is there already, or a new one."""
    from nvr_rag import deployments, jobs
    from nvr_rag.upkeep import compaction

    database = workspace.database
    there = [job for job in jobs.of_collection(database, compaction.KIND, collection) if not job.finished]
    if there:
        return there[0].id
    with database.read() as connection:
        index_id = deployments.serving(connection, collection).index_id
    return jobs.enqueue_alone(database, compaction.KIND, collection, {"index_id": index_id})


def _tell(found: dict[str, Any]) -> None:
    if "index" not in found:
        output.say(f"The index of {found['collection']} was compacted already.")
        return
    output.say(
        f"Index {found['index']} answers for {found['collection']} now, after {found['seconds']:.1f} s: "
        f"{found['copied']:,} vectors copied, {found['encoded']:,} encoded."
    )
    if found["bytes_before"] is not None and found["bytes_after"] is not None:
        output.say(
            f"On the disk: {output.size(found['bytes_before'])} before, {output.size(found['bytes_after'])} now."
        )
    output.say(
        f"Index {found['copied_from']} is kept until the next one replaces it; to go back to it: nvr-rag deploy "
        f"rollback --collection {found['collection']}"
    )
