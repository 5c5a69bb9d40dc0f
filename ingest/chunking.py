"""Cuts a parsed text into chunks that fit an encoder: text in, ChunkDrafts out. Knows no database and no file.

Along headings first; small neighbours under one parent are joined, long sections cut into pieces of like size. Each
decision looks at one section and its neighbours only, so an edit leaves the chunks of other sections as they were.
Tokens are counted once a part and added up; then every finished chunk is counted exactly, as the encoder will see it,
and the few that are too long are cut again. Where chunks are to overlap, that comes last.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

from ingest.cutting import Atom, cut, lines
from ingest.leaves import Leaf, Meter, Places, fitted, leaves_of, places_of, without_surrogates
from ingest.overlap import Leads
from ingest.sections import Block, Section, structure
from nvr_rag.encoders.base import Encoder
from nvr_rag.errors import ChunkingMismatch
from nvr_rag.types import ChunkDraft, ParsedText

_SMALL = 8  # a section of less than this fraction of the budget is joined to a neighbour
_HEADER = 3  # a table header of more than this fraction of the room is not repeated
_KEY = 256  # characters by which a landmark is known


def chunk(parsed: ParsedText, encoder: Encoder, *, overlap: int = 0) -> list[ChunkDraft]:
    """Chunks in the order of the text; none for an empty text. Each fits the encoder's budget as `EncoderSpec.render`
    puts it; together they hold all of the text but blanks and the headings in their paths.

    Where a section had to be cut, a chunk begins with up to `overlap` tokens of the one before it. Raises
    ChunkingMismatch when the title alone takes the encoder's budget.
    """
    text = without_surrogates(parsed.text)
    sections, blocks = structure(text, parsed.format)
    if not blocks:
        return []
    meter = Meter(encoder, parsed.title)
    leaves = leaves_of(text, blocks, meter)
    headings = [leaf.cost for leaf in leaves if leaf.heading]
    places = places_of(sections, headings, parsed.title, meter)
    row = _Row(
        text=text,
        sections=sections,
        blocks=blocks,
        places=places,
        leaves=fitted(text, leaves, blocks, places, meter),
        header_costs=_header_costs(blocks, leaves, places),
    )
    small = meter.max_tokens / _SMALL
    runs = _joined(row, _cut(row, _tiny_joined(row, _units(row), small), overlap), small)
    drafts = _drafts(parsed, row, runs, meter)
    return _overlapping(parsed, row, drafts, meter, overlap) if overlap else drafts


class _Run(NamedTuple):
    """Leaves that stand together."""

    start: int
    stop: int
    room: int  # the least among its sections
    top: bool  # holds a first-level heading


class _Row:
    """The leaves of a text and what can be asked about any run of them."""

    def __init__(
        self,
        *,
        text: str,
        sections: Sequence[Section],
        blocks: Sequence[Block],
        places: Places,
        leaves: Sequence[Leaf],
        header_costs: Mapping[int, int],
    ) -> None:
        self.text = text
        self.sections = sections
        self.blocks = blocks
        self.places = places
        self.leaves = leaves
        self.header_costs = header_costs
        self.before = [0, *accumulate(leaf.cost for leaf in leaves)]
        self.body_before = [0, *accumulate(0 if leaf.heading else leaf.cost for leaf in leaves)]

    def under(self, outer: int, section: int) -> bool:
        """Whether `section` is `outer` or inside it; everything is inside -1."""
        while section > outer:
            section = self.sections[section].parent
        return section == outer

    def opening(self, leaves: Sequence[Leaf], start: int, stop: int) -> int:
        """Where the text of a run begins: behind the heading lines that are in its path."""
        shortened = self.places.shortened  # a heading that is not in the path must stay in the text
        while start + 1 < stop and leaves[start].heading:
            section, following = leaves[start].section, leaves[start + 1].section
            if following in shortened or not self.under(section, following):
                break
            start += 1
        return start

    def cost(self, start: int, stop: int) -> int:
        return self.before[stop] - self.before[self.opening(self.leaves, start, stop)]

    def body(self, run: _Run) -> int:
        """Cost of a run without any heading line."""
        return self.body_before[run.stop] - self.body_before[run.start]

    def parent(self, run: _Run) -> int:
        """The section that a run is a part of."""
        first = self.leaves[run.start]
        section = first.section
        return self.sections[section].parent if first.heading else section

    def run(self, start: int, stop: int) -> _Run:
        leaves = self.leaves[start:stop]
        room = min(self.places.rooms[section] for section in {leaf.section for leaf in leaves})
        return _Run(start, stop, room, any(leaf.heading and self.sections[leaf.section].level == 1 for leaf in leaves))

    def related(self, earlier: _Run, later: _Run) -> bool:
        """Whether two neighbours may share a chunk: the later one is under the parent of the earlier one, and they
        do not belong to two first-level headings."""
        first = self.leaves[earlier.start].section
        if later.top and (first != 0 or earlier.top):
            return False
        return self.under(self.sections[first].parent, self.parent(later))

    def merged(self, earlier: _Run, later: _Run) -> _Run:
        return _Run(earlier.start, later.stop, min(earlier.room, later.room), earlier.top or later.top)

    def header(self, leaf: Leaf) -> str:
        """The table header to repeat when a run starts at this leaf; "" when there is none."""
        block = self.blocks[leaf.block]
        below = leaf.block in self.header_costs and leaf.start >= block.header_end
        return self.text[block.start : block.header_end] if below else ""

    def cut(self, leaves: Sequence[Leaf], room: int) -> list[range]:
        """Runs of these leaves that fit the room."""
        text, costs = self.text, self.header_costs
        atoms = [
            Atom(
                text[leaf.start : min(leaf.end, leaf.start + _KEY)],
                leaf.cost,
                leaf.strength,
                costs[leaf.block] if self.header(leaf) else 0,
            )
            for leaf in leaves
        ]
        return cut(atoms, room)


def _header_costs(blocks: Sequence[Block], leaves: Sequence[Leaf], places: Places) -> dict[int, int]:
    """By table, what repeating its header costs, where that is worth it; `leaves` are not yet fitted."""
    costs: dict[int, int] = {}
    for leaf in leaves:
        block = blocks[leaf.block]
        if leaf.end == block.header_end and leaf.cost <= places.rooms[block.section] // _HEADER:
            costs[leaf.block] = leaf.cost
    return costs


def _units(row: _Row) -> list[_Run]:
    """One run a section: its heading, with those above it that have no text of their own, and its text."""
    leaves = row.leaves
    starts = [0, *(i for i in range(1, len(leaves)) if leaves[i].heading and not leaves[i - 1].heading)]
    return [row.run(a, b) for a, b in zip(starts, [*starts[1:], len(leaves)], strict=True)]


def _tiny_joined(row: _Row, units: Sequence[_Run], small: float) -> list[_Run]:
    """The units, but neighbouring tiny ones under one parent as one, or as several that fit the room."""
    joined: list[_Run] = []
    for group in _tiny_groups(row, units, small):
        whole = row.run(group[0].start, group[-1].stop)
        if len(group) == 1 or row.cost(whole.start, whole.stop) <= whole.room:
            joined.append(whole)
            continue
        firsts = [row.leaves[unit.start] for unit in group]
        costs = [row.before[unit.stop] - row.before[unit.start] for unit in group]
        ranges = row.cut([leaf._replace(cost=cost) for leaf, cost in zip(firsts, costs, strict=True)], whole.room)
        joined.extend(row.run(group[r.start].start, group[r.stop - 1].stop) for r in ranges)
    return joined


def _tiny_groups(row: _Row, units: Sequence[_Run], small: float) -> Iterator[list[_Run]]:
    group: list[_Run] = []
    whole: _Run | None = None  # of the group, while tiny ones may join it
    for unit in units:
        tiny = row.body(unit) < small
        if whole and tiny and row.related(whole, unit):
            group.append(unit)
            whole = row.merged(whole, unit)
            continue
        if group:
            yield group
        group, whole = [unit], unit if tiny else None
    yield group


def _cut(row: _Row, runs: Sequence[_Run], overlap: int) -> list[_Run]:
    """The runs, those over their room cut in pieces of like size, with room for the overlap."""
    pieces: list[_Run] = []
    for run in runs:
        if row.cost(run.start, run.stop) <= run.room:
            pieces.append(run)
            continue
        text = row.opening(row.leaves, run.start, run.stop)
        ranges = row.cut(row.leaves[text : run.stop], max(run.room // 2, run.room - overlap))
        ends = [text + r.stop for r in ranges]
        pieces.extend(row.run(a, b) for a, b in zip([run.start, *ends[:-1]], ends, strict=True))
    return pieces


def _joined(row: _Row, pieces: Sequence[_Run], small: float) -> list[_Run]:
    """The pieces, those still tiny joined to the one before or else to the one behind, where that fits."""
    for tiny_side in (1, 0):
        done: list[_Run] = []
        for piece in pieces:
            pair = (done[-1], piece) if done else None
            if pair and row.body(pair[tiny_side]) < small and _may_join(row, *pair):
                done[-1] = row.merged(*pair)
            else:
                done.append(piece)
        pieces = done
    return list(pieces)


def _may_join(row: _Row, earlier: _Run, later: _Run) -> bool:
    whole = row.merged(earlier, later)
    return row.related(earlier, later) and row.cost(whole.start, whole.stop) <= whole.room


def _drafts(parsed: ParsedText, row: _Row, runs: Sequence[_Run], meter: Meter) -> list[ChunkDraft]:
    """The runs as chunks, counted exactly; what is too long after all is cut again until it fits."""
    done: list[ChunkDraft] = []
    pending = [row.leaves[run.start : run.stop] for run in runs]
    while pending:
        drafts = [_draft(parsed, row, leaves) for leaves in pending]
        totals = meter.totals([(draft.headings, without_surrogates(draft.text)) for draft in drafts])
        smaller: list[Sequence[Leaf]] = []
        for leaves, draft, total in zip(pending, drafts, totals, strict=True):
            if total > meter.max_tokens:
                smaller.extend(_smaller(row, leaves))
            elif draft.start < draft.end:
                done.append(draft)
        pending = smaller
    return sorted(done, key=lambda draft: draft.start)


def _overlapping(
    parsed: ParsedText, row: _Row, drafts: Sequence[ChunkDraft], meter: Meter, tokens: int
) -> list[ChunkDraft]:
    """The drafts, each begun earlier as far as its room and `tokens` allow."""
    leads = Leads(row.text, row.leaves, meter, tokens)
    done = list(drafts)
    options = {i: leads.before(drafts[i], drafts[i - 1]) for i in range(1, len(drafts))}
    while options := {i: leaves for i, leaves in options.items() if leaves}:
        tried = {
            i: _draft(parsed, row, [leaves[0], leaves[0]._replace(end=done[i].end)]) for i, leaves in options.items()
        }
        totals = meter.totals([(draft.headings, without_surrogates(draft.text)) for draft in tried.values()])
        for (i, draft), total in zip(tried.items(), totals, strict=True):
            if total <= meter.max_tokens:
                done[i], options[i] = draft, []
            else:
                options[i] = options[i][1:]
    return done


def _draft(parsed: ParsedText, row: _Row, leaves: Sequence[Leaf]) -> ChunkDraft:
    """The chunk of a run; empty when the run is blank."""
    first = leaves[row.opening(leaves, 0, len(leaves))]
    start, end = _trimmed(row.text, first.start, leaves[-1].end)
    section = first.section
    if first.heading:
        section = row.sections[section].parent
    return ChunkDraft(
        text=row.header(first) + parsed.text[start:end],
        start=start,
        end=end,
        headings=row.places.headings(section),
        page=bisect_right(parsed.page_starts, start) or 1 if parsed.page_starts else None,
    )


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """The span without blanks around it; the indentation of a line that begins in it stays."""
    words = text[start:end]
    end = start + len(words.rstrip())
    blanks = len(words) - len(words.lstrip())
    line = max(words.rfind("\n", 0, blanks), words.rfind("\r", 0, blanks)) + 1
    if line == 0 and start > 0 and text[start - 1] not in "\r\n":
        line = blanks
    return min(start + line, end), end


def _smaller(row: _Row, leaves: Sequence[Leaf]) -> list[Sequence[Leaf]]:
    """The leaves of a chunk that is too long, in two or more smaller ones."""
    leaves = leaves[row.opening(leaves, 0, len(leaves)) :]
    if len(leaves) > 1:
        room = sum(leaf.cost for leaf in leaves) * 7 // 8
        return [leaves[r.start : r.stop] for r in row.cut(leaves, room)]
    leaf = leaves[0]
    length = leaf.end - leaf.start
    if length < 2:
        raise ChunkingMismatch("the encoder's budget does not hold a single character; use one that reads more tokens")
    parts = lines(row.text, leaf.start, leaf.end, leaf.strength, (length + 1) // 2)
    return [[Leaf(*part, leaf.block, leaf.section, cost=max(1, leaf.cost // 2))] for part in parts]
