"""Jupyter notebooks as Markdown: text cells as they are, code cells as fenced code, what they printed below them, cut.

Formats 3 and 4 are read. Pictures are left out; of several forms of one result the plain text is taken.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ingest.parsers.texts import clean, decode, first_heading, proper_title
from nvr_rag.errors import ParseFailed
from nvr_rag.types import ParsedText, TextFormat

OUTPUT_CHARACTERS = 2_000  # of one output: results are worth finding, logs are not
_OUTPUTS = 20  # of one cell
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")  # terminal colours of tracebacks


def read_notebook(data: bytes) -> ParsedText:
    """The text of a notebook. Raises ParseFailed for what is not one."""
    text, notes = decode(data)
    try:
        notebook = json.loads(text)
    except ValueError as error:
        raise ParseFailed(f"is damaged, or not the notebook that its name says: {error}") from error
    cells = _cells(notebook)
    metadata = _mapping(_mapping(notebook).get("metadata"))
    language = _language(metadata)
    parts = [part for cell in cells for part in _cell(_mapping(cell), language)]
    body = "\n\n".join(part.strip("\n") for part in parts if part.strip())
    return ParsedText(
        text=body,
        format=TextFormat.MARKDOWN,
        media_type="application/x-ipynb+json",
        title=proper_title(metadata.get("title")) or first_heading(body),
        metadata={"language": language} if language else {},
        notes=notes,
    )


def _cells(notebook: Any) -> list[Any]:
    sheets = _mapping(notebook).get("worksheets")
    if isinstance(sheets, list):
        return [cell for sheet in sheets for cell in _list(_mapping(sheet).get("cells"))]
    cells = _mapping(notebook).get("cells")
    if not isinstance(cells, list):
        raise ParseFailed('is damaged, or not the notebook that its name says: it has no "cells"')
    return cells


def _language(metadata: Mapping[str, Any]) -> str:
    for place, name in (("language_info", "name"), ("kernelspec", "language")):
        found = _mapping(metadata.get(place)).get(name)
        if isinstance(found, str) and re.fullmatch(r"[\w+#.-]{1,40}", found):
            return found.lower()
    return ""


def _cell(cell: Mapping[str, Any], language: str) -> Iterator[str]:
    source = _text(cell.get("source", cell.get("input")))
    if cell.get("cell_type") == "code":
        if source.strip():
            yield _fenced(source, language)
        for output in _list(cell.get("outputs"))[:_OUTPUTS]:
            printed = _output(_mapping(output))
            if printed.strip():
                yield _fenced(printed, "")
    elif cell.get("cell_type") == "heading":  # format 3
        level = cell.get("level")
        yield f"{'#' * (level if isinstance(level, int) and 1 <= level <= 6 else 1)} {' '.join(source.split())}"
    else:
        yield source


def _output(output: Mapping[str, Any]) -> str:
    data = _mapping(output.get("data"))
    if output.get("output_type") in ("error", "pyerr"):
        printed = f"{_text(output.get('ename'))}: {_text(output.get('evalue'))}"
    else:
        printed = _text(output.get("text")) or _text(data.get("text/plain"))
    return printed if len(printed) <= OUTPUT_CHARACTERS else f"{printed[:OUTPUT_CHARACTERS]}\n..."


def _fenced(code: str, language: str) -> str:
    longest = max((len(run) for run in re.findall(r"^ {0,3}(`{3,})", code, re.M)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}{language}\n{code.strip(chr(10))}\n{fence}"


def _text(value: object) -> str:
    """A string, or the lines of one; "" for anything else."""
    lines = value if isinstance(value, list) else [value]
    return clean(_ESCAPES.sub("", "".join(line for line in lines if isinstance(line, str))))


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
