"""Looks over the shoulder of the sandbox: how long each file takes, how much memory its process has, and what is to
happen to the file at that moment."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from ingest.sandbox import ParsedFile, Sandbox
from tests.hostile.places import Meanwhile

_EVERY = 0.01  # seconds


class Watch:
    """While it is entered, `Sandbox.parse` is observed; with one child at a time, so that memory has one owner."""

    def __init__(self, meanwhile: Mapping[Path, Meanwhile]) -> None:
        self.seconds: dict[Path, float] = defaultdict(float)  # all attempts at a file together
        self.slowest: dict[Path, float] = defaultdict(float)  # one attempt
        self.child_mb: dict[Path, float] = defaultdict(float)
        self.own_mb = 0.0  # memory of this process that is no mapped file, at its peak
        self.before_mb = _own_mb()
        self._meanwhile = meanwhile
        self._real = Sandbox.parse
        self._now: tuple[Sandbox, Path] | None = None
        self._over = threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Self:
        watch = self

        def parse(sandbox: Sandbox, source: Path | bytes, *, name: str, media_type: str | None = None) -> ParsedFile:
            return watch._parse(sandbox, source, name, media_type)

        Sandbox.parse = parse  # type: ignore[method-assign]
        self._sampler.start()
        return self

    def __exit__(self, *_: object) -> None:
        Sandbox.parse = self._real  # type: ignore[method-assign]
        self._over.set()
        self._sampler.join()

    def _parse(self, sandbox: Sandbox, source: Path | bytes, name: str, media_type: str | None) -> ParsedFile:
        assert isinstance(source, Path)
        end: Any = None
        with contextlib.suppress(OSError):  # the second time, for what can happen only once
            end = self._meanwhile[source]() if source in self._meanwhile else None
        for process in _processes(sandbox):
            _forget_peak(process)
        self._now = sandbox, source
        started = time.monotonic()
        try:
            return self._real(sandbox, source, name=name, media_type=media_type)
        finally:
            took = time.monotonic() - started
            self._look()
            self._now = None
            self.seconds[source] += took
            self.slowest[source] = max(self.slowest[source], took)
            if end is not None:
                end()

    def _sample(self) -> None:
        while not self._over.wait(_EVERY):
            self._look()

    def _look(self) -> None:
        now = self._now
        self.own_mb = max(self.own_mb, _own_mb())
        if now is not None:
            sandbox, source = now
            for process in _processes(sandbox):
                self.child_mb[source] = max(self.child_mb[source], _mb(process, "VmHWM"))


def _processes(sandbox: Sandbox) -> list[str]:
    return [str(child._process.pid) for child in sandbox._all if child._process is not None]


def _forget_peak(process: str) -> None:
    """Let the kernel count the most memory from here on, where it can."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{process}/clear_refs").write_text("5")


def _own_mb() -> float:
    return _mb(str(os.getpid()), "RssAnon")


def _mb(process: str, what: str) -> float:
    try:
        with open(f"/proc/{process}/status", encoding="ascii", errors="replace") as lines:
            return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(what)), 0.0)
    except OSError:
        return 0.0
