"""The graph of a large Edge index, built by a child process: every call of Edge holds the interpreter lock, and this
one takes seconds to minutes.

The owner's lock goes to the child with its descriptor, so the index has one owner throughout. The child dies with the
parent; what it leaves can be opened, as after any crash, and optimised again.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

from nvr_rag.errors import Stopped, StoreError

_LOOK_SECONDS = 0.2  # between two looks whether to stop
_LAST_CHARACTERS = 500  # of what a child said before it died, in the error
_DIES_WITH_PARENT = 1  # PR_SET_PDEATHSIG
_NICENESS = 10


def optimize_in_child(folder: Path, lock: int, stop: threading.Event | None) -> None:
    """Optimise the shard of an index that nobody has loaded; `lock` is its owner's. Raises Stopped, StoreError."""
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, "-P", "-m", "nvr_rag.stores.optimizing", str(folder)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        pass_fds=(lock,),
    )
    with process:
        try:
            said = _followed(process, stop)
        finally:
            process.kill()
    if process.returncode:
        raise StoreError(f"the index {folder.name} could not be optimised ({process.returncode}): {said}")


def _followed(process: subprocess.Popen[bytes], stop: threading.Event | None) -> str:
    """Wait for the child's end; what it said last."""
    while True:
        try:
            _, said = process.communicate(timeout=_LOOK_SECONDS)
        except subprocess.TimeoutExpired:
            if stop is not None and stop.is_set():
                raise Stopped("stopped while an index was optimised; it can be begun again") from None
        else:
            return said.decode(errors="replace")[-_LAST_CHARACTERS:].strip()


def main() -> None:
    """The child: `python -m nvr_rag.stores.optimizing FOLDER`."""
    from nvr_rag.stores.edge_segments import optimize_shard

    with suppress(OSError, AttributeError):  # elsewhere than on Linux it goes on to its end
        ctypes.CDLL(None).prctl(_DIES_WITH_PARENT, signal.SIGKILL)
    os.nice(_NICENESS)
    optimize_shard(Path(sys.argv[1]))


if __name__ == "__main__":
    main()
