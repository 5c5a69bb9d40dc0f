"""What only Edge has: one owner among processes, folders that survive crashes and damage."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import qdrant_edge

from nvr_rag.errors import IndexDamaged, IndexMissing, StoreBusy, StoreError, StoreUnavailable
from nvr_rag.filters import Range
from nvr_rag.stores import edge, edge_segments, edge_shards
from nvr_rag.stores.edge import EdgeStore
from nvr_rag.stores.edge_shards import translated
from nvr_rag.testing import Crash
from tests.contract.store_cases import CONFIG, point, terms, uid, vector

ROOT = Path(__file__).parents[3]

OWNER = """
import sys
from pathlib import Path
from nvr_rag.stores.edge import EdgeStore
from tests.contract.store_cases import point, terms
index = EdgeStore(Path(sys.argv[1])).open("main")
index.upsert([point(n, (float(n),), terms(t1=1.0)) for n in range(1, 301)])
index.flush()
print("flushed", flush=True)
if sys.argv[2] == "go on":
    for n in range(301, 100_000):
        index.upsert([point(n, (float(n),), terms(t1=1.0))])
        print(n, flush=True)
sys.stdin.read()
print(index.count(), flush=True)
index.close()
"""


@contextmanager
def owner(root: Path, then: str = "wait") -> Iterator[subprocess.Popen[str]]:
    """Another process that owns the index "main", has written and flushed 300 points and waits for the end of stdin."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(root), then],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "flushed\n"
            yield process
        finally:
            process.kill()


@pytest.fixture
def store(tmp_path: Path) -> EdgeStore:
    store = EdgeStore(tmp_path)
    store.create("main", CONFIG)
    return store


def test_a_second_owner_in_this_process_is_refused(store: EdgeStore) -> None:
    index = store.open("main")
    index.upsert([point(1)])
    with pytest.raises(StoreBusy, match="main"):
        store.open("main")
    with pytest.raises(StoreBusy):
        store.drop("main")
    assert index.count() == 1
    index.close()
    store.open("main").close()


def test_a_second_process_is_refused_and_the_owner_is_not_harmed(store: EdgeStore, tmp_path: Path) -> None:
    with owner(tmp_path) as process:
        with pytest.raises(StoreBusy):
            store.open("main")
        with pytest.raises(StoreBusy):
            store.drop("main")
        assert store.names() == ["main"]
        answer, _ = process.communicate("")
        assert answer == "300\n"
        assert process.returncode == 0
    index = store.open("main")
    assert index.count() == 300
    index.close()


