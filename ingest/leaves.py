"""A text as a row of leaves: the parts that are only cut further when they must be, each with its cost in tokens.

In go the blocks and sections of a text and an encoder's counter; out come leaves in order, and for each section the
heading path that stands before its chunks and the room which that leaves for text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from ingest.cutting import Part, lines, sentences
from ingest.sections import GLUED, ITEM, Block, Kind, Section
from nvr_rag.encoders.base import Encoder
from nvr_rag.errors import ChunkingMismatch

_BATCH = 1 << 20  # characters handed to the tokenizer at once: bounds its memory
_CHARACTERS_PER_TOKEN = 16  # a token counts for no more, so that a chunk of blanks or of one endless word stays small
_MAX_KNOWN = 50_000  # words: about 6 MB
_WORD = re.compile(r"\S{1,32}")  # an endless one counts by its parts, also where a tokenizer gives up on it
_ROW = re.compile(r"[^\r\n]+\s*")
_SURROGATE = re.compile("[\ud800-\udfff]")


class Leaf(NamedTuple):
    """A span of the text and what it costs. A plain tuple: a text may have a million of them."""

    start: int
    end: int
    strength: int  # of a cut before it
    block: int
    section: int
    heading: bool = False  # a whole heading line
    cost: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Places:
    """What stands before each section's text in its chunks, and what that leaves for the text."""

    sections: Sequence[Section]
    rooms: Sequence[int]  # tokens, by section
    shortened: Mapping[int, tuple[str, ...]]  # heading paths of the sections whose own would leave too little room

    def headings(self, section: int) -> tuple[str, ...]:
        return self.shortened[section] if section in self.shortened else self.sections[section].path


