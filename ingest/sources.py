"""Where documents come from: a folder's files, or the lines of a JSON Lines file. Nothing is parsed here.

`walk` and `read_jsonl` stream in a fixed order with bounded memory, and report whatever they pass over as `Skipped`, so
that a person can see what is missing and why.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit

from ingest.formats import not_a_document
from ingest.texts import clean
from nvr_rag.errors import InvalidInput

MAX_LINE_BYTES = 10 * 2**20


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceFile:
    """A file that may be a document."""

    path: Path
    uri: str  # file:// and the absolute path, symbolic links on the way to it not resolved
    size: int  # bytes
    mtime_ns: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Skipped:
    """A file, folder or line that was passed over."""

    path: Path
    reason: str  # "is an image", "is hidden", "cannot be read: Permission denied" ...; the same words for the same case
    unreadable: bool = False  # nobody could look: what is or lies below it may well exist, so nothing may be forgotten
    line: int | None = None  # from 1, in a JSON Lines file


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


def path_to_uri(path: Path) -> str:
    """The file URI of the absolute path, symbolic links not resolved; undecodable bytes are percent-encoded."""
    return Path(os.path.abspath(path)).as_uri()


def uri_to_path(uri: str) -> Path:
    """The path of a file URI on this machine; the inverse of path_to_uri. Raises InvalidInput for other URIs."""
    parts = urlsplit(uri)
    if parts.scheme != "file" or parts.netloc not in ("", "localhost") or parts.query or parts.fragment:
        raise InvalidInput(f"not the URI of a file on this machine: {uri!r}; it begins with file:///", field="uri")
    path = os.fsdecode(unquote_to_bytes(parts.path))
    if not path.startswith("/") or "\x00" in path:
        raise InvalidInput(f"not the URI of an absolute path: {uri!r}", field="uri")
    return Path(path)


def walk(root: Path) -> Iterator[SourceFile | Skipped]:
    """The files below `root`, or `root` itself when it is a file, in the order of their names' bytes.

    Passed over and reported: hidden entries, linked folders, links that lead out, special files, temporary files,
    what its name says is no document, and what cannot be read. Raises InvalidInput when there is no `root`.
    """
    top = Path(os.path.abspath(root))
    try:
        status = top.stat()
    except OSError as error:
        reason = "there is no such file or folder" if isinstance(error, FileNotFoundError) else error.strerror
        raise InvalidInput(f"{_shown(root)}: {reason}; give the path of a document or folder", field="path") from error
    if not stat.S_ISDIR(status.st_mode):
        yield _file(top, status)
        return
    inside = os.path.realpath(top)
    pending: list[Iterator[os.DirEntry[str]]] = []
    yield from _enter(top, pending)
    while pending:
        entry = next(pending[-1], None)
        if entry is None:
            pending.pop()
            continue
        found = _look(entry, inside)
        if found is None:
            yield from _enter(Path(entry.path), pending)
        else:
            yield found


def _enter(folder: Path, pending: list[Iterator[os.DirEntry[str]]]) -> Iterator[Skipped]:
    """Push the folder's entries, sorted; report it when it cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            pending.append(iter(sorted(entries, key=lambda entry: os.fsencode(entry.name))))
    except OSError as error:
        yield _unreadable(folder, error)


def _look(entry: os.DirEntry[str], inside: str) -> SourceFile | Skipped | None:
    """What an entry is; None for a folder to enter."""
    path = Path(entry.path)
    try:
        if entry.name.startswith("."):
            return Skipped(path=path, reason="is hidden")
        if entry.is_symlink():
            reason = _bad_link(entry, inside)
            if reason is not None:
                return Skipped(path=path, reason=reason)
        elif entry.is_dir():
            return None
        what = not_a_document(entry.name)
        return Skipped(path=path, reason=f"is {what}") if what else _file(path, entry.stat())
    except OSError as error:
        return _unreadable(path, error)


def _bad_link(entry: os.DirEntry[str], inside: str) -> str | None:
    if entry.is_dir():
        return "is a symbolic link to a folder"
    target = os.path.realpath(entry.path)
    if os.path.commonpath((inside, target)) != inside:
        return "is a symbolic link that leads out of the folder"
    return None if os.path.exists(target) else "is a broken symbolic link"


def _file(path: Path, status: os.stat_result) -> SourceFile | Skipped:
    if not stat.S_ISREG(status.st_mode):
        return Skipped(path=path, reason="is not a regular file (a pipe, socket or device)")
    if not os.access(path, os.R_OK):
        return Skipped(path=path, reason="cannot be read: Permission denied", unreadable=True)
    return SourceFile(path=path, uri=path_to_uri(path), size=status.st_size, mtime_ns=status.st_mtime_ns)


def _unreadable(path: Path, error: OSError) -> Skipped:
    return Skipped(path=path, reason=f"cannot be read: {error.strerror or error}", unreadable=True)


def _shown(path: Path) -> str:
    return os.fsencode(path).decode("utf-8", "replace")


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
        raise InvalidInput(f"{_shown(path)} cannot be read: {error.strerror or error}", field="path") from error


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
    return {clean(name): _clean_json(entry) for name, entry in value.items()}


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
    return value


def _acl(value: Any) -> Sequence[str] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(principal, str) and principal for principal in value):
        raise ValueError('has an "acl" that is not a list of names')
    return tuple(clean(principal) for principal in value)
