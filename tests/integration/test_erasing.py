"""What is erased is gone: from rows, indexes and files, whatever dies meanwhile; and what was not erased stays."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest
from sqlalchemy import func, select

from nvr_rag import corpus, query_log
from nvr_rag.db import tables as t
from nvr_rag.db.session import insert_ignore
from nvr_rag.errors import NotFound, StoreBusy
from nvr_rag.ids import document_id, new_id, sha256_text
from nvr_rag.query_log import QueryLog
from nvr_rag.removal import erasing, erasure
from nvr_rag.removal.erasure import Erasure
from nvr_rag.stores.edge import EdgeStore
from nvr_rag.testing import Crash, Fault, FaultyStore, MemoryStore
from nvr_rag.types import Feedback, FeedbackKind, Query
from nvr_rag.upkeep import indexing, verification, writing
from tests.support import House, document, paragraphs
from training.judgments import holdout_queries, training_queries

WORD = "zebraquartz"  # in everything that is erased, and in nothing else


@pytest.fixture(autouse=True)
def no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """What other packages erase is tested with them."""
    monkeypatch.setattr(erasing, "installed", list)


def asked(house: House, text: str, user: str | None = None, where: Any = None, session: str | None = None) -> str:
    """Ask as a user does; the query's id."""
    query = Query(text=text, user=user, k=20, filter=where, session=session)
    log = QueryLog(house.database)
    try:
        return log.record(query, house.workspace.retriever.search(query))
    finally:
        log.close()


def said(house: House, query_id: str, chunk_id: str | None, user: str | None, kind: str = "relevant") -> None:
    item = Feedback(query_id=query_id, chunk_id=chunk_id, kind=FeedbackKind(kind), grade=None, user=user)
    with house.database.write() as connection:
        query_log.record_feedback(connection, [item])


def judged(house: House, uri: str, query: str) -> None:
    row = {
        "collection_id": 1,
        "origin": "import",
        "query_key": sha256_text(query),
        "query": query,
        "document_id": document_id("default", uri),
        "chunk_id": "",
        "grade": 1,
        "created_at": t.now(),
    }
    with house.database.write() as connection:
        insert_ignore(connection, t.JudgmentRow, [row])


def chunk_of(house: House, text: str) -> str:
    return next(hit.chunk_id for hit in house.hits(text, k=50) if hit.text == text)


def count(house: House, table: Any) -> int:
    with house.database.read() as connection:
        return int(connection.scalar(select(func.count()).select_from(table)) or 0)


def erase(house: House, *uris: str) -> list[Erasure]:
    records, unknown = erasing.erase_documents(house.workspace, "default", uris)
    assert unknown == []
    return records


def texts_in_database(house: House) -> str:
    """Every value of every row."""
    with house.database.read() as connection:
        rows = [row for table in t.Base.metadata.sorted_tables for row in connection.execute(select(table))]
    return repr(rows)


def furnish(house: House) -> None:
    """Two documents, one of them in three versions, asked for and talked about."""
    house.put(document("keep", "red fox\n\nblue whale"))
    secret = f"file:///{WORD}.txt"
    house.put(document(secret, f"first {WORD} one\n\nred fox", title=f"title {WORD}", metadata={"about": WORD}))
    house.catch_up()
    query = asked(house, "fox", "ann")
    said(house, query, chunk_of(house, f"first {WORD} one"), "bob")
    said(house, query, chunk_of(house, "blue whale"), "bob")
    said(house, query, None, "bob", "answer_good")
    asked(house, "whale", "bob", {"uri": secret})
    house.put(document(secret, f"second {WORD} two\n\nred fox", title=f"title {WORD}", metadata={"about": WORD}))
    house.catch_up()
    house.put(document(secret, f"third {WORD} three", title=f"title {WORD}"))
    house.catch_up()
    judged(house, secret, f"what is {WORD}")
    judged(house, "keep", "what is red")


