from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ingest.parsers import file_bytes
from ingest.parsers.file_bytes import CHANGED, open_regular, read_file
from ingest.parsers.limits import ParseLimits
from nvr_rag.errors import ParseFailed

LIMITS = ParseLimits(input_bytes=1000)


@pytest.fixture
def between(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[Callable[[], object]]], None]:
    """Has something happen after the bytes of each reading, one entry a reading."""

    def install(events: list[Callable[[], object]]) -> None:
        real = file_bytes._at_most

        def patched(file: file_bytes.BinaryIO, size: int) -> bytes:
            data = real(file, size)
            if events:
                events.pop(0)()
            return data

        monkeypatch.setattr(file_bytes, "_at_most", patched)

    return install


def failure(path: Path) -> str:
    with pytest.raises(ParseFailed) as raised:
        read_file(path, LIMITS)
    return str(raised.value)


def test_a_file_that_changed_once_is_read_again(
    tmp_path: Path, between: Callable[[list[Callable[[], object]]], None]
) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"old")
    between([lambda: path.write_bytes(b"newer")])
    assert read_file(path, LIMITS) == b"newer"


def test_one_that_keeps_changing_fails_with_words_that_say_what_comes_next(
    tmp_path: Path, between: Callable[[list[Callable[[], object]]], None]
) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"old")
    between([lambda: path.write_bytes(b"newer"), lambda: path.write_bytes(b"newest")])
    assert failure(path) == CHANGED
    assert read_file(path, LIMITS) == b"newest"


def test_a_change_of_the_same_length_is_noticed(
    tmp_path: Path, between: Callable[[list[Callable[[], object]]], None]
) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"old")
    os.utime(path, ns=(0, 10**9))
    between([lambda: path.write_bytes(b"new")])
    assert read_file(path, LIMITS) == b"new"


def test_a_file_that_shrinks_or_grows_while_it_is_read(
    tmp_path: Path, between: Callable[[list[Callable[[], object]]], None]
) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"0123456789")
    between([lambda: os.truncate(path, 3), lambda: path.write_bytes(b"x" * 2000)])
    assert failure(path) == CHANGED
    assert failure(path).startswith("is larger than")


def test_a_file_replaced_by_another_is_the_one_that_was_opened(
    tmp_path: Path, between: Callable[[list[Callable[[], object]]], None]
) -> None:
    path, other = tmp_path / "a.txt", tmp_path / "b.txt"
    path.write_bytes(b"old")
    other.write_bytes(b"new one")
    between([lambda: other.rename(path)])
    assert read_file(path, LIMITS) == b"old"


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "empty").touch()
    assert failure(tmp_path / "pipe") == "is not a regular file"
    assert failure(tmp_path) == "is not a regular file"
    assert failure(Path("/dev/zero")) == "is not a regular file"
    assert failure(tmp_path / "loop") == "cannot be read: Too many levels of symbolic links"
    assert failure(tmp_path / "gone") == "is gone"
    assert failure(tmp_path / "empty") == "is empty (0 bytes)"
    with pytest.raises(ParseFailed, match="regular"):
        open_regular(tmp_path / "pipe")
