"""An index follows its log, and encodes only what it has never seen."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import pytest

from nvr_rag import collections, documents
from nvr_rag.corpus import Outcome
from nvr_rag.encoders.base import Encoder
from nvr_rag.errors import ChunkingMismatch, NotFound, StoreUnavailable
from nvr_rag.ids import chunk_id, document_id, sha256_text
from nvr_rag.testing import Fault, FaultyStore, MemoryStore
from nvr_rag.types import ChunkDraft, DocumentState, ParsedText
from nvr_rag.upkeep import indexing, rounds
from nvr_rag.upkeep.progress import Progress
from tests.integration.lifecycle import Doubles
from tests.support import House, apply_round, document, paragraphs


def lines(*parts: str) -> str:
    return "\n\n".join(parts)


def test_only_what_an_edit_changed_is_encoded(house: House) -> None:
    parts = [f"paragraph number {i}" for i in range(20)]
    house.put(document("a", lines(*parts)))
    assert house.catch_up().encoded == 20
    parts[7] = "something else"
    house.put(document("a", lines("a new beginning", *parts)))
    work = house.catch_up()
    assert (work.encoded, work.kept, work.deleted, work.repainted) == (2, 0, 1, 19)  # with the time of the edit
    assert house.encoder.encoded == 22
    assert house.points() == {
        chunk_id(document_id("default", "a"), sha256_text(part), 0) for part in ("a new beginning", *parts)
    }


def test_moving_paragraphs_about_encodes_nothing(house: House) -> None:
    house.put(document("a", lines("one", "two", "three")))
    house.catch_up()
    house.put(document("a", lines("three", "one", "two")))
    work = house.catch_up()
    assert (work.encoded, work.repainted, work.deleted) == (0, 3, 0)
    assert [(hit.text, hit.start) for hit in house.hits("two", k=1)] == [("two", 12)]


def test_a_rename_encodes_nothing(house: House) -> None:
    house.put(document("old", lines("one", "two", "two")), document("other", "one"))
    house.catch_up()
    before = house.encoder.encoded
    house.put(document("new", lines("one", "two", "two")))
    house.delete("old")
    work = house.catch_up()
    assert (house.encoder.encoded, work.reused, work.deleted) == (before, 3, 3)
    assert [hit.uri for hit in house.hits("two", k=5, where={"uri": {"in": ["old", "new"]}})] == ["new"] * 3
    assert house.verify().clean


def test_a_copy_among_many_copies_encodes_nothing(house: House) -> None:
    house.put(*[document(f"d{i:02}", "boilerplate") for i in range(30)])
    assert house.catch_up().encoded == 1
    house.put(document("one more", "boilerplate"))
    assert (house.catch_up().reused, house.encoder.encoded) == (1, 1)


def test_a_rename_finds_its_vector_among_copies_under_other_titles(house: House) -> None:
    house.put(*[document(f"d{i}", "boilerplate", title=f"Title {i}") for i in range(6)])
    assert house.catch_up().encoded == 6
    for i in range(6):
        house.put(document(f"new{i}", "boilerplate", title=f"Title {i}"))
        house.delete(f"d{i}")
        assert house.catch_up().encoded == 0


def test_the_same_text_under_another_title_is_another_input(house: House) -> None:
    house.put(document("a", "text", title="One"))
    house.catch_up()
    house.put(document("b", "text", title="Two"))
    assert house.catch_up().encoded == 1


def test_a_new_title_encodes_and_new_metadata_only_repaints(house: House) -> None:
    house.put(document("a", lines("one", "two"), title="T", metadata={"year": 2020}))
    assert house.catch_up().encoded == 2
    house.put(document("a", lines("one", "two"), title="T", metadata={"year": 2021}))
    work = house.catch_up()
    assert (work.encoded, work.repainted, house.encoder.encoded) == (0, 2, 2)
    assert len(house.texts("one", where={"metadata.year": 2021})) == 2
    assert house.texts("one", where={"metadata.year": 2020}) == []
    house.put(document("a", lines("one", "two"), title="U", metadata={"year": 2021}))
    assert house.catch_up().encoded == 2
    assert house.verify().clean


def test_equal_paragraphs_are_encoded_once_and_all_found(house: House) -> None:
    house.put(document("a", lines("echo", "echo", "other", "echo")))
    work = house.catch_up()
    assert (work.encoded, work.reused, work.chunks) == (2, 2, 4)
    assert [hit.start for hit in sorted(house.hits("echo", k=3), key=lambda hit: hit.start)] == [0, 6, 19]


def test_documents_without_words_are_applied_like_others(house: House) -> None:
    house.put(document("a", ""), document("b", "\n\n \n\n"))
    assert house.catch_up().chunks == 0
    assert (house.row.applied_seq, house.row.purged_seq, house.points()) == (2, 2, set())
    house.put(document("a", "words"))
    house.catch_up()
    house.put(document("a", ""))
    assert house.catch_up().deleted == 1
    assert house.hits("words") == []


def test_a_document_of_hundreds_of_chunks(house: House) -> None:
    parts = [f"part {i} of many" for i in range(700)]
    house.put(document("a", lines(*parts)))
    assert house.catch_up().encoded == 700
    assert house.verify().checked == 700
    assert house.texts("part 612", k=1) == ["part 612 of many"]
    house.put(document("a", lines(*parts[:10])))
    assert house.catch_up().deleted == 690
    assert len(house.points()) == 10


def test_of_several_versions_in_one_round_only_the_last_is_cut(house: House) -> None:
    for text in ("one", "two", "three"):
        house.put(document("a", text))
    assert house.catch_up().encoded == 1
    assert house.texts("one") == ["three"]


def test_a_document_that_came_and_went_in_one_round_is_never_cut(house: House) -> None:
    house.put(document("a", "one"))
    house.delete("a")
    assert house.catch_up().encoded == 0
    assert (house.row.applied_seq, house.row.purged_seq) == (2, 2)


def test_there_and_back_again(house: House) -> None:
    for text in (lines("A", "kept"), lines("B", "kept"), lines("A", "kept")):
        house.put(document("a", text))
        house.catch_up()
        assert sorted(house.texts("kept")) == sorted(text.split("\n\n"))
    assert len(house.points()) == 2


def test_many_rounds(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "CHANGES_A_ROUND", 7)
    house.put(*[document(f"d{i}", f"text {i}") for i in range(50)])
    told: list[tuple[int, int]] = []

    def report(progress: Progress) -> None:
        told.append((progress.applied_seq, progress.head_seq))

    indexing.catch_up(house.database, house.index, paragraphs, report=report)
    assert told == sorted(told)
    assert {applied for applied, _ in told} == {0, 7, 14, 21, 28, 35, 42, 49, 50}
    assert {head for _, head in told} == {50}
    assert len(house.points()) == 50


def test_what_many_rounds_applied_is_purged_whole(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "CHANGES_A_ROUND", 2)
    house.put(*[document(f"d{i}", f"old {i}") for i in range(9)])
    house.catch_up()
    house.put(*[document(f"d{i}", f"new {i}") for i in range(9)])
    work = indexing.Work()
    while apply_round(house.database, house.index, paragraphs, work=work):
        pass
    assert len(house.points()) == 18
    purges = 0
    while indexing.purge_round(house.database, house.index, work=work):
        purges += 1
    assert (purges, work.deleted, len(house.points())) == (5, 9, 9)


def test_what_is_not_applied_yet_is_not_purged(house: House) -> None:
    house.put(document("old", lines("one", "two")))
    house.catch_up()
    house.put(document("new", "three"))
    work = indexing.Work()
    assert apply_round(house.database, house.index, paragraphs, work=work)
    house.delete("old")  # hidden at once, and deleted from the index in its turn: once
    assert indexing.purge_round(house.database, house.index, work=work)
    assert (work.deleted, len(house.points())) == (0, 3)
    work.add(house.catch_up())
    assert (work.deleted, len(house.points())) == (2, 1)


def test_catching_up_twice_does_nothing_the_second_time(house: House) -> None:
    house.put(document("a", "one"))
    house.catch_up()
    assert house.catch_up() == indexing.Work()


def test_stopping_loses_nothing(house: House) -> None:
    house.put(*[document(f"d{i}", f"text {i}") for i in range(300)])
    stop = threading.Event()
    work = indexing.catch_up(house.database, house.index, paragraphs, report=lambda progress: stop.set(), stop=stop)
    assert 0 < work.encoded < 300
    house.catch_up()
    assert len(house.points()) == 300
    assert house.verify().clean


def test_a_store_that_fails_once_is_retried_by_calling_again(house: House) -> None:
    house.close()
    store = FaultyStore(MemoryStore(), Fault(call=1, method="upsert", error=StoreUnavailable))
    again = House(house.home, store=store)
    again.put(document("a", "one"))
    with pytest.raises(StoreUnavailable):
        again.catch_up()
    assert again.row.applied_seq == 0
    assert again.catch_up().encoded == 1
    again.close()


def test_a_document_that_cannot_be_cut_fails_alone(house: House) -> None:
    def picky(parsed: ParsedText, encoder: Encoder, *, overlap: int = 0) -> Sequence[ChunkDraft]:
        if parsed.text == "uncuttable":
            raise ChunkingMismatch("its heading alone is longer than the encoder reads")
        return paragraphs(parsed, encoder)

    house.put(document("a", "one"), document("b", "uncuttable"), document("c", "two"))
    indexing.catch_up(house.database, house.index, picky)
    assert sorted(house.texts("one")) == ["one", "two"]
    assert [put.outcome for put in house.put(document("b", "uncuttable"))] == [Outcome.UNCHANGED]
    with house.database.read() as connection:
        failed = documents.get(connection, "default", "b")
    assert (failed.state, failed.error) == (
        DocumentState.FAILED,
        "its heading alone is longer than the encoder reads",
    )
    assert house.row.applied_seq == 3
    house.put(document("b", "better"))
    assert house.catch_up().encoded == 1
    with house.database.read() as connection:
        assert documents.get(connection, "default", "b").state == DocumentState.READY


@pytest.mark.parametrize("moment", ["cut", "encode", "upsert", "flush", "delete"])
def test_a_collection_deleted_while_its_index_follows_ends_it_in_order(
    house: House, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    house.put(document("a", lines("one", "two")))
    house.catch_up()
    house.put(document("a", lines("one", "three")))
    index = house.index

    def remove() -> None:
        with house.database.write() as connection:
            if collections.all_infos(connection):
                collections.remove(connection, "default")

    def chunker(parsed: ParsedText, encoder: Encoder, *, overlap: int = 0) -> Sequence[ChunkDraft]:
        if moment == "cut":
            remove()
        return paragraphs(parsed, encoder)

    def removing(real: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object) -> object:
            remove()
            return real(*args)

        return call

    owner, name = (house.encoder, "encode_documents") if moment == "encode" else (index.points, moment)
    if moment != "cut":
        monkeypatch.setattr(owner, name, removing(getattr(owner, name)))
    with pytest.raises(NotFound, match="collection"):
        indexing.catch_up(house.database, index, chunker)
    assert house.row.state == "retired"


def test_the_overlap_is_that_of_the_index_and_stays_when_the_setting_changes(house: House, doubles: Doubles) -> None:
    """The chunker is told what was set when the index was made, not what is set now."""
    told = []

    def listening(parsed: ParsedText, encoder: Encoder, *, overlap: int = 0) -> Sequence[ChunkDraft]:
        told.append(overlap)
        return paragraphs(parsed, encoder)

    house.workspace.settings.chunk_overlap_tokens = 12
    house.put(document("a", "one"))
    indexing.catch_up(house.database, house.index, listening)
    candidate = doubles.propose(house.workspace, 1)
    house.workspace.settings.chunk_overlap_tokens = 0
    indexing.catch_up(house.database, house.workspace.index(candidate.index_id), listening)
    assert told == [0, 12]
