"""`nvr-rag jobs`: what one process has asked another to do: list, show, cancel, try again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nvr_rag import output
from nvr_rag.commands import common
from nvr_rag.errors import InvalidInput

if TYPE_CHECKING:
    from nvr_rag.jobs import Job, Status

app = typer.Typer(help="List, show, cancel and try again what runs in the background.", rich_markup_mode=None)

MAX_ID = 2**31 - 1  # what every engine's integer column can hold
Number = Annotated[int, typer.Argument(metavar="ID", min=1, max=MAX_ID, help="The job; nvr-rag jobs list shows it.")]
_PACE = ("documents_per_second", "chunks_per_second", "seconds_left")  # of a progress
_COUNTED = ("added", "updated", "unchanged", "deleted", "failed")  # in the result of a folder
_COLUMNS = ("id", "kind", "collection", "status", "attempts", "created (UTC)", "now")


@app.command("list")
def list_jobs(
    kind: Annotated[str | None, typer.Option(help="Only of this kind, such as ingest, upload or retrain.")] = None,
    state: Annotated[
        str | None, typer.Option(help="Only queued, running, cancelling, done, failed or cancelled.")
    ] = None,
    collection: Annotated[str | None, typer.Option("--collection", "-c", help="Only about this one.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many.")] = 50,
    as_json: common.AsJson = False,
) -> None:
    """List jobs, newest first."""
    from nvr_rag import jobs

    status = _status(state)
    with common.open_workspace() as workspace:
        found = jobs.listed(workspace.database, kind=kind, status=status, collection=collection, limit=limit + 1)
    shown, more = found[:limit], len(found) > limit
    if as_json:
        output.emit({"jobs": [_as_json(job) for job in shown], "more": more})
        return
    if not shown:
        output.say("There are no such jobs." if kind or state or collection else "There are no jobs.")
        return
    output.table(_COLUMNS, [_row(job) for job in shown])
    if more:
        output.note(f"These are the newest {limit}; --limit shows more.")


@app.command("show")
def show(number: Number, as_json: common.AsJson = False) -> None:
    """Show what is known of one job."""
    from nvr_rag import jobs

    with common.open_workspace() as workspace:
        job = jobs.get(workspace.database, number)
    if as_json:
        output.emit(_as_json(job))
        return
    output.pairs({name: value for name, value in _told(job).items() if value is not None})
    for failure in job.failures:
        output.say(
            f"  attempt {failure.get('attempt')}, {failure.get('at')}: {output.one_line(str(failure.get('error')))}"
        )
    for words in _failed(job.result):
        output.say(f"  failed: {output.one_line(words)}")


@app.command("cancel")
def cancel(number: Number, as_json: common.AsJson = False) -> None:
    """Cancel a job: one that waits ends at once, one that runs is told to stop."""
    from nvr_rag import jobs

    with common.open_workspace() as workspace:
        job = jobs.cancel(workspace.database, number)
    if as_json:
        output.emit(_as_json(job))
    elif job.finished:
        output.say(f"Cancelled {job.kind} job {job.id}.")
    else:
        output.say(
            f"Asked the worker of {job.kind} job {job.id} to stop; nvr-rag jobs show {job.id} tells when it has."
        )


@app.command("retry")
def retry(number: Number, as_json: common.AsJson = False) -> None:
    """Queue a job again that has failed or was cancelled."""
    from nvr_rag import jobs
    from nvr_rag.running import processes

    with common.open_workspace() as workspace:
        job = jobs.retry(workspace.database, number)
        taken = bool(processes.taking(workspace.database, job.kind))
    if as_json:
        output.emit(_as_json(job))
        return
    output.say(f"Queued {job.kind} job {job.id} again.")
    if not taken:
        output.note("No server or worker that takes such jobs is running; start nvr-rag serve or nvr-rag worker.")


def _status(state: str | None) -> Status | None:
    from nvr_rag.jobs import Status

    if state is None or state in list(Status):
        return None if state is None else Status(state)
    raise InvalidInput(f"the state is one of {', '.join(Status)}, not {state[:80]!r}", field="state")


def _row(job: Job) -> list[Any]:
    own = [job.id, job.kind, job.collection, job.status, job.attempts, common.moment(job.created_at)]
    now = job.error or _wait(job) or report_in_words(job.result) or progress_in_words(job.progress)
    return [*own, ", ".join(part for part in (_source(job), now) if part)]


def _source(job: Job) -> str:
    """The folder that a job is about; uploads have none that people know."""
    source = job.payload.get("source")
    return source if isinstance(source, str) and source.startswith("/") else ""


def _wait(job: Job) -> str | None:
    if job.lapsed:
        return "its worker has died, or cannot reach the database; another one takes it over"
    if job.state != "queued" or (job.due_at is None and not job.failures):
        return None
    why = f": {job.failures[-1].get('error')}" if job.failures else ""
    if job.due_at is None:
        return f"put back{why}"
    return f"not before {common.moment(job.due_at)} UTC{why}"


def progress_in_words(progress: Mapping[str, Any]) -> str:
    """How far a job is, for a person, whatever its kind says of it; "" when it has said nothing yet."""
    step, number, steps = (progress.get(name) for name in ("step", "number", "steps"))
    done, total, words = (progress.get(name) for name in ("done", "total", "words"))
    at = f"{number}/{steps} {step}" if step and number and steps else str(step or "")
    count = "" if not done and not total else f"{_count(done)} of {_count(total)}" if total else _count(done)
    known = ("step", "number", "steps", "done", "total", "words", *_PACE)
    others = (f"{name.replace('_', ' ')} {_count(value)}" for name, value in progress.items() if name not in known)
    counted = " ".join(part for part in (count, str(words or "")) if part)
    return ", ".join(part for part in (at, counted, *others, *_pace_in_words(progress)) if part)


def _pace_in_words(progress: Mapping[str, Any]) -> Iterator[str]:
    """How fast it goes, and how long it will take."""
    for name in _PACE[:-1]:
        if isinstance(progress.get(name), (int, float)):
            yield f"{progress[name]:,} {name.removesuffix('_per_second').replace('_', ' ')}/s"
    left = progress.get("seconds_left")
    if isinstance(left, (int, float)):
        yield f"{left:.0f} s left" if left < 100 else f"{left / 60:,.0f} min left"


def report_in_words(result: Mapping[str, Any] | None) -> str:
    """What came of documents, where a result counts them; "" for any other."""
    if not isinstance(result, Mapping):
        return ""
    if isinstance(result.get("documents"), list):  # of an upload, one by one
        outcomes = [one.get("outcome") for one in result["documents"]]
        counts: Mapping[str, Any] = {name: outcomes.count(name) for name in dict.fromkeys(outcomes)}
        seen: Any = len(outcomes)
    else:
        counts, seen = {name: result.get(name) for name in _COUNTED}, result.get("seen")
    if not isinstance(seen, int):
        return ""
    told = ", ".join(f"{_count(count)} {name}" for name, count in counts.items() if count)
    return f"{output.many(seen, 'document')}: {told or 'nothing to do'}"


def _failed(result: Mapping[str, Any] | None) -> Iterator[str]:
    """The documents that could not be read, and why."""
    for one in (result or {}).get("failures", ()):
        yield f"{one.get('uri')} {one.get('reason')}"
    for one in (result or {}).get("documents", ()):
        if isinstance(one, Mapping) and one.get("error"):
            yield f"{one.get('uri')} {one.get('error')}"


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)


def _told(job: Job) -> dict[str, Any]:
    """A job for a person."""
    return {
        "job": job.id,
        "kind": job.kind,
        "collection": job.collection,
        "status": job.status,
        "created (UTC)": common.moment(job.created_at),
        "not before (UTC)": common.moment(job.due_at),
        "cancelled (UTC)": common.moment(job.cancel_at),
        "ended (UTC)": common.moment(job.finished_at),
        "attempts": job.attempts,
        "worker": job.worker if job.state == "running" else None,
        "lease until (UTC)": common.moment(job.lease_until),
        "waits": _wait(job),
        "progress": progress_in_words(job.progress) or None,
        "asked for": json.dumps(dict(job.payload), ensure_ascii=False),
        "result": report_in_words(job.result) or json.dumps(job.result and dict(job.result), ensure_ascii=False)
        if job.result is not None
        else None,
        "error": job.error,
        "failures": len(job.failures) or None,
    }


def _as_json(job: Job) -> dict[str, Any]:
    moments = ("created_at", "due_at", "cancel_at", "finished_at", "lease_until")
    plain = (
        "id",
        "kind",
        "collection",
        "state",
        "status",
        "attempts",
        "worker",
        "progress",
        "payload",
        "result",
        "error",
    )
    return {
        **{name: getattr(job, name) for name in plain},
        **{name: when.isoformat() if (when := getattr(job, name)) else None for name in moments},
        "lapsed": job.lapsed,
        "failures": list(job.failures),
    }
