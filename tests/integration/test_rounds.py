"""Rounds of an index: how they are bounded, what is told of them, and what other indexes save them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from sqlalchemy import delete, select

from nvr_rag import deployments, documents, indexes, promotion
from nvr_rag.db import tables as t
from nvr_rag.encoders.base import Encoder
from nvr_rag.errors import ChunkingMismatch
from nvr_rag.types import ChunkDraft, DocumentState, ParsedText
from nvr_rag.upkeep import indexing, pace
from nvr_rag.upkeep.catching_up import lags
from nvr_rag.upkeep.indexing import Progress, Work
from tests.integration.lifecycle import Doubles, catch_up
from tests.support import House, document, paragraphs


def lines(*parts: str) -> str:
    return "\n\n".join(parts)


def one_round(house: House, budget: int | None = None) -> tuple[bool, int, Work]:
    """Whether it did anything, how far the index is then, and what was done."""
    work = Work()
    done = indexing.apply_round(house.database, house.index, paragraphs, work=work, budget=budget)
    return done, house.row.applied_seq, work


# how rounds are bounded


def test_a_round_ends_with_enough_text(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexing, "CHARACTERS_A_ROUND", 100)
    house.put(*[document(f"d{number}", f"{number} " + "x" * 48) for number in range(5)])  # 50 characters each
    assert [one_round(house)[1] for _ in range(4)] == [2, 4, 5, 5]
    house.put(
        document("book", lines(*[f"chapter {number} " + "x" * 90 for number in range(9)])), document("e", "short")
    )
    assert [one_round(house)[1] for _ in range(2)] == [6, 7]
    assert house.verify().checked == 15


def test_only_the_version_that_is_shown_at_the_end_counts(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Changes 1 and 4 are of one document: where the round ends before 4, it shows what 1 said."""
    monkeypatch.setattr(indexing, "CHARACTERS_A_ROUND", 10)
    house.put(document("a", "first"), document("b", "0123456789"), document("c", "c"))
    house.put(document("a", "second"))
    assert one_round(house)[1] == 2
    assert sorted(house.texts("first")) == ["0123456789", "first"]
    house.catch_up()
    assert sorted(house.texts("first")) == ["0123456789", "c", "second"]
    assert house.verify().clean


def test_a_turn_ends_in_the_middle_of_a_book_and_the_next_goes_on(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexing, "CHUNKS_A_GROUP", 4)
    house.put(document("book", lines(*[f"chapter {number}" for number in range(10)])))
    found = [one_round(house, budget=4) for _ in range(4)]
    assert [(done, seq, work.encoded, work.kept) for done, seq, work in found] == [
        (True, 0, 4, 0),
        (True, 0, 4, 4),
        (True, 1, 2, 8),
        (False, 1, 0, 0),
    ]
    assert house.encoder.encoded == 10
    assert house.verify().checked == 10


def test_a_candidate_never_takes_more_than_a_turn(
    house: House, doubles: Doubles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexing, "CHUNKS_A_GROUP", 4)
    monkeypatch.setattr(indexing, "CHUNKS_A_TURN", 8)
    house.put(document("book", lines(*[f"chapter {number}" for number in range(30)])))
    candidate = doubles.propose(house.workspace, 1)
    index = house.workspace.index(candidate.index_id)
    turns = [indexing.catch_up(house.database, index, paragraphs, rounds=1).encoded for _ in range(5)]
    assert turns == [8, 8, 8, 6, 0]


def test_an_index_reaches_the_head_over_changes_that_were_erased(house: House) -> None:
    """Whoever erases a document takes its changes out of the log."""
    house.put(document("a", "one"), document("b", "two"))
    house.catch_up()
    house.put(document("c", "three"))
    house.put(document("d", "four"))
    with house.database.write() as connection:
        connection.execute(delete(t.Document).where(t.Document.uri.in_(["b", "d"])))
    house.index.points.delete([key for key in house.points() if key not in expected(house)])
    house.catch_up()
    assert (house.row.applied_seq, house.row.purged_seq) == (4, 4)
    assert sorted(house.texts("one")) == ["one", "three"]
    assert all(lag.caught_up for lag in lags(house.workspace))
    with house.database.write() as connection:
        connection.execute(delete(t.Document))
    house.put(document("e", "five"))
    with house.database.write() as connection:
        connection.execute(delete(t.Document))
    house.catch_up()
    assert (house.row.applied_seq, house.row.purged_seq) == (5, 5)


def expected(house: House) -> set[str]:
    with house.database.read() as connection:
        return set(connection.scalars(select(t.Chunk.id)))


# what is told of them


