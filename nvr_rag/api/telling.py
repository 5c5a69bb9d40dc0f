"""What callers are told of jobs: a job and who asks enter; whether he sees it, and what of it, leaves.

A job's progress and result may name and count what its collection holds. The words of an upload are its sender's own;
beyond them, names are for who reads everything, and numbers also for who manages the server. What goes on inside the
server is for who manages it alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nvr_rag import uploads
from nvr_rag.access.callers import Caller, Scope
from nvr_rag.api.schemas import JobInfo
from nvr_rag.jobs import Job, Status

_OUTCOME = ("run", "outcome", "promoted")  # of a result: counts nothing and names no document
_NAMES = ("documents", "failures")  # of a result: ids and URIs
_NEVER = ("report",)  # the release before kept paths of this machine in it


def is_seen(job: Job, caller: Caller) -> bool:
    """Whether a caller may know that there is this job."""
    if job.collection is None:
        return caller.collections is None and (caller.knows_all or Scope.ADMIN in caller.scopes)
    if not caller.knows(job.collection):
        return False
    return caller.knows_all or Scope.ADMIN in caller.scopes or _asked(job, caller)


def info_of(job: Job, caller: Caller) -> JobInfo:
    """A job that a caller may see, as he sees it."""
    names = ("id", "kind", "collection", "state", "created_at", "due_at", "finished_at", "attempts")
    values: dict[str, Any] = {name: getattr(job, name) for name in names}
    told = caller.knows_all or (_asked(job, caller) and job.kind == uploads.KIND)
    counted = told or Scope.ADMIN in caller.scopes
    return JobInfo(
        **values,
        cancelled=job.status in (Status.CANCELLING, Status.CANCELLED),
        progress=dict(job.progress) if counted else {},
        result=None if job.result is None else _result(job.result, caller, told=told, counted=counted),
        error=_error(job, caller, told=told),
    )


def _result(result: Mapping[str, Any], caller: Caller, *, told: bool, counted: bool) -> dict[str, Any]:
    left_out = _NEVER if told else (*_NEVER, *_NAMES)
    shown = {name: value for name, value in result.items() if name not in left_out and (counted or name in _OUTCOME)}
    if "documents" in shown and not caller.knows_all:
        shown["documents"] = [{**one, "seq": None} for one in shown["documents"]]
    return shown


def _error(job: Job, caller: Caller, *, told: bool) -> str | None:
    if job.error is None or (told and (caller.manages or not job.error_is_inside)):
        return job.error
    return f"it failed; nvr-rag jobs show {job.id}, where the server runs, says why"


def _asked(job: Job, caller: Caller) -> bool:
    return job.asker is not None and job.asker == caller.asker
