"""How much memory a process keeps of what it has freed: told to the C library once, before threads begin."""

from __future__ import annotations

import ctypes
import os

_M_ARENA_MAX = -8  # of malloc.h in glibc
ARENAS = 2


def keep_less() -> None:
    """Let all threads share two heaps.

    glibc gives every thread a heap of its own, up to eight for each core, and what is freed in one is of no use to the
    others: with readers, cutters and writers at work, a process grew with the number of documents that it had seen.
    Where somebody has set MALLOC_ARENA_MAX, or there is no glibc, nothing changes.
    """
    if "MALLOC_ARENA_MAX" not in os.environ:
        try:
            ctypes.CDLL(None).mallopt(_M_ARENA_MAX, ARENAS)
        except (AttributeError, OSError, TypeError):
            return
