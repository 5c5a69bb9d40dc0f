"""One of several server processes: `python -m nvr_rag.api.child DESCRIPTOR NAME FOLDER`, begun by supervising.py.

The listening socket comes with its descriptor, the settings with the environment. It says on stdout when it answers,
counts in the folder under its name, and ends as on SIGTERM when its stdin does: its parent is gone.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import NoReturn

from nvr_rag.api.server import serve
from nvr_rag.errors import NvrError
from nvr_rag.observing import logs, metrics
from nvr_rag.observing.metrics import Metrics
from nvr_rag.running import memory
from nvr_rag.settings import load_settings
from nvr_rag.workspace import Workspace

log = logging.getLogger(__name__)


def main(descriptor: int, name: str, folder: Path) -> NoReturn:
    """Serve until SIGTERM or SIGINT, and end the process."""
    memory.keep_less()
    settings = load_settings()
    logs.begin(settings)
    threading.Thread(target=_die_with_parent, name="parent", daemon=True).start()
    metrics.share(folder, name)
    with socket.socket(fileno=descriptor) as listener:
        try:
            with Workspace(settings) as workspace:
                serve(workspace, [], listener, on_ready=_say, figures=Metrics(folder))
        except NvrError as error:
            log.error("%s", error)
            sys.exit(1)
    logging.shutdown()
    os._exit(0)  # all is closed; taking the models' libraries apart would take seconds


def _say(_url: str) -> None:
    os.write(sys.stdout.fileno(), b"!")


def _die_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
