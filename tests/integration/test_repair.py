"""What `verify --repair` mends: points with wrong contents, indexes that are gone, shards whose files are damaged.

On every store, and beside a server that answers meanwhile.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from qdrant_client import QdrantClient
from sqlalchemy import update

from nvr_rag.api import readiness
from nvr_rag.db import tables as t
from nvr_rag.errors import IndexDamaged, IndexMissing, StoreUnavailable
from nvr_rag.ids import chunk_id, document_id, sha256_text
from nvr_rag.stores.base import SparseVector, Store
from nvr_rag.stores.edge import EdgeStore
from nvr_rag.stores.server import QdrantServerStore
from nvr_rag.testing import HashEncoder, MemoryStore
from nvr_rag.upkeep import indexing, verification
from nvr_rag.upkeep.verification import Verification, verify_by_owner, verify_or_rebuild
from tests.integration.api_support import running
from tests.support import House, document, paragraphs

pytestmark = pytest.mark.filterwarnings("ignore:Payload indexes have no effect in the local Qdrant:UserWarning")

TEXTS = ["red fox", "blue whale", "grey owl", "green frog", "white hare", "black cat"]


def key(text: str, uri: str = "a") -> str:
    return chunk_id(document_id("default", uri), sha256_text(text), 0)


def repaired(house: House) -> Verification:
    return verify_or_rebuild(house.workspace, house.index_id, paragraphs, repair=True)


def counts(found: Verification) -> tuple[int, int, int, int, int]:
    return found.checked, found.missing, found.stale, found.corrupt, found.foreign


@pytest.fixture(params=["memory", "edge", "server"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    match request.param:
        case "memory":
            yield MemoryStore()
        case "edge":
            yield EdgeStore(tmp_path / "indexes")
        case "server":
            client = QdrantClient(":memory:")
            yield QdrantServerStore(client)
            client.close()


@pytest.fixture
def full(home: Path, store: Store) -> Iterator[House]:
    """A house with six chunks in an index on each store."""
    opened = House(home, store=store)
    opened.put(document("a", "\n\n".join(TEXTS), metadata={"year": 2021, "ratio": 0.1, "none": None, "big": 2**53}))
    opened.catch_up()
    yield opened
    opened.close()


def rewrite(house: House, text: str, **changes: Any) -> None:
    """Write a point with other contents behind everybody's back."""
    points = house.index.points
    (point,) = points.read([key(text)]).values()
    points.delete([point.id])
    points.upsert([replace(point, **changes)])
    points.flush()


def payload(house: House, text: str, **changes: Any) -> dict[str, Any]:
    (point,) = house.index.points.read([key(text)]).values()
    return {**point.payload, **changes}


NO_TERMS = SparseVector(indices=(), values=())
HARMS: list[tuple[str, Callable[[House], dict[str, Any]]]] = [
    ("a vector of zeros", lambda house: {"dense": np.zeros(64, np.float32)}),
    ("a vector that is too long", lambda house: {"dense": np.full(64, 0.2, np.float32)}),
    ("no lexical vector", lambda house: {"lexical": NO_TERMS}),
    ("another lexical vector", lambda house: {"lexical": SparseVector(indices=(7,), values=(1.0,))}),
    ("no payload", lambda house: {"payload": {}}),
    ("a hash that is no text", lambda house: {"payload": payload(house, "red fox", input_hash=7)}),
    ("fields that are not those of the hash", lambda house: {"payload": payload(house, "red fox", title="other")}),
]


def test_a_sound_index_has_nothing_corrupt(full: House) -> None:
    assert counts(full.verify()) == (6, 0, 0, 0, 0)


@pytest.mark.parametrize("harm", [harm for _, harm in HARMS], ids=[name for name, _ in HARMS])
def test_a_corrupt_point_is_found_and_mended(full: House, harm: Callable[[House], dict[str, Any]]) -> None:
    (right,) = full.index.points.read([key("red fox")]).values()
    rewrite(full, "red fox", **harm(full))
    found = full.verify()
    assert counts(found) == (6, 0, 0, 1, 0)
    assert (found.clean, found.examples) == (False, [key("red fox")])
    mended = full.verify(repair=True)
    assert (counts(mended), mended.clean) == ((6, 0, 0, 1, 0), True)
    full.workspace.close_index(full.index_id)  # what was mended is on disk
    assert counts(full.verify()) == (6, 0, 0, 0, 0)
    (now,) = full.index.points.read([key("red fox")]).values()
    np.testing.assert_array_equal(now.dense, right.dense)
    assert (dict(now.payload), list(now.lexical.indices)) == (dict(right.payload), list(right.lexical.indices))


