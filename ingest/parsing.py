"""Bytes of one document in, its text out: Markdown where the format has structure, pages where it has pages.

Pure apart from CPU and memory: nothing is written, nothing is fetched, no OCR. A hostile file may still hang or crash
the parser, so documents of others go through `ingest.sandbox`, which runs this in a child process. xberg, the document
parser, is imported here only, and only when a format needs it.
"""

from __future__ import annotations

import asyncio
import csv
import email.utils
import html
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from ingest.formats import ENCRYPTED, PDF, SHEETS, Format, Reader, format_of
from ingest.texts import (
    clean,
    decode,
    decode_html,
    first_heading,
    json_metadata,
    proper_title,
    split_front_matter,
    table_to_markdown,
)
from ingest.tidying import tidy
from nvr_rag.errors import ConfigurationError, ParseFailed
from nvr_rag.types import ParsedText, TextFormat

if TYPE_CHECKING:
    from xberg import ExtractedDocument, ExtractionConfig

PARSER = f"nvr-1/xberg-{version('xberg')}"  # stored with each version; a change of it makes documents be parsed anew


@dataclass(frozen=True, kw_only=True, slots=True)
class ParseLimits:
    """How much one document may cost; the last two are kept by the sandbox."""

    input_bytes: int = 100 * 2**20
    characters: int = 20_000_000  # of text that comes out
    seconds: float = 60.0
    memory_bytes: int = 2 * 2**30  # of the child process


DEFAULT_LIMITS = ParseLimits()
_MAX_TABLE_CELLS = 2_000_000
_MAX_NOTES = 8
_NOTE_CHARACTERS = 300


def parse_bytes(
    data: bytes, *, name: str, media_type: str | None = None, limits: ParseLimits = DEFAULT_LIMITS
) -> ParsedText:
    """The text of one document; `name` (a file name) and `media_type` help to tell its format.

    The title comes from the document itself and is "" when it has none. Raises ParseFailed with a reason that reads
    on from the file's name, such as "is empty (0 bytes)".
    """
    check_size(len(data), limits)
    kind = format_of(data, name=name, media_type=media_type)
    parsed = _READERS[kind.reader](data, kind, limits)
    if not parsed.text.strip():
        raise ParseFailed("has no text, only white space or images")
    if len(parsed.text) > limits.characters:
        raise ParseFailed(f"has more than {limits.characters:,} characters of text; split it")
    return parsed


def check_size(size: int, limits: ParseLimits) -> None:
    """Raise ParseFailed when a document of this many bytes is not worth reading."""
    if size == 0:
        raise ParseFailed("is empty (0 bytes)")
    if size > limits.input_bytes:
        raise ParseFailed(
            f"is larger than {limits.input_bytes / 2**20:.0f} MB ({size / 2**20:.0f} MB); split it into smaller files"
        )


def _verbatim(text: str, kind: Format, notes: Sequence[str] = ()) -> ParsedText:
    is_code = kind.reader is Reader.CODE
    return ParsedText(
        text=text, format=TextFormat.CODE if is_code else TextFormat.PLAIN, media_type=kind.media_type, notes=notes
    )


def _markdown(text: str, notes: Sequence[str] = ()) -> ParsedText:
    front, body = split_front_matter(text)
    title = proper_title(front.pop("title", ""))
    return ParsedText(
        text=body if body.strip() else title,  # a page that only redirects can be found by its title
        format=TextFormat.MARKDOWN,
        media_type="text/markdown",
        title=title or first_heading(body),
        metadata=front,
        notes=notes,
    )


def _read_text(data: bytes, kind: Format, _limits: ParseLimits) -> ParsedText:
    text, notes = decode(data)
    return _verbatim(text, kind, notes)


def _read_markdown(data: bytes, _kind: Format, _limits: ParseLimits) -> ParsedText:
    return _markdown(*decode(data))


def _read_table(data: bytes, kind: Format, limits: ParseLimits) -> ParsedText:
    text, notes = decode(data)
    try:
        table = table_to_markdown(text, tabs=kind.media_type == "text/tab-separated-values", limit=limits.characters)
    except csv.Error as error:
        return _verbatim(text, kind, [*notes, f"is not a well-formed table ({error}); read as plain text"])
    return ParsedText(text=table, format=TextFormat.MARKDOWN, media_type=kind.media_type, notes=notes)


