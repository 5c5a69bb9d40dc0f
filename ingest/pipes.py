"""Messages to and from a child process over its pipes, each whole by a deadline; without a thread that watches it.

A message is an 8-byte length and its bytes. Knows no documents.
"""

from __future__ import annotations

import math
import os
import select
import subprocess
import time

from ingest.parsers.child import HEADER

_AT_ONCE = 1 << 16  # bytes: what a pipe holds
_LONGEST = 3_600_000  # milliseconds: poll takes no number that is much larger


class Late(Exception):
    """The deadline has passed."""


class Pipes:
    """The parent's ends of a child's stdin and stdout. For one thread at a time; after an error, of no more use."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._to, self._from = process.stdin.fileno(), process.stdout.fileno()
        os.set_blocking(self._to, False)

    def send(self, message: bytes, until: float) -> None:
        """Raises Late after the time `until` of the monotonic clock, OSError when the child has gone."""
        rest = memoryview(message)
        while rest:
            try:
                rest = rest[os.write(self._to, rest) :]
            except BlockingIOError:  # it is full
                _wait(self._to, select.POLLOUT, until)

    def receive(self, limit: int, until: float) -> bytearray:
        """The next message. Raises Late, EOFError when the child has gone, ValueError for one over `limit` bytes."""
        (size,) = HEADER.unpack(self._take(HEADER.size, until))
        if size > limit:
            raise ValueError(f"a message of {size} bytes")
        return self._take(size, until)

    def _take(self, size: int, until: float) -> bytearray:
        taken = bytearray()
        while len(taken) < size:
            _wait(self._from, select.POLLIN, until)
            data = os.read(self._from, min(_AT_ONCE, size - len(taken)))
            if not data:
                raise EOFError
            taken += data
        return taken


def _wait(pipe: int, for_what: int, until: float) -> None:
    poll = select.poll()
    poll.register(pipe, for_what)
    while (left := until - time.monotonic()) > 0:
        if poll.poll(min(math.ceil(left * 1000), _LONGEST)):
            return
    raise Late