def test_a_vector_that_is_not_finite_is_corrupt(house: House) -> None:
    """Only in memory: the stores refuse to take one."""
    house.put(document("a", "red fox\n\nblue whale"))
    house.catch_up()
    points = house.store._held[house.row.name].points  # type: ignore[attr-defined]
    for bad in (np.full(64, np.nan, np.float32), np.full(64, np.inf, np.float32), np.ones(3, np.float32)):
        points[key("red fox")] = replace(points[key("red fox")], dense=bad)
        assert house.verify().corrupt == 1
        assert house.verify(repair=True).clean
        assert house.verify().corrupt == 0


def test_no_vector_is_taken_over_from_a_corrupt_copy(full: House) -> None:
    """The same text in two documents: the point of one is missing, that of the other corrupt."""
    full.put(document("b", "red fox", metadata={"year": 2021, "ratio": 0.1, "none": None, "big": 2**53}))
    full.catch_up()
    rewrite(full, "red fox", dense=np.zeros(64, np.float32))
    full.index.points.delete([key("red fox", "b")])
    assert counts(full.verify(repair=True)) == (7, 1, 0, 1, 0)
    for one in full.index.points.read([key("red fox"), key("red fox", "b")]).values():
        assert np.linalg.norm(one.dense) == pytest.approx(1.0)


def test_an_encoder_that_does_not_normalise_promises_no_length(home: Path) -> None:
    encoder = HashEncoder(seed=3)
    encoder._spec = replace(encoder._spec, normalize=False)
    assert encoder.spec.fits(np.full(64, 9.0, np.float32))
    assert not encoder.spec.fits(np.full(63, 9.0, np.float32))
    assert not encoder.spec.fits(np.full(64, np.nan, np.float32))
    assert not HashEncoder().spec.fits(np.full(64, 9.0, np.float32))
    assert HashEncoder().spec.fits(np.full(64, 0.1251, np.float32))


class Forgetful:
    """An index that says yes and keeps nothing."""

    def __init__(self, points: Any) -> None:
        self._points = points

    def __getattr__(self, name: str) -> Any:
        return getattr(self._points, name)

    def upsert(self, points: Any) -> None:
        pass


def test_a_store_that_keeps_nothing_is_damaged(full: House) -> None:
    index = full.index
    index.points.delete([key("red fox")])
    index.points = Forgetful(index.points)
    with pytest.raises(IndexDamaged, match="does not keep"):
        full.verify(repair=True)


def lose(house: House) -> None:
    """Delete the index of a house behind its back."""
    name = house.row.name
    if isinstance(house.store, MemoryStore):
        house.store.lose(name)
    elif isinstance(house.store, EdgeStore):
        folder = house.store._folder(name)  # away at once: whoever opens it meanwhile puts a lock into it
        shutil.rmtree(folder.rename(folder.with_name(f".doomed-{name}")))
    else:
        house.store.drop(name)


def test_an_index_that_is_deleted_while_it_is_open_is_missed_and_rebuilt(full: House) -> None:
    assert full.texts("fox", k=1) == ["red fox"]
    lose(full)
    for _ in range(2):
        with pytest.raises(IndexMissing, match="verify --repair"):
            full.hits("fox")
    with pytest.raises(IndexMissing):
        full.verify()
    found = repaired(full)
    assert (found.rebuilt, counts(found), found.clean) == (True, (6, 0, 0, 0, 0), True)
    assert full.texts("fox", k=1) == ["red fox"]
    assert not repaired(full).rebuilt


def test_nothing_is_answered_from_half_of_what_was_lost(full: House) -> None:
    full.put(document("b", "tall giraffe"))
    full.catch_up()
    lose(full)
    full.workspace.rebuild(full.index_id)
    indexing.catch_up(full.database, full.index, paragraphs, turns=0)
    with pytest.raises(StoreUnavailable, match="0 of 2 changes"):
        full.hits("fox")
    with full.database.write() as connection:
        connection.execute(update(t.SearchIndex).values(applied_seq=1))
    with pytest.raises(StoreUnavailable, match="1 of 2 changes"):
        full.hits("fox")
    assert not full.verify().clean or verify_or_rebuild(full.workspace, full.index_id, paragraphs).unfinished
    with full.database.write() as connection:
        connection.execute(update(t.SearchIndex).values(applied_seq=0, purged_seq=0))
    found = repaired(full)  # goes on with it
    assert (found.unfinished, counts(found)) == (False, (7, 0, 0, 0, 0))
    assert full.texts("fox", k=1) == ["red fox"]
    full.put(document("c", "small mouse"))  # what is new only lags, as ever
    assert full.texts("fox", k=1) == ["red fox"]