class Meter:
    """Counts tokens for one document.

    `costs` adds up words, each counted once and remembered (texts repeat their words, and tokenizers add up over white
    space, nearly or exactly); of a text that is too long by its characters alone, it counts nothing else. `totals` is
    exact.
    """

    def __init__(self, encoder: Encoder, title: str) -> None:
        self._encoder = encoder
        self._title = without_surrogates(title)
        self.max_tokens = encoder.spec.max_tokens
        self.context_bytes = encoder.spec.context_bytes
        self._empty = encoder.count_tokens([""])[0]
        self._known = _known_words(encoder.tokenizer_hash)

    def costs(self, texts: Iterable[str]) -> list[int]:
        """What each text takes of a budget: its tokens, and more when it has very many characters for them."""
        costs: list[int] = []
        endless = _CHARACTERS_PER_TOKEN * max(self.max_tokens, self.context_bytes)
        for batch in _batches(texts):
            words = [_WORD.findall(text) if len(text) <= endless else () for text in batch]
            self._learn(set().union(*words).difference(self._known))
            cost = self._known.__getitem__
            for text, group in zip(batch, words, strict=True):
                costs.append(max(sum(map(cost, group)), -(-len(text) // _CHARACTERS_PER_TOKEN)))
        return costs

    def _learn(self, words: Set[str]) -> None:
        new = sorted(words)
        counts = self._encoder.count_tokens([f" {word}" for word in new]) if new else []
        self._known.update((word, count - self._empty) for word, count in zip(new, counts, strict=True))

    def totals(self, chunks: Iterable[tuple[Sequence[str], str]]) -> list[int]:
        """Tokens of the encoder's input for each (headings, text)."""
        render = self._encoder.spec.render
        inputs = (render(title=self._title, headings=headings, text=text) for headings, text in chunks)
        return [count for batch in _batches(inputs) for count in self._encoder.count_tokens(batch)]


_KNOWN: dict[str, dict[str, int]] = {}  # tokens by word, by tokenizer: a memo, shared by all documents


def _known_words(tokenizer: str) -> dict[str, int]:
    known = _KNOWN.get(tokenizer)
    if known is None or len(known) > _MAX_KNOWN:
        known = _KNOWN[tokenizer] = {}  # a new one: another thread may be reading the old one
    return known


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text) + 16
        if size > _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def without_surrogates(text: str) -> str:
    """The text with lone surrogates, which no tokenizer takes, replaced one for one; offsets stay."""
    return _SURROGATE.sub("\ufffd", text)


def leaves_of(text: str, blocks: Sequence[Block], meter: Meter) -> list[Leaf]:
    """The blocks, long ones in their natural parts, and their costs."""
    size = part_size(meter)
    leaves = [
        Leaf(*part, i, block.section, block.kind is Kind.HEADING)
        for i, block in enumerate(blocks)
        for part in _parts(text, block, size)
    ]
    return _measured(text, leaves, meter)


def part_size(meter: Meter) -> int:
    """Characters of a part so small that it need not be looked into: about an eighth of the budget."""
    return max(16, meter.max_tokens // 2)


def _parts(text: str, block: Block, size: int) -> list[Part]:
    start, end, strength = block.start, block.end, block.strength
    if end - start <= size or block.kind is Kind.HEADING:
        return [Part(start, end, strength)]
    if block.kind is Kind.CODE:
        return lines(text, start, end, strength, size)
    if block.kind is Kind.TABLE:
        rows = [Part(m.start(), m.end(), ITEM) for m in _ROW.finditer(text, block.header_end, end)]
        return [Part(start, block.header_end, strength), *(r._replace(strength=GLUED) for r in rows[:1]), *rows[1:]]
    return sentences(text, start, end, strength)


def _measured(text: str, leaves: Sequence[Leaf], meter: Meter) -> list[Leaf]:
    costs = meter.costs(text[leaf.start : leaf.end] for leaf in leaves)
    return [Leaf(*leaf[:6], cost) for leaf, cost in zip(leaves, costs, strict=True)]


def places_of(sections: Sequence[Section], heading_costs: Sequence[int], title: str, meter: Meter) -> Places:
    """The places of the sections; `heading_costs` are those of the heading lines, in order (section 0 has none).

    Raises ChunkingMismatch when a title leaves no room for any text.
    """
    fixed = meter.totals([((), "")])[0]
    enough = meter.max_tokens // 4
    costs = [0]  # of the heading path alone, by addition: never less than the exact number
    for section, own in zip(sections[1:], heading_costs, strict=True):
        repeats = section.parent == 0 and section.path[0] == title
        costs.append(costs[section.parent] + (0 if repeats else own))
    rooms = [meter.max_tokens - fixed - min(cost, meter.context_bytes) for cost in costs]
    shortened: dict[int, tuple[str, ...]] = {}
    for i, room in enumerate(rooms):
        if room < enough:
            shortened[i], rooms[i] = _shortened(sections[i].path, enough, meter)
    return Places(sections=sections, rooms=rooms, shortened=shortened)


def _shortened(path: tuple[str, ...], enough: int, meter: Meter) -> tuple[tuple[str, ...], int]:
    """The most of a heading path, its inner end, that leaves enough room; else what leaves most. And that room."""
    options = [path[i:] for i in range(len(path) + 1)]
    rooms = [meter.max_tokens - total for total in meter.totals([(option, "") for option in options])]
    best = next((i for i, room in enumerate(rooms) if room >= enough), max(range(len(rooms)), key=rooms.__getitem__))
    if rooms[best] < 1:
        raise ChunkingMismatch(
            f"the document's title takes the whole budget of {meter.max_tokens} tokens; "
            f"lower context_bytes (now {meter.context_bytes}) in the encoder's spec"
        )
    return options[best], rooms[best]


def fitted(text: str, leaves: list[Leaf], blocks: Sequence[Block], places: Places, meter: Meter) -> list[Leaf]:
    """The leaves, those over their room cut, and code and tables that fit as a whole made one again."""
    size = part_size(meter)
    while size and any(_too_long(leaf, places) for leaf in leaves):
        leaves = _split(text, leaves, places, size, meter)
        size //= 2
    fused: list[Leaf] = []
    for i, group in groupby(leaves, key=lambda leaf: leaf.block):
        parts = list(group)
        if len(parts) > 1 and blocks[i].kind in (Kind.CODE, Kind.TABLE):
            total = sum(leaf.cost for leaf in parts)
            if total <= places.rooms[parts[0].section]:
                parts = [parts[0]._replace(end=parts[-1].end, cost=total)]
        fused.extend(parts)
    return fused


def _too_long(leaf: Leaf, places: Places) -> bool:
    room = places.rooms[leaf.section]
    limit = room if leaf.heading else max(1, room // 2)
    return leaf.cost > limit and leaf.end - leaf.start > 1


def _split(text: str, leaves: Sequence[Leaf], places: Places, size: int, meter: Meter) -> list[Leaf]:
    """Each leaf that is too long, in parts of at most `size` characters."""
    parts = [
        [Leaf(*part, leaf.block, leaf.section) for part in lines(text, leaf.start, leaf.end, leaf.strength, size)]
        if _too_long(leaf, places)
        else [leaf]
        for leaf in leaves
    ]
    new = iter(_measured(text, [leaf for group in parts if group[0].cost == 0 for leaf in group], meter))
    return [next(new) if leaf.cost == 0 else leaf for group in parts for leaf in group]
