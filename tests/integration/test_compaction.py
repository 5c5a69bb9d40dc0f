"""A compaction leaves the same answers on a smaller index, encodes nothing, and goes on wherever it was killed."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from nvr_rag import deployments, indexes, promotion
from nvr_rag.errors import Conflict, NotFound, Stopped, StoreUnavailable
from nvr_rag.fusion import FusionSettings
from nvr_rag.indexes import LiveIndex
from nvr_rag.testing import Fault, FaultyStore
from nvr_rag.types import Mode
from nvr_rag.upkeep import compaction
from nvr_rag.upkeep.compaction import Compaction, compact, done_already, gives_up
from nvr_rag.upkeep.progress import Progress
from tests.integration.lifecycle import Doubles, catch_up, states
from tests.support import House, document, paragraphs


def lines(*parts: str) -> str:
    return "\n\n".join(parts)


@pytest.fixture
def full(house: House) -> House:
    """Twenty documents of three chunks, half of them changed and three deleted since: 51 chunks, index 1."""
    house.put(*[document(f"d{i:02}", lines("red fox", f"whale {i}", f"tea of {i}")) for i in range(20)])
    house.catch_up()
    house.put(*[document(f"d{i:02}", lines("red fox", f"whale {i}", f"coffee of {i}")) for i in range(10)])
    house.delete("d17", "d18", "d19")
    house.catch_up()
    return house


def run(house: House, **options: object) -> Compaction:
    return compact(house.workspace, "default", paragraphs, **options)  # type: ignore[arg-type]


def answers(house: House) -> dict[str, float]:
    """Everything that searches show, with its scores: nothing of the index it comes from."""
    found = {}
    for text in ("fox", "whale 3", "coffee of 4", "tea of 12"):
        for mode in (Mode.DENSE, Mode.LEXICAL):
            hits = house.hits(text, mode=mode, k=60)
            found.update({f"{text} {mode} {hit.chunk_id}": hit.score for hit in hits})
    return found


def test_the_same_answers_from_another_index_and_nothing_encoded(full: House) -> None:
    before, encoded = answers(full), full.encoder.encoded
    done = run(full)
    assert (done.index, done.copied_from, done.deployment, done.previous) == (2, 1, 2, 1)
    assert (done.copied, done.encoded, done.optimized) == (51, 0, False)
    assert full.encoder.encoded == encoded
    assert states(full.database) == {1: "previous", 2: "serving"}
    assert answers(full) == pytest.approx(before)
    old, new = (full.workspace.index(number).points for number in (1, 2))
    assert {p.id: p.dense.tolist() for p in old.scan(with_vectors=True) if p.dense is not None} == {
        p.id: p.dense.tolist() for p in new.scan(with_vectors=True) if p.dense is not None
    }
    promotion.roll_back(full.workspace, collection="default")
    assert answers(full) == pytest.approx(before)


def test_what_the_old_index_lacks_is_encoded(full: House) -> None:
    there = sorted(point.id for point in full.index.points.scan())
    full.index.points.delete(there[:5])
    full.put(document("new", "owl"))
    before = full.encoder.encoded
    with pytest.raises(Conflict, match="answers differently"):  # five chunks cannot be found where it serves
        run(full)
    assert full.encoder.encoded - before <= 6
    assert states(full.database) == {1: "serving", 2: "candidate"}
    full.verify(repair=True)
    assert run(full).index == 2
    assert full.texts("owl", k=1) == ["owl"]


def test_changes_that_come_in_meanwhile_are_in_it(full: House) -> None:
    def report(progress: Progress) -> None:
        if progress.applied_seq == 0:
            full.put(document("late", "late owl"), document("d01", "another whale"))
            full.delete("d02")

    run(full, report=report)
    assert full.texts("late owl", k=1) == ["late owl"]
    assert not full.hits("whale", where={"uri": "d02"})
    assert [hit.text for hit in full.hits("whale", where={"uri": "d01"})] == ["another whale"]
    for number in (1, 2):
        catch_up(full.workspace)
        assert full.workspace.index(number).points.count() == full.workspace.index(1).points.count()


def test_mode_and_weights_are_those_that_serve(full: House) -> None:
    with full.database.write() as connection:
        now = deployments.serving(connection, "default")
        weights = FusionSettings(dense_weight=3.0)
        deployments.serve(connection, now.collection_id, now.index_id, Mode.DENSE, weights)
    run(full)
    with full.database.read() as connection:
        now = deployments.serving(connection, "default")
    assert (now.index_id, now.mode, now.fusion.dense_weight) == (2, Mode.DENSE, 3.0)


def test_twice_compacts_the_copy(full: House) -> None:
    run(full)
    assert not done_already(full.workspace, "default", 2)
    assert done_already(full.workspace, "default", 1)
    again = run(full)
    assert (again.index, again.copied_from, again.copied) == (3, 2, 51)
    with full.database.read() as connection:
        assert {one.id: one.state for one in indexes.all_infos(connection)} == {1: "retired", 2: "live", 3: "live"}


def test_an_empty_collection_can_be_compacted(house: House) -> None:
    done = run(house)
    assert (done.index, done.copied, done.encoded) == (2, 0, 0)


def test_an_unknown_collection_is_not_found(house: House) -> None:
    with pytest.raises(NotFound):
        compact(house.workspace, "other", paragraphs)


def test_stopped_it_goes_on_where_it_was(full: House) -> None:
    stop, seen = threading.Event(), []

    def report(progress: Progress) -> None:
        seen.append(progress.applied_seq)
        stop.set()

    with pytest.raises(Stopped):
        run(full, stop=stop, report=report)
    assert states(full.database) == {1: "serving", 2: "candidate"}
    words: list[str] = []
    done = run(full, tell=words.append)
    assert words[0] == "going on with index 2, which was begun before"
    assert (done.index, done.encoded) == (2, 0)
    assert seen


def test_what_was_begun_for_an_index_that_serves_no_more_is_given_up(full: House, doubles: Doubles) -> None:
    stop = threading.Event()
    with pytest.raises(Stopped):
        run(full, stop=stop, report=lambda _progress: stop.set())
    candidate = doubles.candidate(full.workspace, 1)
    promotion.promote(full.workspace, candidate.id, collection="default")
    assert [one.id for one in gives_up(full.workspace, "default")] == [1]
    done = run(full)
    assert (done.index, done.copied_from) == (4, candidate.index_id)
    assert states(full.database) == {1: "retired", 2: "rejected", 3: "previous", 4: "serving"}


def test_another_promotion_meanwhile_wins(full: House, doubles: Doubles, monkeypatch: pytest.MonkeyPatch) -> None:
    candidate = doubles.candidate(full.workspace, 1)
    real = compaction._check_alike

    def meanwhile(*arguments: object) -> None:
        real(*arguments)  # type: ignore[arg-type]
        promotion.promote(full.workspace, candidate.id, collection="default")

    monkeypatch.setattr(compaction, "_check_alike", meanwhile)
    with pytest.raises(Conflict, match="another index serves default by now"):
        run(full)
    assert states(full.database)[candidate.id] == "serving"


def test_a_copy_that_answers_differently_never_serves(full: House, monkeypatch: pytest.MonkeyPatch) -> None:
    real = compaction._check_alike

    def spoiled(workspace: object, before: LiveIndex, after: LiveIndex, *rest: object) -> None:
        points = after.points._held().points  # type: ignore[attr-defined]
        for key in sorted(points)[::5]:
            points[key] = replace(points[key], dense=points[key].dense[::-1].copy())
        real(workspace, before, after, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(compaction, "_check_alike", spoiled)
    with pytest.raises(Conflict, match="the copy answers differently"):
        run(full)
    assert states(full.database) == {1: "serving", 2: "candidate"}


def test_a_store_that_fails_once(full: House) -> None:
    full.close()
    for method in ("create", "upsert", "flush", "optimize"):
        store = FaultyStore(full.store, Fault(call=1, method=method, error=StoreUnavailable))
        house = House(full.home, store=store, encoder=full.encoder)
        with pytest.raises(StoreUnavailable):
            run(house)
        house.close()
    house = House(full.home, store=full.store, encoder=full.encoder)
    assert run(house).index == 2
    house.close()
