"""What a line of the log is about: ids that are known while a request is answered or a job is done.

`begun` opens a frame; whatever runs inside, also in the threads that a request is passed on to, may `note` what becomes
known, and every line that is written then carries all of it. Never texts, never secrets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

# The frame itself is shared with the copies of a context that threads get: what they note is seen by all.
_FRAME: ContextVar[dict[str, Any] | None] = ContextVar("nvr_rag_log_frame", default=None)


@contextmanager
def begun(**ids: Any) -> Iterator[None]:
    """A frame for as long as the block runs, with what is known already."""
    token = _FRAME.set({**known(), **_there(ids)})
    try:
        yield
    finally:
        _FRAME.reset(token)


def note(**ids: Any) -> None:
    """Something became known: key_id, query_id, collection ... Outside of a frame it is nobody's."""
    frame = _FRAME.get()
    if frame is not None:
        frame.update(_there(ids))


def known() -> Mapping[str, Any]:
    """What is known now."""
    return _FRAME.get() or {}


def _there(ids: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in ids.items() if value is not None}