_LINK_TAG = re.compile(r"</?a(?:\s(?:[^>\"']|\"[^\"]*\"|'[^']*')*)?>", re.I)
_TITLE_TAG = re.compile(r"<title(?:\s[^>]*)?>(.{0,2000}?)</title", re.I | re.S)


def _read_html(data: bytes, kind: Format, _limits: ParseLimits) -> ParsedText:
    """Link targets are dropped, their text stays: on many pages the targets are most of the characters."""
    page, notes = decode_html(data)
    found = _TITLE_TAG.search(page)
    document = _extract(_LINK_TAG.sub("", page).encode(), "text/html")
    parsed = _converted(document, kind, notes)
    return replace(parsed, title=proper_title(html.unescape(found[1]) if found else "") or parsed.title)


def _read_markup(data: bytes, kind: Format, _limits: ParseLimits) -> ParsedText:
    """Converted to Markdown; as it stands where the converter finds nothing to convert."""
    text, notes = decode(data)
    is_xml = kind.media_type == "application/xml"  # the parser itself knows some vocabularies, such as JATS articles
    try:
        document = _extract(text.encode(), None if is_xml else kind.media_type)
        if document.mime_type in ("application/xml", "text/xml"):  # as Markdown every element would be a heading
            outline = _extract(text.encode(), None, output_format="plain")
            return _verbatim(clean(outline.content), kind, notes)
        parsed = _converted(document, kind, notes)
    except ParseFailed as error:
        return _verbatim(text, kind, [*notes, f"{error}; read as plain text"])
    return parsed if parsed.text.strip() else _verbatim(text, kind, notes)


def _read_document(data: bytes, kind: Format, _limits: ParseLimits) -> ParsedText:
    return _converted(_extract(data, kind.media_type), kind, ())


def _read_paged(data: bytes, kind: Format, _limits: ParseLimits) -> ParsedText:
    marker = f"\ue000{secrets.token_hex(8)}"  # a document cannot forge what it cannot know
    document = _extract(data, kind.media_type, page_marker=marker)
    pages = _marked_pages(document, marker) if kind == PDF else _slides(document)
    text, starts = _join_pages([tidy(page) for page in pages])
    notes = _missing_text(data, pages) if kind == PDF else []
    parsed = _converted(document, kind, notes, text=text)
    return replace(parsed, page_starts=starts, metadata={**parsed.metadata, "pages": len(pages)})


def _missing_text(pdf: bytes, pages: Sequence[str]) -> list[str]:
    """Notes on what a PDF's text lacks. Raises ParseFailed when that is all of it."""
    cut_off = b"%%EOF" not in pdf[-4096:]
    blank = sum(not page.strip() for page in pages)
    if blank == len(pages):
        raise ParseFailed(
            "is damaged: its end is missing" if cut_off else "has no text layer (a scan?); OCR is not enabled"
        )
    notes = [f"{blank} of {len(pages)} pages have no text (scans?); OCR is not enabled"] if blank else []
    return [*notes, "its end is missing; text may be lost"] if cut_off else notes


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


def _join_pages(pages: Sequence[str]) -> tuple[str, list[int]]:
    """The pages in one text, and where each begins; a blank page begins where the next one does."""
    starts: list[int] = []
    length = 0
    for page in pages:
        starts.append(length)
        length += len(page) + 2 if page else 0
    text = "\n\n".join(page for page in pages if page)
    return text, [min(start, len(text)) for start in starts]


def _converted(
    document: ExtractedDocument, kind: Format, notes: Sequence[str], *, text: str | None = None
) -> ParsedText:
    body = tidy(document.content) if text is None else text
    metadata = _metadata(document)
    title = proper_title(metadata.pop("title", None)) or ("" if kind in SHEETS else first_heading(body))
    warnings = [
        " ".join(w.message.split())[:_NOTE_CHARACTERS] for w in document.processing_warnings if w.source != "ocr"
    ]
    return ParsedText(
        text=body,
        format=TextFormat.MARKDOWN,
        media_type=kind.media_type,
        title=title,
        metadata=metadata,
        notes=[*notes, *warnings][:_MAX_NOTES],
    )


