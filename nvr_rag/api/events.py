"""Progress as server-sent events: a job enters, and an event leaves whenever something about it has changed.

A stream holds no thread: it looks at the database now and then. There is a bounded number of them at a time,
in all and for each key, none lasts for ever, and a client that does not read what it is sent is let go.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator, Callable

import anyio
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from nvr_rag.access.callers import Caller
from nvr_rag.api.telling import info_of
from nvr_rag.errors import DatabaseUnavailable, NotFound, TooManyRequests, Unauthenticated
from nvr_rag.jobs import Job

MAX_STREAMS = 64  # of one process
MAX_STREAMS_OF_A_KEY = 16  # of them: no key keeps the others from following anything
POLL_SECONDS = 0.5
HEARTBEAT_SECONDS = 15.0  # between two signs of life, for whoever cuts silent connections off
MAX_SECONDS = 3600.0  # of one stream; clients connect again by themselves
SEND_SECONDS = 30.0  # that a client may take to read what it was sent
LAST = "end"  # the id of the last event: a client that comes again with it is told to stay away
RETRY_SECONDS = 30  # after which there may be room for another stream
_RETRY = "retry: 3000\n\n"  # milliseconds after which a client connects again


class Streams:
    """Counts the streams that are open."""

    def __init__(self) -> None:
        self._open: Counter[str | None] = Counter()  # by key id; None = of those without a key

    def enter(self, key_id: str | None) -> None:
        """One more of a key. Raises TooManyRequests when it has too many, HTTPException when there are too many."""
        if key_id is not None and self._open[key_id] >= MAX_STREAMS_OF_A_KEY:
            raise TooManyRequests(
                f"{MAX_STREAMS_OF_A_KEY} streams of events are open for this key already; close one of them, or ask "
                "GET /v1/jobs/ID now and then instead",
                after_seconds=RETRY_SECONDS,
            )
        if self._open.total() >= MAX_STREAMS:
            detail = f"{MAX_STREAMS} streams of events are open already; ask GET /v1/jobs/ID now and then instead"
            raise HTTPException(503, detail, {"Retry-After": str(RETRY_SECONDS)})
        self._open[key_id] += 1

    def leave(self, key_id: str | None) -> None:
        self._open[key_id] -= 1
        if not self._open[key_id]:
            del self._open[key_id]


class EventStream(StreamingResponse):
    """A stream that ends when its client does not read any more."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[str], on_end: Callable[[], None]) -> None:
        super().__init__(events, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def patient(message: Message) -> None:
            with anyio.fail_after(SEND_SECONDS):
                await send(message)

        try:
            await super().__call__(scope, receive, patient)
        except TimeoutError:
            pass  # nobody reads: the server closes the connection
        finally:
            self._on_end()


async def events_of(
    look: Callable[[], Job], job: Job, caller: Caller, stopping: Callable[[], bool]
) -> AsyncIterator[str]:
    """The job as it is for a caller, and again whenever it has changed, until it has ended; comments in between.

    `look` says how it is now, in another thread, or raises where it is gone or the caller's key is.
    """
    begun = spoken = time.monotonic()
    yield _RETRY
    said = ""
    while True:
        words = info_of(job, caller).model_dump_json()
        if words != said or job.finished:
            name = f"id: {LAST}\n" if job.finished else ""
            yield f"{name}data: {words}\n\n"
            said, spoken = words, time.monotonic()
        elif time.monotonic() - spoken >= HEARTBEAT_SECONDS:
            yield ":\n\n"
            spoken = time.monotonic()
        if job.finished or stopping() or time.monotonic() - begun >= MAX_SECONDS:
            return
        await anyio.sleep(POLL_SECONDS)
        try:
            job = await run_in_threadpool(look)
        except DatabaseUnavailable:
            continue  # what is known goes on being true
        except (NotFound, Unauthenticated):  # forgotten meanwhile, or nothing more is told
            return
