"""Parts of one text enter, as somebody else has cut them; the text leaves, as far as it can be put together again.

Parts are ordered by page and by where they begin, or by their number, as their metadata have it; otherwise by id. Where
offsets show that two overlap, what they share is there once. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PAGE_KEYS = ("page", "page_number", "page_label")
START_KEYS = ("start_index",)  # a character offset in the page, or in the text where there are no pages
PART_KEYS = (*START_KEYS, "chunk", "chunk_index", "chunk_id", "chunk_number", "seq_num")
_BREAK = "\n\n"
_LARGEST = 1e15  # a number beyond is no position


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """A part of a text."""

    point: str  # its id where it comes from
    text: str
    metadata: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Joined:
    text: str
    page_starts: Sequence[int]  # empty where the parts do not tell pages from the first on


def join(pieces: Sequence[Piece]) -> Joined:
    """The text of all parts of a document."""
    ordered = sorted(pieces, key=_order)
    text, starts, end = "", dict[int, int](), 0
    before: Piece | None = None
    for piece in ordered:
        shared = _shared(before, piece, end)
        gap = _BREAK if before is not None and shared == 0 and not _touches(before, piece, end) else ""
        page = _number(piece, PAGE_KEYS)
        if page is not None:
            starts.setdefault(int(page), len(text) + len(gap))
        text += gap + piece.text[shared:]
        end = max(end if _one_page(before, piece) else 0, _end(piece))
        before = piece
    return Joined(text=text, page_starts=_pages(starts))


def _order(piece: Piece) -> tuple[float, float, float, int, str]:
    page, start, part = (_number(piece, keys) for keys in (PAGE_KEYS, START_KEYS, PART_KEYS))
    return (
        -1.0 if page is None else page,
        -1.0 if start is None else start,
        -1.0 if part is None else part,
        len(piece.point) if piece.point.isdecimal() else 0,  # 9 before 10
        piece.point,
    )


def _number(piece: Piece, keys: Sequence[str]) -> float | None:
    """The first of these that is a number, or says one."""
    for key in keys:
        value = piece.metadata.get(key)
        if isinstance(value, str) and value.isdecimal() and value.isascii() and len(value) < 16:
            return float(value)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < _LARGEST:
            return float(value)
    return None


def _end(piece: Piece) -> int:
    start = _number(piece, START_KEYS)
    return 0 if start is None or start < 0 else int(start) + len(piece.text)


def _one_page(one: Piece | None, other: Piece) -> bool:
    return one is not None and _number(one, PAGE_KEYS) == _number(other, PAGE_KEYS)


def _shared(before: Piece | None, piece: Piece, end: int) -> int:
    """How many characters of a part are at the end of the text already: its offset says so, and they are the same."""
    start = _number(piece, START_KEYS)
    if before is None or start is None or start < 0 or not _one_page(before, piece):
        return 0
    shared = min(end - int(start), len(piece.text))
    if shared <= 0 or end != _end(before):
        return 0
    return shared if before.text.endswith(piece.text[:shared]) else 0


def _touches(before: Piece, piece: Piece, end: int) -> bool:
    """A part goes on where the text ends."""
    start = _number(piece, START_KEYS)
    return start is not None and start > 0 and _one_page(before, piece) and int(start) == end == _end(before)


def _pages(starts: Mapping[int, int]) -> Sequence[int]:
    """Where each page begins, if they are all there, counted from 0 or from 1."""
    first = min(starts, default=None)
    if first not in (0, 1) or set(starts) != set(range(first, first + len(starts))):
        return ()
    return tuple(starts[page] for page in sorted(starts))
