"""Rounds of an index: how they are bounded, what is told of them, and what other indexes save them."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Sequence
from random import Random
from typing import Any

import pytest
from sqlalchemy import delete, select

from nvr_rag import deployments, documents, indexes, promotion
from nvr_rag.db import tables as t
from nvr_rag.encoders.base import Encoder
from nvr_rag.errors import ChunkingMismatch, StoreUnavailable
from nvr_rag.types import ChunkDraft, DocumentState, ParsedText
from nvr_rag.upkeep import indexing, pace, rounds
from nvr_rag.upkeep.catching_up import lags
from nvr_rag.upkeep.progress import Progress
from nvr_rag.upkeep.writing import Work
from tests.integration.lifecycle import Doubles, catch_up
from tests.support import House, apply_round, document, paragraphs


def lines(*parts: str) -> str:
    return "\n\n".join(parts)


def one_round(house: House, budget: int | None = None) -> tuple[bool, int, Work]:
    """Whether it did anything, how far the index is then, and what was done."""
    work = Work()
    done = apply_round(house.database, house.index, paragraphs, work=work, budget=budget)
    return done, house.row.applied_seq, work


# how rounds are bounded


def test_a_round_ends_with_enough_text(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "CHARACTERS_A_ROUND", 100)
    house.put(*[document(f"d{number}", f"{number} " + "x" * 48) for number in range(5)])  # 50 characters each
    assert [one_round(house)[1] for _ in range(4)] == [2, 4, 5, 5]
    house.put(
        document("book", lines(*[f"chapter {number} " + "x" * 90 for number in range(9)])), document("e", "short")
    )
    assert [one_round(house)[1] for _ in range(2)] == [6, 7]
    assert house.verify().checked == 15


def test_only_the_version_that_is_shown_at_the_end_counts(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Changes 1 and 4 are of one document: where the round ends before 4, it shows what 1 said."""
    monkeypatch.setattr(rounds, "CHARACTERS_A_ROUND", 10)
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
    monkeypatch.setattr(rounds, "CHUNKS_A_GROUP", 4)
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
    monkeypatch.setattr(rounds, "CHUNKS_A_GROUP", 4)
    monkeypatch.setattr(indexing, "CHUNKS_A_TURN", 8)
    house.put(document("book", lines(*[f"chapter {number}" for number in range(30)])))
    candidate = doubles.propose(house.workspace, 1)
    index = house.workspace.index(candidate.index_id)
    turns = [indexing.catch_up(house.database, index, paragraphs, turns=1).encoded for _ in range(5)]
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
    monkeypatch.setattr(rounds, "CHANGES_A_ROUND", 10)
    house.put(*[document(f"d{number}", lines(f"a {number}", f"b {number}")) for number in range(25)])
    candidate = doubles.propose(house.workspace, 1)
    index = house.workspace.index(candidate.index_id)
    seen = []
    for _ in range(3):
        indexing.catch_up(house.database, index, paragraphs, turns=1)
        with house.database.read() as connection:
            info = indexes.get(connection, candidate.index_id)
        seen.append((info.applied_seq, info.progress and info.progress["chunks"]))
        going = pace.pace(info.progress, info.applied_seq, 25)
        assert (going is None) == (info.applied_seq == 25)
        if going is not None:
            assert going.seconds_left == pytest.approx((25 - info.applied_seq) * 2 / going.chunks_per_second)
    assert seen == [(10, 20), (20, 40), (25, None)]


def test_a_book_tells_before_it_is_done(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "CHUNKS_A_GROUP", 4)
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


# how they go: side by side, and larger for a fast encoder


