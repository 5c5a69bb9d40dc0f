"""Starting, killing and waiting for the processes of `tests.killing.program`, from outside."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 90.0  # after which something that should have ended never will
_THREADS = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class Stuck(Exception):
    """Something that should have happened has not; its text says what."""


class Child:
    """A process, the leader of its group; what it says goes to two files."""

    def __init__(self, nursery: Nursery, pid: int, name: str, files: tuple[Path, Path]) -> None:
        self.pid, self.name = pid, name
        self.started = time.monotonic()
        self._stdout, self._stderr = files
        self._nursery = nursery
        self._descriptor = os.pidfd_open(pid)
        self.code: int | None = None  # once it has ended; negative for a signal

    def wait(self, seconds: float) -> int | None:
        """Its exit code once it has ended, at most so long from now; None while it runs."""
        if self.code is None:
            poll = select.poll()
            poll.register(self._descriptor, select.POLLIN)
            if poll.poll(max(0.0, seconds) * 1000):
                self.code = self._nursery.code(self.pid)
                os.close(self._descriptor)
        return self.code

    def finish(self) -> int:
        """Its exit code; raises Stuck when it does not end by itself."""
        code = self.wait(PATIENCE_SECONDS)
        if code is None:
            self.kill()
            raise Stuck(f"{self.name} did not end within {PATIENCE_SECONDS:.0f} s: {self.errors[-500:]}")
        return code

    def kill(self) -> None:
        """SIGKILL to it and everything that it has started; returns when it is gone."""
        if self.wait(0) is None:
            os.killpg(self.pid, signal.SIGKILL)
            self.finish()

    def stop(self) -> int:
        """SIGTERM; its exit code."""
        if self.wait(0) is None:
            os.kill(self.pid, signal.SIGTERM)
        return self.finish()

    @property
    def said(self) -> dict[str, Any] | None:
        """The JSON document on its stdout, once that is whole."""
        try:
            document = json.loads(self._stdout.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return document if isinstance(document, dict) else None

    @property
    def errors(self) -> str:
        """What it said on stderr."""
        try:
            return self._stderr.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""


class Nursery:
    """The program that forks the processes; a context manager, at whose end all of them are dead."""

    def __init__(self) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("NVR_")}
        self._environment = {**environment, **_THREADS}
        self._count = 0
        self._program = subprocess.Popen(
            [sys.executable, "-m", "tests.killing.program"],
            cwd=ROOT,
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answer()

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *_: object) -> None:
        with self._program:
            assert self._program.stdin is not None
            self._program.stdin.close()

    def start(self, arguments: Sequence[str], environment: Mapping[str, str], folder: Path) -> Child:
        """Run `nvr-rag` with these arguments and settings; its output goes to files in the folder."""
        self._count += 1
        name = f"{self._count:04d}-{arguments[0].strip('-')}"
        files = folder / f"{name}.out", folder / f"{name}.err"
        request = {
            "arguments": list(arguments),
            "environment": {**self._environment, **environment},
            "stdout": str(files[0]),
            "stderr": str(files[1]),
        }
        return Child(
            self, int(self._ask(request)["pid"]), f"nvr-rag {' '.join(arguments)}".removesuffix(" --json"), files
        )

    def code(self, pid: int) -> int:
        """The exit code of a process that has ended."""
        while (code := self._ask({"pid": pid})["code"]) is None:
            time.sleep(0.001)
        return int(code)

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        assert self._program.stdin is not None
        self._program.stdin.write(json.dumps(request) + "\n")
        self._program.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._program.stdout is not None
        line = self._program.stdout.readline()
        if not line:
            raise Stuck(f"the program that forks has ended with {self._program.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer
