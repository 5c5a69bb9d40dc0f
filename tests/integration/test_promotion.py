"""Promotion and rollback: what is asked of the servers, what is refused, and that nothing is lost on the way."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, select, update

from ingest import indexer
from ingest.indexer import Indexer
from nvr_rag import deployments, indexes, promotion, registry
from nvr_rag.api import preparing
from nvr_rag.api.preparing import Preparer
from nvr_rag.db import clock
from nvr_rag.db import tables as t
from nvr_rag.deployments import Deployment
from nvr_rag.errors import Conflict, IndexMissing, NotFound, NvrError, StoreUnavailable
from nvr_rag.promotion import Switch, promote, roll_back
from nvr_rag.running import processes
from nvr_rag.testing import HashEncoder
from nvr_rag.types import Query
from nvr_rag.upkeep import catching_up, indexing, rounds
from nvr_rag.upkeep.catching_up import Upkeep, lags, settle
from nvr_rag.workspace import Workspace
from tests.integration.api_support import SmallIndexer, running
from tests.integration.lifecycle import Doubles, catch_up, loading, states
from tests.support import House, document, paragraphs


@pytest.fixture
def full(house: House, doubles: Doubles) -> House:
    """A house with a fox and a whale, indexed."""
    house.put(document("fox", "red fox"), document("whale", "blue whale"))
    house.catch_up()
    return house


def visitor(house: House) -> House:
    """A command on the same data folder, beside whoever has it open."""
    return House(house.home, store=house.store)


def answered_by(house: House) -> tuple[int, str]:
    """Number and encoder of the deployment that answers a search."""
    used = house.workspace.retriever.search(Query(text="fox")).deployment
    return used.id, used.encoder


def unchanged(house: House, candidate: Deployment, state: str = "candidate") -> None:
    """The first deployment still serves, and the candidate is what it was."""
    assert states(house.database) == {1: "serving", candidate.id: state}
    assert answered_by(house) == (1, house.encoder.fingerprint)


# without a server


def test_a_candidate_is_promoted(full: House, doubles: Doubles) -> None:
    candidate = doubles.candidate(full.workspace, 1)
    said: list[str] = []
    done = promote(full.workspace, candidate.id, collection="default", tell=said.append)
    assert (done.collection, done.serving, done.previous, done.prepared_by) == ("default", candidate.id, 1, 0)
    assert states(full.database) == {1: "previous", candidate.id: "serving"}
    assert answered_by(full) == (candidate.id, HashEncoder(seed=1).fingerprint)
    assert full.texts("fox", k=1) == ["red fox"]
    assert [words.partition(" ")[0] for words in said] == ["verifying", "preparing:", "switched"]


def test_a_rollback_finds_what_came_and_not_what_went_since(full: House, doubles: Doubles) -> None:
    """Indexes that can be gone back to follow the log like the one that serves."""
    candidate = doubles.candidate(full.workspace, 1)
    promote(full.workspace, candidate.id, collection="default")
    full.put(document("tea", "green tea"), document("whale", "grey whale"))
    full.delete("fox")
    catch_up(full.workspace)
    done = roll_back(full.workspace, collection="default")
    assert (done.serving, done.previous) == (1, candidate.id)
    assert sorted(full.texts("fox whale tea")) == ["green tea", "grey whale"]
    assert answered_by(full)[0] == 1
    full.put(document("owl", "white owl"))
    catch_up(full.workspace)
    assert roll_back(full.workspace, collection="default").serving == candidate.id
    assert sorted(full.texts("fox whale tea owl")) == ["green tea", "grey whale", "white owl"]


def test_a_deletion_shows_at_once_also_where_the_index_lags(full: House, doubles: Doubles) -> None:
    candidate = doubles.candidate(full.workspace, 1)
    promote(full.workspace, candidate.id, collection="default")
    full.delete("fox")  # and no indexer runs
    roll_back(full.workspace, collection="default")
    assert full.texts("fox") == ["blue whale"]


def test_one_can_go_back_to_any_that_is_kept_ready(full: House, doubles: Doubles) -> None:
    candidate = doubles.candidate(full.workspace, 1)
    promote(full.workspace, candidate.id, collection="default")
    with full.database.write() as connection:
        configured = deployments.serve(connection, 1, candidate.index_id, candidate.mode, candidate.fusion)
    assert roll_back(full.workspace, 1, collection="default").previous == configured
    assert roll_back(full.workspace, collection="default").serving == configured


def test_only_what_has_served_can_be_gone_back_to(full: House, doubles: Doubles) -> None:
    with pytest.raises(NotFound, match="no previous deployment"):
        roll_back(full.workspace, collection="default")
    candidate = doubles.candidate(full.workspace, 1)
    with pytest.raises(Conflict, match=f"{candidate.id} is candidate; one can go back to none at the moment"):
        roll_back(full.workspace, candidate.id, collection="default")
    unchanged(full, candidate)
    promote(full.workspace, candidate.id, collection="default")
    with pytest.raises(Conflict, match=r"is serving; one can go back to 1 \(previous\)"):
        roll_back(full.workspace, candidate.id, collection="default")


# what is refused


def test_an_unknown_deployment_and_an_unknown_collection(full: House, doubles: Doubles) -> None:
    candidate = doubles.candidate(full.workspace, 1)
    with pytest.raises(NotFound, match="no deployment 99"):
        promote(full.workspace, 99, collection="default")
    with pytest.raises(NotFound, match="no collection 'nope'; there are: default"):
        promote(full.workspace, candidate.id, collection="nope")
    unchanged(full, candidate)


def test_another_collections_deployment(full: House, doubles: Doubles) -> None:
    full.workspace.create_collection("other")
    candidate = doubles.candidate(full.workspace, 1)
    with pytest.raises(Conflict, match="not one of the collection 'other'; nvr-rag deploy list --collection other"):
        promote(full.workspace, candidate.id, collection="other")
    with pytest.raises(Conflict, match="not one of the collection 'other'"):
        roll_back(full.workspace, 1, collection="other")
    assert answered_by(full)[0] == 1


@pytest.mark.parametrize("state", ["rejected", "retired"])
def test_one_that_has_been_given_up(full: House, doubles: Doubles, state: str) -> None:
    candidate, other = doubles.candidate(full.workspace, 1), doubles.candidate(full.workspace, 2)
    with full.database.write() as connection:
        connection.execute(update(t.Deployment).where(t.Deployment.id == candidate.id).values(state=state))
    with pytest.raises(Conflict, match=rf"is {state}; one can promote {other.id} \(candidate\)"):
        promote(full.workspace, candidate.id, collection="default")
    assert answered_by(full)[0] == 1


def test_the_one_that_serves(full: House) -> None:
    with pytest.raises(Conflict, match="1 is serving; one can promote none at the moment"):
        promote(full.workspace, 1, collection="default")
    assert states(full.database) == {1: "serving"}


def test_one_whose_index_lags_is_told_how_to_go_on(full: House, doubles: Doubles) -> None:
    candidate = doubles.propose(full.workspace, 1)
    wanted = f"2 changes behind .*nvr-rag index build --resume {candidate.index_id}"
    with pytest.raises(Conflict, match=wanted):
        promote(full.workspace, candidate.id, collection="default")
    unchanged(full, candidate)


def test_one_that_lags_as_far_as_what_serves_may_be_promoted(full: House, doubles: Doubles) -> None:
    candidate = doubles.candidate(full.workspace, 1)
    full.put(document("tea", "green tea"))
    promote(full.workspace, candidate.id, collection="default")
    assert answered_by(full)[0] == candidate.id


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda points: points.delete([next(points.scan()).id]), "1 missing, 0 stale, 0 foreign"),
        (
            lambda points: points.set_payload({next(points.scan()).id: {"input_hash": "x", "payload_hash": "y"}}),
            "0 missing, 1 stale, 0 foreign",
        ),
    ],
    ids=["missing", "stale"],
)
def test_one_whose_index_is_damaged(full: House, doubles: Doubles, damage: Callable[[Any], None], words: str) -> None:
    candidate = doubles.candidate(full.workspace, 1)
    damage(full.workspace.index(candidate.index_id).points)
    with pytest.raises(Conflict, match=f"{words}.*nvr-rag verify --repair"):
        promote(full.workspace, candidate.id, collection="default")
    unchanged(full, candidate)


def test_one_whose_index_is_lost(full: House, doubles: Doubles) -> None:
    candidate = doubles.candidate(full.workspace, 1)
    name = full.workspace.index(candidate.index_id).info.name
    full.workspace.close_index(candidate.index_id)
    full.store.drop(name)
    with pytest.raises(IndexMissing, match="there is no index"):
        promote(full.workspace, candidate.id, collection="default")
    unchanged(full, candidate)


def test_a_lap_gets_one_candidate_however_often_it_asks(full: House, doubles: Doubles) -> None:
    version = doubles.register(full.database, 1)
    first, second = (full.workspace.propose("default", version, run="lap-1") for _ in range(2))
    assert first == second
    assert full.workspace.propose("default", version, run="lap-2").index_id != first.index_id


# beside servers


def test_a_server_that_never_loads_it(full: House, doubles: Doubles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(promotion, "PREPARE_SECONDS", 0.2)
    candidate = doubles.candidate(full.workspace, 1)
    processes.announce(full.database, "serve", "http://127.0.0.1:9")
    with pytest.raises(StoreUnavailable, match=r"http://127\.0\.0\.1:9 has not loaded .* within 0 s; .*promote again"):
        promote(full.workspace, candidate.id, collection="default")
    unchanged(full, candidate)


def test_a_server_that_cannot_load_it(full: House, doubles: Doubles) -> None:
    candidate = doubles.candidate(full.workspace, 1)
    good, bad = (processes.announce(full.database, "serve", f"http://127.0.0.1:{port}") for port in (8, 9))
    processes.beat(full.database, good, {1: None, candidate.id: None})
    processes.beat(full.database, bad, {1: None, candidate.id: "not enough memory"})
    with pytest.raises(StoreUnavailable, match=r"http://127\.0\.0\.1:9 cannot load it: not enough memory"):
        promote(full.workspace, candidate.id, collection="default")
    unchanged(full, candidate)


def test_all_servers_are_waited_for_and_dead_ones_are_not(
    full: House, doubles: Doubles, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidate = doubles.candidate(full.workspace, 1)
    dead, first, second = (processes.announce(full.database, "serve") for _ in range(3))
    real = clock.now
    ago = timedelta(seconds=processes.DEAD_AFTER_SECONDS + 1)
    monkeypatch.setattr(clock, "now", lambda connection: real(connection) - ago)
    processes.beat(full.database, dead)
    monkeypatch.setattr(clock, "now", real)
    processes.beat(full.database, first, {candidate.id: None})
    told: list[float] = []

    def load() -> None:
        told.append(time.monotonic())
        processes.beat(full.database, second, {1: None, candidate.id: None})

    threading.Timer(0.4, load).start()
    done = promote(full.workspace, candidate.id, collection="default")
    assert told
    assert time.monotonic() > told[0]
    assert done.prepared_by == 2


def test_a_promotion_by_a_command_leaves_the_index_to_the_server(full: House, doubles: Doubles) -> None:
    """Built before the server started, so that it is the command that verifies; an index has one owner."""
    candidate = doubles.candidate(full.workspace, 1)
    full.workspace.close_index(candidate.index_id)
    command = visitor(full)
    with loading(full.workspace):
        done = promote(command.workspace, candidate.id, collection="default")
        assert done.prepared_by == 1
        assert full.workspace.has_open(candidate.index_id)
        assert answered_by(full)[0] == candidate.id
    assert not command.workspace.has_open(candidate.index_id)
    command.close()


def test_a_server_that_cannot_have_the_index_says_so(full: House, doubles: Doubles) -> None:
    candidate = doubles.candidate(full.workspace, 1)
    full.workspace.close_index(candidate.index_id)
    builder = visitor(full)
    assert builder.workspace.index(candidate.index_id)
    with loading(full.workspace):
        with pytest.raises(StoreUnavailable, match=r"cannot load it: .* is open already"):
            promote(builder.workspace, candidate.id, collection="default")
        unchanged(full, candidate)
    builder.close()


def test_a_server_loads_what_may_serve_and_tries_again_what_it_could_not(
    full: House, doubles: Doubles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparing, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(preparing, "POLL_SECONDS", 0.01)
    first, second = doubles.candidate(full.workspace, 1), doubles.candidate(full.workspace, 2)
    for one in (first, second):
        full.workspace.close_index(one.index_id)
    preparer = Preparer(full.workspace)
    preparer.start()

    def becomes(wanted: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 10
        while not wanted():
            assert time.monotonic() < deadline, preparer.prepared
            time.sleep(0.01)

    try:
        becomes(lambda: dict(preparer.prepared) == {1: None})
        assert not full.workspace.has_open(first.index_id)  # a candidate is nobody's business yet
        other = visitor(full)
        assert other.workspace.index(first.index_id)
        with full.database.write() as connection:
            deployments.prepare(connection, first.id)
        becomes(lambda: "is open already" in str(preparer.prepared.get(first.id)))
        other.close()
        becomes(lambda: dict(preparer.prepared) == {1: None, first.id: None})
        with full.database.write() as connection:
            deployments.unprepare(connection, first.id)
        becomes(lambda: dict(preparer.prepared) == {1: None})
    finally:
        preparer.stop()


# at the same time


def at_once(*calls: Callable[[], Switch]) -> list[Switch | NvrError]:
    """What each call came to, all of them in threads of their own."""
    results: list[Switch | NvrError] = []

    def work(call: Callable[[], Switch]) -> None:
        try:
            results.append(call())
        except NvrError as error:
            results.append(error)

    threads = [threading.Thread(target=work, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def meeting(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """So many promotions get as far as the switch before any of them switches."""
    barrier = threading.Barrier(count, timeout=10)

    def wait(*_: object) -> int:
        barrier.wait()
        return 0

    monkeypatch.setattr(promotion, "_wait_until_prepared", wait)


def test_of_two_promotions_of_one_candidate_one_wins(
    full: House, doubles: Doubles, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidate = doubles.candidate(full.workspace, 1)
    meeting(monkeypatch, 2)
    results = at_once(*[lambda: promote(full.workspace, candidate.id, collection="default")] * 2)
    (won,) = [one for one in results if isinstance(one, Switch)]
    (lost,) = [one for one in results if isinstance(one, Conflict)]
    assert (won.serving, won.previous) == (candidate.id, 1)
    assert f"deployment {candidate.id} is serving" in str(lost)
    assert states(full.database) == {1: "previous", candidate.id: "serving"}


def test_of_two_rollbacks_at_once_one_wins(full: House, doubles: Doubles, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both want to go back to the first; the second must not toggle, nor claim that it switched."""
    candidate = doubles.candidate(full.workspace, 1)
    promote(full.workspace, candidate.id, collection="default")
    meeting(monkeypatch, 2)
    results = at_once(*[lambda: roll_back(full.workspace, collection="default")] * 2)
    assert sorted(type(one).__name__ for one in results) == ["Conflict", "Switch"]
    assert states(full.database) == {1: "serving", candidate.id: "previous"}