# -- damaged shards ----------------------------------------------------------------------------------------------------


@pytest.fixture
def shard(home: Path, tmp_path: Path) -> Iterator[tuple[House, Path]]:
    opened = House(home, store=EdgeStore(tmp_path / "indexes"))
    for start in (0, 6):
        opened.put(*[document(f"d{i}", f"text number {i}\n\nand more of {i}") for i in range(start, start + 6)])
        opened.catch_up()
    opened.workspace.close_index(opened.index_id)
    yield opened, tmp_path / "indexes" / opened.row.name
    opened.close()


def overwrite(path: Path, seed: int) -> None:
    size = min(path.stat().st_size, 200_000)
    with path.open("r+b") as file:
        file.write(Random(seed).randbytes(size))


DAMAGE: dict[str, Callable[[Path], None]] = {
    "deleted": lambda path: path.unlink(),
    "emptied": lambda path: os.truncate(path, 0),
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "overwritten": lambda path: overwrite(path, 1),
}
SEGMENT = "shard/segments/*"
HARMED = [  # every way in which the library takes it: refused, opened with less in it, read with errors, read wrong
    ("index.json", "overwritten"),
    ("owner.lock", "deleted"),
    ("shard/edge_config.json", "cut"),
    ("shard/wal/first-index", "emptied"),
    (f"{SEGMENT}/segment.json", "deleted"),
    (f"{SEGMENT}/version.info", "deleted"),
    (f"{SEGMENT}/*id_tracker.mappings", "cut"),
    (f"{SEGMENT}/*id_tracker.versions", "emptied"),
    (f"{SEGMENT}/payload_storage/page_0.dat", "overwritten"),
    (f"{SEGMENT}/payload_storage/tracker.dat", "overwritten"),
    (f"{SEGMENT}/vector_storage-dense/vectors/chunk_0.mmap", "overwritten"),
    (f"{SEGMENT}/vector_storage-dense/vectors/chunk_0.mmap", "deleted"),
    (f"{SEGMENT}/vector_storage-dense/vectors/status.dat", "deleted"),
    (f"{SEGMENT}/vector_storage-lexical/store/page_0.dat", "cut"),
    (f"{SEGMENT}/vector_storage-lexical/store/tracker.dat", "overwritten"),
]


@pytest.mark.parametrize(("victim", "damage"), HARMED)
def test_whatever_happens_to_a_file_of_a_shard_is_mended(shard: tuple[House, Path], victim: str, damage: str) -> None:
    house, folder = shard
    right = [hit.chunk_id for hit in house.hits("number 7", k=20)]
    house.workspace.close_index(house.index_id)
    harmed = list(folder.glob(victim))
    for path in harmed:
        DAMAGE[damage](path)
    assert harmed
    assert repaired(house).clean
    house.workspace.close_index(house.index_id)
    assert counts(house.verify()) == (24, 0, 0, 0, 0)
    assert [hit.chunk_id for hit in house.hits("number 7", k=20)] == right


@pytest.mark.parametrize("victim", ["", "shard", "shard/segments", "shard/wal", "shard/segments/*"])
def test_whatever_folder_of_a_shard_is_deleted_is_mended(shard: tuple[House, Path], victim: str) -> None:
    house, folder = shard
    for path in [folder] if not victim else list(folder.glob(victim)):
        shutil.rmtree(path)
    assert repaired(house).clean
    house.workspace.close_index(house.index_id)
    assert counts(house.verify()) == (24, 0, 0, 0, 0)


def test_what_cannot_be_read_is_damage_and_only_a_repair_touches_it(shard: tuple[House, Path]) -> None:
    house, folder = shard
    for path in folder.glob("shard/segments/*/payload_storage/page_0.dat"):
        os.truncate(path, 0)
    for _ in range(2):
        with pytest.raises(IndexDamaged, match="verify --repair"):
            house.verify()
    assert repaired(house).rebuilt


