"""Small files that say something about documents: ignore files and sidecars. A path enters, its bytes leave.

They lie beside documents of strangers, so nothing is followed, nothing blocks, and nothing large is read.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path


class Unusable(Exception):
    """A small file cannot be used. The message reads on from its name: "is larger than 64 kB"."""


def read_small(path: Path, limit: int) -> bytes:
    """The content of a regular file, at most `limit` bytes of it. Raises Unusable."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
        with open(descriptor, "rb") as file:
            before = os.fstat(descriptor)
            if not stat.S_ISREG(before.st_mode):
                raise Unusable("is not a regular file")
            data = file.read(limit + 1)
            after = os.fstat(descriptor)
    except OSError as error:
        if path.is_symlink():
            raise Unusable("is a symbolic link, which is not followed") from error
        raise Unusable(f"cannot be read: {error.strerror or error}") from error
    if len(data) > limit:
        raise Unusable(f"is larger than {limit // 1024} kB")
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise Unusable("was written to while it was read")
    return data