def _metadata(document: ExtractedDocument) -> dict[str, Any]:
    """What the document says about itself, under plain names; JSON values only."""
    known = document.metadata
    found = {
        "title": known.title,
        "subject": known.subject,
        "authors": known.authors,
        "keywords": known.keywords,
        "language": known.language,
        "created_at": known.created_at,
        "modified_at": known.modified_at,
    }
    mail = known.format.email if known.format is not None and known.format.format_type == "email" else None
    if mail is not None:
        found |= {"title": known.subject, "subject": None, "created_at": _iso_date(known.created_at)}
        found |= {"from": mail.from_email, "to": mail.to_emails, "cc": mail.cc_emails, "attachments": mail.attachments}
    try:
        return json_metadata({name: value for name, value in found.items() if value and not _by_default(value)})
    except ValueError:
        return {"title": clean(known.title)} if known.title else {}


def _by_default(value: object) -> bool:
    """Whether this is what a program writes where nobody said anything."""
    first = value[0] if isinstance(value, list) else value
    return first in ("unspecified", "anonymous", "unknown", "python-docx", "openpyxl")


def _iso_date(date: str | None) -> str | None:
    """An e-mail's date in ISO 8601 where it is well-formed."""
    try:
        return email.utils.parsedate_to_datetime(date).isoformat() if date else None
    except ValueError:
        return date


def _extract(
    data: bytes, media_type: str | None, *, page_marker: str | None = None, output_format: str = "markdown"
) -> ExtractedDocument:
    try:
        import xberg
    except ImportError as error:
        raise ConfigurationError(f"the document parser cannot be loaded ({error}); run: pip install xberg") from error
    name = None if media_type else "document.xml"
    source = xberg.ExtractInput(kind="bytes", bytes=data, mime_type=media_type, filename=name)
    try:
        result = asyncio.run(xberg.extract(source, _config(page_marker, output_format)))
    except (MemoryError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic in Rust does not derive from Exception
        raise _failure(str(error)) from error
    if not result.results:
        raise _failure(result.errors[0].message if result.errors else "the parser returned nothing")
    return result.results[0]


def _config(page_marker: str | None, output_format: str) -> ExtractionConfig:
    import xberg

    pages = None
    if page_marker is not None:
        marker_format = f"\n\n{page_marker}{{page_num}}\ue001\n\n"
        pages = xberg.PageConfig(extract_pages=True, insert_page_markers=True, marker_format=marker_format)
    return xberg.ExtractionConfig(
        use_cache=False,
        disable_ocr=True,
        output_format=output_format,
        pages=pages,
        max_archive_depth=0,  # attachments are documents of their own
        extraction_timeout_secs=None,  # the sandbox keeps the time
        concurrency=xberg.ConcurrencyConfig(max_threads=1),
        security_limits=xberg.SecurityLimits(max_table_cells=_MAX_TABLE_CELLS),
        content_filter=xberg.ContentFilterConfig(include_footnotes=True),
        html_options=xberg.ConversionOptions(
            extract_metadata=False,
            compact_tables=True,
            exclude_selectors=["footer", "[role=navigation]"],
            preprocessing=xberg.PreprocessingOptions(enabled=True, remove_navigation=True, remove_forms=False),
        ),
    )


def _failure(message: str) -> ParseFailed:
    reason = " ".join(re.sub(r"Parsing error:|xberg_native_pdf:", "", message).split())[:_NOTE_CHARACTERS]
    if re.search(r"encrypted|password", reason, re.I):
        return ParseFailed(ENCRYPTED)
    if re.search(r"security (limit|violation)|limit exceeded", reason, re.I):
        return ParseFailed(f"is refused, it would unpack to too much: {reason}")
    return ParseFailed(f"is damaged, or not what its name says: {reason}")


_READERS: Mapping[Reader, Callable[[bytes, Format, ParseLimits], ParsedText]] = {
    Reader.MARKDOWN: _read_markdown,
    Reader.PLAIN: _read_text,
    Reader.CODE: _read_text,
    Reader.TABLE: _read_table,
    Reader.HTML: _read_html,
    Reader.MARKUP: _read_markup,
    Reader.BINARY: _read_document,
    Reader.PAGED: _read_paged,
}
