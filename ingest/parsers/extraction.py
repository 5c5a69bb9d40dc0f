"""The document parser behind one seam: bytes in, its result as a ParsedText out. xberg is imported here only.

Nothing is fetched, nothing is written, no attachment is opened; how much a document may unpack to is bounded here, its
time and memory by the sandbox.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from ingest.parsers.formats import ENCRYPTED, SHEETS, Format
from ingest.parsers.limits import DEFAULT_LIMITS, ParseLimits
from ingest.parsers.mail import iso_date
from ingest.parsers.texts import clean, first_heading, json_metadata, proper_title
from ingest.parsers.tidying import tidy
from nvr_rag.errors import ConfigurationError, ParseFailed
from nvr_rag.types import ParsedText, TextFormat

if TYPE_CHECKING:
    from xberg import ExtractedDocument as ExtractedDocument
    from xberg import ExtractionConfig

VERSION = f"xberg-{version('xberg')}"
_MAX_TABLE_CELLS = 2_000_000
_MAX_COMPRESSION = 500  # to one; tables that repeat themselves come to 200
_LEGIBLE = 0.5  # of 1: printed text comes to 0.7 and more, what is seen in photographs to less than 0.4
_MAX_NOTES = 8
_NOTE_CHARACTERS = 300


def extract(
    data: bytes,
    media_type: str | None,
    *,
    limits: ParseLimits = DEFAULT_LIMITS,
    page_marker: str | None = None,
    output_format: str = "markdown",
) -> ExtractedDocument:
    """What the parser makes of a document; without a media type it is taken for XML of some vocabulary.

    Raises ParseFailed with a reason, ConfigurationError when the parser is not installed.
    """
    return _run(data, media_type, _config(limits, page_marker, output_format))


def recognise(pdf: bytes, pages: Sequence[int], *, tessdata: str, languages: Sequence[str]) -> dict[int, str]:
    """The text of some pages of a PDF (numbered from 1) as OCR reads it; pages that it can hardly read are left out, as
    what it sees in photographs is noise."""
    import xberg

    names = list(languages)
    tesseract = xberg.TesseractConfig(language=names, use_cache=False)
    alone = xberg.OcrPipelineConfig(  # or else a second engine is tried, which fetches its models first
        stages=[xberg.OcrPipelineStage(backend="tesseract", language=names, tesseract_config=tesseract)],
        quality_thresholds=xberg.OcrQualityThresholds(),
    )
    config = xberg.ExtractionConfig(
        use_cache=False,
        ocr=xberg.OcrConfig(language=names, tessdata_path=tessdata, tesseract_config=tesseract, pipeline=alone),
        force_ocr_pages=list(pages),
        ocr_near_empty_fallback=False,
        ocr_scanned_page_quality_gate=False,
        ocr_embedded_images=False,
        output_format="markdown",
        pages=xberg.PageConfig(extract_pages=True),
        extraction_timeout_secs=None,
        concurrency=xberg.ConcurrencyConfig(max_threads=1),
    )
    document = _run(pdf, "application/pdf", config)
    wanted = [page for page in document.pages or [] if page.page_number in pages]
    scores = [page.ocr_confidence.score if page.ocr_confidence else None for page in wanted]
    legible = [page for page, score in zip(wanted, scores, strict=True) if score is not None and score >= _LEGIBLE]
    return {page.page_number: tidy(page.content) for page in legible}


def converted(
    document: ExtractedDocument, kind: Format, notes: Sequence[str] = (), *, text: str | None = None
) -> ParsedText:
    """The parser's result as ours; `text` stands for its content where that was put together anew."""
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


def _run(data: bytes, media_type: str | None, config: ExtractionConfig) -> ExtractedDocument:
    try:
        import xberg
    except ImportError as error:
        raise ConfigurationError(f"the document parser cannot be loaded ({error}); run: pip install xberg") from error
    name = None if media_type else "document.xml"
    source = xberg.ExtractInput(kind="bytes", bytes=data, mime_type=media_type, filename=name)
    try:
        result = asyncio.run(xberg.extract(source, config))
    except (MemoryError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic in Rust does not derive from Exception
        raise _failure(str(error)) from error
    if not result.results:
        raise _failure(result.errors[0].message if result.errors else "the parser returned nothing")
    return result.results[0]


def _config(limits: ParseLimits, page_marker: str | None, output_format: str) -> ExtractionConfig:
    try:
        import xberg
    except ImportError as error:
        raise ConfigurationError(f"the document parser cannot be loaded ({error}); run: pip install xberg") from error
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
        security_limits=xberg.SecurityLimits(
            max_table_cells=_MAX_TABLE_CELLS, max_pages=limits.pages, max_compression_ratio=_MAX_COMPRESSION
        ),
        content_filter=xberg.ContentFilterConfig(include_footnotes=True),
        html_options=xberg.ConversionOptions(
            extract_metadata=False,
            compact_tables=True,
            exclude_selectors=["footer", "[role=navigation]"],
            preprocessing=xberg.PreprocessingOptions(enabled=True, remove_navigation=True, remove_forms=False),
        ),
    )


def _failure(message: str) -> ParseFailed:
    reason = " ".join(
        clean(
            re.sub(r"Parsing error:|xberg_native_pdf( text extraction failed)?:|Text extraction failed:", "", message)
        ).split()
    )[:_NOTE_CHARACTERS]
    if re.search(r"encrypted|password", reason, re.I):
        return ParseFailed(ENCRYPTED)
    pages = re.search(r"too many pages: (\d+) \(max: (\d+)\)", reason)
    if pages:
        return ParseFailed(f"has {int(pages[1]):,} pages, more than {int(pages[2]):,}; split it")
    too_much = re.search(r"security (limit|violation)|limit exceeded|zip bomb|too many files", reason, re.I)
    if too_much and "invalid Zip archive" not in reason:
        return ParseFailed(f"is refused, it would unpack to too much: {reason}")
    return ParseFailed(f"is damaged, or not what its name says: {reason}")


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
        found |= {"title": known.subject, "subject": None, "created_at": iso_date(known.created_at)}
        found |= {"from": mail.from_email, "to": mail.to_emails, "cc": mail.cc_emails, "attachments": mail.attachments}
    try:
        return json_metadata({name: value for name, value in found.items() if value and not _by_default(value)})
    except ValueError:
        return {"title": clean(known.title)} if known.title else {}


def _by_default(value: object) -> bool:
    """Whether this is what a program writes where nobody said anything."""
    first = value[0] if isinstance(value, list) else value
    return first in ("unspecified", "anonymous", "unknown", "python-docx", "openpyxl")
