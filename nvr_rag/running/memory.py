"""How much memory a process keeps of what it has freed: what the C library is told about it."""

from __future__ import annotations

import ctypes
import os
import time

_M_ARENA_MAX = -8  # of malloc.h in glibc
ARENAS = 2
GIVE_BACK_SECONDS = 30.0  # more often, and encoders pay for getting the same pages again
_given = 0.0  # when memory was given back last, by the monotonic clock


def keep_less() -> None:
    """Let all threads share two heaps; to be called before threads begin.

    glibc gives every thread a heap of its own, up to eight for each core, and what is freed in one is of no use to the
    others: with readers, cutters and writers at work, a process grew with the number of documents that it had seen.
    Where somebody has set MALLOC_ARENA_MAX, or there is no glibc, nothing changes.
    """
    if "MALLOC_ARENA_MAX" not in os.environ:
        _ask("mallopt", _M_ARENA_MAX, ARENAS)


def give_back() -> None:
    """Give what was freed back to the system, twice a minute at most: to be called by whoever has used much, now and
    then. By itself glibc gives back only the end of a heap, and there is always something that lies there."""
    global _given  # there is one C library
    now = time.monotonic()
    if now - _given >= GIVE_BACK_SECONDS:
        _given = now
        _ask("malloc_trim", 0)


def _ask(function: str, *numbers: int) -> None:
    try:
        getattr(ctypes.CDLL(None), function)(*numbers)
    except (AttributeError, OSError, TypeError):  # another C library
        return