@pytest.fixture
def furnished(house: House) -> House:
    furnish(house)
    return house


SECRET = f"file:///{WORD}.txt"


def test_nothing_of_a_document_is_left_in_any_row(furnished: House) -> None:
    (record,) = erase(furnished, SECRET)
    assert (record.pending, record.kind, record.collection) == (None, "document", "default")
    assert record.subject == sha256_text(document_id("default", SECRET))
    assert record.finished_at is not None
    wanted = {"versions": 3, "chunks": 4, "judgments": 1, "feedback": 1, "queries": 2, "encoders": []}
    assert dict(record.removed) == wanted
    assert WORD not in texts_in_database(furnished)
    assert document_id("default", SECRET) not in texts_in_database(furnished)
    assert furnished.texts(f"{WORD} fox whale") == ["red fox", "blue whale"] or len(furnished.texts("fox")) == 2
    assert (count(furnished, t.Document), count(furnished, t.FeedbackRow), count(furnished, t.JudgmentRow)) == (1, 2, 1)
    assert count(furnished, t.QueryRow) == 2  # what others have asked stays, without the hits that showed it
    assert len(furnished.points()) == 2
    assert furnished.verify().clean


def test_a_deleted_document_can_be_erased(furnished: House) -> None:
    furnished.delete(SECRET)
    furnished.catch_up()
    erase(furnished, document_id("default", SECRET))
    assert WORD not in texts_in_database(furnished)
    assert len(furnished.points()) == 2


def test_what_is_not_there_is_said_and_the_rest_erased(furnished: House) -> None:
    records, unknown = erasing.erase_documents(furnished.workspace, "default", ["no", SECRET, "no", SECRET])
    assert (len(records), unknown) == (1, ["no"])
    with pytest.raises(NotFound):
        erasing.erase_documents(furnished.workspace, "nowhere", [SECRET])


def test_two_names_of_a_document_are_one_erasure(furnished: House) -> None:
    assert len(erase(furnished, SECRET, document_id("default", SECRET))) == 1


def test_it_may_come_again(furnished: House) -> None:
    erase(furnished, SECRET)
    (put,) = furnished.put(document(SECRET, f"third {WORD} three\n\nand four"))
    assert put.seq == 5  # numbers go on
    assert furnished.texts(WORD, k=1) != [f"third {WORD} three"]
    furnished.catch_up()
    assert furnished.texts(WORD, k=1) == [f"third {WORD} three"]
    assert furnished.row.applied_seq == 5
    assert furnished.verify().clean


def test_an_index_that_lags_gets_to_the_head_without_it(furnished: House) -> None:
    furnished.put(document(SECRET, f"fourth {WORD}"), document("new", "green frog"), document("last", WORD + " plain"))
    erase(furnished, SECRET, "last")
    assert furnished.catch_up().encoded == 1
    assert furnished.row.applied_seq == 7  # over the gap
    assert furnished.verify().clean
    assert furnished.texts("frog", k=1) == ["green frog"]


