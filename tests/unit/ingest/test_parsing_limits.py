"""Documents made to exhaust a parser: each is refused with a reason, or read in bounded time and memory."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from ingest.parsers.limits import ParseLimits
from ingest.parsing import parse_bytes
from nvr_rag.errors import ParseFailed
from nvr_rag.types import ParsedText
from tests.unit.ingest import documents, files

EVERY = documents.every()
TOO_MUCH = "is refused, it would unpack to too much"
_WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"


def laughs(name: str) -> str:
    """XML whose entities come to 3 GB."""
    entities = '<!ENTITY lol0 "lol">' + "".join(f'<!ENTITY lol{n} "{f"&lol{n - 1};" * 10}">' for n in range(1, 10))
    return f'<?xml version="1.0"?><!DOCTYPE x [{entities}]><{name}>&lol9;</{name}>'


def quadratic(name: str) -> str:
    """XML in which one long entity comes to 2 GB."""
    return f'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "{"a" * 100_000}">]><{name}>{"&a;" * 20_000}</{name}>'


def with_parts(data: bytes, parts: Mapping[str, str]) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    return documents.zipped({**members, **parts}, stored="mimetype" if "mimetype" in members else "")


MAIN_PARTS = {
    "a.docx": ("word/document.xml", "w:document"),
    "a.pptx": ("ppt/slides/slide1.xml", "p:sld"),
    "a.xlsx": ("xl/worksheets/sheet1.xml", "worksheet"),
    "a.odt": ("content.xml", "office:document-content"),
    "a.ods": ("content.xml", "office:document-content"),
    "a.odp": ("content.xml", "office:document-content"),
    "a.epub": ("OEBPS/chapter1.xhtml", "html"),
}


def parsed_or_reason(data: bytes, name: str) -> ParsedText | str:
    try:
        return parse_bytes(data, name=name, limits=ParseLimits(characters=2_000_000))
    except ParseFailed as error:
        return str(error)


def length(outcome: ParsedText | str) -> int:
    return len(outcome.text) if isinstance(outcome, ParsedText) else 0


@pytest.mark.parametrize("bomb", [laughs, quadratic])
@pytest.mark.parametrize("name", sorted(MAIN_PARTS))
def test_entities_do_not_multiply_in_containers(name: str, bomb: Callable[[str], str]) -> None:
    part, root = MAIN_PARTS[name]
    xml = bomb(root)
    assert length(parsed_or_reason(with_parts(EVERY[name], {part: xml}), name)) <= len(xml)


@pytest.mark.parametrize("bomb", [laughs, quadratic])
@pytest.mark.parametrize("name", ["a.xml", "a.html", "a.nxml", "a.xhtml"])
def test_entities_do_not_multiply_in_text(name: str, bomb: Callable[[str], str]) -> None:
    data = bomb("html").encode()
    assert length(parsed_or_reason(data, name)) <= len(data)


@pytest.mark.parametrize("name", ["a.docx", "a.odt", "a.odp", "a.xml", "a.epub"])
def test_external_entities_are_not_fetched(name: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("the secret word")
    part, root = MAIN_PARTS.get(name, ("", "x"))
    xml = f'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a SYSTEM "file://{secret}">]><{root}>before &a; after</{root}>'
    outcome = parsed_or_reason(with_parts(EVERY[name], {part: xml}) if part else xml.encode(), name)
    assert "secret word" not in (outcome if isinstance(outcome, str) else outcome.text)


@pytest.mark.parametrize("name", sorted(MAIN_PARTS))
def test_what_unpacks_to_too_much_is_refused(name: str) -> None:
    part, root = MAIN_PARTS[name]
    blanks = 110_000_000 if name == "a.odp" else 20_000_000
    outcome = parsed_or_reason(with_parts(EVERY[name], {part: f"<{root}>{' ' * blanks}</{root}>"}), name)
    assert isinstance(outcome, str)
    assert outcome.startswith(TOO_MUCH)


def test_a_table_that_repeats_itself_is_not_taken_for_a_bomb() -> None:
    rows = files.word_table([["", "to be filled in"]] * 2000)
    parsed = parse_bytes(files.docx(files.paragraph("Form") + rows), name="a.docx")
    assert parsed.text.count("to be filled in") == 2000


def test_cells_that_stand_for_millions() -> None:
    cell = '<table:table-cell office:value-type="string" table:number-columns-repeated="16384"><text:p>x</text:p>'
    row = f'<table:table-row table:number-rows-repeated="1048576">{cell}</table:table-cell></table:table-row>'
    sheet = documents.open_document("spreadsheet", f'<table:table table:name="x">{row}</table:table>')
    slide = documents.open_document("presentation", f"<draw:page><table:table>{row}</table:table></draw:page>")
    assert str(parsed_or_reason(sheet, "a.ods")).startswith(TOO_MUCH)
    assert length(parsed_or_reason(slide, "a.odp")) < 2000


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.pdf", files.pdf([[(11, "x")]] * 3)),
        ("a.pptx", files.pptx([("a", "b")] * 3)),
        ("a.odp", documents.open_document("presentation", "<draw:page/>" * 3)),
    ],
)
def test_pages_are_counted(name: str, data: bytes) -> None:
    with pytest.raises(ParseFailed, match=r"^has 3 pages, more than 2; split it$"):
        parse_bytes(data, name=name, limits=ParseLimits(pages=2))


DEEP = {
    "a.json": b"[" * 200_000,
    "b.json": b'{"a":' * 200_000,
    "a.xml": b"<a>" * 50_000,
    "a.html": b"<html>" + b"<div>" * 50_000 + b"x",
    "a.rtf": b"{\\rtf1 " + b"{" * 200_000 + b"x" + b"}" * 200_000,
    "a.md": b"> " * 50_000 + b"x",
    "a.ipynb": b'{"cells": ' + b"[" * 50_000,
    "a.eml": b"Subject: x\r\n"
    + b"".join(b'Content-Type: multipart/mixed; boundary="%d"\r\n\r\n--%d\r\n' % (n, n) for n in range(1500)),
    "b.eml": b"Subject: x\r\nTo: " + b"(" * 50_000 + b"\r\n\r\nx",
    "c.eml": b"Subject: " + b"=?utf-8?q?a?= " * 50_000 + b"\r\n\r\nx",
    "a.odp": documents.open_document(
        "presentation", "<draw:page>" + "<text:p>" * 9000 + "x" + "</text:p>" * 9000 + "</draw:page>"
    ),
}


@pytest.mark.parametrize("name", sorted(DEEP))
def test_deep_nesting_is_read_or_refused(name: str) -> None:
    outcome = parsed_or_reason(DEEP[name], name)
    assert isinstance(outcome, str) or 0 < len(outcome.text) < 2_000_000
    if name in ("a.ipynb", "a.eml", "a.odp"):
        assert outcome == "is nested too deeply to be parsed"