def test_how_a_build_goes_stands_in_its_row(house: House, doubles: Doubles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexing, "CHANGES_A_ROUND", 10)
    house.put(*[document(f"d{number}", lines(f"a {number}", f"b {number}")) for number in range(25)])
    candidate = doubles.propose(house.workspace, 1)
    index = house.workspace.index(candidate.index_id)
    seen = []
    for _ in range(3):
        indexing.catch_up(house.database, index, paragraphs, rounds=1)
        with house.database.read() as connection:
            info = indexes.get(connection, candidate.index_id)
        seen.append((info.applied_seq, info.progress and info.progress["chunks"]))
        going = pace.pace(info.progress, info.applied_seq, 25)
        assert (going is None) == (info.applied_seq == 25)
        if going is not None:
            assert going.seconds_left == pytest.approx((25 - info.applied_seq) * 2 / going.chunks_per_second)
    assert seen == [(10, 20), (20, 40), (25, None)]


def test_a_book_tells_before_it_is_done(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexing, "CHUNKS_A_GROUP", 4)
    house.put(document("book", lines(*[f"chapter {number}" for number in range(10)])))
    one_round(house, budget=4)
    assert house.row.progress is not None
    assert (house.row.applied_seq, house.row.progress["chunks"]) == (0, 4)
    told: list[Progress] = []
    indexing.catch_up(house.database, house.index, paragraphs, report=told.append)
    assert [progress.applied_seq for progress in told] == [0, 0, 0, 1]
    assert told[-1].pace is not None
    assert told[-1].pace.seconds_left == 0
    assert house.row.progress is None


# vectors of other indexes


def test_two_indexes_of_one_encoder_encode_once(house: House) -> None:
    house.put(document("a", lines("one", "two")))
    house.catch_up()
    with house.database.write() as connection:
        source = indexes.get(connection, 1)
        copy = indexes.copy(connection, source)
        deployments.propose(
            connection,
            1,
            copy,
            deployments.serving(connection, "default").mode,
            deployments.all_of(connection, 1)[0].fusion,
        )
    assert house.encoder.encoded == 2
    catch_up(house.workspace)
    assert house.encoder.encoded == 2
    house.put(document("b", "three"))
    catch_up(house.workspace)
    assert house.encoder.encoded == 3
    assert {p.id for p in house.workspace.index(copy).points.scan()} == house.points()


def test_another_encoders_vectors_are_never_taken(house: House, doubles: Doubles) -> None:
    house.put(document("a", lines("one", "two")))
    house.catch_up()
    candidate = doubles.propose(house.workspace, 1)
    index = house.workspace.index(candidate.index_id)
    assert indexing.catch_up(house.database, index, paragraphs).encoded == 2


def test_an_index_that_is_closed_meanwhile_is_no_source(house: House) -> None:
    house.put(document("a", "one"))
    house.catch_up()
    with house.database.write() as connection:
        copy = indexes.copy(connection, indexes.get(connection, 1))
    other = house.workspace.index(copy)
    house.index.points.close()
    assert indexing.catch_up(house.database, other, paragraphs).encoded == 1


# what cannot be cut


def picky(parsed: ParsedText, encoder: Encoder, *, overlap: int = 0) -> Sequence[ChunkDraft]:
    if parsed.text == "long" and encoder.spec.max_tokens < 64:
        raise ChunkingMismatch("its heading is longer than the encoder reads")
    if parsed.text == "wide" and encoder.spec.max_tokens >= 64:
        raise ChunkingMismatch("too wide")
    return paragraphs(parsed, encoder)


def state(house: House, uri: str) -> tuple[DocumentState, str | None]:
    with house.database.read() as connection:
        found = documents.get(connection, "default", uri)
    return found.state, found.error


def test_a_candidate_that_cannot_cut_a_document_harms_nobody_until_it_serves(house: House, doubles: Doubles) -> None:
    house.put(document("a", "long"), document("b", "wide"), document("c", "short"))
    indexing.catch_up(house.database, house.index, picky)
    assert state(house, "a") == (DocumentState.READY, None)
    assert state(house, "b") == (DocumentState.FAILED, "too wide")
    small = doubles.register_with(house.database, 1, max_tokens=32)
    candidate = house.workspace.propose("default", small)
    indexing.catch_up(house.database, house.workspace.index(candidate.index_id), picky)
    assert state(house, "a") == (DocumentState.READY, None)
    house.put(document("a", "long"))  # put again, it is as well as before
    assert state(house, "a") == (DocumentState.READY, None)
    promotion.promote(house.workspace, candidate.id, collection="default")
    assert state(house, "a") == (DocumentState.FAILED, "its heading is longer than the encoder reads")
    assert state(house, "b") == (DocumentState.READY, None)
    assert state(house, "c") == (DocumentState.READY, None)
    assert sorted(house.texts("short")) == ["short", "wide"]
    house.fail("c", "cannot be read any more")
    promotion.roll_back(house.workspace, collection="default")
    assert state(house, "a") == (DocumentState.READY, None)
    assert state(house, "b") == (DocumentState.FAILED, "too wide")
    assert state(house, "c") == (DocumentState.FAILED, "cannot be read any more")
