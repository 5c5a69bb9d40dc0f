"""Verification finds every difference between log and index, counts it right, and mends it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from nvr_rag import chunks, collections
from nvr_rag.errors import NotFound
from nvr_rag.ids import chunk_id, document_id, new_id, sha256_text
from nvr_rag.stores.base import Point, SparseVector
from nvr_rag.upkeep import verification
from nvr_rag.upkeep.verification import Verification
from nvr_rag.upkeep.writing import Work
from tests.support import House, apply_round, break_off_round, document, paragraphs


def key(text: str, uri: str = "a", occurrence: int = 0) -> str:
    return chunk_id(document_id("default", uri), sha256_text(text), occurrence)


def counts(found: Verification) -> tuple[int, int, int, int]:
    assert found.corrupt == 0
    return found.checked, found.missing, found.stale, found.foreign


def foreign_point(key: str) -> Point:
    payload = {"uri": "x", "input_hash": "x", "payload_hash": "x", "metadata": {}}
    return Point(
        id=key, dense=np.full(64, 0.125, np.float32), lexical=SparseVector(indices=(1,), values=(1.0,)), payload=payload
    )


def repaint(house: House, key: str, **changes: Any) -> None:
    """Change the payload of a point behind everybody's back."""
    points = house.store._held[house.row.name].points  # type: ignore[attr-defined]
    points[key] = replace(points[key], payload={**points[key].payload, **changes})


@pytest.fixture
def full(house: House) -> House:
    house.put(document("a", "one\n\ntwo\n\nthree\n\ntwo"), document("b", "four\n\nfive"))
    house.catch_up()
    return house


def test_a_right_index_is_clean(full: House) -> None:
    found = full.verify()
    assert counts(found) == (6, 0, 0, 0)
    assert (found.clean, found.repaired, found.examples, found.applied_seq) == (True, False, [], 2)
    assert found.index == full.row.name


def test_an_empty_index_is_clean(house: House) -> None:
    assert counts(house.verify()) == (0, 0, 0, 0)


def test_everything_wrong_is_found_counted_and_mended(full: House) -> None:
    stranger = new_id()
    full.index.points.delete([key("one"), key("two", occurrence=1)])
    repaint(full, key("three"), input_hash="of another text")
    repaint(full, key("four", "b"), payload_hash="of other fields")
    repaint(full, key("five", "b"), input_hash="wrong", payload_hash="wrong")
    full.index.points.upsert([foreign_point(stranger)])
    found = full.verify()
    assert counts(found) == (6, 2, 3, 1)
    assert not found.clean
    wrong = {key("one"), key("two", occurrence=1), key("three"), key("four", "b"), key("five", "b"), stranger}
    assert len(found.examples) == 5
    assert set(found.examples) < wrong
    before = full.encoder.encoded
    mended = full.verify(repair=True)
    assert (counts(mended), mended.repaired, mended.clean) == ((6, 2, 3, 1), True, True)
    # "two" has a copy to take its vector from, and the point whose fields alone were wrong keeps its own
    assert full.encoder.encoded - before == 3
    assert counts(full.verify()) == (6, 0, 0, 0)
    assert full.index.points.count() == 6


def test_what_was_mended_survives_a_power_cut(full: House) -> None:
    full.index.points.delete([key("one")])
    full.index.points.flush()
    full.verify(repair=True)
    full.store.kill(power_cut=True)  # type: ignore[attr-defined]
    full.workspace.close_index(full.index_id)
    assert key("one") in full.points()


def test_everything_missing_and_everything_foreign(full: House) -> None:
    full.index.points.delete(list(full.points()))
    assert counts(full.verify()) == (6, 6, 0, 0)
    full.index.points.upsert([foreign_point(new_id()) for _ in range(3)])
    assert counts(full.verify(repair=True)) == (6, 6, 0, 3)
    assert counts(full.verify()) == (6, 0, 0, 0)


@pytest.mark.parametrize("group", [1, 2, 5, 1000])
def test_differences_in_groups_of_any_size(full: House, monkeypatch: pytest.MonkeyPatch, group: int) -> None:
    monkeypatch.setattr(verification, "_CHUNKS_A_GROUP", group)
    monkeypatch.setattr(verification, "_IDS_A_PAGE", group)
    full.index.points.delete([key("one"), key("three")])
    repaint(full, key("four", "b"), payload_hash="x")
    full.index.points.upsert([foreign_point(new_id()) for _ in range(4)])
    assert counts(full.verify(repair=True)) == (6, 2, 1, 4)
    assert counts(full.verify()) == (6, 0, 0, 0)


