"""Documents that come as ready texts: the lines of a JSON Lines file, streamed with bounded memory.

A path enters; records leave, and for every line that is none a `Skipped` with the reason, so that a person can see what
is missing and why. Nothing is parsed here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ingest.parsers.texts import clean
from ingest.sources import Skipped, shown
from nvr_rag.corpus import MAX_URI_CHARACTERS
from nvr_rag.errors import InvalidInput
from nvr_rag.storable import storable_json

MAX_LINE_BYTES = 10 * 2**20


@dataclass(frozen=True, kw_only=True, slots=True)
class TextRecord:
    """A document that comes as ready text."""

    uri: str
    text: str
    line: int  # from 1
    title: str = ""
    media_type: str = "text/plain"
    metadata: Mapping[str, Any]
    acl: Sequence[str] | None = None  # principals; None = everyone


def read_jsonl(path: Path) -> Iterator[TextRecord | Skipped]:
    """The documents of a JSON Lines file: objects with "text" and "uri" (or "id", or BEIR's "_id"), and perhaps
    "title", "metadata", "media_type" and "acl".

    Blank lines are ignored; a bad line is reported and the rest goes on. Raises InvalidInput when the file itself
    cannot be read.
    """
    try:
        with open(path, "rb") as file:
            number = 0
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(line) > MAX_LINE_BYTES:
                    _skip_line(file, line)
                    reason = f"is longer than {MAX_LINE_BYTES // 2**20} MB"
                    yield Skipped(path=path, line=number, reason=reason)
                elif line.strip(b" \t\r\n\xef\xbb\xbf"):
                    yield _record(path, number, line)
    except OSError as error:
        raise InvalidInput(f"{shown(path)} cannot be read: {error.strerror or error}", field="path") from error


def _skip_line(file: Any, line: bytes) -> None:
    while line and not line.endswith(b"\n"):
        line = file.readline(MAX_LINE_BYTES)


def _record(path: Path, number: int, line: bytes) -> TextRecord | Skipped:
    try:
        value = json.loads(line.decode("utf-8-sig"), parse_constant=_no_constant)
        return _text_record(value, number)
    except UnicodeDecodeError:
        reason = "is not UTF-8"
    except json.JSONDecodeError as error:
        reason = f"is not JSON: {error.msg} at column {error.colno}"
    except RecursionError:
        reason = "is nested too deeply"
    except ValueError as error:
        reason = str(error)
    return Skipped(path=path, line=number, reason=reason)


def _no_constant(name: str) -> float:
    raise ValueError(f"holds {name}, which is not JSON; use null")


def _text_record(value: Any, number: int) -> TextRecord:
    """Raises ValueError with the reason, in words."""
    if not isinstance(value, dict):
        raise ValueError('is not a JSON object such as {"uri": "...", "text": "..."}')
    title = _string(value, "title")
    text = _string(value, "text", required=True)
    text = text if text.strip() else title  # BEIR has passages that are a title only
    if not text.strip():
        raise ValueError('has an empty "text"')
    return TextRecord(
        uri=_uri(value),
        text=text,
        line=number,
        title=title,
        media_type=_string(value, "media_type") or "text/plain",
        metadata=_metadata(value.get("metadata")),
        acl=_acl(value.get("acl")),
    )


def _string(value: Mapping[str, Any], name: str, *, required: bool = False) -> str:
    found = value.get(name)
    if found is None and not required:
        return ""
    if not isinstance(found, str):
        raise ValueError(f'has no "{name}"' if found is None else f'has a "{name}" that is not a string')
    return clean(found)


def _uri(value: Mapping[str, Any]) -> str:
    for name in ("uri", "id", "_id"):
        found = value.get(name)
        if isinstance(found, int) and not isinstance(found, bool):
            return str(found)
        if isinstance(found, str) and len(found) > MAX_URI_CHARACTERS:
            raise ValueError(f'has a "{name}" of more than {MAX_URI_CHARACTERS} characters')
        if isinstance(found, str) and found.strip() and clean(found) == found:
            return found
        if found is not None:
            raise ValueError(f'has a "{name}" that is not a string of printable characters')
    raise ValueError('has no "uri" or "id"')


def _metadata(value: Any) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError('has "metadata" that is not an object')
    metadata = {clean(name): _clean_json(entry) for name, entry in value.items()}
    try:
        storable_json(metadata)  # what the log would refuse must not take the lines around it along
    except InvalidInput as error:
        raise ValueError(f'has "metadata" that cannot be stored: {error}') from error
    return metadata


def _clean_json(value: Any) -> Any:
    """The value with storable strings: no control characters, no lone surrogates, no infinite numbers."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return {clean(name): _clean_json(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_clean_json(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("holds a number that is too large")
    if isinstance(value, int) and abs(value) >= 2**63:
        raise ValueError("holds a number that is too large")
    return value


def _acl(value: Any) -> Sequence[str] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(principal, str) and principal for principal in value):
        raise ValueError('has an "acl" that is not a list of names')
    return tuple(clean(principal) for principal in value)
