"""Pruning: everything that is old and unneeded goes, and nothing that a search, a rollback or a judgment needs does."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import func, select, update

from nvr_rag import deployments, indexes, jobs, promotion, query_log
from nvr_rag.db import tables as t
from nvr_rag.fusion import FusionSettings
from nvr_rag.ids import document_id
from nvr_rag.query_log import QueryLog
from nvr_rag.removal import retention, superseded, tidying
from nvr_rag.removal.retention import Removal, prune
from nvr_rag.removal.tidying import Tidier
from nvr_rag.settings import RetentionSettings
from nvr_rag.types import Feedback, FeedbackKind, Hit, Mode, Query
from nvr_rag.upkeep import indexing, verification
from nvr_rag.upkeep.catching_up import lags
from tests.integration.lifecycle import Doubles, catch_up, states
from tests.support import House, apply_round, document, paragraphs


def lines(*parts: str) -> str:
    return "\n\n".join(parts)


@contextmanager
def keeping(house: House, **days: Any) -> Iterator[None]:
    """With such a policy; everything that is not named is kept for ever."""
    names = ("previous_days", "encoder_days", "run_days", "job_days", "version_days", "query_days")
    policy = RetentionSettings(**{**dict.fromkeys(names), **days})
    before = house.workspace.settings
    house.workspace.settings = before.model_copy(update={"retention": policy})
    try:
        yield
    finally:
        house.workspace.settings = before


def pruned(house: House, *, dry_run: bool = False, **days: Any) -> dict[str, Removal]:
    with keeping(house, **days):
        return {one.rule: one for one in prune(house.workspace, dry_run=dry_run)}


def counts(found: dict[str, Removal]) -> dict[str, int]:
    return {rule: one.count for rule, one in found.items() if one.count}


def age(house: House, table: Any, days: float, *columns: str) -> None:
    """Make every row look as old as that."""
    with house.database.write() as connection:
        moment = t.now() - timedelta(days=days)
        connection.execute(update(table).values(dict.fromkeys(columns, moment)))


def rows(house: House, table: Any) -> int:
    with house.database.read() as connection:
        return int(connection.scalar(select(func.count()).select_from(table)) or 0)


def ask(house: House, text: str, **options: Any) -> tuple[str, list[Hit]]:
    log = QueryLog(house.database)
    result = house.workspace.retriever.search(Query(text=text, **options))
    query_id = log.record(Query(text=text, **options), result)
    log.close()
    return query_id, list(result.hits)


def judge(house: House, query_id: str, chunk_id: str) -> None:
    with house.database.write() as connection:
        query_log.record_feedback(
            connection, [Feedback(query_id=query_id, chunk_id=chunk_id, kind=FeedbackKind.RELEVANT)]
        )


def test_by_default_nothing_young_goes(house: House) -> None:
    house.put(document("a", lines("one", "two")))
    house.catch_up()
    house.put(document("a", "three"))
    house.catch_up()
    house.delete("a")
    house.catch_up()
    assert sum(one.count for one in prune(house.workspace)) == 0
    assert rows(house, t.DocumentVersion) == 2


# texts


def test_replaced_versions_go_with_their_chunks(house: House) -> None:
    house.put(document("a", lines("one", "two", "kept")), document("b", "other"))
    house.catch_up()
    house.put(document("a", lines("kept", "three")))
    house.catch_up()
    planned = pruned(house, dry_run=True, version_days=0)
    assert counts(planned) == {"versions": 1}
    assert planned["versions"].bytes == len("one\n\ntwo\n\nkept")
    assert rows(house, t.DocumentVersion) == 3
    done = pruned(house, version_days=0)
    assert counts(done) == {"versions": 1, "chunks": 2}  # "one" and "two"
    assert done["chunks"].bytes == len("onetwo")
    assert (rows(house, t.DocumentVersion), rows(house, t.Chunk), rows(house, t.Placement)) == (2, 3, 3)
    assert sorted(house.texts("kept")) == ["kept", "other", "three"]
    assert house.verify().clean
    assert counts(pruned(house, version_days=0)) == {}


def test_a_version_that_is_young_or_still_shown_stays(house: House) -> None:
    house.put(document("a", "one"))
    house.catch_up()
    house.put(document("a", "two"))
    assert counts(pruned(house, version_days=0)) == {}  # the index shows it
    assert house.texts("one") == ["one"]
    apply_round(house.database, house.index, paragraphs, work=indexing.Work())
    assert counts(pruned(house, version_days=0)) == {}  # the index has to know which points are stale
    house.catch_up()
    assert counts(pruned(house, version_days=1)) == {}
    assert counts(pruned(house, version_days=0)) == {"versions": 1, "chunks": 1}
    assert house.verify().clean


def test_an_index_that_is_being_built_keeps_what_it_has_written(house: House, doubles: Doubles) -> None:
    house.put(document("a", "one"), document("b", "two"))
    house.catch_up()
    candidate = doubles.propose(house.workspace, 1)
    house.put(document("a", "changed"))
    house.catch_up()
    assert counts(pruned(house, version_days=0)) == {}
    catch_up(house.workspace)
    assert counts(pruned(house, version_days=0)) == {"versions": 1, "chunks": 1}
    promotion.promote(house.workspace, candidate.id, collection="default")
    assert sorted(house.texts("two")) == ["changed", "two"]


def test_the_texts_of_deleted_documents_go(house: House) -> None:
    house.put(document("a", lines("one", "two")), document("b", "three"))
    house.catch_up()
    house.delete("a")
    assert counts(pruned(house, version_days=0)) == {}
    house.catch_up()
    assert counts(pruned(house, version_days=0)) == {"versions": 1, "chunks": 2}
    house.put(document("a", lines("one", "new")))
    house.catch_up()
    assert sorted(house.texts("one")) == ["new", "one", "three"]
    assert house.verify().clean


def test_a_failed_document_keeps_what_still_answers(house: House) -> None:
    house.put(document("a", "one"))
    house.catch_up()
    house.fail("a")
    assert counts(pruned(house, version_days=0)) == {}
    assert house.texts("one") == ["one"]


def test_judged_chunks_stay(house: House) -> None:
    house.put(document("a", lines("red fox", "blue whale", "green tea")))
    house.catch_up()
    query_id, hits = ask(house, "fox")
    judge(house, query_id, hits[0].chunk_id)
    with house.database.write() as connection:
        connection.execute(
            t.JudgmentRow.__table__.insert().values(
                collection_id=1,
                origin="x",
                query_key="k",
                query="q",
                document_id=document_id("default", "a"),
                chunk_id=hits[1].chunk_id,
                grade=1,
                created_at=t.now(),
            )
        )
    house.put(document("a", "nothing of it"))
    house.catch_up()
    assert counts(pruned(house, version_days=0)) == {"versions": 1, "chunks": 1}
    with house.database.read() as connection:
        kept = set(connection.scalars(select(t.Chunk.id)))
    assert {hits[0].chunk_id, hits[1].chunk_id} < kept
    assert hits[2].chunk_id not in kept


def test_cuts_for_indexes_that_are_gone_go_and_judged_ones_stay(house: House, doubles: Doubles) -> None:
    """The second encoder has another budget, and so another chunking; here both cut into paragraphs."""
    house.put(document("a", lines("red fox", "blue whale")), document("b", "green tea"))
    house.catch_up()
    query_id, hits = ask(house, "tea", k=1)
    judge(house, query_id, hits[0].chunk_id)
    other = doubles.register_with(house.database, 1, max_tokens=32)
    candidate = house.workspace.propose("default", other)
    catch_up(house.workspace)
    promotion.promote(house.workspace, candidate.id, collection="default")
    assert rows(house, t.Placed) == 4
    assert counts(pruned(house, version_days=0)) == {}  # it can be gone back to
    with house.database.write() as connection:
        deployments.retire(connection, 1)
    assert counts(pruned(house, version_days=0)) == {}  # nobody has dropped it
    house.workspace.close_index(1)
    indexes.drop_retired(house.database, house.store, 1)
    assert counts(pruned(house, version_days=1)) == {}
    assert counts(pruned(house, dry_run=True, version_days=0)) == {"cuts": 1}
    assert counts(pruned(house, version_days=0)) == {"cuts": 1}  # of "a"; "b" was judged
    assert rows(house, t.Placed) == 3
    assert sorted(house.texts("tea")) == ["blue whale", "green tea", "red fox"]
    back = house.workspace.propose("default", house.encoder.fingerprint)
    catch_up(house.workspace)
    promotion.promote(house.workspace, back.id, collection="default")
    assert sorted(house.texts("tea")) == ["blue whale", "green tea", "red fox"]


# queries and jobs


def test_old_queries_without_feedback_go(house: House) -> None:
    house.put(document("a", "red fox"))
    house.catch_up()
    judged, hits = ask(house, "fox")
    judge(house, judged, hits[0].chunk_id)
    ask(house, "old")
    age(house, t.QueryRow, 10, "created_at")
    ask(house, "young")
    assert counts(pruned(house, version_days=0)) == {}
    assert counts(pruned(house, dry_run=True, query_days=9)) == {"queries": 1}
    assert counts(pruned(house, query_days=9)) == {"queries": 1}
    with house.database.read() as connection:
        assert sorted(connection.scalars(select(t.QueryRow.text))) == ["fox", "young"]
    assert rows(house, t.FeedbackRow) == 1


def test_many_old_queries_go_in_small_transactions(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "BATCH", 3)
    for number in range(8):
        ask(house, f"question {number}")
    age(house, t.QueryRow, 10, "created_at")
    assert counts(pruned(house, query_days=9)) == {"queries": 8}
    assert rows(house, t.QueryRow) == 0


def test_jobs_that_ended_long_ago_go_but_the_newest_of_its_kind(house: House) -> None:
    for _ in range(3):
        job_id = jobs.enqueue(house.database, "verify", {"index_id": 1})
        jobs.claim(house.database, "w", ("verify",), job_id=job_id)
        jobs.finish(house.database, job_id, "w", result={"x": 1}, error=None)
    age(house, t.Job, 40, "created_at", "finished_at")
    jobs.enqueue(house.database, "other", {})
    assert counts(pruned(house, dry_run=True, job_days=30)) == counts(pruned(house, job_days=30)) == {"jobs": 2}
    assert rows(house, t.Job) == 2


# deployments and encoders


@pytest.fixture
def several(house: House, doubles: Doubles) -> House:
    """Deployment 1 on index 1; 2 with other weights on it; 3 on index 2 serves. All that served can be gone back to."""
    house.put(document("a", "red fox"), document("b", "blue whale"))
    house.catch_up()
    with house.database.write() as connection:
        deployments.serve(connection, 1, 1, Mode.DENSE, FusionSettings())
    candidate = doubles.candidate(house.workspace, 1)
    promotion.promote(house.workspace, candidate.id, collection="default")
    with house.database.write() as connection:
        again = deployments.serve(connection, 1, candidate.index_id, Mode.LEXICAL, FusionSettings())
    assert states(house.database) == {1: "retired", 2: "previous", 3: "previous", again: "serving"}
    return house


def test_deployments_that_served_long_ago_go_but_the_last(several: House) -> None:
    age(several, t.Deployment, 40, "created_at", "stopped_at")
    with several.database.write() as connection:
        connection.execute(update(t.Deployment).where(t.Deployment.id == 3).values(stopped_at=t.now()))
    assert counts(pruned(several, previous_days=50)) == {}
    planned = pruned(several, dry_run=True, previous_days=30)["deployments"]
    assert (planned.count, planned.examples) == (1, ["deployment 2"])
    assert counts(pruned(several, previous_days=30)) == {"deployments": 1}
    assert states(several.database) == {1: "retired", 2: "retired", 3: "previous", 4: "serving"}
    with several.database.read() as connection:
        assert indexes.get(connection, 1).state == "retired"
    assert promotion.roll_back(several.workspace, collection="default").serving == 3


def test_the_last_one_stays_however_old_it_is(several: House) -> None:
    age(several, t.Deployment, 4000, "created_at", "stopped_at")
    done = pruned(several, previous_days=0)["deployments"]
    assert done.count == 1
    assert promotion.roll_back(several.workspace, collection="default").previous == 4


def test_encoders_that_nothing_needs_go(house: House, doubles: Doubles, tmp_path: Any) -> None:
    base, child, unneeded, young = (doubles.register(house.database, seed) for seed in (1, 2, 3, 4))
    house.put(document("a", "red fox"))
    candidate = house.workspace.propose("default", child)
    with house.database.write() as connection:
        e = t.EncoderVersion
        connection.execute(update(e).where(e.fingerprint == child).values(parent=base))
        old = t.now() - timedelta(days=100)
        connection.execute(update(e).where(e.fingerprint != young).values(created_at=old))
    folder = house.home / "models" / unneeded
    folder.mkdir(parents=True)
    (folder / "weights").write_bytes(b"x" * 5000)
    with house.database.write() as connection:
        connection.execute(update(e).where(e.fingerprint == unneeded).values(source=f"models/{unneeded}"))
    planned = pruned(house, dry_run=True, encoder_days=90)["encoders"]
    assert (planned.count, planned.examples) == (1, [unneeded[:12]])
    assert planned.bytes is not None
    assert planned.bytes >= 5000
    jobs.enqueue(house.database, "retrain", {"collection": "default"})
    assert counts(pruned(house, encoder_days=90)) == {}  # somebody may be training from it
    jobs.cancel(house.database, 1)
    assert counts(pruned(house, encoder_days=90)) == {"encoders": 1}
    assert not folder.exists()
    with house.database.write() as connection:
        deployments.reject(connection, candidate.id)
    assert counts(pruned(house, encoder_days=90)) == {}  # its index is not dropped yet
    indexes.drop_retired(house.database, house.store, candidate.index_id)
    assert counts(pruned(house, encoder_days=90)) == {}  # it was needed a moment ago
    age(house, t.SearchIndex, 100, "dropped_at")
    with house.database.write() as connection:
        connection.execute(update(t.SearchIndex).where(t.SearchIndex.id == 1).values(dropped_at=None))
    assert counts(pruned(house, encoder_days=90)) == {"encoders": 2}
    assert house.texts("fox") == []  # nobody has indexed it, but it can be encoded
    house.catch_up()
    assert house.texts("fox") == ["red fox"]


# beside other work


def test_the_tidier_prunes_once_an_hour_and_leaves_the_rest_for_later(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, seen = [1000.0], []
    monkeypatch.setattr(tidying.time, "monotonic", lambda: clock[0])

    def slow(_workspace: object, *, pause: Any) -> list[Removal]:
        seen.append(clock[0])
        clock[0] += cost
        pause()
        return []

    monkeypatch.setattr(tidying, "prune", slow)
    tidier, cost = Tidier(house.workspace, threading.Event()), 0.5
    tidier.step()
    clock[0] += 3598
    tidier.step()
    assert seen == [1000.0]
    clock[0] += 2
    cost = 2.5
    tidier.step()
    assert seen == [1000.0, 4600.5]
    clock[0] = 4600.5 + 61
    tidier.step()
    assert len(seen) == 3


def test_what_is_interrupted_is_gone_on_with(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(superseded, "BATCH", 2)
    for number in range(5):
        house.put(document("a", f"text {number}"))
        house.catch_up()
    asked: list[None] = []

    def pause() -> bool:
        asked.append(None)
        return len(asked) > 8

    with keeping(house, version_days=0):
        first = {one.rule: one.count for one in prune(house.workspace, pause=pause)}
        assert 0 < sum(first.values()) < 8
        prune(house.workspace)
    assert (rows(house, t.DocumentVersion), rows(house, t.Chunk)) == (1, 1)
    assert house.verify().clean


# a random life


@pytest.mark.parametrize("seed", range(8))
def test_whatever_has_happened_pruning_changes_no_answer(house: House, doubles: Doubles, seed: int) -> None:
    chance = random.Random(seed)
    encoders = [doubles.register(house.database, number) for number in (1, 2)]
    encoders.append(doubles.register_with(house.database, 3, max_tokens=32))
    for _ in range(60):
        _happen(house, chance, encoders)
    if chance.random() < 0.5:
        catch_up(house.workspace)
    before = _everything(house)
    judged = _judged(house)
    for _ in range(2):
        planned = counts(pruned(house, dry_run=True, version_days=0, query_days=0, job_days=0))
        done = counts(pruned(house, version_days=0, query_days=0, job_days=0))
        assert [done.get(rule) for rule in ("versions", "queries")] == [planned.get("versions"), planned.get("queries")]
        assert done.get("cuts", 0) <= planned.get("cuts", 0)  # some go with their versions,
        assert done.get("chunks", 0) >= planned.get("chunks", 0)  # and more chunks are loose then
    assert _everything(house) == before
    with house.database.read() as connection:
        assert judged <= set(connection.scalars(select(t.Chunk.id)))
    catch_up(house.workspace)
    for lag in lags(house.workspace):
        assert lag.caught_up
        assert verification.verify(house.database, house.workspace.index(lag.index.id)).clean


def _happen(house: House, chance: random.Random, encoders: list[str]) -> None:
    """Something that people or indexers do."""
    workspace, uri = house.workspace, chance.choice("abcdef")
    what = chance.choices(
        ("put", "delete", "index", "part", "propose", "promote", "roll back", "judge", "give up"),
        (30, 8, 15, 10, 4, 8, 4, 8, 2),
    )[0]
    with house.database.read() as connection:
        there = set(connection.scalars(select(t.Document.uri).where(t.Document.state != "deleted")))
        waiting = deployments.all_of(connection, 1, deployments.WAITING)
        previous = deployments.all_of(connection, 1, ("previous",))
    if what == "put":
        words = chance.sample(("fox", "whale", "tea", "owl", "red", "blue"), chance.randint(0, 4))
        house.put(document(uri, "\n\n".join(f"{word} of {uri}" for word in words)))
    elif what == "delete" and uri in there:
        house.delete(uri)
    elif what == "index":
        catch_up(workspace)
    elif what == "part":
        lag = chance.choice(lags(workspace))
        work = indexing.Work()
        apply_round(house.database, workspace.index(lag.index.id), paragraphs, work=work)
    elif what == "propose" and len(waiting) < 2:
        workspace.propose("default", chance.choice(encoders))
    elif what == "promote" and waiting:
        catch_up(workspace)
        promotion.promote(workspace, chance.choice(waiting).id, collection="default")
    elif what == "roll back" and previous:
        catch_up(workspace)
        promotion.roll_back(workspace, collection="default")
    elif what == "judge":
        query_id, hits = ask(house, chance.choice(("fox", "tea")))
        if hits and chance.random() < 0.5:
            judge(house, query_id, chance.choice(hits).chunk_id)
    elif what == "give up" and waiting:
        with house.database.write() as connection:
            deployments.reject(connection, waiting[0].id)
    _drop_retired(house)


def _drop_retired(house: House) -> None:
    with house.database.read() as connection:
        retired = indexes.retired(connection)
    for info in retired:
        house.workspace.close_index(info.id)
        indexes.drop_retired(house.database, house.store, info.id)


def _everything(house: House) -> dict[int, dict[str, tuple[str, str, int]]]:
    """What every deployment that serves, or can be gone back to, shows of everything, chunk by chunk."""
    with house.database.read() as connection:
        ready = deployments.all_of(connection, 1, deployments.READY)
    found = {}
    for one in ready:
        asked = Query(text="fox whale tea owl red blue of a b c d e f", k=100, mode=Mode.DENSE)
        hits = house.workspace.retriever.search(asked, deployment_id=one.id).hits
        found[one.id] = {hit.chunk_id: (hit.uri, hit.text, hit.start) for hit in hits}
    return found


def _judged(house: House) -> set[str]:
    with house.database.read() as connection:
        return set(connection.scalars(select(t.FeedbackRow.chunk_id)))
