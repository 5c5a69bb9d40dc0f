"""Parsing in child processes: a file that hangs, crashes or devours memory costs its own text and nothing else.

    with Sandbox() as sandbox:
        parsed_file = sandbox.parse(Path("report.pdf"), name="report.pdf")

The parent starts `ingest.parsers.child` in a fresh, small interpreter (never a fork of a process with threads) and
speaks to it over two pipes. Messages are JSON in both directions, because a child that read a hostile file must not be
trusted with anything richer. A child is reused for many documents, and ends with its parent: the end of the request
pipe kills it even in the middle of a document."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from ingest.parsers.child import HEADER, out_of_memory
from ingest.parsers.limits import DEFAULT_LIMITS, ParseLimits, check_size
from ingest.parsers.texts import clean, json_metadata
from ingest.pipes import Late, Pipes
from nvr_rag.errors import ConfigurationError, NvrError, ParseFailed
from nvr_rag.types import ParsedText, TextFormat

DOCUMENTS_PER_CHILD = 500
_START_SECONDS = 60.0
_CLOSED = "parsing was stopped before this document was done; run it again"
_PACKAGES = str(Path(__file__).resolve().parent.parent)
_PROGRAM = "import sys; sys.path.append(sys.argv[1]); from ingest.parsers.child import serve; serve(sys.argv[2])"


@dataclass(frozen=True, kw_only=True, slots=True)
class ParsedFile:
    """A document's text and the hash of exactly the bytes that it was made from."""

    parsed: ParsedText
    sha256: str  # hex


class Sandbox:
    """A pool of parsing children, started when first needed; safe to share between threads."""

    def __init__(self, limits: ParseLimits = DEFAULT_LIMITS, *, children: int = 1) -> None:
        self._all = [_Child(limits) for _ in range(children)]
        self._idle: queue.LifoQueue[_Child] = queue.LifoQueue()  # the one used last is warm
        for child in self._all:
            self._idle.put(child)

    def parse(self, source: Path | bytes, *, name: str, media_type: str | None = None) -> ParsedFile:
        """The text of a file, which the child reads itself, or of bytes; waits for an idle child.

        Raises ParseFailed with a reason that reads on from the file's name; ConfigurationError when no child can be
        started at all; NvrError when the sandbox is closed.
        """
        child = self._idle.get()
        try:
            return child.parse(source, name, media_type)
        finally:
            self._idle.put(child)

    def close(self) -> None:
        """End the children; a document that one is parsing raises NvrError in its thread, and so does `parse` later."""
        for child in self._all:
            child.kill()
        idle = [self._idle.get() for _ in self._all]  # busy ones come back at once: their process is dead
        for child in idle:
            child.stop()
            self._idle.put(child)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Child:
    """One child process and the documents it is given, one at a time; replaced when it is dead, old or fat."""

    def __init__(self, limits: ParseLimits) -> None:
        self._limits = limits
        self._most_bytes = 8 * limits.characters + (1 << 22)  # of an answer
        self._process: subprocess.Popen[bytes] | None = None
        self._pipes: Pipes | None = None  # of that process
        self._output: IO[bytes] | None = None
        self._parsed = 0
        self._provisional: Mapping[str, Any] | None = None  # what the document has if the child dies over it now
        self._closed = False

    def parse(self, source: Path | bytes, name: str, media_type: str | None) -> ParsedFile:
        body = source if isinstance(source, bytes) else b""
        if body:
            check_size(len(body), self._limits)
        path = os.fspath(source) if isinstance(source, Path) else None
        answer = self._ask({"path": path, "size": len(body), "name": name, "media_type": media_type}, body)
        self._parsed += 1
        if self._parsed >= DOCUMENTS_PER_CHILD or answer.get("retire"):
            self.stop()
        return _parsed_file(answer)

    def _running(self) -> subprocess.Popen[bytes]:
        if self._closed:
            raise NvrError(_CLOSED)
        if self._process is None or self._process.poll() is not None:
            self.stop()
            self._process = self._start()
        return self._process

    def _start(self) -> subprocess.Popen[bytes]:
        self._output = tempfile.TemporaryFile("a+b")  # noqa: SIM115  # closed by stop
        arguments = [_PACKAGES, json.dumps(asdict(self._limits))]
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-P", "-c", _PROGRAM, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._output,
            env=_environment(),
        )
        self._process, self._pipes, self._parsed = process, Pipes(process), 0
        greeting, _ = self._exchange(process, b"", _START_SECONDS)
        if greeting is None:
            said = self._last_words() or f"exit code {process.poll()}"
            self.stop()
            raise ConfigurationError(f"the parsing process does not start with {sys.executable}: {said}")
        return process

    def _ask(self, request: Mapping[str, Any], body: bytes) -> Mapping[str, Any]:
        process = self._running()
        assert self._output is not None
        os.ftruncate(self._output.fileno(), 0)
        message = json.dumps(request).encode()
        answer, late = self._exchange(process, HEADER.pack(len(message)) + message + body, self._limits.seconds)
        if answer is not None:
            return answer
        fresh, death = self._parsed == 0, self._death(self._collect(process), self._last_words(), late=late)
        self.stop()
        if self._closed:
            raise NvrError(_CLOSED)
        if self._provisional is not None:
            return self._provisional
        if fresh or late:
            raise death
        return self._ask(request, body)  # what earlier documents left behind may be to blame

    def _exchange(
        self, process: subprocess.Popen[bytes], message: bytes, seconds: float
    ) -> tuple[Mapping[str, Any] | None, bool]:
        """Send, then read one answer, killing the child when time is up: (answer or None, whether it was killed)."""
        assert self._pipes is not None
        until = time.monotonic() + seconds
        self._provisional = None
        try:
            self._pipes.send(message, until)
            answer = _read_answer(self._pipes, self._most_bytes, until)
            if answer.get("provisional"):
                self._provisional = answer
                until = time.monotonic() + self._limits.ocr_seconds
                answer = _read_answer(self._pipes, self._most_bytes, until)
            return answer, False
        except (OSError, ValueError, EOFError, RecursionError):  # a broken pipe, or nonsense
            return None, False
        except Late:
            process.kill()
            process.wait()
            return None, True
        except BaseException:  # Ctrl-C: an answer that nobody reads must not become that of the next document
            process.kill()
            process.wait()
            raise

    def _collect(self, process: subprocess.Popen[bytes]) -> int:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(1)
        process.kill()
        return process.wait()

    def _last_words(self) -> str:
        if self._output is None:
            return ""
        size = os.fstat(self._output.fileno()).st_size
        tail = os.pread(self._output.fileno(), 2000, max(0, size - 2000)).decode("utf-8", "replace")
        return " ".join(tail.split())[-500:]

    def _death(self, code: int, said: str, *, late: bool) -> ParseFailed:
        if late or code == -signal.SIGXCPU:
            return ParseFailed(f"took longer than {self._limits.seconds:g} s to parse and was given up")
        if "memory allocation" in said or "MemoryError" in said or code == -signal.SIGKILL:  # by the system
            return out_of_memory(self._limits)
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return ParseFailed(f"made the parser crash ({how}); the file is probably damaged")

    def kill(self) -> None:
        """End the process for good; safe from any thread."""
        self._closed = True
        process = self._process
        if process is not None:
            process.kill()

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):  # what could not be flushed any more
                        pipe.close()
        if self._output is not None:
            self._output.close()
            self._output = None