def test_a_round_that_was_under_way_brings_nothing_back(furnished: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """The document is erased while its chunks are in memory, on their way into the index."""
    furnished.put(document(SECRET, f"fourth {WORD}"))
    real, records = writing.store, []

    def erased_meanwhile(*args: Any) -> None:
        monkeypatch.setattr(writing, "store", real)
        records.extend(erase(furnished, SECRET))
        real(*args)

    monkeypatch.setattr(writing, "store", erased_meanwhile)
    try:
        furnished.catch_up()
    except NotFound:
        furnished.catch_up()
    (record,) = records
    assert erasure.left(record.pending) == [f"index {furnished.index_id}"]  # somebody was at it
    assert furnished.verify().clean  # no false alarm meanwhile
    assert erasing.settle(furnished.workspace) == {}
    assert len(furnished.points()) == 2
    with furnished.database.read() as connection:
        assert erasure.unfinished(connection) == []


def test_an_index_of_another_process_is_left_to_it(furnished: House) -> None:
    name = furnished.row.name
    furnished.workspace.close_index(furnished.index_id)
    owner = furnished.store.open(name)
    (record,) = erase(furnished, SECRET)
    assert erasure.left(record.pending) == [f"index {furnished.index_id}"]
    assert WORD not in texts_in_database(furnished)
    problems = erasing.settle(furnished.workspace)
    assert list(problems) == [f"index {furnished.index_id}"]
    with pytest.raises(StoreBusy):
        furnished.workspace.index(furnished.index_id)
    owner.close()
    assert erasing.settle(furnished.workspace) == {}
    assert len(furnished.points()) == 2


def test_who_waits_for_an_owner_that_dies_does_it_himself(furnished: House) -> None:
    furnished.workspace.close_index(furnished.index_id)
    owner = furnished.store.open(furnished.row.name)
    records = erase(furnished, SECRET)
    death = threading.Timer(0.5, owner.close)
    death.start()
    (record,) = erasing.wait(furnished.workspace, records, 20.0)
    death.join()
    assert record.pending is None
    assert len(furnished.points()) == 2


def test_what_came_back_before_its_points_were_removed_keeps_them(furnished: House) -> None:
    furnished.workspace.close_index(furnished.index_id)
    owner = furnished.store.open(furnished.row.name)
    erase(furnished, SECRET)
    owner.close()
    furnished.put(document(SECRET, f"third {WORD} three"))
    furnished.catch_up()
    assert erasing.settle(furnished.workspace) == {}
    assert furnished.texts(WORD, k=1) == [f"third {WORD} three"]
    assert furnished.verify().clean
    assert len(furnished.points()) == 3


def test_a_search_that_was_under_way_leaves_no_hit(furnished: House, monkeypatch: pytest.MonkeyPatch) -> None:
    query = Query(text="fox", k=20)
    result = furnished.workspace.retriever.search(query)
    real = erasure.erase_documents

    def logged_meanwhile(*args: Any) -> list[Erasure]:
        records = real(*args)
        log = QueryLog(furnished.database)
        said(furnished, log.record(query, result), next(h.chunk_id for h in result.hits if WORD in h.text), "eve")
        log.close()
        return records

    monkeypatch.setattr(erasure, "erase_documents", logged_meanwhile)
    chunks = [hit.chunk_id for hit in result.hits if hit.uri == SECRET]
    assert chunks
    erase(furnished, SECRET)
    assert not any(chunk in texts_in_database(furnished) for chunk in chunks)


# -- crashes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [False, True])
def test_dying_anywhere_in_the_store_it_ends_when_it_is_run_again(home: Path, after: bool) -> None:
    store = MemoryStore()
    house = House(home, store=store)
    furnish(house)
    house.close()
    for call in range(1, 7):
        dying = House(home, store=FaultyStore(store, Fault(call=call, after=after)))
        if call == 1:
            with pytest.raises(Crash):
                erase(dying, SECRET)
        else:
            with suppress(Crash):
                erasing.settle(dying.workspace)
        dying.close()
        store.kill()
    last = House(home, store=store)
    assert erasing.settle(last.workspace) == {}
    assert WORD not in texts_in_database(last)
    assert len(last.points()) == 2
    assert last.verify().clean
    last.close()


@pytest.mark.parametrize("step", ["_remove_points", "_out_of_files", "_out_of_database"])
def test_dying_between_any_two_steps_it_ends_when_it_is_run_again(
    furnished: House, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    for after in (False, True):
        real = getattr(erasing, step)

        def die(*args: Any, real: Any = real, after: bool = after) -> None:
            if after:
                real(*args)
            raise Crash

        monkeypatch.setattr(erasing, step, die)
        with pytest.raises(Crash):
            erase(furnished, SECRET) if not after else erasing.settle(furnished.workspace)
        monkeypatch.undo()
        monkeypatch.setattr(erasing, "installed", list)
        assert WORD not in texts_in_database(furnished)
    assert erasing.settle(furnished.workspace) == {}
    assert len(furnished.points()) == 2
    with furnished.database.read() as connection:
        (record,) = erasure.all_records(connection)
    assert record.pending is None


def test_a_transaction_that_fails_erases_nothing(furnished: House, monkeypatch: pytest.MonkeyPatch) -> None:
    before = texts_in_database(furnished)

    def die(*_: Any) -> None:
        raise Crash

    monkeypatch.setattr(erasure, "_record", die)
    with pytest.raises(Crash):
        erase(furnished, SECRET)
    assert texts_in_database(furnished) == before


# -- bytes -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def on_disk(home: Path) -> Iterator[House]:
    opened = House(home, store=EdgeStore(home / "indexes"))
    furnish(opened)
    yield opened
    opened.close()


def files_with(folder: Path, *words: str) -> list[str]:
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and any(word.encode() in path.read_bytes() for word in words)
    )


def test_no_file_has_a_byte_of_it(on_disk: House, home: Path, engine: str) -> None:
    harmed = files_with(home, WORD)
    assert any("shard" in name for name in harmed)
    assert engine == "postgresql" or any(name.startswith("corpus.sqlite3") for name in harmed)
    erase(on_disk, SECRET)
    assert files_with(home, WORD, document_id("default", SECRET)) == []
    assert on_disk.texts("fox", k=1) == ["red fox"]
    on_disk.workspace.close_index(on_disk.index_id)
    assert on_disk.verify().clean
    on_disk.close()
    assert files_with(home, WORD) == []


def test_no_file_has_a_byte_of_what_a_user_asked(on_disk: House, home: Path) -> None:
    asked(on_disk, "where is the yellowgiraffe", "yellowuser", session="yellowsession")
    erasing.erase_user(on_disk.workspace, "yellowuser")
    assert files_with(home, "yellow") == []


def test_a_reader_holds_up_the_last_step_and_nothing_else(on_disk: House, home: Path, engine: str) -> None:
    if engine != "sqlite":
        pytest.skip("the log of SQLite")
    reader = sqlite3.connect(home / "corpus.sqlite3")
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM document").fetchall()
    (record,) = erase(on_disk, SECRET)
    assert erasure.left(record.pending) == ["database"]
    reader.close()
    assert erasing.settle(on_disk.workspace) == {}
    assert files_with(home, WORD) == []


# -- users -------------------------------------------------------------------------------------------------------------


def test_a_user_is_erased_and_what_others_said_stays(house: House) -> None:
    house.put(document("a", "red fox\n\nblue whale"))
    house.catch_up()
    fox, whale = chunk_of(house, "red fox"), chunk_of(house, "blue whale")
    alone = asked(house, "alone of ann", "ann", session="ann-session")
    shared = asked(house, "shared of ann", "ann", where={"uri": "a"})
    other = asked(house, "of bob", "bob")
    nobody = asked(house, "of nobody")
    for query in (alone, shared, other, nobody):
        said(house, query, fox, "ann")
    said(house, alone, whale, None)  # unsigned on her own query: hers
    said(house, shared, fox, "bob")
    said(house, other, whale, "bob")
    said(house, nobody, whale, None)
    record = erasing.erase_user(house.workspace, "ann")
    assert (record.kind, record.subject, record.pending) == ("user", sha256_text("ann"), None)
    assert dict(record.removed) == {"queries": 2, "feedback": 5, "encoders": []}
    everything = texts_in_database(house)
    assert "ann" not in everything.replace("mean", "")
    assert "of bob" in everything
    with house.database.read() as connection:
        queries = {row.id: row for row in connection.execute(select(t.QueryRow.__table__))}
        feedback = {
            (row.query_id, row.chunk_id, row.user) for row in connection.execute(select(t.FeedbackRow.__table__))
        }
    assert set(queries) == {shared, other, nobody}
    blank = queries[shared]
    assert (blank.text, blank.user, blank.session, blank.filter) == ("", None, None, None)
    assert blank.hits  # so that what bob said is about something
    assert feedback == {(shared, fox, "bob"), (other, whale, "bob"), (nobody, whale, "")}
    with house.database.read() as connection:  # nobody learns from a query without its text
        sets = training_queries(connection, "default"), holdout_queries(connection, "default")
    assert {query.text for one in sets for query in one.queries} == {"of bob", "of nobody"}


def test_an_unknown_user_is_not_found(house: House) -> None:
    with pytest.raises(NotFound, match="no user 'ann'"):
        erasing.erase_user(house.workspace, "ann")
    assert count(house, t.Erasure) == 0


# -- any history -------------------------------------------------------------------------------------------------------


def states(house: House) -> dict[str, str]:
    """URI -> text of what is stored and not deleted."""
    with house.database.read() as connection:
        rows = connection.execute(
            select(t.Document.uri, t.DocumentVersion.text)
            .join(t.DocumentVersion, t.DocumentVersion.document_id == t.Document.id)
            .where(t.Document.state != "deleted", t.DocumentVersion.generation == t.Document.generation)
        )
        return {row.uri: row.text for row in rows}


def shown(house: House) -> set[tuple[str, str]]:
    return {(hit.uri, hit.text) for hit in house.hits("word", k=200, mode=None)}


@pytest.mark.parametrize("seed", range(8))
def test_any_history_of_puts_deletions_and_erasures_ends_right(house: House, seed: int) -> None:
    """Against a model that is a dict; every erased text has a word of its own, which must be nowhere."""
    random, model, gone = Random(seed), dict[str, str](), list[str]()
    uris = [f"u{i}" for i in range(5)]
    for turn in range(30):
        uri = random.choice(uris)
        match random.randrange(7):
            case 0 | 1 | 2:
                text = "\n\n".join(f"word w{turn}x{uri} {random.randrange(3)}" for _ in range(random.randrange(1, 4)))
                house.put(document(uri, text))
                model[uri] = text
            case 3:
                if model.pop(uri, None):
                    house.delete(uri)
            case 4:
                with house.database.read() as connection:
                    known = erasure.find_documents(connection, "default", [uri])
                erasing.erase_documents(house.workspace, "default", [uri])
                if known:
                    model.pop(uri, None)
                    gone += [f"w{past}x{uri}" for past in range(turn)]
            case 5:
                indexing.catch_up(house.database, house.index, paragraphs, turns=random.randrange(1, 3))
            case 6:
                asked(house, f"word {turn}")
        assert states(house) == model
    house.catch_up()
    assert erasing.settle(house.workspace) == {}
    found = verification.verify(house.database, house.index)
    assert found.clean
    wanted = {(uri, part) for uri, text in model.items() for part in text.split("\n\n")}
    assert shown(house) == wanted
    everything = texts_in_database(house)
    alive = " ".join(model.values())
    again = [word for word in gone if word in everything and word not in alive]
    assert again == [word for word in again if _reput(house, word)]
    with house.database.read() as connection:
        assert erasure.unfinished(connection) == []
        assert corpus.changed_since(connection, 1, house.row.applied_seq, 10)[0] == []


def _reput(house: House, word: str) -> bool:
    """The word belongs to a version that was put after the erasure of its document."""
    with house.database.read() as connection:
        versions: Sequence[str] = connection.scalars(select(t.DocumentVersion.text)).all()
    return any(word in text for text in versions)


def test_records_are_listed_with_what_is_left(furnished: House) -> None:
    erase(furnished, SECRET)
    with furnished.database.read() as connection:
        (record,) = erasure.all_records(connection)
    listed = record.as_json()
    assert (listed["pending"], listed["kind"]) == ([], "document")
    assert listed["finished_at"] >= listed["created_at"]
    with pytest.raises(NotFound), furnished.database.read() as connection:
        erasure._get(connection, 7)
    assert new_id() not in str(listed)
