"""The child half of the sandbox: documents come in on stdin, their texts go out on stdout, and nothing else happens.

Each message is an 8-byte length and JSON; a request may be followed by the document's bytes. Before the first request
the process gives up what a parser does not need (`ingest.parsers.confinement`). Before a step that may not end well a
message marked "provisional" says what there is without it.
Import cost is start-up time, so only what is needed is imported.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import select
import signal
import struct
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from typing import IO, Any

from ingest.parsers.confinement import confine, lower
from ingest.parsers.file_bytes import read_file
from ingest.parsers.limits import ParseLimits
from ingest.parsing import parse_bytes
from nvr_rag.errors import ConfigurationError, ParseFailed
from nvr_rag.types import ParsedText

HEADER = struct.Struct(">Q")


def serve(limits_json: str) -> None:
    """Answer requests on stdin until it closes. The real stdout carries answers; prints of parsers go to stderr."""
    limits = ParseLimits(**json.loads(limits_json))
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent to handle
    confine(limits)
    threading.Thread(target=_die_with_parent, args=(requests.fileno(),), daemon=True).start()
    _send(answers, {"ready": True})
    while header := requests.read(HEADER.size):
        request = json.loads(read_exactly(requests, HEADER.unpack(header)[0]))
        body = read_exactly(requests, request["size"])
        _allow_cpu(limits.seconds)
        _send(answers, _answer(request, body, limits, partial(_send, answers)))


def _allow_cpu(seconds: float) -> None:
    """The kernel's own clock, in case the parent cannot keep the time: CPU seconds from here on."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    lower(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime + 2 * seconds) + 2)


def _die_with_parent(request_pipe: int) -> None:
    """Wait until the parent's end of the pipe is closed, which the system does when it dies in whatever way."""
    poll = select.poll()
    poll.register(request_pipe, 0)  # hang-up is reported without being asked for
    poll.poll()
    os._exit(0)


def _answer(
    request: Mapping[str, Any], body: bytes, limits: ParseLimits, say: Callable[[Mapping[str, Any]], None]
) -> dict[str, Any]:
    def begin_ocr(outcome: ParsedText | ParseFailed) -> None:
        _allow_cpu(limits.ocr_seconds)
        say({"provisional": True, **_outcome(outcome, sha256)})

    sha256 = ""
    try:
        data = body if request["path"] is None else read_file(request["path"], limits)
        sha256 = hashlib.sha256(data).hexdigest()
        parsed = parse_bytes(
            data,
            name=request["name"],
            media_type=request["media_type"],
            limits=limits,
            provisional=begin_ocr,
        )
        answer = _outcome(parsed, sha256)
    except ParseFailed as error:
        answer = _outcome(error, "")
    except ConfigurationError as error:
        answer = {"misconfigured": str(error)}
    except MemoryError:
        answer = {"failed": str(out_of_memory(limits)), "retire": True}
    except Exception as error:
        answer = {"failed": f"made the parser fail ({type(error).__name__}: {str(error)[:200]})"}
    return {"retire": _peak_bytes() > limits.memory_bytes // 4, **answer}


def _outcome(outcome: ParsedText | ParseFailed, sha256: str) -> dict[str, Any]:
    return {"failed": str(outcome)} if isinstance(outcome, ParseFailed) else {**asdict(outcome), "sha256": sha256}


def _peak_bytes() -> int:
    """The most memory that this process has had.

    On Linux not from getrusage: its figure survives exec, so that a small child of a process with a model in memory
    would look as fat as its parent.
    """
    try:
        with open("/proc/self/status", encoding="ascii") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _send(pipe: IO[bytes], answer: Mapping[str, Any]) -> None:
    message = json.dumps(answer, ensure_ascii=False).encode("utf-8", "replace")
    pipe.write(HEADER.pack(len(message)) + message)
    pipe.flush()


def read_exactly(pipe: IO[bytes], size: int) -> bytes:
    data = pipe.read(size)
    if len(data) < size:
        raise EOFError
    return data


def out_of_memory(limits: ParseLimits) -> ParseFailed:
    return ParseFailed(f"needs more than {limits.memory_bytes / 2**30:.2g} GB of memory to parse; split it")
