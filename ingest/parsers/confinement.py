"""What a parsing process gives up before it meets the first document: memory, core dumps, files and the network.

Limits of the system do the first two. On Linux with Landlock the process can afterwards create, change or remove no
file and open no TCP connection; elsewhere it can write no large file.
"""

from __future__ import annotations

import ctypes
import os
import resource
import struct
import sys

from ingest.parsers.limits import ParseLimits

_OUTPUT_BYTES = 1 << 20  # of anything a parser prints, or tries to write to a file
_ADDRESS_SPACE = 2 << 30  # beyond memory_bytes: libraries, thread stacks and what is reserved but never touched
_CREATE_RULESET, _RESTRICT_SELF = 444, 446  # system calls, by the same numbers on every machine
_NO_NEW_PRIVILEGES = 38
_FILES = 0b1_1111_1111_0011  # run, write, remove and make files of any kind; not: read files, list folders
_TRUNCATE = 1 << 14
_TCP = 0b11  # bind, connect


def confine(limits: ParseLimits) -> None:
    """For the rest of this process's life; before it has a second thread."""
    os.nice(5)  # searches go first, but an encoder that uses every core must not starve what feeds it
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (_OUTPUT_BYTES, _OUTPUT_BYTES))
    lower(resource.RLIMIT_DATA, limits.memory_bytes)
    lower(resource.RLIMIT_AS, limits.memory_bytes + _ADDRESS_SPACE)
    if sys.platform == "linux":
        _landlock()


def lower(what: int, value: int) -> None:
    _, hard = resource.getrlimit(what)
    allowed = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(what, (allowed, hard))


def _landlock() -> bool:
    """Whether the kernel took the right to write and to connect away; an old one, or a container, may not."""
    libc = ctypes.CDLL(None)
    version = libc.syscall(_CREATE_RULESET, None, 0, 1)
    if version < 1:
        return False
    files = _FILES | (_TRUNCATE if version >= 3 else 0)
    rules = struct.pack("<QQ", files, _TCP) if version >= 4 else struct.pack("<Q", files)
    ruleset = libc.syscall(_CREATE_RULESET, rules, len(rules), 0)
    if ruleset < 0:
        return False
    libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    done = bool(libc.syscall(_RESTRICT_SELF, ruleset, 0) == 0)
    os.close(ruleset)
    return done
