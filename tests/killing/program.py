"""The product as processes that can be killed: imports everything once, then forks `nvr-rag` for each request.

    python -m tests.killing.program        requests on stdin, answers on stdout, a line of JSON each

A fork is a process of its own that runs the real command line, so a kill hits what a command does, and not the two
seconds in which Python imports it. Four things differ from a fresh `nvr-rag`: encoders are doubles that live in model
directories, batches are small, a server that stopped beating is dead after seconds, and so is a lease. The end of
stdin ends the program and kills whatever still runs.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import sys
import threading
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn
from uuid import uuid4

from nvr_rag.encoders.base import Encoder
from nvr_rag.errors import EncoderError
from nvr_rag.testing import HashEncoder

DIMENSION = 256  # directions of words are nearly orthogonal: a word that only one document has finds it
MAX_TOKENS = 64
DEAD_AFTER_SECONDS = 4.0  # of a server without a heartbeat; of jobs and leases, twice as many
_HEARTBEAT_SECONDS = 0.5
_SMALL = 8  # documents, changes and chunks at a time
_SEED_FILE = "double.json"
_PRELOADED = (
    "nvr_rag.cli",
    "nvr_rag.workspace",
    "nvr_rag.api.server",
    "nvr_rag.stores.edge",
    "nvr_rag.stores.server",
    "nvr_rag.output",
    "rich.progress",
    "rich.table",
    "ingest.cli",
    "ingest.pipeline",
    "ingest.worker",
    "alembic.command",
    "sqlalchemy.dialects.sqlite",
    "psycopg",
)


class SavedEncoder(HashEncoder):
    """A double whose seed can be saved as a model directory."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed=seed, dimension=DIMENSION, max_tokens=MAX_TOKENS, query_prompt="")
        self.seed = seed


def save_model(seed: int, directory: Path) -> None:
    """Make a model directory, whole or not at all."""
    fresh = directory.with_name(f".{directory.name}-{uuid4().hex}")
    fresh.mkdir(parents=True)
    with (fresh / _SEED_FILE).open("w", encoding="utf-8") as file:
        file.write(json.dumps({"seed": seed}))
        file.flush()
        os.fsync(file.fileno())
    try:
        fresh.rename(directory)
    except OSError as error:
        shutil.rmtree(fresh)
        raise EncoderError(f"{directory} exists already") from error


def _load_encoder(source: str, *, threads: int | None = None) -> Encoder:
    try:
        return SavedEncoder(json.loads((Path(source) / _SEED_FILE).read_text(encoding="utf-8"))["seed"])
    except (OSError, ValueError) as error:
        raise EncoderError(f"no model directory at {source!r}") from error


def _export(encoder: Encoder, directory: Path) -> None:
    assert isinstance(encoder, SavedEncoder)
    save_model(encoder.seed, directory)


def install() -> None:
    """Put the doubles in the place of the model library, and make steps small and waits short."""
    from ingest import pipeline
    from nvr_rag import jobs
    from nvr_rag.running import processes
    from nvr_rag.upkeep import leases, rounds

    library = ModuleType("nvr_rag.encoders.torch")
    library.__dict__.update(load_encoder=_load_encoder, export=_export)
    sys.modules[library.__name__] = library
    rounds.CHANGES_A_ROUND = rounds.CHUNKS_A_GROUP = _SMALL
    pipeline._BATCH_DOCUMENTS = _SMALL
    jobs.LEASE_SECONDS = leases.LEASE_SECONDS = 2 * DEAD_AFTER_SECONDS
    processes.HEARTBEAT_SECONDS, processes.DEAD_AFTER_SECONDS = _HEARTBEAT_SECONDS, DEAD_AFTER_SECONDS


class Forks:
    """The processes that were forked here and have not been reaped."""

    def __init__(self) -> None:
        self._running: set[int] = set()
        self._codes: dict[int, int] = {}

    def start(self, request: dict[str, Any]) -> int:
        """Fork; in the child, become the process that the request describes and raise _Forked."""
        pid = os.fork()
        if pid == 0:
            _become(request)
            raise _Forked(request["arguments"])
        os.setpgid(pid, pid)
        self._running.add(pid)
        return pid

    def code(self, pid: int) -> int | None:
        """The exit code of a process, negative for a signal; None while it runs."""
        if pid in self._running:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                self._running.discard(pid)
                self._codes[pid] = os.waitstatus_to_exitcode(status)
        return self._codes.get(pid)

    def end(self) -> None:
        for pid in self._running:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


class _Forked(Exception):
    """This is the child now; its argument is the command line."""


def _become(request: dict[str, Any]) -> None:
    os.setpgid(0, 0)  # a kill of the group takes the parsers with it
    for number, path, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, request["stdout"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
        (2, request["stderr"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
    ):
        descriptor = os.open(path, flags, 0o600)
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(request["environment"])


def _serve(forks: Forks) -> None:
    _answer({"ready": True})
    for line in sys.stdin:
        request = json.loads(line)
        _answer({"pid": forks.start(request)} if "arguments" in request else {"code": forks.code(request["pid"])})
    forks.end()


def _answer(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


def main() -> None:
    """Serve requests; in a child, run `nvr-rag`."""
    install()
    for name in _PRELOADED:
        importlib.import_module(name)
    assert threading.active_count() == 1 == len(os.listdir("/proc/self/task")), "a fork would lose the other threads"
    try:
        _serve(Forks())
    except _Forked as fork:
        _run(fork.args[0])


def _run(arguments: list[str]) -> NoReturn:
    """Run `nvr-rag` and leave at once: to take apart all that was imported takes longer than most commands."""
    from nvr_rag.cli import main as command_line

    sys.argv = ["nvr-rag", *arguments]
    code: object = 1
    try:
        command_line()
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    main()
