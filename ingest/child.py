"""The child half of the sandbox: documents come in on stdin, their texts go out on stdout, and nothing else happens.

Each message is an 8-byte length and JSON; a request may be followed by the document's bytes. Before the first request
the process gives up what a parser does not need: its niceness, core dumps, large files, memory beyond the limits.
Import cost is start-up time, so only what is needed is imported.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import select
import signal
import stat
import struct
import sys
import threading
from collections.abc import Mapping
from dataclasses import asdict
from typing import IO, Any

from ingest.parsing import ParseLimits, check_size, parse_bytes
from nvr_rag.errors import ConfigurationError, ParseFailed

HEADER = struct.Struct(">Q")
_OUTPUT_BYTES = 1 << 20  # of anything a parser prints, or tries to write to a file
_ADDRESS_SPACE = 2 << 30  # beyond memory_bytes: libraries, thread stacks and what is reserved but never touched


def serve(limits_json: str) -> None:
    """Answer requests on stdin until it closes. The real stdout carries answers; prints of parsers go to stderr."""
    limits = ParseLimits(**json.loads(limits_json))
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent to handle
    _confine(limits)
    threading.Thread(target=_die_with_parent, args=(requests.fileno(),), daemon=True).start()
    _send(answers, {"ready": True})
    while header := requests.read(HEADER.size):
        request = json.loads(read_exactly(requests, HEADER.unpack(header)[0]))
        body = read_exactly(requests, request["size"])
        _allow_cpu(limits)
        _send(answers, _answer(request, body, limits))


def _confine(limits: ParseLimits) -> None:
    os.nice(5)  # searches go first, but an encoder that uses every core must not starve what feeds it
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (_OUTPUT_BYTES, _OUTPUT_BYTES))
    _lower(resource.RLIMIT_DATA, limits.memory_bytes)
    _lower(resource.RLIMIT_AS, limits.memory_bytes + _ADDRESS_SPACE)


def _lower(what: int, value: int) -> None:
    _, hard = resource.getrlimit(what)
    allowed = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(what, (allowed, hard))


def _allow_cpu(limits: ParseLimits) -> None:
    """The kernel's own clock, in case the parent cannot keep the time: CPU seconds from here on."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _lower(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime + 2 * limits.seconds) + 2)


def _die_with_parent(request_pipe: int) -> None:
    """Wait until the parent's end of the pipe is closed, which the system does when it dies in whatever way."""
    poll = select.poll()
    poll.register(request_pipe, 0)  # hang-up is reported without being asked for
    poll.poll()
    os._exit(0)


def _answer(request: Mapping[str, Any], body: bytes, limits: ParseLimits) -> dict[str, Any]:
    try:
        data = body if request["path"] is None else _read_file(request["path"], limits)
        parsed = parse_bytes(data, name=request["name"], media_type=request["media_type"], limits=limits)
        answer = {**asdict(parsed), "sha256": hashlib.sha256(data).hexdigest()}
    except ParseFailed as error:
        answer = {"failed": str(error)}
    except ConfigurationError as error:
        answer = {"misconfigured": str(error)}
    except MemoryError:
        answer = {"failed": str(out_of_memory(limits)), "retire": True}
    except Exception as error:
        answer = {"failed": f"made the parser fail ({type(error).__name__}: {str(error)[:200]})"}
    return {"retire": _peak_bytes() > limits.memory_bytes // 4, **answer}


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


def _read_file(path: str, limits: ParseLimits) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a named pipe must not block
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ParseFailed("is not a regular file")
            check_size(status.st_size, limits)
            data = file.read(limits.input_bytes + 1)  # it may have grown since
    except FileNotFoundError as error:
        raise ParseFailed("is gone") from error
    except OSError as error:
        raise ParseFailed(f"cannot be read: {error.strerror or error}") from error
    check_size(len(data), limits)
    return data


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
