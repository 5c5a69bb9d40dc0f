"""Indexes as Qdrant Edge shards, in this process: a folder an index, one owner at a time.

    <root>/<name>/index.json    StoreConfig
    <root>/<name>/owner.lock    locked by the kernel for the owner, for as long as it lives
    <root>/<name>/shard/        the shard

The shard has a lock of its own, but loading takes it last: by then the files of the owner have been touched, whose next
flush fails ("tracker_journal.dat is shorter than expected"). So ours is taken first.

A folder gets its real name only when it is complete and synced, and loses it before it is deleted, so a crash leaves
nothing half-made behind that name; leftovers (".new-*", ".drop-*") are swept away later. Search is exact.

The library writes through memory maps of sparse files. On a full disk that is no error but a SIGBUS, which ends the
process, searches and all; so nothing that writes is begun unless there is room to spare.

qdrant_edge raises bare Exceptions with a text; all of them are translated here. Every call of it holds the
interpreter lock, so writes go in small batches.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import qdrant_edge as edge

from nvr_rag.disk import allocated, free
from nvr_rag.errors import (
    IndexDamaged,
    IndexExists,
    IndexMissing,
    NvrError,
    Stopped,
    StoreBusy,
    StoreError,
    StoreUnavailable,
)
from nvr_rag.filters import FIELDS, Filter
from nvr_rag.stores.base import Point, Scored, SparseVector, StoreConfig, StoredPoint, StoreInfo, Vector
from nvr_rag.stores.conditions import Words, compile_filter
from nvr_rag.stores.optimizing import optimize_in_child
from nvr_rag.stores.points import (
    DENSE,
    HASHES,
    LEXICAL,
    batches,
    check,
    check_name,
    is_id,
    is_name,
    stored,
    whole,
    with_ties,
)

# Measured at 384 dimensions: at 20,000 points an exact search takes 2 ms and one of the graph 1 ms, at 50,000 points
# 9 ms and 1.5 ms. With EF twice what is asked for, 99.8 % of the first ten are those of the exact search.
GRAPH_FROM = 30_000  # points; fewer are searched exactly
EF, DEEPEST = 256, 1024  # candidates kept at least; more hits than that are looked for exactly
LINKS, EF_CONSTRUCT = 16, 100  # of the graph

BATCH = 128  # points a write: about 10 ms during which no other thread runs
# Left free on the disk. A write takes up to 6 MB (of 4096 dimensions), opening up to 32 MB where the disk is memory;
# the rest is for what others write meanwhile.
WRITING_BYTES, OPENING_BYTES = 64 * 2**20, 32 * 2**20
_CONFIG_FILE, _LOCK_FILE, _SHARD_FOLDER = "index.json", "owner.lock", "shard"
_NEW_SHARD, _OLD_SHARD = "shard.new", "shard.old"  # while one takes the place of the other
_STALE_SECONDS = 3600.0  # a creation takes a tenth of a second

# MatchValue reads Python's True as the integer 1; NumPy's it takes for what it is.
_WORDS = Words(
    filter=edge.Filter,
    field=edge.FieldCondition,
    value=edge.MatchValue,
    any=edge.MatchAny,
    range=edge.RangeFloat,
    boolean=np.bool_,
)


class EdgeStore:
    """All indexes under one folder, which need not exist yet."""

    shared = False

    def __init__(self, root: Path) -> None:
        self._root = root

    def create(self, name: str, config: StoreConfig) -> None:
        target = self._folder(name)
        if target.exists():
            raise IndexExists(f"there is an index {name!r} in {self._root} already; drop it first")
        with _translated(name):
            self._root.mkdir(parents=True, exist_ok=True)
            self._sweep()
            _see_room(name, self._root, WRITING_BYTES)
            fresh = self._root / f".new-{name}-{uuid4().hex}"
            try:
                fresh.mkdir()
                _make_shard(fresh / _SHARD_FOLDER, config)
                text = json.dumps(asdict(config), indent=2, ensure_ascii=False)
                (fresh / _CONFIG_FILE).write_text(text + "\n", encoding="utf-8")
                _sync_tree(fresh)
                self._give_name(fresh, target)
            finally:
                shutil.rmtree(fresh, ignore_errors=True)  # gone by now unless something failed

    def open(self, name: str) -> EdgeIndex:
        folder = self._folder(name)
        try:
            config = StoreConfig(**json.loads((folder / _CONFIG_FILE).read_text(encoding="utf-8")))
        except FileNotFoundError as error:
            raise IndexMissing(f"there is no index {name!r} in {self._root}; {_REMEDY}") from error
        except OSError as error:
            raise StoreUnavailable(f"{folder / _CONFIG_FILE} cannot be read: {error}") from error
        except (ValueError, TypeError) as error:
            raise IndexDamaged(f"{folder / _CONFIG_FILE} is damaged ({error}); {_REMEDY}") from error
        lock = _own(name, folder)
        try:
            _see_room(name, folder, OPENING_BYTES)
            return EdgeIndex(name, folder, config, _load(name, folder), lock)
        except BaseException:
            os.close(lock)
            raise

    def drop(self, name: str) -> None:
        folder = self._folder(name)
        if not folder.exists():
            return
        lock = _own(name, folder)  # keeps others out until the name is gone
        try:
            with _translated(name):
                os.rename(folder, self._root / f".drop-{name}-{uuid4().hex}")
                _sync_folder(self._root)
                self._sweep()
        finally:
            os.close(lock)

    def names(self) -> list[str]:
        if not self._root.exists():
            return []
        return sorted(path.name for path in self._root.iterdir() if is_name(path.name) and path.is_dir())

    def _folder(self, name: str) -> Path:
        return self._root / check_name(name)

    def _give_name(self, fresh: Path, target: Path) -> None:
        try:
            os.rename(fresh, target)
        except OSError as error:
            if not target.exists():
                raise
            # Somebody was faster: a folder with content cannot be replaced.
            raise IndexExists(f"there is an index {target.name!r} in {self._root} already; drop it first") from error
        _sync_folder(self._root)

    def _sweep(self) -> None:
        """Delete what was dropped, and what a crashed creation left (a younger one may still be at work)."""
        for path in self._root.glob(".drop-*"):
            shutil.rmtree(path, ignore_errors=True)
        for path in self._root.glob(".new-*"):
            if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(path, ignore_errors=True)


class EdgeIndex:
    """OpenIndex over one shard. Threads may share it; a call that is overtaken by `close` raises StoreError."""

    def __init__(self, name: str, folder: Path, config: StoreConfig, shard: edge.EdgeShard, lock: int) -> None:
        self._name = name
        self._folder = folder
        self._config = config
        self._shard: edge.EdgeShard | None = shard
        self._lock = lock  # descriptor
        self._away = False  # a child process has the shard

    @property
    def config(self) -> StoreConfig:
        return self._config

    @property
    def lost(self) -> bool:
        """Its files were deleted or replaced under it. Searches would go on for as long as it is open, over what nobody
        can find any more, and what is written would be gone with it."""
        if self._shard is None:
            return not self._away
        try:
            ours = os.path.samestat(os.fstat(self._lock), os.stat(self._folder / _LOCK_FILE))
        except OSError:
            return True
        return not ours or not _segments(self._folder)

    def upsert(self, points: Sequence[Point]) -> None:
        check(points, self._config.dimension)
        for part in batches(points, BATCH):
            with self._writable() as shard:
                shard.update(edge.UpdateOperation.upsert_points([_to_edge(point) for point in part]))

    def set_payload(self, payloads: Mapping[str, Mapping[str, Any]]) -> None:
        for id_, payload in payloads.items():
            if is_id(id_):
                only = edge.Filter(must=[edge.HasIdCondition({id_})])  # by filter: an unknown id is no error
                with self._writable() as shard:
                    shard.update(edge.UpdateOperation.overwrite_payload_by_filter(only, dict(payload)))

    def delete(self, ids: Sequence[str]) -> None:
        for part in batches([id_ for id_ in ids if is_id(id_)], BATCH):
            with self._writable() as shard:
                shard.update(edge.UpdateOperation.delete_points(list(part)))

    def search_dense(self, vector: Vector, k: int, where: Filter | None = None) -> list[Scored]:
        values: Any = np.asarray(vector, np.float32)  # read through the buffer, faster than the list of the stubs
        return self._search(edge.Query.Nearest(values, using=DENSE), k, where, exact=where is not None)

    def search_lexical(self, vector: SparseVector, k: int, where: Filter | None = None) -> list[Scored]:
        if not vector.indices:
            return []
        return self._search(edge.Query.Nearest(_sparse(vector), using=LEXICAL), k, where, exact=True)

    def _search(self, query: Any, k: int, where: Filter | None, *, exact: bool) -> list[Scored]:
        with self._open():
            condition = compile_filter(where, _WORDS)
        return with_ties(lambda limit: self._ask(query, limit, condition, exact=exact or limit > DEEPEST), k)

    def _ask(self, query: Any, limit: int, condition: Any, *, exact: bool) -> list[Scored]:
        request = edge.QueryRequest(
            limit=limit,
            query=query,
            filter=condition,
            params=edge.SearchParams(exact=exact, hnsw_ef=max(EF, 2 * limit)),  # exact in any case without a graph
        )
        with self._open() as shard:
            return [Scored(id=str(point.id), score=point.score) for point in shard.query(request)]

    def get(self, ids: Sequence[str], *, with_vectors: bool = False) -> dict[str, StoredPoint]:
        found: dict[str, StoredPoint] = {}
        for part in batches([id_ for id_ in ids if is_id(id_)], BATCH):
            with self._open() as shard:
                records = shard.retrieve(list(part), with_payload=HASHES, with_vector=_wanted(with_vectors))
            found.update((str(record.id), _stored(record)) for record in records)
        return found

    def read(self, ids: Sequence[str]) -> dict[str, Point]:
        found: dict[str, Point] = {}
        for part in batches([id_ for id_ in ids if is_id(id_)], BATCH):
            with self._open() as shard:
                records = shard.retrieve(list(part), with_payload=True, with_vector=True)
            found.update((str(record.id), whole(str(record.id), record.payload, record.vector)) for record in records)
        return found

    def scan(self, *, with_vectors: bool = False, batch: int = 1000) -> Iterator[StoredPoint]:
        offset: Any = None
        while True:
            request = edge.ScrollRequest(
                offset=offset, limit=batch, with_payload=HASHES, with_vector=_wanted(with_vectors)
            )
            with self._open() as shard:
                records, offset = shard.scroll(request)
            yield from map(_stored, records)
            if offset is None:
                return

    def count(self) -> int:
        with self._open() as shard:
            return int(shard.count(edge.CountRequest(exact=True)))

    def flush(self) -> None:
        with self._open() as shard:
            shard.flush()

    def info(self) -> StoreInfo:
        return StoreInfo(points=self.count(), bytes_on_disk=allocated(self._folder))

    def optimize(self, stop: threading.Event | None = None) -> bool:
        if self.count() < GRAPH_FROM:
            return False
        _see_room(self._name, self._folder, WRITING_BYTES + allocated(self._folder))
        with self._open() as shard:
            shard.flush()
            self._away, self._shard = True, None
            shard.close()
        try:
            optimize_in_child(self._folder, self._lock, stop)
        finally:
            try:
                self._shard = _load(self._name, self._folder)
            finally:
                self._away = False
        return True

    def scrub(self, stop: threading.Event | None = None) -> None:
        """The points are copied into a new shard, which takes the place of the old one: segments and write-ahead log
        of that go whole, and with them everything that was deleted."""
        fresh = self._folder.parent / f".new-{self._name}-{uuid4().hex}"
        _see_room(self._name, self._folder, WRITING_BYTES + allocated(self._folder))
        with _translated(self._name):
            try:
                fresh.mkdir()
                shutil.copyfile(self._folder / _CONFIG_FILE, fresh / _CONFIG_FILE)
                _make_shard(fresh / _SHARD_FOLDER, self._config)
                if self._copy_into(fresh / _SHARD_FOLDER, stop) >= GRAPH_FROM:
                    optimize_in_child(fresh, self._lock, stop)
                _sync_tree(fresh)
                os.rename(fresh / _SHARD_FOLDER, self._folder / _NEW_SHARD)
            finally:
                shutil.rmtree(fresh, ignore_errors=True)
        with self._open() as shard:
            self._away, self._shard = True, None
            shard.close()
        try:
            _take_new_shard(self._folder)
            self._shard = _load(self._name, self._folder)
        finally:
            self._away = False

    def _copy_into(self, folder: Path, stop: threading.Event | None) -> int:
        """Write every point into another shard that nobody has loaded; how many there are."""
        count = 0
        copy = edge.EdgeShard.load(str(folder))
        try:
            found = self.scan()
            while ids := [point.id for point in islice(found, BATCH)]:
                if stop is not None and stop.is_set():
                    raise Stopped("stopped while an index was written anew; it can be begun again")
                points = [_to_edge(point) for point in self.read(ids).values()]
                copy.update(edge.UpdateOperation.upsert_points(points))
                count += len(points)
            copy.flush()
        finally:
            copy.close()
        return count

    def close(self) -> None:
        shard, self._shard = self._shard, None
        if shard is not None:
            try:
                with _translated(self._name):
                    shard.close()
            finally:
                os.close(self._lock)

    @contextmanager
    def _open(self) -> Iterator[edge.EdgeShard]:
        shard = self._shard
        if shard is None:
            raise _closed(self._name)
        if self.lost:
            raise IndexMissing(f"the files of index {self._name!r} were deleted or replaced; {_REMEDY}")
        with _translated(self._name):
            yield shard

    @contextmanager
    def _writable(self) -> Iterator[edge.EdgeShard]:
        with self._open() as shard:
            _see_room(self._name, self._folder, WRITING_BYTES)
            yield shard


_REMEDY = "`nvr-rag verify --repair` rebuilds it from the corpus log"
# What the disk or the machine refuses now and may grant later, in the library's words. It is no damage.
_REFUSED = re.compile(
    "No space left|StorageFull|quota exceeded|QuotaExceeded|Too many open files|Permission denied|PermissionDenied|"
    "Read-only file system|ReadOnlyFilesystem|Cannot allocate memory|OutOfMemory"
)


def _see_room(name: str, folder: Path, needed: int) -> None:
    """Raise StoreUnavailable where the disk is all but full."""
    left = free(folder)
    if left < needed:
        raise StoreUnavailable(
            f"index {name!r}: {left / 1e6:,.0f} MB are free on the disk of {folder.parent}, and this needs "
            f"{needed / 1e6:,.0f} MB; nothing is lost: make room there, and it goes on by itself"
        )


def _own(name: str, folder: Path) -> int:
    """Take the lock of an index; a descriptor to be closed. Raises StoreBusy, IndexMissing when the folder has gone."""
    try:
        descriptor = os.open(folder / _LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError as error:
        raise IndexMissing(f"there is no index {name!r} in {folder.parent}; {_REMEDY}") from error
    except OSError as error:
        raise StoreUnavailable(f"index {name!r} cannot be opened: {error}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise StoreBusy(f"index {name!r} is open in another process (or twice in this one)") from error
    return descriptor


def _load(name: str, folder: Path) -> edge.EdgeShard:
    _finish_swap(folder)
    if not _segments(folder):  # the library would make an empty one, and say nothing
        raise IndexDamaged(f"index {name!r} is damaged: its segments are gone; {_REMEDY}")
    if not any((folder / _SHARD_FOLDER / "wal").glob("open-*")):
        # It would number updates from 0 again, and take those of all that is there for old ones and pass over them.
        raise IndexDamaged(f"index {name!r} is damaged: its write-ahead log is gone; {_REMEDY}")
    try:
        return edge.EdgeShard.load(str(folder / _SHARD_FOLDER))
    except BaseException as error:
        text = str(error)
        if not _is_edge(error):
            raise
        if "WouldBlock" in text:
            raise StoreBusy(f"index {name!r} is open in another process (or twice in this one)") from error
        if _REFUSED.search(text):
            raise StoreUnavailable(f"index {name!r} cannot be opened: {text}") from error
        raise IndexDamaged(f"index {name!r} is damaged ({text}); {_REMEDY}") from error


def _take_new_shard(folder: Path) -> None:
    """Let the new shard take the place of the old one. What a crash leaves of it, `_finish_swap` finishes."""
    os.rename(folder / _SHARD_FOLDER, folder / _OLD_SHARD)
    _finish_swap(folder)


def _finish_swap(folder: Path) -> None:
    if not (folder / _SHARD_FOLDER).exists() and (folder / _OLD_SHARD).exists() and (folder / _NEW_SHARD).exists():
        os.rename(folder / _NEW_SHARD, folder / _SHARD_FOLDER)
        _sync_folder(folder)
    for leftover in (_NEW_SHARD, _OLD_SHARD):  # a new one that did not get its turn lacks what was written since
        shutil.rmtree(folder / leftover, ignore_errors=True)


def _segments(folder: Path) -> bool:
    """Whether an index has the files of any segment that was finished."""
    try:
        with os.scandir(folder / _SHARD_FOLDER / "segments") as entries:
            return any(os.path.exists(f"{entry.path}/version.info") for entry in entries)
    except OSError:
        return False


@contextmanager
def _translated(name: str) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        if isinstance(error, NvrError) or not _is_edge(error):
            raise
        if "Shard is not initialized" in str(error):
            raise _closed(name) from error
        if _is_damage(error):
            raise IndexDamaged(f"index {name!r} is damaged ({error}); {_REMEDY}") from error
        if _REFUSED.search(str(error)):
            raise StoreUnavailable(f"index {name!r}: {error}") from error
        raise StoreError(f"index {name!r}: {error}") from error


def _closed(name: str) -> StoreUnavailable:
    return StoreUnavailable(f"index {name!r} is closed; open it again")


def _is_damage(error: BaseException) -> bool:
    """The library stumbled over its own files: a full disk, or a value that it does not take, is none of them."""
    text = str(error)
    stumbled = type(error).__name__ == "PanicException" or text.startswith("Service runtime error")
    return stumbled and _REFUSED.search(text) is None


def _is_edge(error: BaseException) -> bool:
    """An error of the library, or of a value that it could not take; a Rust panic is no Exception."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def _make_shard(folder: Path, config: StoreConfig) -> None:
    shard = edge.EdgeShard.create(str(folder), edge.EdgeConfig(**_vectors(config)))
    for field in FIELDS:  # without an index a filter reads every payload: 10 ms instead of 0.1 at 5,000 points
        shard.update(edge.UpdateOperation.create_field_index(field, edge.PayloadSchemaType.Keyword))
    shard.flush()
    shard.close()