def test_an_index_that_lags_is_not_wrong(full: House) -> None:
    full.put(document("a", "one\n\nsix"), document("c", "seven"))
    full.delete("b")
    found = full.verify()  # the points of the deleted document are still there, and go when the index gets there
    assert (counts(found), found.applied_seq) == ((4, 0, 0, 0), 2)
    assert counts(full.verify(repair=True)) == (4, 0, 0, 0)
    full.catch_up()
    assert counts(full.verify()) == (3, 0, 0, 0)


def test_a_round_that_was_broken_off_is_not_wrong(full: House) -> None:
    full.put(document("a", "one\n\nsix", metadata={"year": 2021}))  # "one" is repainted, "six" is new
    break_off_round(full)
    assert key("six") in full.points()
    assert counts(full.verify()) == (6, 0, 0, 0)
    full.index.points.delete([key("three")])  # still shown, and gone
    assert counts(full.verify(repair=True)) == (6, 1, 0, 0)
    full.catch_up()
    assert counts(full.verify()) == (4, 0, 0, 0)


def test_what_could_not_be_purged_before_is_purged_first(full: House) -> None:
    full.put(document("a", "one"))
    apply_round(full.database, full.index, paragraphs, work=Work())
    assert full.row.purged_seq == 2
    assert counts(full.verify()) == (3, 0, 0, 0)
    assert full.row.purged_seq == 3


def test_memory_is_bounded(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither side is ever held whole: no page has more than its rows, and no transaction outlives its page."""
    house.put(*[document(f"d{i}", "\n\n".join(f"text {i} {j}" for j in range(30))) for i in range(20)])
    house.catch_up()
    monkeypatch.setattr(chunks, "_PAGE", 10)
    monkeypatch.setattr(verification, "_IDS_A_PAGE", 10)
    widest = 0
    counted = house.index.points.read

    def read(ids: Sequence[str]) -> dict[str, Point]:
        nonlocal widest
        widest = max(widest, len(ids))
        assert not house.database.engine.pool.checkedout()  # type: ignore[attr-defined]
        return counted(ids)

    monkeypatch.setattr(house.index.points, "read", read)
    assert counts(house.verify()) == (600, 0, 0, 0)
    assert widest == 10


def test_the_pages_of_the_log_have_every_chunk_once_whatever_their_size(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.put(*[document(f"d{i}", "\n\n".join(f"text {i} {j}" for j in range(i % 7))) for i in range(40)])
    house.put(document("d3", "text 3 1\n\nanother"), document("d9", ""))
    house.delete("d5", "d6")
    house.catch_up()
    wanted = {(f"text {i} {j}") for i in range(40) for j in range(i % 7) if i not in (3, 5, 6, 9)}
    for size in (1, 2, 3, 7, 1000):
        monkeypatch.setattr(chunks, "_PAGE", size)
        place: chunks.Place | None = chunks.BEGINNING
        seen: list[str] = []
        while place is not None:
            with house.database.read() as connection:
                page, place = chunks.next_chunks(connection, 1, house.row.chunking_id, house.row.applied_seq, place)
            assert len(page) <= size
            seen += [chunk.text for chunk in page]
        assert sorted(seen) == sorted([*wanted, "text 3 1", "another"])


def test_progress_is_told(house: House) -> None:
    house.put(*[document(f"d{i}", "\n\n".join(f"text {i} {j}" for j in range(700))) for i in range(3)])
    house.catch_up()
    told: list[int] = []
    verification.verify(house.database, house.index, report=told.append)
    assert told == [1000, 2000]


def test_nothing_is_applied_while_an_index_is_verified(full: House) -> None:
    full.put(document("c", "new"))
    indexer = threading.Thread(target=full.catch_up)
    with full.index.maintenance:
        indexer.start()
        indexer.join(0.1)
        assert indexer.is_alive()
        assert full.row.applied_seq == 2
    indexer.join()
    assert full.row.applied_seq == 3


def test_the_index_of_a_deleted_collection_is_not_found(full: House) -> None:
    index = full.index
    with full.database.write() as connection:
        collections.remove(connection, "default")
    with pytest.raises(NotFound, match="collection"):
        verification.verify(full.database, index)