def test_two_candidates_at_once_serve_one_after_the_other(
    full: House, doubles: Doubles, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = doubles.candidate(full.workspace, 1), doubles.candidate(full.workspace, 2)
    meeting(monkeypatch, 2)
    results = at_once(
        lambda: promote(full.workspace, one.id, collection="default"),
        lambda: promote(full.workspace, two.id, collection="default"),
    )
    switches = {result.previous: result.serving for result in results if isinstance(result, Switch)}
    first = switches[1]
    second = switches[first]
    assert {first, second} == {one.id, two.id}
    assert states(full.database) == {1: "retired", first: "previous", second: "serving"}


def test_a_candidate_that_is_rejected_meanwhile_does_not_serve(
    full: House, doubles: Doubles, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidate = doubles.candidate(full.workspace, 1)

    def reject(*_: object) -> int:
        with full.database.write() as connection:
            deployments.reject(connection, candidate.id)
        return 0

    monkeypatch.setattr(promotion, "_wait_until_prepared", reject)
    with pytest.raises(Conflict, match="is rejected"):
        promote(full.workspace, candidate.id, collection="default")
    unchanged(full, candidate, "rejected")


def test_documents_that_come_in_meanwhile_are_waited_for(
    full: House, doubles: Doubles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The indexer gives a change to the serving index first; the switch waits until the other one has it too."""
    candidate = doubles.candidate(full.workspace, 1)
    prepared, switch = promotion._wait_until_prepared, deployments.switch
    tries: list[int] = []

    def put(database: Any, deployment_id: int) -> int:
        processes.announce(full.database, "serve")  # somebody is at work
        full.put(document("tea", "green tea"))
        full.catch_up()
        threading.Timer(0.3, catch_up, (full.workspace,)).start()
        monkeypatch.setattr(promotion, "_wait_until_prepared", prepared)
        return 1

    def switched(connection: Connection, deployment_id: int) -> Deployment:
        tries.append(deployment_id)
        if len(tries) == 1:  # once more a change came in between
            raise Conflict("1 change behind")
        return switch(connection, deployment_id)

    monkeypatch.setattr(promotion, "_wait_until_prepared", put)
    monkeypatch.setattr(deployments, "switch", switched)
    promote(full.workspace, candidate.id, collection="default")
    assert len(tries) == 2
    assert full.texts("tea", k=1) == ["green tea"]
    assert answered_by(full)[0] == candidate.id


# what becomes of indexes


def row(house: House, index_id: int) -> Any:
    with house.database.read() as connection:
        return connection.execute(
            select(t.SearchIndex.state, t.SearchIndex.dropped_at).where(t.SearchIndex.id == index_id)
        ).first()


def test_the_row_of_a_dropped_index_stays_while_a_deployment_names_it(full: House, doubles: Doubles) -> None:
    candidate = doubles.candidate(full.workspace, 1)
    name = full.workspace.index(candidate.index_id).info.name
    with full.database.write() as connection:
        deployments.reject(connection, candidate.id)
    assert Indexer(full.workspace).step()
    assert name not in full.store.names()
    kept = row(full, candidate.index_id)
    assert kept.state == "retired"
    assert kept.dropped_at is not None
    assert not Indexer(full.workspace).step()  # it is not tried again
    with full.database.read() as connection:
        assert indexes.retired(connection) == []
        assert [info.id for info in indexes.kept(connection)] == [full.index_id]
        assert [info.id for info in indexes.all_infos(connection)] == [full.index_id, candidate.index_id]


def test_the_row_of_a_dropped_index_goes_when_nobody_names_it(full: House, doubles: Doubles) -> None:
    candidate = doubles.candidate(full.workspace, 1)
    with full.database.write() as connection:
        connection.execute(t.Deployment.__table__.delete().where(t.Deployment.id == candidate.id))  # type: ignore[attr-defined]
        connection.execute(update(t.SearchIndex).where(t.SearchIndex.id == candidate.index_id).values(state="retired"))
    assert Indexer(full.workspace).step()
    assert row(full, candidate.index_id) is None
    assert len(full.store.names()) == 1


def test_a_retired_index_is_not_opened_any_more(full: House, doubles: Doubles) -> None:
    """One that was never begun would be made by opening it, after it was dropped, and stay for ever."""
    candidate = doubles.propose(full.workspace, 1)
    with full.database.write() as connection:
        deployments.reject(connection, candidate.id)
    Indexer(full.workspace).step()
    with pytest.raises(NotFound, match="the index is gone"):
        full.workspace.index(candidate.index_id)
    assert len(full.store.names()) == 1


def test_a_candidate_is_built_a_round_at_a_time_behind_what_serves(
    full: House, doubles: Doubles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "CHANGES_A_ROUND", 1)
    monkeypatch.setattr(indexer, "chunk", paragraphs)
    full.put(*(document(f"{n}", f"owl number{n}") for n in range(3)))
    full.catch_up()
    candidate = doubles.propose(full.workspace, 1)
    order: list[int] = []
    real = indexing.catch_up

    def recorded(database: Any, index: Any, *arguments: Any, **options: Any) -> Any:
        order.append(index.info.id)
        return real(database, index, *arguments, **options)

    monkeypatch.setattr(indexing, "catch_up", recorded)
    works = Indexer(full.workspace)
    for number in range(1, 8):
        full.put(document(f"new{number}", f"bee number{number}"), document(f"more{number}", f"ant number{number}"))
        order.clear()
        assert works.step()
        assert order == [full.index_id, candidate.index_id]
        applied = {lag.index.id: lag.index.applied_seq for lag in lags(full.workspace)}
        assert applied == {full.index_id: 5 + 2 * number, candidate.index_id: number}
        assert full.texts(f"ant number{number}", k=1) == [f"ant number{number}"]


def test_a_candidate_that_cannot_be_built_alarms_nobody(
    full: House, doubles: Doubles, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidate = doubles.propose(full.workspace, 1)
    other = visitor(full)
    assert other.workspace.index(candidate.index_id)
    works = Indexer(full.workspace)
    works.step()
    assert list(works.problems) == [candidate.index_id]
    assert works.alarms == []
    other.close()
    works.step()
    assert works.problems == {}


# who waits for what


def settled(house: House, only: int | None = None) -> indexing.Work:
    finished = threading.Event()
    finished.set()
    return settle(
        Upkeep(workspace=house.workspace, collection_id=1, chunker=paragraphs, stop=threading.Event(), only=only),
        finished,
    )


def test_ingesting_waits_for_what_may_serve_and_not_for_what_is_being_built(full: House, doubles: Doubles) -> None:
    candidate = doubles.candidate(full.workspace, 1)
    promote(full.workspace, candidate.id, collection="default")
    building = doubles.propose(full.workspace, 2)
    full.put(document("tea", "green tea"))
    assert settled(full).encoded == 2
    assert {lag.index.id: lag.index.applied_seq for lag in lags(full.workspace)} == {
        full.index_id: 3,
        candidate.index_id: 3,
        building.index_id: 0,
    }
    assert settled(full, only=building.index_id).encoded == 3
    assert all(lag.caught_up for lag in lags(full.workspace))


def test_a_new_index_is_made_before_there_is_a_document(house: House) -> None:
    house.workspace.close_index(1)
    settled(house)
    assert house.workspace.has_open(1)
    house.put(document("tea", "green tea"))
    house.catch_up()
    house.workspace.close_index(1)
    settled(house)  # and one that has everything is left alone: it may be large
    assert not house.workspace.has_open(1)


def test_news_are_looked_at_at_once(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catching_up, "POLL_SECONDS", 60.0)
    stop, news, finished, told = threading.Event(), threading.Event(), threading.Event(), threading.Event()
    upkeep = Upkeep(
        workspace=house.workspace,
        collection_id=1,
        chunker=paragraphs,
        stop=stop,
        news=news,
        report=lambda _progress: told.set(),
    )
    thread = threading.Thread(target=settle, args=(upkeep, finished))
    thread.start()
    for number in range(3):
        house.put(document(f"tea {number}", "green tea"))
        news.set()
        assert told.wait(20)
        told.clear()
    finished.set()
    news.set()
    thread.join(20)
    assert not thread.is_alive()
    assert len(house.points()) == 3


def test_indexes_are_brought_up_in_the_order_in_which_they_matter(full: House, doubles: Doubles) -> None:
    building = doubles.propose(full.workspace, 1)
    candidate = doubles.propose(full.workspace, 2)
    indexing.catch_up(full.database, full.workspace.index(candidate.index_id), paragraphs)
    promote(full.workspace, candidate.id, collection="default")
    found = [(lag.index.id, lag.serves, lag.ready) for lag in lags(full.workspace)]
    assert found == [
        (candidate.index_id, True, True),
        (full.index_id, False, True),
        (building.index_id, False, False),
    ]


def test_a_server_has_the_first_go_at_a_new_index(
    full: House, doubles: Doubles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catching_up, "SERVER_FIRST_SECONDS", 0.5)
    candidate = doubles.propose(full.workspace, 1)
    command = visitor(full)
    processes.announce(full.database, "serve")
    threading.Timer(0.1, catch_up, (full.workspace,)).start()
    assert settled(command, only=candidate.index_id).encoded == 0
    full.put(document("tea", "green tea"))
    full.workspace.close_index(candidate.index_id)  # and nobody else takes it
    assert settled(command, only=candidate.index_id).encoded == 1
    command.close()


def test_who_puts_documents_waits_until_they_are_found_and_not_for_a_candidate(
    workspace: Workspace, doubles: Doubles, monkeypatch: pytest.MonkeyPatch
) -> None:
    def follow(_indexer: SmallIndexer, opened: Workspace) -> None:
        indexing.catch_up(opened.database, opened.index(1), paragraphs)

    monkeypatch.setattr(SmallIndexer, "_round", follow)
    workspace.create_collection("default")
    candidate = doubles.propose(workspace, 1)
    with running(workspace) as api:
        api.put({"uri": "a", "text": "green tea"})
        assert api.texts("tea") == ["green tea"]
    with workspace.database.read() as connection:
        assert indexes.applied_seq(connection, candidate.index_id) == 0


def test_a_removed_model_builds_nothing(full: House, doubles: Doubles) -> None:
    version = doubles.register(full.database, 1)
    assert full.workspace.encoder(version)  # loaded, and kept in memory
    with full.database.write() as connection:
        registry.remove(connection, version)
    with pytest.raises(NotFound, match="was removed; nvr-rag models add brings it back"):
        full.workspace.propose("default", version)
    with full.database.read() as connection:
        assert len(indexes.all_infos(connection)) == 1
    other = visitor(full)
    with pytest.raises(NotFound, match="was removed"):
        other.workspace.encoder(version)
    other.close()


def test_an_indexer_does_not_wait_for_whoever_builds_a_candidate(full: House, doubles: Doubles) -> None:
    candidate = doubles.propose(full.workspace, 1)
    building = full.workspace.index(candidate.index_id)
    full.put(document("late", "a late fox"))
    stepped = threading.Thread(target=Indexer(full.workspace).step, daemon=True)
    with building.maintenance:  # as a lap of this process has it, round after round
        stepped.start()
        stepped.join(20)
        assert not stepped.is_alive()
        assert "a late fox" in full.texts("late fox")
    Indexer(full.workspace).step()
    with full.database.read() as connection:
        assert indexes.applied_seq(connection, candidate.index_id) > 0
