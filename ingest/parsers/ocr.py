"""Pages of a PDF that hold pictures of text: which they are, and what OCR reads in them, where Tesseract is installed.

The engine comes with the document parser; what an installation adds is the data of its languages, which is looked for
in the usual places and never downloaded.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from ingest.parsers.extraction import recognise
from ingest.parsers.limits import ParseLimits
from ingest.parsers.pages import join, split
from nvr_rag.errors import ParseFailed
from nvr_rag.types import ParsedText

_PLACES = (
    "/usr/share/tesseract-ocr/*/tessdata",  # Debian, Ubuntu
    "/usr/share/tesseract-ocr/tessdata",
    "/usr/share/tessdata",  # Alpine, Arch
    "/usr/share/tesseract/tessdata",  # Fedora
    "/usr/local/share/tessdata",
    "/opt/homebrew/share/tessdata",
)
_NO_LANGUAGES = ("osd", "equ", "snum")
_MOST_LANGUAGES = 4  # each costs time on each page
_BATCH = 4  # pages at first, then twice as many: each batch reads the whole file again
_SHARE = 0.75  # of the time allowed: the last batch may take longer than thought
NOT_INSTALLED = "install Tesseract (tesseract-ocr) to have scans read by OCR"
SWITCHED_OFF = "OCR is switched off"
BROKEN_OFF = "OCR was broken off at the limit of time or memory"


@dataclass(frozen=True, kw_only=True, slots=True)
class Engine:
    """What Tesseract needs on this machine."""

    tessdata: str  # folder of *.traineddata
    languages: Sequence[str]  # English first, where it is there


@cache
def installed() -> Engine | None:
    """The languages that Tesseract has here; None without any."""
    named = os.environ.get("TESSDATA_PREFIX", "")
    folders = [Path(named), Path(named) / "tessdata"] if named else []
    folders += [folder for place in _PLACES for folder in sorted(Path("/").glob(place[1:]), reverse=True)]
    for folder in folders:
        names = {file.stem for file in folder.glob("*.traineddata")}.difference(_NO_LANGUAGES)
        if names:
            ordered = sorted(names, key=lambda name: (name != "eng", name))
            return Engine(tessdata=str(folder), languages=tuple(ordered[:_MOST_LANGUAGES]))
    return None


def blank_pages(parsed: ParsedText) -> list[int]:
    """The numbers, from 1, of the pages without text."""
    return [number for number, page in enumerate(split(parsed), start=1) if not page]


def unread(parsed: ParsedText, why: str) -> ParsedText:
    """The text with a note on why its blank pages stay blank. Raises ParseFailed when all of them do."""
    blank, pages = len(blank_pages(parsed)), len(parsed.page_starts)
    if not blank:
        return parsed
    if blank == pages:
        raise ParseFailed(f"has no text layer (a scan?); {why}")
    return replace(parsed, notes=[*parsed.notes, f"{blank} of {pages} pages have no text layer; {why}"])


def read_scans(pdf: bytes, parsed: ParsedText, engine: Engine, limits: ParseLimits) -> ParsedText:
    """The text with what OCR reads on its blank pages, as many as the limits allow. Raises ParseFailed when there are
    no words at all."""
    until = time.monotonic() + _SHARE * limits.ocr_seconds
    wanted = blank_pages(parsed)[: limits.ocr_pages]
    found: dict[int, str] = {}
    why, start, size, seconds = "OCR found nothing legible", 0, _BATCH, 0.0
    while start < len(wanted):
        begun = time.monotonic()
        if begun + 2 * seconds > until:
            why = f"OCR stopped at the limit of time after {start} pages"
            break
        try:
            batch = wanted[start : start + size]
            found |= recognise(pdf, batch, tessdata=engine.tessdata, languages=engine.languages)
        except ParseFailed as error:
            why = f"OCR failed: {str(error).rpartition('says: ')[2][:120]}"
            break
        start, size, seconds = start + size, 2 * size, time.monotonic() - begun
    else:
        if len(wanted) < len(blank_pages(parsed)):
            why = f"OCR reads at most {limits.ocr_pages} pages of a document"
    return unread(_with(parsed, found), why)


def _with(parsed: ParsedText, found: Mapping[int, str]) -> ParsedText:
    read = {number: text for number, text in found.items() if text.strip()}
    if not read:
        return parsed
    pages = [read.get(number, page) for number, page in enumerate(split(parsed), start=1)]
    text, starts = join(pages)
    note = f"{len(read)} of {len(pages)} pages are scans; their text was read by OCR"
    return replace(parsed, text=text, page_starts=starts, notes=[*parsed.notes, note])
