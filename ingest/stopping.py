"""An event that another one sets as well, so that a part may end without ending the whole."""

from __future__ import annotations

import threading
import time

_LOOK_SECONDS = 0.1


class Either(threading.Event):
    """Set when it is set itself, or the outer event is."""

    def __init__(self, outer: threading.Event | None) -> None:
        super().__init__()
        self._outer = outer or threading.Event()

    def is_set(self) -> bool:
        return super().is_set() or self._outer.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        until = None if timeout is None else time.monotonic() + timeout
        while not self.is_set():
            left = _LOOK_SECONDS if until is None else min(_LOOK_SECONDS, until - time.monotonic())
            if left <= 0:
                break
            super().wait(left)
        return self.is_set()