def test_a_killed_owner_loses_nothing_that_it_flushed(store: EdgeStore, tmp_path: Path) -> None:
    with owner(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
    index = store.open("main")
    assert [stored.id for stored in index.scan()] == [uid(n) for n in range(1, 301)]
    assert index.search_dense(vector(1.0), 1)[0].id == uid(300)
    assert len(index.search_lexical(terms(t1=1.0), 999)) == 300
    index.close()


def test_a_killed_owner_loses_no_finished_write(store: EdgeStore, tmp_path: Path) -> None:
    with owner(tmp_path, "go on") as process:
        assert process.stdout is not None
        for _ in range(50):
            acknowledged = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        acknowledged = max([acknowledged, *(int(line) for line in process.stdout if line.endswith("\n"))])
    index = store.open("main")
    kept = [stored.id for stored in index.scan()]
    assert kept[:acknowledged] == [uid(n) for n in range(1, acknowledged + 1)]
    assert len(kept) <= acknowledged + 1
    index.upsert([point(200_000)])
    assert index.get([uid(200_000)])
    index.close()


@pytest.mark.parametrize("step", ["make_shard", "sync_tree"])
def test_a_crash_while_creating_leaves_no_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    store = EdgeStore(tmp_path)
    real = getattr(edge, step)

    def crash(*args: object) -> None:
        real(*args)
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(edge, step, crash)
        patch.setattr(shutil, "rmtree", lambda *args, **kwargs: None)  # a dead process tidies nothing
        with pytest.raises(Crash):
            store.create("main", CONFIG)
    assert store.names() == []
    with pytest.raises(IndexMissing):
        store.open("main")
    (leftover,) = tmp_path.iterdir()
    store.create("main", CONFIG)
    assert leftover.exists()  # its creator could still be at work
    os.utime(leftover, (0, 0))
    store.create("other", CONFIG)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["main", "other"]


def test_what_a_crashed_drop_left_is_swept_away(store: EdgeStore, tmp_path: Path) -> None:
    (tmp_path / "main").rename(tmp_path / ".drop-main-1")
    assert store.names() == []
    store.create("main", CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == ["main"]


def test_dropping_leaves_no_file(store: EdgeStore, tmp_path: Path) -> None:
    store.drop("main")
    assert list(tmp_path.iterdir()) == []


def fill(store: EdgeStore) -> None:
    index = store.open("main")
    index.upsert([point(n) for n in range(50)])
    index.flush()
    index.close()


@pytest.mark.parametrize("pattern", ["index.json", "shard/segments/*/segment.json", "shard/edge_config.json"])
def test_a_damaged_index_says_how_to_mend_it_and_can_be_replaced(
    store: EdgeStore, tmp_path: Path, pattern: str
) -> None:
    fill(store)
    for path in (tmp_path / "main").glob(pattern):
        path.write_bytes(b"{ \xff damaged")
    with pytest.raises(IndexMissing, match="nvr-rag verify --repair"):
        store.open("main")
    store.drop("main")
    store.create("main", CONFIG)
    index = store.open("main")
    assert index.count() == 0
    index.close()


@pytest.mark.parametrize("victim", ["index.json", "shard"])
def test_an_index_with_a_missing_part_is_missing(store: EdgeStore, tmp_path: Path, victim: str) -> None:
    path = tmp_path / "main" / victim
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(IndexMissing, match="nvr-rag verify --repair"):
        store.open("main")
    store.drop("main")
    assert store.names() == []


@pytest.mark.parametrize("victim", ["shard/segments", "shard/segments/*/version.info", "shard/segments/*"])
def test_a_shard_without_segments_is_not_taken_for_an_empty_one(store: EdgeStore, tmp_path: Path, victim: str) -> None:
    fill(store)
    for path in (tmp_path / "main").glob(victim):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(IndexDamaged, match="nvr-rag verify --repair"):
        store.open("main")


@pytest.mark.parametrize("victim", ["", "owner.lock", "shard", "shard/segments"])
def test_an_open_index_whose_files_are_deleted_answers_nothing_more(
    store: EdgeStore, tmp_path: Path, victim: str
) -> None:
    """The library would go on from files that nobody can find any more."""
    fill(store)
    index = store.open("main")
    assert not index.lost
    path = tmp_path / "main" / victim
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert index.lost
    for call in (
        index.count,
        index.flush,
        lambda: index.search_dense(vector(1.0), 3),
        lambda: index.upsert([point(7)]),
    ):
        with pytest.raises(IndexMissing, match="nvr-rag verify --repair"):
            call()
    index.close()
    store.drop("main")
    store.create("main", CONFIG)
    again = store.open("main")
    assert (index.lost, again.lost, again.count()) == (True, False, 0)
    again.close()


def test_an_index_that_was_replaced_under_its_owner_is_lost(store: EdgeStore, tmp_path: Path) -> None:
    fill(store)
    index = store.open("main")
    shutil.rmtree(tmp_path / "main")
    store.create("main", CONFIG)
    with pytest.raises(IndexMissing):
        index.count()
    index.close()


@pytest.mark.parametrize("victim", ["payload_storage/page_0.dat", "vector_storage-dense/vectors/chunk_0.mmap"])
def test_files_that_cannot_be_read_any_more_are_damage(store: EdgeStore, tmp_path: Path, victim: str) -> None:
    fill(store)
    for path in (tmp_path / "main").glob(f"shard/segments/*/{victim}"):
        os.truncate(path, 0)
    index = store.open("main")
    with pytest.raises(IndexDamaged, match="nvr-rag verify --repair"):
        index.read([uid(n) for n in range(50)])
    index.close()


@pytest.mark.parametrize("victim", ["shard/wal", "shard/wal/open-*"])
def test_a_shard_without_its_log_is_damaged(store: EdgeStore, tmp_path: Path, victim: str) -> None:
    """The library would open it, and pass over every update of what is there."""
    fill(store)
    for path in list((tmp_path / "main").glob(victim)):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(IndexDamaged, match="write-ahead log"):
        store.open("main")


def words_in(folder: Path, word: bytes) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and word in path.read_bytes())


def test_scrubbing_leaves_nothing_of_what_was_deleted_or_replaced(store: EdgeStore, tmp_path: Path) -> None:
    index = store.open("main")
    index.upsert([point(n, payload={"uri": f"word-zebra-{n}", "title": "zebra"}) for n in range(3)])
    index.upsert([point(n) for n in range(3, 200)])
    index.flush()
    index.delete([uid(0), uid(1)])
    index.upsert([point(2)])
    index.flush()
    assert words_in(tmp_path, b"zebra")  # the library keeps it
    index.scrub()
    assert words_in(tmp_path, b"zebra") == []
    assert index.count() == 198
    assert sorted(path.name for path in (tmp_path / "main").iterdir()) == ["index.json", "owner.lock", "shard"]
    index.close()
    assert [path.name for path in tmp_path.iterdir()] == ["main"]


def test_searches_wait_for_a_scrubbed_shard_instead_of_failing(store: EdgeStore) -> None:
    fill(store)
    index = store.open("main")
    wanted = index.search_dense(vector(1.0), 3)
    over = threading.Event()

    def search() -> int:
        count = 0
        while not over.is_set():
            assert index.search_dense(vector(1.0), 3) == wanted
            assert len(index.get([wanted[0].id])) == 1
            count += 1
        return count

    with ThreadPoolExecutor(4) as pool:
        searches = [pool.submit(search) for _ in range(4)]
        try:
            for _ in range(5):
                index.scrub()
        finally:
            over.set()
        assert all(one.result() for one in searches)
    index.close()


@pytest.mark.parametrize("moment", ["before", "between", "after"])
def test_a_crash_while_a_scrubbed_shard_takes_its_place_loses_nothing(
    store: EdgeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    index = store.open("main")
    index.upsert([point(n) for n in range(50)])
    index.delete([uid(0)])

    def crash(folder: Path) -> None:
        if moment != "before":
            (folder / "shard").rename(folder / "shard.old")
        if moment == "after":
            (folder / "shard.new").rename(folder / "shard")
        raise Crash

    monkeypatch.setattr(edge, "take_new_shard", crash)
    with pytest.raises(Crash):
        index.scrub()
    os.close(index._lock)
    monkeypatch.undo()
    again = store.open("main")
    assert [one.id for one in again.scan()] == [uid(n) for n in range(1, 50)]
    again.upsert([point(1, (9.0,))])
    assert [hit.id for hit in again.search_dense(vector(1.0), 1)] == [uid(1)]
    assert sorted(path.name for path in (tmp_path / "main").iterdir()) == ["index.json", "owner.lock", "shard"]
    again.close()


def test_what_has_nothing_to_do_with_the_files_is_no_damage(store: EdgeStore) -> None:
    with pytest.raises(StoreError, match="No space left") as raised, translated("main"):
        raise Exception("Service runtime error: No space left on device")
    assert not isinstance(raised.value, IndexMissing)
    index = store.open("main")
    with pytest.raises(StoreError) as refused:
        index.upsert([point(1, payload={"title": "half a pair: \ud800"})])
    assert not isinstance(refused.value, IndexMissing)
    index.close()


def test_foreign_files_beside_the_indexes_are_not_indexes(store: EdgeStore, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not an index")
    (tmp_path / "lost+found").mkdir()
    assert store.names() == ["main"]


def test_the_size_counts_blocks_and_not_the_holes_of_sparse_files(store: EdgeStore, tmp_path: Path) -> None:
    fill(store)
    index = store.open("main")
    size = index.info().bytes_on_disk
    apparent = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert size is not None
    assert 0 < size < 20_000_000 < apparent  # a fresh shard reserves over 100 MB that it does not use
    index.close()


def test_values_that_the_library_cannot_take_are_store_errors(store: EdgeStore) -> None:
    index = store.open("main")
    with pytest.raises(StoreError, match="main"):
        index.upsert([point(1, payload={"title": "half a pair: \ud800"})])
    assert index.count() == 0
    index.close()


def test_a_visitor_that_is_turned_away_has_touched_nothing(tmp_path: Path) -> None:
    """Loading a shard breaks the next flush of its owner, so a visitor must not get as far as loading."""
    store = EdgeStore(tmp_path)
    store.create("main", CONFIG)
    owner = store.open("main")
    visitor = """
import sys
from pathlib import Path
from nvr_rag.errors import StoreBusy
from nvr_rag.stores.edge import EdgeStore
try:
    EdgeStore(Path(sys.argv[1])).open("main")
except StoreBusy:
    print("busy")
"""
    for number in range(1, 4):
        owner.upsert([point(number, (float(number),), terms(t1=1.0, t2=1.0))])
        owner.flush()
        turned_away = subprocess.run([sys.executable, "-c", visitor, str(tmp_path)], capture_output=True, text=True)
        assert turned_away.stdout == "busy\n", turned_away.stderr
        with pytest.raises(StoreBusy):
            store.open("main")
    owner.upsert([point(9, (9.0,), terms(t3=1.0))])
    owner.flush()
    owner.close()
    again = store.open("main")
    assert again.count() == 4
    again.close()


def test_a_disk_that_is_all_but_full_is_not_written_to(store: EdgeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library would die of a SIGBUS there; see tests/integration/test_faults.py for a disk that really is full."""
    fill(store)
    index = store.open("main")
    left = [edge_shards.WRITING_BYTES - 1]
    monkeypatch.setattr(edge_shards, "free", lambda folder: left[0])
    before = index.count()
    for write in (
        lambda: index.upsert([point(1000)]),
        lambda: index.set_payload({uid(1): {"title": "x"}}),
        lambda: index.delete([uid(1)]),
        lambda: store.create("other", CONFIG),
    ):
        with pytest.raises(StoreUnavailable, match="make room"):
            write()
    assert (index.count(), store.names()) == (before, ["main"])
    assert index.search_dense(vector(1.0), 1)
    index.close()
    index = store.open("main")  # less is enough to be searched
    index.close()
    left[0] = edge_shards.OPENING_BYTES - 1
    with pytest.raises(StoreUnavailable, match="make room"):
        store.open("main")
    left[0] = edge_shards.WRITING_BYTES
    index = store.open("main")  # the lock was let go
    index.upsert([point(1000)])
    assert index.count() == before + 1
    index.close()


@pytest.mark.parametrize(
    "words",
    [
        "Service runtime error: WAL flush failed: Can't write WAL: Os { code: 30, kind: ReadOnlyFilesystem }",
        "Service runtime error: IO Error: Failed to flush segment.json: No space left on device (os error 28)",
        "Service runtime error: Permission denied (os error 13)",
        "Service runtime error: WAL ack failed: Os { code: 5, kind: InputOutputError }",
    ],
)
def test_what_a_disk_refuses_is_no_damage(words: str) -> None:
    with pytest.raises(StoreUnavailable, match="main"), translated("main"):
        raise Exception(words)


def test_a_shard_of_an_earlier_release_gets_the_indexes_that_it_lacks(
    store: EdgeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as before:
        before.setattr(edge_segments, "INDEXED", {"uri": "keyword"})
        store.drop("main")
        store.create("main", CONFIG)
        index = store.open("main")
        index.upsert([point(1, payload={"uri": "u", "acl": ["ann"], "updated_at": 5.5})])
        index.flush()
        index.close()
        assert indexed(tmp_path) == {"uri"}
    with monkeypatch.context() as full:
        full.setattr(edge_shards, "free", lambda _folder: edge_shards.WRITING_BYTES)
        store.open("main").close()
        assert indexed(tmp_path) == {"uri"}
    store.open("main").close()
    assert indexed(tmp_path) == {"document_id", "uri", "source", "title", "media_type", "updated_at", "acl"}
    index = store.open("main")
    assert [hit.id for hit in index.search_dense(vector(1.0), 9, Range(field="updated_at", gt=5.0, lt=6.0))] == [uid(1)]
    index.close()


def indexed(root: Path) -> set[str]:
    """The fields that the shard of "main" has an index of."""
    shard = qdrant_edge.EdgeShard.load(str(root / "main" / "shard"))
    try:
        return set(shard.info().payload_schema)
    finally:
        shard.close()
