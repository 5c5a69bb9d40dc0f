"""A lock that goes round: whoever lets go of it and wants it back at once comes after those who were waiting.

`threading.Lock` makes no such promise, and a thread that works in steps would keep everybody else out for hours.
"""

from __future__ import annotations

import threading


class Turns:
    """A mutual exclusion for use in a `with`; not for a thread that has it already."""

    def __init__(self) -> None:
        self._door = threading.Lock()  # whose turn it is to wait for the other one
        self._held = threading.Lock()

    def acquire(self, *, blocking: bool = True) -> bool:
        """True once it is held; False at once where it is held by somebody else and nobody wants to wait."""
        if not blocking:
            return self._held.acquire(blocking=False)
        with self._door:
            return self._held.acquire()

    def release(self) -> None:
        self._held.release()

    def locked(self) -> bool:
        """Whether somebody has it."""
        return self._held.locked()

    @property
    def wanted(self) -> bool:
        """Whether somebody waits for it: to be asked by who has it."""
        return self._door.locked()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()
