"""Where to cut: spans of a text into smaller spans, and a row of atoms into runs that fit a budget.

Pure functions over offsets, costs and strengths; what a cost is (tokens, by the way) they do not know. All of them
take time linear in their input.
"""

from __future__ import annotations

import math
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

import regex

from ingest.sections import BLOCK, GLUED, HARD, ITEM, LINE, NESTED, SENTENCE, WORD

_GRAPHEME = regex.compile(r"\X")
_LAST_SPACE = regex.compile(r"(?r)\s")
_LAST_MARK = regex.compile(r"(?r)[\p{P}\p{S}]")
_SENTENCE_END = regex.compile(
    r"[.!?…‽]++[\"'”’»)\]*_`]*+\s++(?![\p{Ll}\p{M}])|[。！？｡．]++[”’」』）】》\"']*+\s*+(?!\p{M})"
)
_ABBREVIATION = regex.compile(
    r"\p{L}|al|approx|ca|cf|chap|dr|e\.g|eds?|eqs?|esp|etc|figs?|i\.e|inc|jr|ltd|mrs?|ms|nos?|pp|prof|refs?|resp|sec|"
    r"sr|st|vol|vs",
    regex.IGNORECASE,
)
# What a cut at each strength is worth, measured against missing the wanted size by a share of it.
_WORTH = {GLUED: -1.0, HARD: 0.0, WORD: 0.15, LINE: 0.3, SENTENCE: 0.45, NESTED: 0.6, ITEM: 0.75, BLOCK: 0.9}
_WORTH_OF_HEADING = 1.2
_SHORT = 24  # characters; a sentence of less goes with the next one
_STRETCH = 6  # budgets; rows of atoms longer than this are first cut where the text itself says so


class Part(NamedTuple):
    """A span and how good a place to cut its start is."""

    start: int
    end: int
    strength: int


class Atom(NamedTuple):
    """What is not cut further, in a row of its like."""

    key: str  # (the beginning of) its text
    cost: int
    strength: int  # of a cut before it
    extra: int = 0  # cost of what must be repeated in front when a run starts here


def sentences(text: str, start: int, end: int, strength: int) -> list[Part]:
    """The sentences of a span, the whitespace behind them included; very short ones with the next one."""
    parts: list[Part] = []
    for match in _SENTENCE_END.finditer(text, start, end):
        if match.end() - start >= _SHORT and match.end() < end and not _abbreviated(text, match.start(), start):
            parts.append(Part(start, match.end(), strength))
            start, strength = match.end(), SENTENCE
    parts.append(Part(start, end, strength))
    return parts


def _abbreviated(text: str, stop: int, start: int) -> bool:
    if text[stop] != ".":
        return False
    words = text[max(start, stop - 12) : stop].split()
    return bool(words and _ABBREVIATION.fullmatch(words[-1].lstrip("([\"'“‘*_")))


def lines(text: str, start: int, end: int, strength: int, size: int) -> list[Part]:
    """A span in parts of at most `size` characters, cut at the last line end, space or mark in each, or else between
    two graphemes; inside a grapheme only when it is longer than `size`."""
    parts: list[Part] = []
    while end - start > size:
        stop, following = _window(text, start, start + size)
        parts.append(Part(start, stop, strength))
        start, strength = stop, following
    if start < end:
        parts.append(Part(start, end, strength))
    return parts


def _window(text: str, start: int, stop: int) -> tuple[int, int]:
    """Where to end the part that begins at `start` and must end by `stop`, and the strength of that cut."""
    newline = text.rfind("\n", start, stop) + 1
    if newline > start + (stop - start) // 4:
        return newline, NESTED if text[newline : newline + 1] in "\r\n" else LINE
    space = _LAST_SPACE.search(text, start, stop)
    if space and _is_boundary(text, space.end()):
        return space.end(), WORD
    mark = _LAST_MARK.search(text, start + (stop - start) // 2, stop)
    if mark and _is_boundary(text, mark.end()):
        return mark.end(), HARD
    last = start
    for grapheme in _GRAPHEME.finditer(text, start, stop + 1):
        last = grapheme.start()
    return (last if last > start else stop), HARD


def _is_boundary(text: str, at: int) -> bool:
    """Whether no grapheme that begins at the character before `at` reaches over it."""
    match = _GRAPHEME.match(text, at - 1, at + 1)
    return match is not None and match.end() == at


def cut(atoms: Sequence[Atom], room: int) -> list[range]:
    """Runs of atoms, each of at most `room` (one atom alone may be more), in order and without gaps.

    Sizes are balanced and cuts lie where they are strongest. Long rows are cut at landmarks first, chosen by what
    stands there and not by counting from the start, so that a change in one place leaves far runs as they were.
    """
    before = [0, *accumulate(atom.cost for atom in atoms)]  # before[i]: cost of the atoms before i
    runs: list[range] = []
    start = 0
    for stop in (*_landmarks(atoms, before, room), len(atoms)):
        runs.extend(_balanced(atoms, before, range(start, stop), room))
        start = stop
    return runs


def _landmarks(atoms: Sequence[Atom], before: Sequence[int], room: int) -> Iterator[int]:
    start = 0
    while before[-1] - before[start] > _STRETCH * room:
        first = bisect_left(before, before[start] + _STRETCH * room // 2, start + 1)
        if first >= len(atoms):
            return
        last = max(first, min(bisect_right(before, before[start] + _STRETCH * room), len(atoms)) - 1)
        strongest = max(atoms[i].strength for i in range(first, last + 1))
        start = max(
            (i for i in range(first, last + 1) if atoms[i].strength == strongest),
            key=lambda i: zlib.crc32(atoms[i].key.encode("utf-8", "surrogatepass")),
        )
        yield start


def _balanced(atoms: Sequence[Atom], before: Sequence[int], span: range, room: int) -> Iterator[range]:
    start, stop = span.start, span.stop
    while start < stop:
        capacity = max(1, room - atoms[start].extra)
        end = _best_end(atoms, before, range(start, stop), capacity)
        yield range(start, end)
        start = end


def _best_end(atoms: Sequence[Atom], before: Sequence[int], span: range, capacity: int) -> int:
    """Where the run that begins at span.start ends best."""
    start, stop = span.start, span.stop
    rest = before[stop] - before[start]
    if rest <= capacity:
        return stop
    wanted = rest / math.ceil(rest / capacity)
    largest = min(float(capacity), rest - wanted / 2)
    first = bisect_left(before, before[start] + wanted / 2, start + 1, stop)
    last = bisect_right(before, before[start] + largest, start + 1, stop) - 1
    if first <= last:
        return max(
            range(first, last + 1),
            key=lambda i: _worth(atoms[i].strength) - abs(before[i] - before[start] - wanted) / wanted,
        )
    end = max(start + 1, bisect_right(before, before[start] + capacity, start + 1, stop) - 1)
    while end - 1 > start and atoms[end].strength == GLUED:
        end -= 1
    return end


def _worth(strength: int) -> float:
    return _WORTH.get(strength, _WORTH_OF_HEADING)
