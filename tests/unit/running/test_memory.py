"""Two heaps for all threads, and what is free given back, seen in what the C library and the system say."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

# Threads that hold memory at the same time each want a heap; malloc_info tells how many there are.
_COUNTED = """
import ctypes, os, sys, tempfile, threading
from nvr_rag.running import memory
memory.keep_less()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.fopen.restype, libc.fclose.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
libc.malloc_info.argtypes = [ctypes.c_int, ctypes.c_void_p]
barrier = threading.Barrier(8)
def hold():
    barrier.wait()
    libc.malloc(5000)
    barrier.wait()
threads = [threading.Thread(target=hold) for _ in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
with tempfile.NamedTemporaryFile() as file:
    stream = libc.fopen(file.name.encode(), b"w")
    libc.malloc_info(0, stream)
    libc.fclose(stream)
    print(open(file.name).read().count("<heap nr"))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="about glibc's heaps")
@pytest.mark.parametrize(("environment", "heaps"), [({}, range(1, 3)), ({"MALLOC_ARENA_MAX": "5"}, range(3, 6))])
def test_all_threads_share_two_heaps(environment: dict[str, str], heaps: range) -> None:
    done = subprocess.run([sys.executable, "-c", _COUNTED], env=environment, capture_output=True, text=True, timeout=60)
    assert int(done.stdout) in heaps, done.stderr


# Much is freed, and the last of it is not: glibc alone gives nothing of it back.
_GIVEN_BACK = """
import ctypes, re
from nvr_rag.running import memory
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
def resident():
    return int(re.search(r"RssAnon:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) // 1024
blocks = [libc.malloc(100_000) for _ in range(500)]
[ctypes.memset(block, 1, 100_000) for block in blocks]
[libc.free(block) for block in blocks[:-1]]
before = resident()
memory.give_back()
print(before - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="about glibc's heaps")
def test_what_is_free_is_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", _GIVEN_BACK], capture_output=True, text=True, timeout=60)
    assert int(done.stdout) > 40, done.stderr  # of 50 MB
