"""Many at once, or one alone: a lock for something that is used by all and now and then replaced."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Turnstile:
    """Not reentrant. Whoever wants to be alone keeps newcomers out at once, and waits for those who are inside."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._barred = False

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Use it, beside others; waits while somebody is alone with it."""
        with self._changed:
            while self._barred:
                self._changed.wait()
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                if not self._inside:
                    self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Replace it."""
        with self._changed:
            while self._barred:
                self._changed.wait()
            self._barred = True
        try:
            with self._changed:
                while self._inside:
                    self._changed.wait()
            yield
        finally:  # also when it is interrupted while it waits
            with self._changed:
                self._barred = False
                self._changed.notify_all()
