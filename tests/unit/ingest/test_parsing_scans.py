"""Pages that hold pictures of text. The tests that need Tesseract's data are skipped where it is not installed."""

from __future__ import annotations

from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest

from ingest.parsers import ocr
from ingest.parsers.limits import ParseLimits
from ingest.parsers.ocr import Engine
from ingest.parsing import parse_bytes
from ingest.sandbox import Sandbox
from nvr_rag.errors import ParseFailed
from nvr_rag.types import ParsedText
from tests.unit.ingest import files

with_tesseract = pytest.mark.skipif(ocr.installed() is None, reason="no Tesseract here")

SCAN = files.pdf([files.drawn("THE TEA WAFFLE"), files.drawn("FINE TIN LINE")], title="Menu")
MIXED = files.pdf([files.drawn("THE TEA WAFFLE"), [(11, "Words of a text layer.")], files.drawn("FINE TIN LINE"), []])


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """OCR that reads "page <number>" on each page; the list shows which pages it was asked for."""
    asked: list[list[int]] = []

    def recognise(_pdf: bytes, pages: list[int], **_: object) -> dict[int, str]:
        asked.append(list(pages))
        return {number: f"page {number}" for number in pages}

    monkeypatch.setattr(ocr, "installed", lambda: Engine(tessdata="/nowhere", languages=("eng",)))
    monkeypatch.setattr(ocr, "recognise", recognise)
    return asked


@with_tesseract
def test_a_scan_is_read_in_the_sandbox() -> None:
    with Sandbox() as sandbox:
        parsed = sandbox.parse(SCAN, name="a.pdf").parsed
    assert parsed.text == "THE TEA WAFFLE\n\nFINE TIN LINE"
    assert list(parsed.page_starts) == [0, 16]
    assert parsed.notes == ["2 of 2 pages are scans; their text was read by OCR"]
    assert parsed.title == "Menu"


@with_tesseract
def test_a_partly_scanned_document_has_all_its_pages_in_order() -> None:
    parsed = parse_bytes(MIXED, name="a.pdf")
    assert parsed.text == "THE TEA WAFFLE\n\nWords of a text layer.\n\nFINE TIN LINE"
    assert list(parsed.page_starts) == [0, 16, 40, 53]
    assert parsed.notes == [
        "2 of 4 pages are scans; their text was read by OCR",
        "1 of 4 pages have no text layer; OCR found nothing legible",
    ]


@with_tesseract
def test_empty_pages_stay_empty() -> None:
    with pytest.raises(ParseFailed, match=r"has no text layer .*OCR found nothing legible"):
        parse_bytes(files.pdf([[], []]), name="a.pdf")


@with_tesseract
def test_scribble_is_no_text() -> None:
    chance = Random(1)
    lines = [f"{chance.randrange(600)} {chance.randrange(800)} {'lm'[n % 7 == 0]}" for n in range(200)]
    with pytest.raises(ParseFailed, match="OCR found nothing legible"):
        parse_bytes(files.pdf([f"2 w {' '.join(lines)} S"]), name="a.pdf")


def test_only_pages_without_text_are_asked_for_in_growing_batches(stand_in: list[list[int]]) -> None:
    parsed = parse_bytes(files.pdf([*[files.drawn("X")] * 6, [(11, "Words.")], files.drawn("X")]), name="a.pdf")
    assert stand_in == [[1, 2, 3, 4], [5, 6, 8]]
    assert parsed.text == "\n\n".join([*(f"page {n}" for n in range(1, 7)), "Words.", "page 8"])


def test_no_more_pages_than_the_limit(stand_in: list[list[int]]) -> None:
    parsed = parse_bytes(SCAN, name="a.pdf", limits=ParseLimits(ocr_pages=1))
    assert stand_in == [[1]]
    assert parsed.text == "page 1"
    assert parsed.notes[1] == "1 of 2 pages have no text layer; OCR reads at most 1 pages of a document"


def test_time_ends_it_and_what_was_read_stays(stand_in: list[list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 21.0, 21.0])  # began at 0, first batch from 1 to 21: two more such do not fit 45 s
    monkeypatch.setattr(ocr, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    parsed = parse_bytes(files.pdf([files.drawn("X")] * 9), name="a.pdf", limits=ParseLimits(seconds=6))
    assert stand_in == [[1, 2, 3, 4]]
    assert parsed.notes[1] == "5 of 9 pages have no text layer; OCR stopped at the limit of time after 4 pages"


def test_without_tesseract_a_text_layer_is_still_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ocr, "installed", lambda: None)
    assert parse_bytes(MIXED, name="a.pdf").text == "Words of a text layer."
    with pytest.raises(ParseFailed, match=r"^has no text layer \(a scan\?\); install Tesseract"):
        parse_bytes(SCAN, name="a.pdf")


def test_what_there_is_comes_before_ocr_begins(stand_in: list[list[int]]) -> None:
    heard: list[ParsedText | ParseFailed] = []
    for data in (MIXED, SCAN):
        parse_bytes(data, name="a.pdf", provisional=heard.append)
    first, second = heard
    assert isinstance(first, ParsedText)
    assert first.text == "Words of a text layer."
    assert first.notes == [f"3 of 4 pages have no text layer; {ocr.BROKEN_OFF}"]
    assert str(second) == f"has no text layer (a scan?); {ocr.BROKEN_OFF}"


def test_tesseract_is_found_where_its_data_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("osd", "spa", "deu", "eng", "fra", "ita"):
        (tmp_path / f"{name}.traineddata").touch()
    monkeypatch.setenv("TESSDATA_PREFIX", str(tmp_path))
    assert ocr.installed.__wrapped__() == Engine(tessdata=str(tmp_path), languages=("eng", "deu", "fra", "ita"))
    monkeypatch.setattr(ocr, "_PLACES", ())
    monkeypatch.setenv("TESSDATA_PREFIX", str(tmp_path / "nothing"))
    assert ocr.installed.__wrapped__() is None
