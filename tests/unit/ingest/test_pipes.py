"""Messages over pipes: whole, by a deadline, and no larger than allowed, whatever the other side does."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from ingest.pipes import Late, Pipes

PROGRAMS = {
    "echo": "import os\nwhile data := os.read(0, 1000): os.write(1, data)",
    "deaf": "import time; time.sleep(60)",
    "gone": "",
    "slow": "import sys, time\nfor byte in (5).to_bytes(8, 'big') + b'hello':\n"
    "    sys.stdout.buffer.write(bytes([byte])); sys.stdout.flush(); time.sleep(0.01)\ntime.sleep(60)",
    "half": "import sys, time; sys.stdout.buffer.write((5).to_bytes(8, 'big') + b'hel'); sys.stdout.flush(); "
    "time.sleep(60)",
    "cut off": "import sys; sys.stdout.buffer.write((5).to_bytes(8, 'big') + b'hel')",
    "two": "import sys; sys.stdout.buffer.write(((1).to_bytes(8, 'big') + b'a') * 2 + (0).to_bytes(8, 'big'))",
    "much": "import sys, time; sys.stdout.buffer.write((2**62).to_bytes(8, 'big')); sys.stdout.flush(); time.sleep(60)",
}


@pytest.fixture
def child(request: pytest.FixtureRequest) -> Iterator[Pipes]:
    command = [sys.executable, "-I", "-c", PROGRAMS[request.param]]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield Pipes(process)
        process.kill()


def soon(seconds: float = 30) -> float:
    return time.monotonic() + seconds


def message(data: bytes) -> bytes:
    return len(data).to_bytes(8, "big") + data


@pytest.mark.parametrize("child", ["echo"], indirect=True)
def test_messages_of_any_size_come_back_whole(child: Pipes) -> None:
    for size in (0, 1, 60_000, 65_536, 100_001):
        data = bytes(range(251)) * (size // 251 + 1)
        child.send(message(data[:size]), soon())
        assert child.receive(1 << 20, soon(1e12)) == data[:size]  # a deadline may be as far away as somebody wants


@pytest.mark.parametrize("child", ["slow"], indirect=True)
def test_one_that_comes_byte_by_byte_is_put_together(child: Pipes) -> None:
    assert child.receive(100, soon()) == b"hello"


@pytest.mark.parametrize("child", ["two"], indirect=True)
def test_two_that_come_at_once_are_two(child: Pipes) -> None:
    assert [child.receive(100, soon()) for _ in range(3)] == [b"a", b"a", b""]
    with pytest.raises(EOFError):
        child.receive(100, soon())


@pytest.mark.parametrize("child", ["deaf", "half"], indirect=True)
def test_who_does_not_answer_is_late(child: Pipes) -> None:
    begun = time.monotonic()
    with pytest.raises(Late):
        child.receive(100, soon(0.3))
    assert 0.3 <= time.monotonic() - begun < 5


@pytest.mark.parametrize("child", ["deaf"], indirect=True)
def test_who_does_not_listen_is_late(child: Pipes) -> None:
    """A pipe holds 64 kB: the rest has nowhere to go."""
    with pytest.raises(Late):
        child.send(bytes(1 << 20), soon(0.3))


@pytest.mark.parametrize("child", ["slow"], indirect=True)
def test_a_deadline_is_for_the_whole_message(child: Pipes) -> None:
    with pytest.raises(Late):
        child.receive(100, soon(0.08))


@pytest.mark.parametrize("child", ["gone", "cut off"], indirect=True)
def test_the_end_of_the_child_is_no_message(child: Pipes) -> None:
    with pytest.raises(EOFError):
        child.receive(100, soon())
    with pytest.raises(OSError, match="Broken pipe"):
        child.send(bytes(1 << 20), soon())


@pytest.mark.parametrize("child", ["much"], indirect=True)
def test_nothing_is_read_of_one_that_is_too_large(child: Pipes) -> None:
    with pytest.raises(ValueError, match="a message of"):
        child.receive(100, soon())
