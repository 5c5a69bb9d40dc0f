"""Bytes of one document in, its text out: Markdown where the format has structure, pages where it has pages.

Pure apart from CPU and memory: nothing is written, nothing is fetched. A hostile file may still hang or crash the
parser, so documents of others go through `ingest.sandbox`, which runs this in a child process.
"""

from __future__ import annotations

import csv
import html
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from ingest.parsers import paged
from ingest.parsers.extraction import VERSION, converted, extract
from ingest.parsers.formats import PDF, Format, Reader, format_of
from ingest.parsers.json_text import laid_out
from ingest.parsers.limits import DEFAULT_LIMITS, ParseLimits, check_size
from ingest.parsers.mail import read_mail
from ingest.parsers.notebooks import read_notebook
from ingest.parsers.texts import (
    clean,
    decode,
    decode_html,
    first_heading,
    proper_title,
    split_front_matter,
    table_to_markdown,
)
from ingest.parsers.tidying import tidy
from nvr_rag.errors import ParseFailed
from nvr_rag.types import ParsedText, TextFormat

PARSER = f"nvr-2/{VERSION}"  # stored with each version; a change of it makes documents be parsed anew


def parse_bytes(
    data: bytes,
    *,
    name: str,
    media_type: str | None = None,
    limits: ParseLimits = DEFAULT_LIMITS,
    provisional: paged.Provisional = lambda _outcome: None,
) -> ParsedText:
    """The text of one document; `name` (a file name) and `media_type` help to tell its format.

    The title comes from the document itself and is "" when it has none. `provisional` hears what there is already when
    something begins that may take long, such as OCR. Raises ParseFailed with a reason that reads on from the file's
    name, such as "is empty (0 bytes)".
    """
    check_size(len(data), limits)
    try:
        kind = format_of(data, name=name, media_type=media_type)
        if kind == PDF:
            parsed = paged.read_pdf(data, kind, limits, lambda outcome: provisional(_checked(outcome, limits)))
        else:
            parsed = _READERS[kind.reader](data, kind, limits)
    except RecursionError as error:
        raise ParseFailed("is nested too deeply to be parsed") from error
    checked = _checked(parsed, limits)
    if isinstance(checked, ParseFailed):
        raise checked
    return checked


def _checked(outcome: ParsedText | ParseFailed, limits: ParseLimits) -> ParsedText | ParseFailed:
    """The outcome, or why it cannot be taken."""
    if isinstance(outcome, ParseFailed):
        return outcome
    if not outcome.text.strip():
        return ParseFailed("has no text, only white space or images")
    if len(outcome.text) > limits.characters:
        return ParseFailed(f"has more than {limits.characters:,} characters of text; split it")
    return outcome


def _verbatim(text: str, kind: Format, notes: Sequence[str] = ()) -> ParsedText:
    is_code = kind.reader in (Reader.CODE, Reader.JSON)
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


def _read_json(data: bytes, kind: Format, _limits: ParseLimits) -> ParsedText:
    text, notes = decode(data)
    return _verbatim(laid_out(text), kind, notes)


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


def _read_html(data: bytes, kind: Format, limits: ParseLimits) -> ParsedText:
    """Link targets are dropped, their text stays: on many pages the targets are most of the characters."""
    page, notes = decode_html(data)
    found = _TITLE_TAG.search(page)
    document = extract(_LINK_TAG.sub("", page).encode(), "text/html", limits=limits)
    parsed = converted(document, kind, notes)
    return replace(parsed, title=proper_title(html.unescape(found[1]) if found else "") or parsed.title)


def _read_mail(data: bytes, _kind: Format, limits: ParseLimits) -> ParsedText:
    def markdown(page: bytes) -> str:
        return tidy(extract(_LINK_TAG.sub("", decode_html(page)[0]).encode(), "text/html", limits=limits).content)

    return read_mail(data, markdown)


def _read_markup(data: bytes, kind: Format, limits: ParseLimits) -> ParsedText:
    """Converted to Markdown; as it stands where the converter finds nothing to convert."""
    text, notes = decode(data)
    is_xml = kind.media_type == "application/xml"  # the parser itself knows some vocabularies, such as JATS articles
    try:
        document = extract(text.encode(), None if is_xml else kind.media_type, limits=limits)
        if document.mime_type in ("application/xml", "text/xml"):  # as Markdown every element would be a heading
            outline = extract(text.encode(), None, limits=limits, output_format="plain")
            return _verbatim(clean(outline.content), kind, notes)
        parsed = converted(document, kind, notes)
    except ParseFailed as error:
        return _verbatim(text, kind, [*notes, f"{error}; read as plain text"])
    return parsed if parsed.text.strip() else _verbatim(text, kind, notes)


def _read_notebook(data: bytes, _kind: Format, _limits: ParseLimits) -> ParsedText:
    return read_notebook(data)


def _read_document(data: bytes, kind: Format, limits: ParseLimits) -> ParsedText:
    return converted(extract(data, kind.media_type, limits=limits), kind)


def _read_slides(data: bytes, kind: Format, limits: ParseLimits) -> ParsedText:
    is_open = kind.media_type.endswith("opendocument.presentation")
    return (paged.read_open_presentation if is_open else paged.read_presentation)(data, kind, limits)


_READERS: Mapping[Reader, Callable[[bytes, Format, ParseLimits], ParsedText]] = {
    Reader.MARKDOWN: _read_markdown,
    Reader.PLAIN: _read_text,
    Reader.CODE: _read_text,
    Reader.JSON: _read_json,
    Reader.TABLE: _read_table,
    Reader.HTML: _read_html,
    Reader.MARKUP: _read_markup,
    Reader.MAIL: _read_mail,
    Reader.NOTEBOOK: _read_notebook,
    Reader.BINARY: _read_document,
    Reader.PAGED: _read_slides,
}
