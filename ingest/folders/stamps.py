"""Which files were read in the state that they are in now, so that what has not changed need not be read again.

The state of a file on its disk enters; whether it surely still holds what it held then leaves. A stamp is a hash over
the file's path, its state and the hash of what it held: it names nobody, and stays true whatever becomes of the
database. Losing stamps costs reading, nothing else. It knows no documents.
"""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

_BYTES = 16  # of a stamp
_KIND = f"S{_BYTES}"
# A file that was written this shortly before it was read may be written again without a change in its times, which
# tick more slowly than the clock: every 10 ms on most disks, every 2 s on some.
RACY_NS = 2_500_000_000


class FileState(NamedTuple):
    """What a disk says of a file. A change of what it holds changes this: nobody can set the last time back."""

    device: int
    inode: int
    size: int  # bytes
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> FileState:
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)

    def settled(self, now_ns: int) -> bool:
        """Whether a change after `now_ns` would surely show."""
        return max(self.mtime_ns, self.ctime_ns) < now_ns - RACY_NS


class Stamps:
    """The stamps of the files below one folder, in a file of their own; safe to share between threads."""

    def __init__(self, folder: Path, root: str) -> None:
        """Read what was saved in `folder` for the root with this URI; a file that cannot be read has no stamps."""
        self._file = folder / hashlib.sha256(root.encode()).hexdigest()[:32]
        self._old = _load(self._file)
        self._new = bytearray()

    def knows(self, path: Path, state: FileState, sha256: str) -> bool:
        """Whether the file was found to hold what has this hash in just this state; then it does so still."""
        stamp = _stamp(path, state, sha256)
        place = int(np.searchsorted(self._old, np.bytes_(stamp)))
        known = place < len(self._old) and self._old[place] == np.bytes_(stamp)
        if known:
            self._new += stamp
        return bool(known)

    def keep(self, path: Path, state: FileState, sha256: str, now_ns: int) -> None:
        """The file holds what has this hash; it was in this state before, from `now_ns` on, and after it was read."""
        if state.settled(now_ns):
            self._new += _stamp(path, state, sha256)

    def save(self, *, complete: bool) -> None:
        """Write them down; unless every file was looked at, with those of the others. A full disk is no trouble."""
        stamps = np.frombuffer(bytes(self._new), dtype=_KIND)
        if not complete:
            stamps = np.concatenate([self._old, stamps])
        stamps = np.unique(stamps)
        if np.array_equal(stamps, self._old):
            return
        partial = self._file.with_name(f"{self._file.name}.{os.getpid()}-{time.monotonic_ns()}")
        try:
            self._file.parent.mkdir(mode=0o700, exist_ok=True)
            stamps.tofile(partial)
            partial.replace(self._file)
        except OSError:
            partial.unlink(missing_ok=True)


def _load(file: Path) -> np.ndarray[tuple[int], np.dtype[np.bytes_]]:
    """From the disk as it is needed: memory does not grow with the number of files."""
    try:
        if file.stat().st_size % _BYTES == 0:
            return np.memmap(file, dtype=_KIND, mode="r")
    except (OSError, ValueError):  # there is none, or it is empty
        pass
    return np.empty(0, dtype=_KIND)


def _stamp(path: Path, state: FileState, sha256: str) -> bytes:
    """Never ending in a zero byte, which numpy would take for the end of a shorter one."""
    text = "\0".join([*map(str, state), sha256, ""]).encode() + os.fsencode(path)
    return hashlib.blake2b(text, digest_size=_BYTES - 1).digest() + b"\1"
