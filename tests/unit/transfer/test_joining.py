"""Parts of a text that somebody else has cut are put together again."""

from __future__ import annotations

from typing import Any

import pytest

from nvr_rag.transfer.joining import Joined, Piece, join

TEXT = "The first sentence. The second one. And a third, which ends it."


def piece(point: str, text: str, **metadata: Any) -> Piece:
    return Piece(point=point, text=text, metadata=metadata)


def test_overlapping_parts_with_offsets_give_the_text_they_were_cut_from() -> None:
    cut = [(40, 63), (0, 25), (20, 45)]
    parts = [piece(str(n), TEXT[start:end], start_index=start) for n, (start, end) in enumerate(cut)]
    assert join(parts) == Joined(text=TEXT, page_starts=())


def test_parts_that_touch_are_joined_without_a_break_and_gaps_with_one() -> None:
    touching = [piece("a", "abc", start_index=0), piece("b", "def", start_index=3)]
    assert join(touching).text == "abcdef"
    apart = [piece("a", "abc", start_index=0), piece("b", "def", start_index=4)]
    assert join(apart).text == "abc\n\ndef"


def test_an_offset_that_lies_loses_nothing() -> None:
    parts = [piece("a", "abcdef", start_index=0), piece("b", "xyz", start_index=4)]
    assert join(parts).text == "abcdef\n\nxyz"


def test_a_part_inside_another_is_there_once() -> None:
    parts = [piece("a", "abcdef", start_index=0), piece("b", "def", start_index=3)]
    assert join(parts).text == "abcdef"


def test_pages_count_from_0_or_1_and_offsets_begin_anew_on_each() -> None:
    parts = [
        piece("c", "page two", page=1, start_index=0),
        piece("b", "one ends", page=0, start_index=9),
        piece("a", "page one ", page=0, start_index=0),
    ]
    assert join(parts) == Joined(text="page one one ends\n\npage two", page_starts=(0, 19))
    from_one = [piece("a", "first", page_number="1"), piece("b", "second", page_number="2")]
    assert join(from_one).page_starts == (0, 7)


@pytest.mark.parametrize("pages", [(3, 4), (0, 2), (-1, 0)])
def test_pages_that_are_not_all_there_are_not_told(pages: tuple[int, int]) -> None:
    parts = [piece(str(page), "text", page=page) for page in pages]
    assert join(parts).page_starts == ()


@pytest.mark.parametrize("key", ["chunk", "chunk_index", "chunk_id", "seq_num"])
def test_numbered_parts_are_in_the_order_of_their_numbers(key: str) -> None:
    parts = [piece(str(n), f"part {n}", **{key: n}) for n in (10, 9, 2)]
    assert join(parts).text == "part 2\n\npart 9\n\npart 10"


def test_otherwise_parts_are_in_the_order_of_their_ids() -> None:
    assert join([piece(key, key) for key in ("10", "9", "2")]).text == "2\n\n9\n\n10"
    assert join([piece(key, key) for key in ("b", "a")]).text == "a\n\nb"


@pytest.mark.parametrize("value", [None, True, "x", [1], {}, 1e300, float("inf"), -5])
def test_odd_positions_lose_nothing(value: Any) -> None:
    parts = [piece("a", "one", start_index=value, page=value, chunk=value), piece("b", "two", start_index=value)]
    text = join(parts).text
    assert "one" in text
    assert "two" in text