def _environment() -> dict[str, str]:
    """The parent's, without our own settings: a parser needs no secrets."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("NVR_")}
    return {**inherited, "MALLOC_ARENA_MAX": "2", "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def _read_answer(pipes: Pipes, limit: int, until: float) -> Mapping[str, Any]:
    answer = json.loads(pipes.receive(limit, until))
    if not isinstance(answer, dict):
        raise ValueError("an answer that is not an object")
    return answer


def _parsed_file(answer: Mapping[str, Any]) -> ParsedFile:
    """The answer as records, believing nothing. Raises what the child reports, and ParseFailed for nonsense."""
    if isinstance(answer.get("misconfigured"), str):
        raise ConfigurationError(answer["misconfigured"])
    if isinstance(answer.get("failed"), str):
        raise ParseFailed(answer["failed"][:1000])
    try:
        text, starts = str(answer["text"]), [int(start) for start in answer["page_starts"]]
        if starts != sorted(starts) or (starts and not 0 <= starts[0] <= starts[-1] <= len(text)):
            raise ValueError("page starts outside the text")
        if clean(text) != text:
            raise ValueError("control characters in the text")
        parsed = ParsedText(
            text=text,
            format=TextFormat(answer["format"]),
            media_type=str(answer["media_type"]),
            title=str(answer["title"]),
            page_starts=starts,
            metadata=json_metadata(answer["metadata"]),
            notes=[str(note) for note in answer["notes"]],
        )
        return ParsedFile(parsed=parsed, sha256=str(answer["sha256"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ParseFailed("made the parser answer nonsense; the file is probably damaged") from error
