"""The jobs of those who keep the indexes up: a table of handlers by kind, for nvr_rag.running.working.

Another kind is one more function of a Task and one more line in the table.
"""

from __future__ import annotations

from typing import Any

from ingest.chunking import chunk
from nvr_rag.errors import ConfigurationError
from nvr_rag.running.working import Handlers, Task
from nvr_rag.upkeep import compaction, verification
from nvr_rag.upkeep.progress import Progress


def verify(task: Task) -> dict[str, Any]:
    """Compare an index with the log, and with `repair` mend it: {"index_id", "repair"}."""

    def report(checked: int) -> None:
        task.check()
        task.tell({"checked": checked})

    try:
        index_id, repair = int(task.job.payload["index_id"]), bool(task.job.payload.get("repair"))
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigurationError(f"job {task.job.id} was made by another release ({error!r}); ask again") from error
    return verification.verify_or_rebuild(task.workspace, index_id, chunk, repair=repair, report=report).as_json()


def compact(task: Task) -> dict[str, Any]:
    """Write the index that serves anew and switch to it: {"collection", "index_id"}."""
    try:
        collection, index_id = str(task.job.payload["collection"]), int(task.job.payload["index_id"])
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigurationError(f"job {task.job.id} was made by another release ({error!r}); ask again") from error
    if compaction.done_already(task.workspace, collection, index_id):  # by a worker that died before it could say so
        return {"collection": collection}

    def report(progress: Progress) -> None:
        pace = progress.pace.as_json() if progress.pace else {}
        task.tell({"words": "copying", "done": progress.applied_seq, "total": progress.head_seq, **pace})

    found = compaction.compact(
        task.workspace, collection, chunk, stop=task.stop, tell=lambda words: task.tell({"words": words}), report=report
    )
    return found.as_json()


HANDLERS: Handlers = {"verify": verify, compaction.KIND: compact}
