"""Files of lines: written whole or not at all, read line by line in bounded memory; compressed or not.

Knows no format beyond bytes that end in a line feed.
"""

from __future__ import annotations

import gzip
import os
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, cast

from nvr_rag.errors import ConfigurationError, InvalidInput

MAX_LINE_BYTES = 256 * 2**20  # one document, as JSON
_GZIP = b"\x1f\x8b"
_LEVEL = 6


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write, for this user only, which appears under its name when the block ends well, replacing what was
    there; compressed when the name ends in .gz. Raises ConfigurationError where it cannot be written."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with _created(partial) as raw:
            if path.name.endswith(".gz"):
                with gzip.GzipFile(fileobj=raw, mode="wb", filename="", mtime=0, compresslevel=_LEVEL) as packed:
                    yield cast(BinaryIO, packed)
            else:
                yield raw
            raw.flush()
            os.fsync(raw.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise ConfigurationError(
            f"{path} cannot be written ({error.strerror or error}); nothing was left there: make room, or give "
            "another place"
        ) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def _created(path: Path) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb")


def private_folder(folder: Path) -> None:
    """Make a folder, and those above it that are not there, for this user only."""
    if not folder.is_dir():
        private_folder(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable against a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lines_of(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a file with their numbers, from 1, without line feeds; compressed or not is seen by itself.

    Raises InvalidInput: what is wrong with which line.
    """
    number = 0
    try:
        with _opened(path) as file:
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(line) > MAX_LINE_BYTES:
                    raise InvalidInput(
                        f"{path}, line {number}: longer than {MAX_LINE_BYTES} bytes, the most that a line may have"
                    )
                yield number, line.removesuffix(b"\n")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InvalidInput(
            f"{path}, after line {number}: cut off or damaged ({error}); copy or make the file again", field="path"
        ) from error
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror or error}", field="path") from error


def _opened(path: Path) -> BinaryIO:
    with path.open("rb") as file:
        packed = file.read(2) == _GZIP
    return cast(BinaryIO, gzip.open(path, "rb")) if packed else path.open("rb")