def test_a_fast_encoder_gets_larger_rounds_and_groups_a_slow_one_does_not(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1,000 chunks a second are 10 groups of 100 chunks a second: ten times as much would be in a round, but for the
    bound of 3."""
    monkeypatch.setattr(rounds, "CHUNKS_A_GROUP", 100)
    monkeypatch.setattr(rounds, "CHANGES_A_ROUND", 5)
    monkeypatch.setattr(rounds, "FASTER", 3)
    house.put(*[document(f"d{number}", f"text {number}") for number in range(60)])
    ends = []
    for encoded, seconds in ((0, 0.0), (999, 0.1), (1000, 1.0), (1000, 5.0), (1000, 20.0)):
        work = Work(encoded=encoded)
        work.spend("encode", seconds)
        before = house.row.applied_seq
        apply_round(house.database, house.index, paragraphs, work=work)
        ends.append(house.row.applied_seq - before)
    assert ends == [5, 5, 15, 10, 5]


def test_while_two_groups_are_encoded_the_next_is_looked_up_and_the_last_is_stored(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The encoder waits inside each group until the next one has been asked for and the one before the last was
    written, and inside the first for the second: it would wait for ever if one thing came after the other."""
    monkeypatch.setattr(rounds, "CHUNKS_A_GROUP", 2)
    house.put(document("a", lines(*[f"part {number}" for number in range(8)])))
    get, upsert, encode = house.index.points.get, house.index.points.upsert, house.encoder.encode_documents
    counts, changed = Counter[str](), threading.Condition()
    groups = []

    def count(what: str) -> int:
        with changed:
            counts[what] += 1
            changed.notify_all()
            return counts[what]

    def await_(what: str, number: int) -> None:
        with changed:
            assert changed.wait_for(lambda: counts[what] >= number, timeout=30), (what, number)

    def getting(*args: Any, **options: Any) -> Any:
        found = get(*args, **options)
        count("looked up")
        return found

    def upserting(*args: Any) -> None:
        upsert(*args)
        count("stored")

    def encoding(inputs: Sequence[str]) -> Any:
        groups.append(len(inputs))
        number = count("begun")
        await_("begun", 2)
        await_("looked up", min(4, number + 1))
        await_("stored", number - 2)
        return encode(inputs)

    monkeypatch.setattr(house.index.points, "get", getting)
    monkeypatch.setattr(house.index.points, "upsert", upserting)
    monkeypatch.setattr(house.encoder, "encode_documents", encoding)
    assert house.catch_up().encoded == 8
    assert groups == [2, 2, 2, 2]
    assert house.verify().clean


def test_when_it_is_to_stop_no_other_group_is_begun(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two are being encoded, and a third is looked up and waits."""
    monkeypatch.setattr(rounds, "CHUNKS_A_GROUP", 2)
    house.put(document("a", lines(*[f"part {number}" for number in range(20)])))
    stop, third, looked_up = threading.Event(), threading.Event(), Counter[str]()
    get, encode = house.index.points.get, house.encoder.encode_documents
    groups = []

    def getting(*args: Any, **options: Any) -> Any:
        found = get(*args, **options)
        looked_up["groups"] += 1
        if looked_up["groups"] == 3:
            third.set()
        return found

    def encoding(inputs: Sequence[str]) -> Any:
        groups.append(len(inputs))
        assert third.wait(30)
        stop.set()
        return encode(inputs)

    monkeypatch.setattr(house.index.points, "get", getting)
    monkeypatch.setattr(house.encoder, "encode_documents", encoding)
    work = Work()
    apply_round(house.database, house.index, paragraphs, work=work, stop=stop)
    assert groups == [2, 2]
    assert (work.encoded, house.row.applied_seq) == (4, 0)
    monkeypatch.undo()
    assert house.catch_up().encoded == 16
    assert house.verify().clean


def test_equal_inputs_in_neighbouring_groups_are_encoded_once(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second group is looked up before the first one is stored."""
    monkeypatch.setattr(rounds, "CHUNKS_A_GROUP", 2)
    house.put(document("a", lines("one", "echo", "echo", "two", "echo", "echo")))
    work = house.catch_up()
    assert (house.encoder.encoded, work.encoded, work.reused) == (3, 3, 3)
    assert house.verify().clean


def test_after_an_error_nothing_more_is_written(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "CHUNKS_A_GROUP", 2)
    house.put(document("a", lines(*[f"part {number}" for number in range(10)])))
    upsert, calls = house.index.points.upsert, []

    def failing(points: Any) -> None:
        calls.append(len(points))
        if len(calls) == 2:
            raise StoreUnavailable("the store is away")
        upsert(points)

    monkeypatch.setattr(house.index.points, "upsert", failing)
    with pytest.raises(StoreUnavailable):
        house.catch_up()
    assert (calls, house.row.applied_seq, len(house.points())) == ([2, 2], 0, 2)
    monkeypatch.undo()
    assert house.catch_up().encoded == 8
    assert house.verify().clean


def test_what_it_took_is_told_by_stage_and_added_up(house: House) -> None:
    house.put(document("a", lines("one", "two")))
    first = house.catch_up()
    assert set(first.seconds) == {"database", "cut", "compare", "encode", "lexical", "upsert", "flush"}
    assert all(seconds > 0 for seconds in first.seconds.values())
    both = Work(encoded=1)
    both.add(first)
    both.add(first)
    assert both.encoded == 5
    assert both.seconds == {stage: pytest.approx(2 * seconds) for stage, seconds in first.seconds.items()}
    json.dumps(both.seconds)


# rounds that follow each other without a gap


def test_the_next_round_is_encoded_while_the_one_before_is_flushed(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The flush of the first round waits until the second one is being encoded."""
    monkeypatch.setattr(rounds, "CHANGES_A_ROUND", 1)
    house.put(document("a", "one"), document("b", "two"))
    flush, encode = house.index.points.flush, house.encoder.encode_documents
    second, calls = threading.Event(), []

    def flushing() -> None:
        assert second.wait(30)
        flush()

    def encoding(inputs: Sequence[str]) -> Any:
        calls.append(len(inputs))
        if len(calls) == 2:
            assert house.row.applied_seq == 0
            second.set()
        return encode(inputs)

    monkeypatch.setattr(house.index.points, "flush", flushing)
    monkeypatch.setattr(house.encoder, "encode_documents", encoding)
    house.catch_up()
    assert calls == [1, 1]
    assert house.row.applied_seq == 2


def test_whoever_waits_for_an_index_gets_it_after_a_round(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "CHANGES_A_ROUND", 1)
    house.put(*[document(f"d{number}", f"text {number}") for number in range(30)])
    index, encode, seen = house.index, house.encoder.encode_documents, list[int]()

    def verify() -> None:
        with index.maintenance:
            seen.append(house.row.applied_seq)

    other = threading.Thread(target=verify)

    def encoding(inputs: Sequence[str]) -> Any:
        if not other.ident:
            other.start()
            while not index.maintenance.wanted:
                pass
        return encode(inputs)

    monkeypatch.setattr(house.encoder, "encode_documents", encoding)
    house.catch_up()
    other.join(30)
    assert 0 < seen[0] < 10
    assert house.row.applied_seq == 30


def test_what_went_stale_is_removed_before_it_may_come_back(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process died before it removed "two". The second round wants it again, and looks while the first one ends."""
    monkeypatch.setattr(rounds, "CHANGES_A_ROUND", 1)
    house.put(document("a", lines("one", "two")))
    house.catch_up()
    house.put(document("a", "one"))
    one_round(house)
    house.put(document("b", "three"), document("a", lines("one", "two")))
    house.catch_up()
    assert house.verify().clean
    assert sorted(house.texts("two")) == ["one", "three", "two"]


@pytest.mark.parametrize("seed", range(12))
def test_whatever_comes_and_goes_the_index_holds_what_the_log_says(
    house: House, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Few documents with few texts, so that neighbouring rounds touch the same ones, and texts come back that the round
    before is about to remove."""
    rng = Random(seed)
    monkeypatch.setattr(rounds, "CHANGES_A_ROUND", rng.randint(1, 3))
    monkeypatch.setattr(rounds, "CHUNKS_A_GROUP", rng.randint(1, 3))
    house.put(*[document(f"d{number}", "one") for number in range(4)])
    for _ in range(6):
        for _ in range(rng.randint(2, 12)):
            uri = f"d{rng.randrange(4)}"
            if rng.random() < 0.2:
                house.delete(uri)
            else:
                parts = rng.sample(["one", "two", "three", "four"], rng.randint(1, 3))
                house.put(document(uri, lines(*parts), metadata={"year": rng.randint(2020, 2021)}))
        house.catch_up()
        found = house.verify()
        assert found.clean, (seed, found)