def optimize_shard(folder: Path) -> None:
    """Build the graph of an index that nobody has loaded, and keep it. For the child process."""
    config = StoreConfig(**json.loads((folder / _CONFIG_FILE).read_text(encoding="utf-8")))
    threads = max(1, (os.cpu_count() or 1) - 1)  # one is left to whoever searches meanwhile
    shard = edge.EdgeShard.load(
        str(folder / _SHARD_FOLDER),
        edge.EdgeConfig(
            **_vectors(config),
            hnsw_config=edge.HnswIndexConfig(LINKS, EF_CONSTRUCT, 1, max_indexing_threads=threads),
            optimizers=edge.EdgeOptimizersConfig(indexing_threshold=1, default_segment_number=1),
        ),
    )
    shard.optimize()
    shard.flush()
    shard.close()


def _vectors(config: StoreConfig) -> dict[str, Any]:
    return {
        "vectors": {DENSE: edge.EdgeVectorParams(size=config.dimension, distance=edge.Distance.Dot)},
        "sparse_vectors": {LEXICAL: edge.EdgeSparseVectorParams(modifier=edge.Modifier.Idf)},
    }


def _to_edge(point: Point) -> edge.Point:
    vectors: dict[str, Any] = {DENSE: np.asarray(point.dense, np.float32)}
    if point.lexical.indices:  # IDF counts the points that have a lexical vector; an empty one is none
        vectors[LEXICAL] = _sparse(point.lexical)
    return edge.Point(point.id, vectors, dict(point.payload))


def _sparse(vector: SparseVector) -> edge.SparseVector:
    return edge.SparseVector(list(vector.indices), list(vector.values))


def _wanted(with_vectors: bool) -> list[str] | bool:
    return [DENSE] if with_vectors else False


def _stored(record: Any) -> StoredPoint:
    vectors = record.vector
    return stored(
        str(record.id), record.payload, np.asarray(vectors[DENSE], np.float32) if vectors and DENSE in vectors else None
    )


def _sync_tree(folder: Path) -> None:
    for parent, _, files in os.walk(folder):
        for file in files:
            _sync(os.path.join(parent, file))
        _sync(parent)


def _sync_folder(folder: Path) -> None:
    _sync(str(folder))


def _sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
