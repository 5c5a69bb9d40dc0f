"""What is odd about a file is its name or its place: links in circles, pipes, and files that change under the reader.

`put` makes one; where something has to happen at the moment of reading, it returns what is to be called then.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from random import Random

Meanwhile = Callable[[], Callable[[], None]]  # called just before a file is read; what it returns, right afterwards

_PARTS = (
    b"line\nbreak",
    b"tab\tbell\x07",
    b"\xff\xfe",
    b"caf\xe9",
    b"\xe2\x80\xaereversed",
    b"-rf",
    b"a b  c",
    b"'\";$(x)`",
    b"%00%2e%2e%2f",
    b"\xf0\x9f\xa6\x86",
    b"..",
    b"con",
    b"a:b|c?*<>",
    b"\x1b[31m",
    b"\xed\xa0\x80",
    b"e\xcc\x81",
)


def odd_name(folder: Path, name: str, data: bytes, chance: Random) -> tuple[Path, None]:
    part = b"".join(chance.sample(_PARTS, chance.randrange(1, 4))) if chance.random() < 0.9 else b"x" * 230
    path = Path(os.fsdecode(os.fsencode(folder) + b"/z" + part + b"." + name.rpartition(".")[2].encode()))
    path.write_bytes(data)
    return path, None


def special(folder: Path, name: str, data: bytes, chance: Random) -> tuple[Path, None]:
    """Links in circles, to nothing and outwards, pipes, sockets, folders named like documents, a terabyte."""
    path = folder / name
    kind = chance.choice(
        ("loop", "two", "broken", "out", "folder link", "pipe", "socket", "folder", "locked", "long", "sparse")
    )
    if kind == "loop":
        path.symlink_to(path.name)
    elif kind == "two":
        other = folder / f"other-{name}"
        other.symlink_to(path.name)
        path.symlink_to(other.name)
    elif kind == "broken":
        path.symlink_to("nothing-there")
    elif kind == "out":
        path.symlink_to("/etc/hostname")
    elif kind == "folder link":
        path.symlink_to(folder, target_is_directory=True)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        _socket(path)
    elif kind == "sparse":
        path.touch()
        os.truncate(path, 1 << 40)
    elif kind == "folder":
        path.mkdir()
    elif kind == "locked":
        path.write_bytes(data)
        path.chmod(0)
    else:
        _deep_folder(path, data)
    return path, None


def _socket(path: Path) -> None:
    """Bound by a short name: a socket's path may have few characters."""
    here = os.open(path.parent, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(f"/proc/self/fd/{here}/{path.name}")
    os.close(here)


def _deep_folder(path: Path, data: bytes) -> None:
    for _ in range(12):
        path = path / ("d" * 200)
    path.mkdir(parents=True)
    (path / "a.txt").write_bytes(data[:1000])


def changing(folder: Path, name: str, data: bytes, chance: Random) -> tuple[Path, Meanwhile]:
    """A file that goes, changes, grows or becomes something else between the walk and the reading, or under it."""
    path = folder / name
    path.write_bytes(data)
    kinds: Mapping[str, Meanwhile] = {
        "gone": _once(path.unlink),
        "pipe": _once(lambda: (path.unlink(), os.mkfifo(path))),
        "folder": _once(lambda: (path.unlink(), path.mkdir())),
        "out": _once(lambda: (path.unlink(), path.symlink_to("/etc/hostname"))),
        "loop": _once(lambda: (path.unlink(), path.symlink_to(path.name))),
        "empty": _once(lambda: path.write_bytes(b"")),
        "another": _once(lambda: path.write_bytes(data[::-1])),
        "longer": _once(lambda: path.write_bytes(data * 2)),
        "growing": partial(_all_the_time, path, data, "ab"),
        "rewritten": partial(_all_the_time, path, data, "wb"),
    }
    return path, kinds[chance.choice(sorted(kinds))]


def _once(event: Callable[[], object]) -> Meanwhile:
    """Something that happens before the first attempt at the file only."""
    left = [event]

    def happen() -> Callable[[], None]:
        while left:
            left.pop()()
        return lambda: None

    return happen


def _all_the_time(path: Path, data: bytes, mode: str) -> Callable[[], None]:
    """Write into the file again and again until told to stop, up to 50 MB."""
    stop = threading.Event()

    def write() -> None:
        written = 0
        while not stop.is_set() and written < 50_000_000:
            with contextlib.suppress(OSError), path.open(mode) as file:
                written += file.write(data[: 100 + written % 977])
            stop.wait(0.0005)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()

    def end() -> None:
        stop.set()
        thread.join()

    return end
