"""Chunks that begin with the end of the one before: leaves and chunks enter, out comes where each may begin instead.

The end is that of the same section, never from before a heading, as a chunk says under which headings all of it stands;
it begins where a sentence, a line or a row does, and only where not even the last of them fits, between two words.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from ingest.cutting import Part, lines
from ingest.leaves import Leaf, Meter
from nvr_rag.types import ChunkDraft


class Leads:
    """The leaves of a text, asked for what comes before its chunks."""

    def __init__(self, text: str, leaves: Sequence[Leaf], meter: Meter, tokens: int) -> None:
        """`tokens` is the most that a chunk may take over."""
        self._text, self._leaves, self._meter, self._tokens = text, leaves, meter, tokens
        self._starts = [leaf.start for leaf in leaves]

    def before(self, draft: ChunkDraft, earlier: ChunkDraft) -> list[Leaf]:
        """Spans from which on `draft` may take over the text of `earlier`, the chunk before it: each reaches from a
        good place to begin to the start of `draft`, the longest first."""
        found: list[Leaf] = []
        left = self._tokens
        for leaf in self._parts(draft, earlier):
            cost = self._cost(leaf)
            if cost > left:
                return found[::-1] or self._inside(leaf)
            left -= cost
            found.append(leaf._replace(end=draft.start))
        return found[::-1]

    def _parts(self, draft: ChunkDraft, earlier: ChunkDraft) -> list[Leaf]:
        """The leaves between the starts of two chunks, as far as they are of the section of the later one and can cost
        no more than one too many; the last one first."""
        at = bisect_right(self._starts, draft.start) - 1
        section, stop, parts, cost = self._leaves[at].section, draft.start, list[Leaf](), 0
        while at >= 0 and stop > earlier.start and cost <= self._tokens:
            leaf = self._leaves[at]
            if leaf.heading or leaf.section != section:
                break
            start = max(leaf.start, earlier.start)
            if self._text[start:stop].strip():
                parts.append(leaf._replace(start=start, end=stop))
                cost += leaf.cost if start == leaf.start and stop == leaf.end else 0
            stop, at = start, at - 1
        return parts

    def _inside(self, leaf: Leaf) -> list[Leaf]:
        """The same for a leaf that is too long as a whole."""
        size = max(16, self._tokens)  # characters: some quarter of what is wanted
        parts = lines(self._text, leaf.start, leaf.end, leaf.strength, size)
        found: list[Leaf] = []
        left = self._tokens
        for part, cost in zip(parts[::-1], self._costs(parts)[::-1], strict=True):
            left -= cost
            if left < 0:
                break
            found.append(leaf._replace(start=part.start))
        return found[::-1]

    def _cost(self, leaf: Leaf) -> int:
        return self._meter.costs([self._text[leaf.start : leaf.end]])[0]

    def _costs(self, parts: Sequence[Part]) -> list[int]:
        return self._meter.costs(self._text[part.start : part.end] for part in parts)
