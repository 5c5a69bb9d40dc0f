"""`nvr-rag serve`: the API, and with it, unless told otherwise, the indexer and the trainer, until it is stopped."""

from __future__ import annotations

from typing import Annotated

import typer

from nvr_rag import output
from nvr_rag.commands import common
from nvr_rag.errors import InvalidInput


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.  [default: NVR_API__HOST]")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.  [default: NVR_API__PORT]")
    ] = None,
    api_only: Annotated[
        bool, typer.Option("--api-only", help="Only answer requests: nvr-rag worker, elsewhere, indexes and trains.")
    ] = False,
    processes: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=64,
            help="With --api-only, and a Qdrant server: so many processes answer, and one that dies is replaced.",
        ),
    ] = None,
    as_json: common.AsJson = False,
) -> None:
    """Serve the HTTP API and keep the indexes up to date."""
    from nvr_rag.observing import logs
    from nvr_rag.settings import load_settings

    if processes is not None and not api_only:
        raise InvalidInput(
            "several processes only answer requests: say --api-only as well, and let nvr-rag worker index and train",
            field="processes",
        )

    settings = load_settings()
    given = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    settings = settings.model_copy(update={"api": settings.api.model_copy(update=given)})
    logs.begin(settings)

    def ready(url: str) -> None:
        if as_json:
            output.emit({"url": url})
        else:
            output.say(f"Serving at {url}")
        if logs.is_for_people(settings):
            output.note("Stop it with Ctrl-C.")
        output.flush()  # a reader of a pipe waits for the address

    if processes is not None:
        from nvr_rag.api.supervising import run_processes

        return run_processes(settings, processes, on_ready=ready)
    from nvr_rag.api.server import run_server

    return run_server(settings, on_ready=ready, api_only=api_only)
