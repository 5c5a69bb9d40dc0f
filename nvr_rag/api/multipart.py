"""multipart/form-data as it arrives: bytes enter in pieces of any size, parts leave as they come. Pure.

Nothing is kept but the piece at hand, so a part may be as large as it likes. It knows no file and no field; names that
clients give are text for people, never paths.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from urllib.parse import unquote

from nvr_rag.errors import NvrError

MAX_PARTS = 200
MAX_HEAD_BYTES = 16_384  # of the header lines of one part
MAX_NAME_CHARACTERS = 255  # of a file
_MAX_PREAMBLE_BYTES = 65_536
_MAX_PADDING_BYTES = 100  # behind a boundary
_BOUNDARY = re.compile(r';\s*boundary=(?:"([^"\r\n]{1,70})"|([^\s";,]{1,70}))\s*(?:;|$)', re.I)
_PARAMETER = re.compile(r';\s*([\w*-]{1,40})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s";]*))')
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class Malformed(NvrError):
    """The bytes are not what multipart/form-data is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """A part begins."""

    name: str  # of the field
    filename: str | None  # what the client calls the file, without folders; None = it is no file
    media_type: str  # "" = not said


@dataclass(frozen=True, kw_only=True, slots=True)
class End:
    """The part at hand is complete."""


class _State(Enum):
    PREAMBLE = auto()  # before the first boundary
    BOUNDARY = auto()  # behind one: another part, or the end
    HEAD = auto()
    BODY = auto()
    EPILOGUE = auto()  # behind the last boundary


def boundary_of(content_type: str) -> bytes:
    """The boundary that a Content-Type names. Raises Malformed."""
    found = _BOUNDARY.search(content_type)
    if found is None:
        raise Malformed(
            "the Content-Type multipart/form-data does not name its boundary; let the client's library set it"
        )
    return (found[1] or found[2]).encode("latin-1", "replace")


class Parser:
    """One body."""

    def __init__(self, boundary: bytes) -> None:
        self._delimiter = b"\r\n--" + boundary
        self._buffer = bytearray(b"\r\n")  # the first boundary may stand at the very beginning
        self._state, self._parts = _State.PREAMBLE, 0

    def feed(self, data: bytes) -> Iterator[Head | bytes | End]:
        """What comes out of the next bytes. Raises Malformed."""
        self._buffer += data
        before = None
        while self._state is not before:
            before = self._state
            if before is _State.EPILOGUE:
                self._buffer.clear()
            elif before is _State.BOUNDARY:
                self._boundary()
            elif before is _State.HEAD:
                yield from self._head()
            else:
                yield from self._content()

    def end(self) -> None:
        """The body has ended. Raises Malformed when it is not complete."""
        if self._state is _State.PREAMBLE:
            raise Malformed(
                "the body is not multipart/form-data: the boundary that its Content-Type names is not in it"
            )
        if self._state is not _State.EPILOGUE:
            raise Malformed("the body is cut off: its last boundary is missing; send it again")

    def _content(self) -> Iterator[bytes | End]:
        """What stands before the next boundary."""
        inside = self._state is _State.BODY
        at = self._buffer.find(self._delimiter)
        upto = at if at >= 0 else max(0, len(self._buffer) - len(self._delimiter) + 1)
        if not inside and upto > _MAX_PREAMBLE_BYTES:
            raise Malformed("the body is not multipart/form-data: it does not begin with its boundary")
        if at < 0 and not inside:
            return
        if inside and upto:
            yield bytes(self._buffer[:upto])
        del self._buffer[: upto + (len(self._delimiter) if at >= 0 else 0)]
        if at >= 0:
            self._state = _State.BOUNDARY
            if inside:
                yield End()

    def _boundary(self) -> None:
        if self._buffer.startswith(b"--"):
            self._state = _State.EPILOGUE
            return
        line = self._buffer.find(b"\r\n")
        if line < 0:
            if len(self._buffer) > _MAX_PADDING_BYTES:
                raise Malformed("the body is not multipart/form-data: a boundary does not end its line")
            return
        if bytes(self._buffer[:line]).strip(b" \t") or line > _MAX_PADDING_BYTES:
            raise Malformed("the body is not multipart/form-data: something stands behind a boundary")
        del self._buffer[:line]  # the line break stays: it ends the line before the first header
        self._state = _State.HEAD

    def _head(self) -> Iterator[Head]:
        at = self._buffer.find(b"\r\n\r\n")
        if at > MAX_HEAD_BYTES or (at < 0 and len(self._buffer) > MAX_HEAD_BYTES):
            raise Malformed(f"the header of a part is longer than {MAX_HEAD_BYTES} bytes")
        if at < 0:
            return
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise Malformed(f"the body has more than {MAX_PARTS} parts; send fewer files at once")
        head = _head_of(bytes(self._buffer[:at]).decode("utf-8", "replace"))
        del self._buffer[: at + 4]
        self._state = _State.BODY
        yield head


def _head_of(text: str) -> Head:
    lines = (line.partition(":") for line in text.split("\r\n"))
    headers = {name.strip().lower(): value.strip() for name, colon, value in lines if colon}
    disposition = headers.get("content-disposition", "")
    parameters = _parameters(disposition)
    if disposition.partition(";")[0].strip().lower() != "form-data" or "name" not in parameters:
        raise Malformed("a part has no header Content-Disposition: form-data with a name")
    filename = parameters.get("filename*", parameters.get("filename"))
    return Head(
        name=_CONTROLS.sub("", parameters["name"]),
        filename=None if filename is None else file_name(filename),
        media_type=_CONTROLS.sub("", headers.get("content-type", ""))[:200],
    )


def _parameters(value: str) -> Mapping[str, str]:
    found = {}
    for name, quoted, plain in _PARAMETER.findall(value):
        text = re.sub(r'\\(["\\])', r"\1", quoted) if quoted else plain
        found[name.lower()] = _extended(text) if name.endswith("*") else text
    return found


def _extended(value: str) -> str:
    """A value as RFC 5987 has it: charset'language'percent-encoded; everything is taken for UTF-8."""
    return unquote(value.rpartition("'")[2], errors="replace")


def file_name(name: str) -> str:
    """What a client calls a file, without folders and control characters; "" when nothing is left."""
    last = _CONTROLS.sub("", name.replace("\\", "/")).rpartition("/")[2].strip()
    if last in (".", ".."):
        return ""
    stem, dot, suffix = last.rpartition(".")
    if len(last) <= MAX_NAME_CHARACTERS or not dot or len(suffix) > 20:
        return last[:MAX_NAME_CHARACTERS]
    return f"{stem[: MAX_NAME_CHARACTERS - len(suffix) - 1]}.{suffix}"
