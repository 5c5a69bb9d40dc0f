"""Bytes to clean text, and the small things that text carries: front matter, a title, a table of separated values.

Text keeps every character of its source apart from newlines (always "\\n"), control characters (gone) and the byte
order mark. No document parser is known here.
"""

from __future__ import annotations

import codecs
import csv
import datetime
import io
import itertools
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from nvr_rag.errors import ParseFailed

_BOMS = (  # the longer marks first: UTF-32's begins with UTF-16's
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_BREAKS = re.compile("\r\n?|[\x0b\x0c\x85]")
_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\ufeff]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_BINARY_BYTES = bytes(set(range(32)) - set(b"\t\n\v\f\r\b\x1b"))
_SAMPLE = 1 << 16
BINARY = "looks binary; no parser knows it"

_FRONT_MATTER = re.compile(r"\A---[ \t]*\n(.*?)^(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.S | re.M)
_FRONT_MATTER_CHARACTERS = 64_000
_METADATA_VALUES = 500  # in one document, nested ones included
_METADATA_DEPTH = 6
_METADATA_STRING = 2_000

_FENCE = re.compile(r"^ {0,3}(```|~~~).*?(?:^ {0,3}\1|\Z)", re.S | re.M)
_ATX = re.compile(r"^ {0,3}(#{1,6})[ \t]+(.+?)[ \t]*#*[ \t]*$", re.M)
_SETEXT = re.compile(r"^(?! {0,3}[#>\-|])[ ]{0,3}(\S[^\n]*)\n {0,3}(=+|--+)[ \t]*$", re.M)
_BOLD_START = re.compile(r"\A\s*\*\*([^*\n]+)\*\*[ \t]*$", re.M)
_LIKE_HEADING = re.compile(r"^(?=#{1,6}(?:[ \t]|$)|(?:=+|-+)[ \t]*$)", re.M)
_TITLE_CHARACTERS = 300
_NO_TITLE = re.compile(
    r"(?i)untitled( document| presentation)?|powerpoint[- ]pr.sentation|(document|presentation|slide|book)\s?\d*"
    r"|(microsoft )?(word|powerpoint|excel)( - .*)?|.*\.(docx?|xlsx?|pptx?|od[tsp]|pdf|dvi|tex|rtf|indd|qxd|pages)"
)


def decode(data: bytes) -> tuple[str, list[str]]:
    """The text of these bytes, clean, and notes for a person. Raises ParseFailed when they are not text."""
    text, notes = _decode(data)
    return clean(text), notes


def _decode(data: bytes) -> tuple[str, list[str]]:
    for mark, encoding in _BOMS:
        if data.startswith(mark):
            return data[len(mark) :].decode(encoding, "replace"), []
    wide = _wide_encoding(data[:_SAMPLE])
    if wide is not None:
        return data.decode(wide, "replace"), []
    sample = data[:_SAMPLE]
    if len(sample) - len(sample.translate(None, _BINARY_BYTES)) > max(4, 0.02 * len(sample)):
        raise ParseFailed(BINARY)
    try:
        return data.decode("utf-8"), []
    except UnicodeDecodeError:
        return _decode_legacy(data)


def _wide_encoding(sample: bytes) -> str | None:
    """UTF-16 without a mark: every second byte of Western text is zero, the others hardly ever."""
    pairs = len(sample) // 2
    zeros = sample[0 : 2 * pairs : 2].count(0), sample[1 : 2 * pairs : 2].count(0)
    if pairs and max(zeros) > 0.4 * pairs and min(zeros) < 0.01 * pairs:
        return "utf-16-be" if zeros[0] > zeros[1] else "utf-16-le"
    return None


def _decode_legacy(data: bytes) -> tuple[str, list[str]]:
    high = len(data) - len(data.translate(None, bytes(range(128, 256))))
    if b"\x00" in data[:_SAMPLE]:
        raise ParseFailed(BINARY)
    if high > 1 and high > 0.2 * len(data):  # Western text has few accents; Cyrillic or Japanese is mostly high bytes
        raise ParseFailed("is text in an unknown encoding, or binary; save it as UTF-8 and ingest it again")
    return data.decode("cp1252", "replace"), ["is not valid UTF-8; read as Windows-1252"]


def decode_html(data: bytes) -> tuple[str, list[str]]:
    """Like decode, but an encoding that the page itself declares goes before the guess."""
    try:
        return clean(data.decode("utf-8-sig")), []
    except UnicodeDecodeError:
        pass
    declared = re.search(rb"(?:charset|encoding)\s*=\s*[\"']?\s*([\w.:-]+)", data[:4096], re.I)
    if declared and not data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        try:
            return clean(data.decode(declared[1].decode("ascii"))), []
        except (LookupError, UnicodeError):
            pass
    return decode(data)


def clean(text: str) -> str:
    """Newlines as "\\n", no control characters, no lone surrogates."""
    if _BREAKS.search(text):
        text = _BREAKS.sub("\n", text)
    if _CONTROL.search(text):
        text = _CONTROL.sub("", text)
    if _SURROGATE.search(text):
        text = _SURROGATE.sub("\ufffd", text)
    return text


def split_front_matter(text: str) -> tuple[dict[str, Any], str]:
    """The YAML mapping at the top of a Markdown text as JSON values, and the text after it.

    What is not a mapping, not YAML or too large stays in the text.
    """
    found = _FRONT_MATTER.match(text[: _FRONT_MATTER_CHARACTERS + 8])
    if found is None:
        return {}, text
    import yaml  # type: ignore[import-untyped]  # only documents with front matter need it

    try:
        value = yaml.load(found[1], Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506
        front = json_metadata({} if value is None else value)
    except (yaml.YAMLError, ValueError, RecursionError, TypeError):
        return {}, text
    return front, text[found.end() :].lstrip("\n")


def json_metadata(value: Any) -> dict[str, Any]:
    """The mapping with JSON values only: dates as ISO strings, long strings cut. ValueError when it is too large."""
    if not isinstance(value, Mapping):
        raise ValueError("metadata is a mapping")
    budget = itertools.count()
    return {str(key)[:200]: _json_value(entry, budget, 1) for key, entry in value.items()}


def _json_value(value: Any, budget: Iterator[int], depth: int) -> Any:
    if next(budget) >= _METADATA_VALUES or depth > _METADATA_DEPTH:
        raise ValueError(f"metadata has more than {_METADATA_VALUES} values, or is nested too deeply")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, (int, float)):
        return value if math.isfinite(value) and abs(value) < 2**63 else str(value)
    if isinstance(value, Mapping):
        return {clean(str(key))[:200]: _json_value(entry, budget, depth + 1) for key, entry in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [_json_value(entry, budget, depth + 1) for entry in value]
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    return clean(str(value))[:_METADATA_STRING]


def proper_title(title: object) -> str:
    """A title on one line, without markup; "" for what programs write when nobody gave one."""
    if not isinstance(title, (str, int, float)) or isinstance(title, bool):
        return ""
    plain = re.sub(r"[*`]+|(?<!\w)_+|_+(?!\w)|!?\[([^\]]*)\]\([^)]*\)", r"\1", clean(str(title)))
    plain = " ".join(re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", plain).split()).strip("# ")[:_TITLE_CHARACTERS]
    return "" if _NO_TITLE.fullmatch(plain) else plain


def first_heading(markdown: str) -> str:
    """The first of the highest headings at the top of the text; a bold first line counts as one. "" without one."""
    top = _FENCE.sub(lambda fence: " " * len(fence[0]), markdown[:8_000])
    headings = [(len(found[1]), found.start(), found[2]) for found in _ATX.finditer(top)]
    headings += [(1 if found[2][0] == "=" else 2, found.start(), found[1]) for found in _SETEXT.finditer(top)]
    headings += [(2, found.start(), found[1]) for found in _BOLD_START.finditer(top)]
    titles = (proper_title(heading) for _, _, heading in sorted(headings))
    return next((title for title in titles if title), "")


def as_markdown(plain: str) -> str:
    """Plain text with those lines escaped that Markdown would take for a heading or for the line below one."""
    return _LIKE_HEADING.sub(r"\\\g<0>", plain)


def table_to_markdown(text: str, *, tabs: bool, limit: int) -> str:
    """Delimiter-separated values as one Markdown table; the first row with content is its header.

    Stops soon after `limit` characters: the caller refuses texts that long. Raises csv.Error for what is no table.
    """
    csv.field_size_limit(10_000_000)
    delimiter = "\t" if tabs else _delimiter(text)
    rows = (row for row in csv.reader(io.StringIO(text), delimiter=delimiter) if any(cell.strip() for cell in row))
    header = next(rows, None)
    if header is None:
        return ""
    lines = [markdown_row(header, 0), "|" + " --- |" * len(header)]
    length = 0
    for row in rows:
        lines.append(markdown_row(row, len(header)))
        length += len(lines[-1])
        if length > limit:
            break
    return "\n".join(lines) + "\n"


def _delimiter(text: str) -> str:
    """The delimiter that gives most of the first rows the same width, above one."""
    sample = text[:_SAMPLE].rsplit("\n", 1)[0] if len(text) > _SAMPLE else text[:_SAMPLE]

    def agreement(delimiter: str) -> int:
        rows = itertools.islice(csv.reader(io.StringIO(sample), delimiter=delimiter), 100)
        widths = [len(row) for row in rows if row]
        common = max(set(widths), key=widths.count, default=1)
        return widths.count(common) * (common > 1)

    return max(",;\t|", key=agreement)


def markdown_row(cells: list[str], width: int) -> str:
    """One row of a Markdown table, at least so many cells wide."""
    padded = cells + [""] * (width - len(cells))
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in padded) + " |"