def test_a_lock_that_a_dead_process_left_is_no_lock(shard: tuple[House, Path]) -> None:
    house, folder = shard
    (folder / "owner.lock").write_text("4711")
    assert house.verify().clean


# -- beside a server ---------------------------------------------------------------------------------------------------


def test_a_server_whose_index_is_deleted_says_so_until_it_is_repaired(full: House) -> None:
    """503 and how long to wait, never an answer without the documents; it goes on by itself once the index is back."""
    with running(full.workspace) as api:
        assert api.texts("fox", k=1) == ["red fox"]
        with api.indexer.paused():
            lose(full)
            problem = api.call("POST", "/v1/search", 503, json={"query": "fox"})
            assert problem["type"] == "urn:nvr-rag:index-missing"
            assert "nvr-rag verify --repair" in problem["detail"]
            answer = api.client.post("/v1/search", json={"query": "fox"})
            assert int(answer.headers["Retry-After"]) > 0
            reasons = api.call("GET", "/readyz", 503)["reasons"]
            assert any("nvr-rag verify --repair" in reason for reason in reasons)
            full.workspace.rebuild(full.index_id)
            time.sleep(readiness.KEPT_SECONDS)
            problem = api.call("POST", "/v1/search", 503, json={"query": "fox"})
            assert "0 of 1 changes" in problem["detail"]
            assert any("0 of 1" in reason for reason in api.call("GET", "/readyz", 503)["reasons"])
            assert repaired(full).clean
        assert api.texts("fox", k=1) == ["red fox"]


def test_a_rebuild_under_a_serving_process_is_never_half_an_answer(full: House) -> None:
    """Searches all the time while the index is deleted and repaired again and again: the right answer, or an error."""
    right = full.texts("fox", k=3)
    stop, wrong, answered = threading.Event(), [], [0]

    def search() -> None:
        while not stop.is_set():
            try:
                texts = full.texts("fox", k=3)
            except (IndexMissing, StoreUnavailable):
                continue
            answered[0] += 1
            if texts != right:
                wrong.append(texts)

    threads = [threading.Thread(target=search) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(6):
            lose(full)
            repaired(full)
            full.texts("fox", k=3)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert answered[0] > 0


# -- while documents come in -------------------------------------------------------------------------------------------


def test_documents_that_come_and_go_meanwhile_are_no_false_alarm(full: House) -> None:
    """Two threads write into the log, a third brings the index up, and it is verified all the while."""
    stop, failures = threading.Event(), []

    def write(number: int) -> None:
        random, turn = Random(number), 0
        while not stop.is_set():
            turn += 1
            uri = f"w{number}-{random.randrange(5)}"
            full.put(document(uri, "\n\n".join(f"words {random.randrange(9)} {j}" for j in range(random.randrange(4)))))
            if turn % 3 == 0:
                full.delete(uri)

    def index() -> None:
        while not stop.is_set():
            try:
                indexing.catch_up(full.database, full.index, paragraphs, turns=1)
            except Exception as error:
                failures.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in (1, 2)] + [threading.Thread(target=index)]
    for thread in threads:
        thread.start()
    try:
        found = [full.verify() for _ in range(12)]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert [counts(one)[1:] for one in found if not one.clean] == []
    full.catch_up()
    assert full.verify(repair=True).wrong == 0


def test_a_command_leaves_a_lost_index_to_the_process_that_takes_such_jobs(
    full: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose(full)
    asked: list[int] = []
    monkeypatch.setattr("nvr_rag.running.processes.taking", lambda *_: [object()])
    monkeypatch.setattr("nvr_rag.jobs.enqueue", lambda _database, _kind, values: asked.append(values["index_id"]))
    monkeypatch.setattr(verification, "_followed", lambda *_: {"clean": True})
    assert verify_by_owner(full.workspace, full.index_id, paragraphs, repair=True) == {"clean": True}
    assert asked == [full.index_id]
    assert full.row.applied_seq == 1


def test_without_a_server_a_lost_index_is_an_error_that_says_what_to_do(full: House) -> None:
    lose(full)
    with pytest.raises(IndexMissing, match="verify --repair"):
        verify_by_owner(full.workspace, full.index_id, paragraphs)
    assert verify_by_owner(full.workspace, full.index_id, paragraphs, repair=True)["rebuilt"]
