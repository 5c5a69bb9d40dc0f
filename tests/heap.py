"""How much memory the C library has given out: what native code keeps, which Python knows nothing of."""

from __future__ import annotations

import ctypes


class _Heap(ctypes.Structure):
    """struct mallinfo2 of glibc's malloc.h: bytes, unless it is a number of blocks."""

    _fields_ = [  # as ctypes wants it
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


def in_use() -> float:
    """MB that are allocated and not freed, on all heaps and in mappings of their own."""
    ask = ctypes.CDLL(None).mallinfo2
    ask.restype = _Heap
    heap = ask()
    return float(heap.uordblks + heap.hblkhd) / 2**20
