"""Room on the disk: what a folder takes, what is left, and making room. Knows nothing of what lies in a folder."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path


def allocated(folder: Path) -> int:
    """Bytes of the blocks that the files below take: shard files are sparse. 0 for a folder that is not there."""
    total = 0
    for parent, _, files in os.walk(folder):
        for file in files:
            with suppress(OSError):  # files come and go while a server works
                total += os.stat(os.path.join(parent, file)).st_blocks * 512
    return total


def remove(folder: Path) -> None:
    """Delete a folder; what a crash leaves of it has another name, and is never taken for whole. Raises OSError."""
    doomed = folder.with_name(f".{folder.name}.removed")
    shutil.rmtree(doomed, ignore_errors=True)  # left by a crash
    with suppress(FileNotFoundError):
        folder.rename(doomed)
        shutil.rmtree(doomed)


def free(folder: Path) -> int:
    """Bytes that this user may still write where the folder lies."""
    return shutil.disk_usage(folder).free
