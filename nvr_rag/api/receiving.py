"""The body of an upload on its way in: small fields into memory, files onto the disk, nothing of it half.

Bytes of multipart/form-data enter; fields and synced files in the folder of uploads leave. What is wrong is said once
the client has finished sending, so that it hears it; whatever was written by then is deleted.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from nvr_rag import disk
from nvr_rag.api.multipart import End, Head, Malformed, Parser, boundary_of
from nvr_rag.errors import InvalidInput, NoRoom, NvrError
from nvr_rag.ids import new_id
from nvr_rag.transfer.files import sync_folder
from nvr_rag.uploads import Folder, no_room

FILE = "file"  # the name of the parts that are files
MAX_FILES = 100
MAX_FIELD_BYTES = 300_000
_MAX_FIELDS = 20
_BATCH_BYTES = 2**20  # that are written at a time, outside the event loop
_SPARE_BYTES = 64 * 2**20  # that must be free beside what is announced


@dataclass(frozen=True, kw_only=True, slots=True)
class Received:
    """A file that lies in the folder, synced."""

    file: str  # its name there
    name: str  # what the client calls it
    media_type: str
    size: int  # bytes
    sha256: str  # hex


class Receiver:
    """Takes one request's parts. Every file that it has written is deleted by `discard`."""

    def __init__(self, folder: Folder, *, max_file_bytes: int) -> None:
        self.fields: dict[str, str] = {}
        self.files: list[Received] = []
        self._folder, self._max_file_bytes = folder, max_file_bytes
        self._written: list[str] = []
        self._head: Head | None = None
        self._field = bytearray()
        self._file: BinaryIO | None = None
        self._hash, self._size = hashlib.sha256(), 0

    async def receive(self, request: Request) -> None:
        """Take the whole body. Raises InvalidInput, Malformed, NoRoom; HTTPException for a file that is too large."""
        wrong, pending = self._check(request.headers), bytearray()
        parser = Parser(b"" if wrong else boundary_of(request.headers.get("content-type", "")))
        try:
            async for chunk in request.stream():
                if wrong is None:
                    pending += chunk
                if len(pending) >= _BATCH_BYTES:
                    wrong = await run_in_threadpool(self._take, parser, bytes(pending))
                    pending.clear()
        except ClientDisconnect as error:
            raise Malformed("the connection was lost before the whole body was there") from error
        if wrong is None:
            wrong = await run_in_threadpool(self._finish, parser, bytes(pending))
        if wrong is not None:
            raise wrong

    def discard(self) -> None:
        """Delete what was written."""
        if self._file is not None:
            self._file.close()
        self._folder.remove(self._written)

    def _check(self, headers: Mapping[str, str]) -> Exception | None:
        """What is wrong before anything is read."""
        try:
            boundary_of(headers.get("content-type", ""))
        except Malformed as error:
            return error
        announced = headers.get("content-length", "")
        if announced.isdigit() and disk.free(self._folder.path) < int(announced) + _SPARE_BYTES:
            return NoRoom(
                f"there is no room on the disk of {self._folder.path} for {int(announced):,} bytes; make room there, "
                "and send it again"
            )
        return None

    def _take(self, parser: Parser, data: bytes) -> Exception | None:
        """Take some bytes; what is wrong with them."""
        try:
            with no_room(self._folder.path):
                for event in parser.feed(data):
                    if isinstance(event, Head):
                        self._begin(event)
                    elif isinstance(event, End):
                        self._end()
                    else:
                        self._content(event)
        except (NvrError, HTTPException) as error:
            return error
        return None

    def _finish(self, parser: Parser, data: bytes) -> Exception | None:
        wrong = self._take(parser, data)
        if wrong is not None:
            return wrong
        try:
            parser.end()
            with no_room(self._folder.path):
                sync_folder(self._folder.path)
        except NvrError as error:
            return error
        return None

    def _begin(self, head: Head) -> None:
        self._head, self._size, self._hash = head, 0, hashlib.sha256()
        self._field.clear()
        if head.name != FILE and (head.name in self.fields or len(self.fields) >= _MAX_FIELDS):
            raise InvalidInput(
                f"{head.name[:80]} is there more than once, or there are too many fields", field=head.name
            )
        if (head.name == FILE) != (head.filename is not None):
            raise InvalidInput(_not_a_file(head), field=head.name[:80])
        if head.name == FILE:
            if len(self.files) >= MAX_FILES:
                raise InvalidInput(f"there are more than {MAX_FILES} files; send fewer at once", field=FILE)
            self._file = self._create()

    def _create(self) -> BinaryIO:
        name = new_id()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        made = os.fdopen(os.open(self._folder.path / name, flags, 0o600), "wb", buffering=0)
        self._written.append(name)
        return made

    def _content(self, data: bytes) -> None:
        self._size += len(data)
        if self._file is None:
            self._field += data
            if len(self._field) > MAX_FIELD_BYTES:
                name = self._head.name if self._head else ""
                raise InvalidInput(f"{name[:80]} is longer than {MAX_FIELD_BYTES:,} bytes", field=name[:80])
            return
        if self._size > self._max_file_bytes:
            raise HTTPException(
                413,
                f"a file is larger than {self._max_file_bytes} bytes; split it into smaller ones, "
                "or raise NVR_INGEST__MAX_FILE_BYTES on the server",
                {"Connection": "close"},
            )
        self._hash.update(data)
        left = memoryview(data)
        while left:
            left = left[self._file.write(left) :]

    def _end(self) -> None:
        assert self._head is not None
        if self._file is None:
            self.fields[self._head.name] = _text(self._head.name, bytes(self._field))
            return
        with self._file:
            os.fsync(self._file.fileno())
        self._file = None
        if self._size == 0 and not self._head.filename:  # what a browser sends where no file was chosen
            self._folder.remove([self._written.pop()])
            return
        if self._size == 0:
            raise InvalidInput(f"the file {self._head.filename!r} is empty (0 bytes)", field=FILE)
        self.files.append(
            Received(
                file=self._written[-1],
                name=self._head.filename or "",
                media_type=self._head.media_type,
                size=self._size,
                sha256=self._hash.hexdigest(),
            )
        )


def _not_a_file(head: Head) -> str:
    if head.filename is None:
        return "file is sent without a file name, as text; with curl it is: --form file=@PATH"
    return f"{head.name[:80]} is not a known field for a file; files are sent as {FILE}"


def _text(name: str, data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidInput(f"{name[:80]} is not UTF-8", field=name[:80]) from None
