"""Files as they are at one moment: regular ones only, never waiting for a pipe, and no torn mixture of two states."""

from __future__ import annotations

import os
import stat
from io import FileIO
from pathlib import Path

from ingest.parsers.limits import ParseLimits, check_size
from nvr_rag.errors import ParseFailed

_NO_FILE = "is not a regular file"
CHANGED = "changed while it was read; it is read again by the next run"


def open_regular(path: str | Path) -> FileIO:
    """The file, opened to be read. Raises OSError, and ParseFailed for what is not a regular file."""
    try:
        file = open(path, "rb", buffering=0, opener=_without_waiting)  # noqa: SIM115  # it is handed over
    except IsADirectoryError as error:
        raise ParseFailed(_NO_FILE) from error
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise ParseFailed(_NO_FILE)
    return file


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)  # a named pipe must not block


def read_file(path: str | Path, limits: ParseLimits) -> bytes:
    """All bytes of a file. Raises ParseFailed with the reason when it cannot be read, is too large, or keeps changing:
    one that changes under the first reading is read once more."""
    try:
        data = _read_once(path, limits)
        if data is None:
            data = _read_once(path, limits)
    except FileNotFoundError as error:
        raise ParseFailed("is gone") from error
    except OSError as error:
        raise ParseFailed(f"cannot be read: {error.strerror or error}") from error
    if data is None:
        raise ParseFailed(CHANGED)
    return data


def _read_once(path: str | Path, limits: ParseLimits) -> bytes | None:
    """The bytes; None when the file was not the same from the first to the last of them."""
    with open_regular(path) as file:
        before = os.fstat(file.fileno())
        check_size(before.st_size, limits)
        data = _at_most(file, limits.input_bytes + 1)
        after = os.fstat(file.fileno())
    same = (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
    return data if same and len(data) == before.st_size else None


def _at_most(file: FileIO, size: int) -> bytes:
    """Up to so many bytes: a file may grow for as long as it is read."""
    parts: list[bytes] = []
    while size > 0 and (part := file.read(min(size, 1 << 20))):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
