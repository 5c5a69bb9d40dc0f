"""multipart/form-data as it arrives: bytes enter in pieces of any size, parts leave as they come. Pure.

Nothing is kept but the piece at hand, so a part may be as large as it likes. It knows no file and no field; names that
clients give are text for people, never paths. The only file that imports python_multipart.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import unquote

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser

from nvr_rag.errors import NvrError

MAX_PARTS = 200
MAX_HEAD_BYTES = 16_384  # of the header lines of one part
MAX_NAME_CHARACTERS = 255  # of a file
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
        self._parts, self._head_bytes, self._ended = 0, 0, False
        self._headers: dict[str, str] = {}
        self._field, self._value = bytearray(), bytearray()
        self._events: list[Head | bytes | End] = []
        self._library = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": lambda data, start, end: self._heard(self._field, data[start:end]),
                "on_header_value": lambda data, start, end: self._heard(self._value, data[start:end]),
                "on_header_end": self._header,
                "on_headers_finished": lambda: self._events.append(_head_of(self._headers)),
                "on_part_data": lambda data, start, end: self._events.append(bytes(data[start:end])),
                "on_part_end": lambda: self._events.append(End()),
                "on_end": self._end,
            },
            max_header_size=MAX_HEAD_BYTES,
        )

    def feed(self, data: bytes) -> Iterator[Head | bytes | End]:
        """What comes out of the next bytes. Raises Malformed."""
        if self._ended:
            return  # what stands behind the last boundary means nothing
        wrong: Malformed | None = None
        try:
            self._library.write(data)
        except Malformed as error:
            wrong = error
        except FormParserError as error:
            wrong = Malformed(f"the body is not the multipart/form-data that its Content-Type names: {error}")
        events, self._events = self._events, []
        yield from events  # what came before it may be wrong in a way that can be told better
        if wrong is not None:
            raise wrong

    def end(self) -> None:
        """The body has ended. Raises Malformed when it is not complete."""
        if not self._parts:
            raise Malformed(
                "the body is not multipart/form-data: the boundary that its Content-Type names is not in it"
            )
        if not self._ended:
            raise Malformed("the body is cut off: its last boundary is missing; send it again")

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise Malformed(f"the body has more than {MAX_PARTS} parts; send fewer files at once")
        self._headers, self._head_bytes = {}, 0

    def _heard(self, into: bytearray, data: bytes) -> None:
        self._head_bytes += len(data)
        if self._head_bytes > MAX_HEAD_BYTES:
            raise Malformed(f"the header of a part is longer than {MAX_HEAD_BYTES} bytes")
        into += data

    def _header(self) -> None:
        name, value = (text.decode("utf-8", "replace").strip() for text in (self._field, self._value))
        self._headers[name.lower()] = value
        self._field.clear()
        self._value.clear()

    def _end(self) -> None:
        self._ended = True


def _head_of(headers: Mapping[str, str]) -> Head:
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
