"""How far the context of a hit goes: spans worked out by hand, and what holds for all of them."""

from __future__ import annotations

import random
from datetime import UTC, datetime

import pytest

from nvr_rag.chunks import PlacedChunk
from nvr_rag.searching.context import windows


def chunk(ordinal: int, start: int, end: int, version: int = 1) -> PlacedChunk:
    return PlacedChunk(
        chunk_id=f"{version}-{ordinal}",
        sha256="",
        text="",
        start=start,
        end=end,
        page=None,
        headings=(),
        version_id=version,
        version_seq=1,
        ordinal=ordinal,
        document_id=str(version),
        document_sha256="",
        uri="",
        source="",
        title="",
        media_type="",
        metadata={},
        updated_at=datetime(2024, 1, 1, tzinfo=UTC),
        acl=None,
    )


# Five chunks of ten characters with two between them: [0, 10) [12, 22) [24, 34) [36, 46) [48, 58).
FIVE = [chunk(i, 12 * i, 12 * i + 10) for i in range(5)]


def reach(n: int, hits: list[PlacedChunk]) -> dict[tuple[int, int], tuple[int, int]]:
    """Of chunks that lie as in FIVE."""
    return {
        (hit.version_id, hit.ordinal): (12 * max(0, hit.ordinal - n), 12 * min(4, hit.ordinal + n) + 10) for hit in hits
    }


@pytest.mark.parametrize(
    ("ordinals", "n", "expected"),
    [
        ([2], 1, [(12, 46)]),
        ([2], 2, [(0, 58)]),
        ([0], 1, [(0, 22)]),
        ([4], 3, [(12, 58)]),
        ([1, 2], 1, [(0, 24), (24, 46)]),  # neighbours: the better one has what is between them, too
        ([2, 1], 1, [(22, 46), (0, 22)]),
        ([1, 3], 1, [(0, 34), (34, 58)]),  # chunk 2 lies between: the better one takes it
        ([3, 1], 1, [(24, 58), (0, 24)]),
        ([0, 4], 2, [(0, 34), (34, 58)]),
        ([0, 4], 1, [(0, 22), (36, 58)]),  # they do not touch
    ],
)
def test_by_hand(ordinals: list[int], n: int, expected: list[tuple[int, int]]) -> None:
    hits = [FIVE[i] for i in ordinals]
    assert windows(hits, reach(n, hits)) == expected


def test_documents_do_not_get_into_each_others_way() -> None:
    hits = [FIVE[1], chunk(2, 24, 34, version=2)]
    assert windows(hits, reach(1, hits)) == [(0, 34), (12, 46)]


def test_chunks_that_overlap_keep_their_own_spans() -> None:
    """[0, 10) and [8, 20): what they share is in both, and nothing is joined between them."""
    hits = [chunk(1, 8, 20), chunk(0, 0, 10)]
    spans = {(1, 1): (0, 30), (1, 0): (0, 20)}
    assert windows(hits, spans) == [(8, 30), (0, 10)]
    assert windows(hits[::-1], spans) == [(0, 10), (8, 30)]


def test_what_cannot_be_seen_any_more_has_nothing_around_it() -> None:
    assert windows([FIVE[2]], {}) == [(24, 34)]


@pytest.mark.parametrize("seed", range(50))
def test_nothing_is_there_twice_and_nothing_is_lost_for_no_reason(seed: int) -> None:
    draw = random.Random(seed)
    n = draw.randint(1, 4)
    hits = draw.sample(FIVE, draw.randint(1, 5))
    found = windows(hits, reach(n, hits))
    owner: dict[int, int] = {}  # of each character
    for i, (start, end) in enumerate(found):
        assert start <= hits[i].start
        assert hits[i].end <= end
        for position in range(start, end):
            assert owner.setdefault(position, i) == i
    for i, hit in enumerate(hits):
        low, high = reach(n, [hit])[1, hit.ordinal]
        # It stops where it may, or at what is another's.
        assert found[i][0] == low or owner.get(found[i][0] - 1, i) != i
        assert found[i][1] == high or owner.get(found[i][1], i) != i
