"""OpenDocument presentations as slides of Markdown: title, lists, tables, text, speaker notes. Pure standard library.

The document parser names slides after what the program called them and does not tell pages apart, so these are read
here. Whatever declares a document type is refused: no such file does, but for an attack.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Iterator
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from ingest.parsers.limits import ParseLimits
from ingest.parsers.texts import clean, markdown_row
from nvr_rag.errors import ParseFailed

_UNPACKED_BYTES = 100 * 2**20
_REPEATED = 100  # columns that one cell may stand for
_NAMES = {
    "urn:oasis:names:tc:opendocument:xmlns:drawing:1.0": "draw",
    "urn:oasis:names:tc:opendocument:xmlns:text:1.0": "text",
    "urn:oasis:names:tc:opendocument:xmlns:table:1.0": "table",
    "urn:oasis:names:tc:opendocument:xmlns:presentation:1.0": "presentation",
    "urn:oasis:names:tc:opendocument:xmlns:office:1.0": "office",
    "http://purl.org/dc/elements/1.1/": "dc",
}
_DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, KeyError, NotImplementedError, EOFError, OSError, ValueError)
_DECORATION = ("footer", "date-time", "page-number", "header", "page", "handout")


def read_slides(data: bytes, limits: ParseLimits) -> tuple[list[str], str]:
    """The slides in order, and the presentation's title ("" without one). Raises ParseFailed."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            content = _parsed(_member(archive, "content.xml"))
            meta = _parsed(_member(archive, "meta.xml")) if "meta.xml" in archive.namelist() else None
    except _DAMAGE as error:
        raise ParseFailed(f"is damaged: its ZIP container cannot be read ({error})") from error
    pages = [element for element in content.iter() if _name(element) == "draw:page"]
    if len(pages) > limits.pages:
        raise ParseFailed(f"has {len(pages):,} pages, more than {limits.pages:,}; split it")
    titles = [element.text or "" for element in meta.iter() if _name(element) == "dc:title"] if meta is not None else []
    return [_slide(page) for page in pages], clean(next(iter(titles), ""))


class _NoDocumentType(ElementTree.TreeBuilder):
    def doctype(self, *_: object) -> None:
        raise ParseFailed("is refused: it declares a document type, which no presentation does")


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    if archive.getinfo(name).flag_bits & 1:
        raise ParseFailed("is encrypted; remove the password and ingest it again")
    with archive.open(name) as member:
        data = member.read(_UNPACKED_BYTES + 1)
    if len(data) > _UNPACKED_BYTES:
        raise ParseFailed(f"is refused, it would unpack to too much: {name} is larger than {_UNPACKED_BYTES >> 20} MB")
    return data


def _parsed(xml: bytes) -> Element:
    try:
        return ElementTree.fromstring(xml, ElementTree.XMLParser(target=_NoDocumentType()))  # noqa: S314
    except ElementTree.ParseError as error:
        raise ParseFailed(f"is damaged: its XML cannot be read ({error})") from error


def _name(element: Element) -> str:
    space, _, name = element.tag[1:].rpartition("}")
    return f"{_NAMES.get(space, '')}:{name}"


def _attribute(element: Element, name: str) -> str:
    return next((value for key, value in element.attrib.items() if key.rpartition("}")[2] == name), "")


def _slide(page: Element) -> str:
    title, notes = "", ""
    body: list[str] = []
    for child in page:
        kind = _attribute(child, "class")
        if _name(child) == "presentation:notes":
            frames = [frame for frame in child if _attribute(frame, "class") == "notes"]
            notes = "\n\n".join(part for frame in frames for part in _blocks(frame))
        elif kind == "title" and not title:
            title = " ".join(" ".join(_blocks(child)).split())
        elif kind not in _DECORATION:
            body += _blocks(child)
    parts = [f"## {title}" if title else "", *body, f"Notes: {notes}" if notes else ""]
    return "\n\n".join(part for part in parts if part)


def _blocks(element: Element) -> Iterator[str]:
    """The paragraphs, lists and tables below an element, in order."""
    name = _name(element)
    if name in ("text:p", "text:h"):
        text = _text(element)
        if text:
            yield text
    elif name == "text:list":
        yield "\n".join(_items(element, 0))
    elif name == "table:table":
        yield _table(element)
    elif name != "office:annotation":
        for child in element:
            yield from _blocks(child)


def _items(element: Element, depth: int) -> Iterator[str]:
    for item in element:
        for child in item:
            if _name(child) == "text:list":
                yield from _items(child, depth + 1)
            elif text := _text(child):
                yield f"{'  ' * depth}- {text}"


def _table(element: Element) -> str:
    rows = [[_cell(cell) for cell in _cells(row)] for row in element.iter() if _name(row) == "table:table-row"]
    rows = [row for row in rows if any(row)]
    if not rows:
        return ""
    width = max(map(len, rows))
    return "\n".join(
        [markdown_row(rows[0], width), "|" + " --- |" * width, *(markdown_row(row, width) for row in rows[1:])]
    )


def _cells(row: Element) -> Iterator[Element]:
    for cell in row:
        repeated = _attribute(cell, "number-columns-repeated")
        for _ in range(min(int(repeated), _REPEATED) if repeated.isdecimal() else 1):
            yield cell


def _cell(cell: Element) -> str:
    return " ".join(_blocks(cell)) if _name(cell) == "table:table-cell" else ""


def _text(element: Element) -> str:
    return " ".join(clean("".join(_pieces(element))).split())


def _pieces(element: Element) -> Iterator[str]:
    yield element.text or ""
    for child in element:
        if _name(child) in ("text:s", "text:tab", "text:line-break"):
            yield " "
        elif _name(child) != "office:annotation":
            yield from _pieces(child)
        yield child.tail or ""
