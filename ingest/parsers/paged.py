"""Documents of pages: PDF files, scans too, and slides. Bytes in, a text out that knows where each page begins."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ingest.parsers import ocr
from ingest.parsers.extraction import converted, extract
from ingest.parsers.formats import Format
from ingest.parsers.limits import ParseLimits
from ingest.parsers.pages import join
from ingest.parsers.slides import read_slides
from ingest.parsers.texts import first_heading, proper_title
from ingest.parsers.tidying import tidy
from nvr_rag.errors import ParseFailed
from nvr_rag.types import ParsedText, TextFormat

if TYPE_CHECKING:
    from ingest.parsers.extraction import ExtractedDocument

Provisional = Callable[[ParsedText | ParseFailed], None]  # hears what there is before a step that may not end


def read_pdf(data: bytes, kind: Format, limits: ParseLimits, provisional: Provisional) -> ParsedText:
    """The text of a PDF; pages without a text layer are read by OCR where that is installed."""
    marker = f"\ue000{secrets.token_hex(8)}"  # a document cannot forge what it cannot know
    document = extract(data, kind.media_type, limits=limits, page_marker=marker)
    parsed = _in_pages(converted(document, kind, text=""), _marked_pages(document, marker))
    parsed = _ended(data, parsed)
    engine = ocr.installed() if limits.ocr_pages else None
    if engine is None:
        return ocr.unread(parsed, ocr.NOT_INSTALLED if limits.ocr_pages else ocr.SWITCHED_OFF)
    if not ocr.blank_pages(parsed):
        return parsed
    provisional(_or_failure(parsed))
    return _titled(ocr.read_scans(data, parsed, engine, limits))


def read_presentation(data: bytes, kind: Format, limits: ParseLimits) -> ParsedText:
    document = extract(data, kind.media_type, limits=limits, page_marker=secrets.token_hex(8))
    return _in_pages(converted(document, kind, text=""), _slides(document))


def read_open_presentation(data: bytes, kind: Format, limits: ParseLimits) -> ParsedText:
    slides, title = read_slides(data, limits)
    blank = ParsedText(text="", format=TextFormat.MARKDOWN, media_type=kind.media_type, title=proper_title(title))
    return _in_pages(blank, slides)


def _in_pages(parsed: ParsedText, pages: Sequence[str]) -> ParsedText:
    text, starts = join([tidy(page) if page.strip() else "" for page in pages])
    return _titled(replace(parsed, text=text, page_starts=starts, metadata={**parsed.metadata, "pages": len(pages)}))


def _titled(parsed: ParsedText) -> ParsedText:
    return parsed if parsed.title else replace(parsed, title=first_heading(parsed.text))


def _or_failure(parsed: ParsedText) -> ParsedText | ParseFailed:
    try:
        return ocr.unread(parsed, ocr.BROKEN_OFF)
    except ParseFailed as error:
        return error


def _ended(pdf: bytes, parsed: ParsedText) -> ParsedText:
    """The text with a note when the file was cut off. Raises ParseFailed when that cost all of it."""
    if b"%%EOF" in pdf[-4096:]:
        return parsed
    if not parsed.text:
        raise ParseFailed("is damaged: its end is missing")
    return replace(parsed, notes=[*parsed.notes, "its end is missing; text may be lost"])


def _marked_pages(document: ExtractedDocument, marker: str) -> list[str]:
    """The content cut at the page markers. A page without a marker is blank; what stands before the first marker,
    if anything does, is part of the first page."""
    before, *rest = document.content.split(marker)
    numbered = [(int(number), text) for number, _, text in (part.partition("\ue001") for part in rest)]
    total = document.metadata.pages.total_count if document.metadata.pages else 0
    pages = [""] * max([total, 1, *(number for number, _ in numbered)])
    for number, text in numbered:
        pages[number - 1] += text
    pages[0] = before + pages[0]
    return pages


def _slides(document: ExtractedDocument) -> list[str]:
    """The slides with their speaker notes; the content as one page where the parser has not told them apart."""
    if not document.pages:
        return [document.content]
    return [
        f"{slide.content}\n\nNotes: {slide.speaker_notes}" if slide.speaker_notes else slide.content
        for slide in document.pages
    ]
