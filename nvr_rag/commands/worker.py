"""`nvr-rag worker`: work without the API, until it is stopped; as many as wanted, on as many machines."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Annotated

import typer

from nvr_rag import output
from nvr_rag.commands import common

if TYPE_CHECKING:
    from nvr_rag.running.services import Service
    from nvr_rag.settings import Settings


def worker(
    kinds: Annotated[
        str | None,
        typer.Option(
            metavar="K[,K...]",
            help="What to do: ingest (mirror folders, parse uploads), index (keep indexes up with the documents, and "
            "their jobs) or train (retrain), or a kind of job that names it.  [default: all]",
        ),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Only say whether a worker of this machine is alive: a health check.")
    ] = False,
    as_json: common.AsJson = False,
) -> None:
    """Do what is to do in the background, without the API: several workers share the work.

    On SIGTERM or Ctrl-C what runs is put back for others; a second time ends it at once.
    """
    from nvr_rag.settings import load_settings

    settings = load_settings()
    if check:
        return _check(settings, as_json=as_json)
    from nvr_rag.observing import logs
    from nvr_rag.running.worker import run_worker

    wanted = [name.strip() for name in (kinds or "").split(",") if name.strip()]
    logs.begin(settings)

    def ready(services: Sequence[Service]) -> None:
        work = [service.work for service in services]
        if as_json:
            output.emit({"kinds": work, "job_kinds": [kind for service in services for kind in service.job_kinds]})
        else:
            output.say(f"Working: {', '.join(work)}")
        if logs.is_for_people(settings):
            output.note("Stop it with Ctrl-C.")
        output.flush()  # a reader of a pipe waits for it

    def stopping() -> None:
        if logs.is_for_people(settings):
            output.note("Stopping: what runs is put back for others. Ctrl-C again ends it at once.")

    return run_worker(settings, wanted, on_ready=ready, on_stop=stopping)


def _check(settings: Settings, *, as_json: bool) -> None:
    """Raise NotFound when no worker of this machine has a fresh heartbeat. Opens the database only: a health check
    comes every few seconds."""
    from sqlalchemy import inspect

    from nvr_rag.db.session import Database
    from nvr_rag.errors import NotFound
    from nvr_rag.running import processes

    host = socket.gethostname()
    with closing(Database(settings.sql_url())) as database:
        with database.read() as connection:
            begun = inspect(connection).has_table("process")
        found = [one for one in processes.alive(database, processes.WORKER) if one.host == host] if begun else []
    if not found:
        raise NotFound(f"no worker is alive on {host}; start one with nvr-rag worker")
    if as_json:
        output.emit({"workers": [{"pid": one.pid, "host": one.host, "job_kinds": one.job_kinds} for one in found]})
    else:
        output.say(f"Alive: {', '.join(f'process {one.pid}' for one in found)}")
