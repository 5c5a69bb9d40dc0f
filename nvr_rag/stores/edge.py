"""Indexes as Qdrant Edge shards, in this process: a folder an index, one owner at a time.

What lies in a folder is the business of nvr_rag.stores.edge_shards, what lies in a shard that of edge_segments. A
folder gets its real name only when it is complete and synced, and loses it before it is deleted, so a crash leaves
nothing half-made behind that name; leftovers (".new-*", ".drop-*") are swept away later. Search is exact up to
GRAPH_FROM points. Every call of the library holds the interpreter lock, so writes go in small batches.
"""

from __future__ import annotations

import json
import os
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
    Stopped,
    StoreUnavailable,
)
from nvr_rag.filters import Filter
from nvr_rag.stores.base import Point, Scored, SparseVector, StoreConfig, StoredPoint, StoreInfo, Vector
from nvr_rag.stores.conditions import Words, compile_filter
from nvr_rag.stores.edge_segments import CONFIG_FILE, SEAL_POINTS, SHARD_FOLDER, can_seal, make_shard, sealing_bytes
from nvr_rag.stores.edge_shards import (
    LOCK_FILE,
    NEW_SHARD,
    OPENING_BYTES,
    REMEDY,
    WRITING_BYTES,
    closed,
    has_segments,
    load,
    own,
    see_room,
    sync_folder,
    sync_tree,
    take_new_shard,
    translated,
)
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
from nvr_rag.stores.turnstile import Turnstile

# Measured at 384 dimensions: at 20,000 points an exact search takes 2 ms and one of the graph 1 ms, at 50,000 points
# 9 ms and 1.5 ms. With EF twice what is asked for, 99.8 % of the first ten are those of the exact search.
GRAPH_FROM = 30_000  # points; fewer are searched exactly
EF, DEEPEST = 256, 1024  # candidates kept at least; more hits than that are looked for exactly

BATCH = 128  # points a write: about 10 ms during which no other thread runs
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
        with translated(name):
            self._root.mkdir(parents=True, exist_ok=True)
            self._sweep()
            see_room(name, self._root, WRITING_BYTES)
            fresh = self._root / f".new-{name}-{uuid4().hex}"
            try:
                fresh.mkdir()
                make_shard(fresh / SHARD_FOLDER, config)
                text = json.dumps(asdict(config), indent=2, ensure_ascii=False)
                (fresh / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")
                sync_tree(fresh)
                self._give_name(fresh, target)
            finally:
                shutil.rmtree(fresh, ignore_errors=True)  # gone by now unless something failed

    def open(self, name: str) -> EdgeIndex:
        folder = self._folder(name)
        config = _config_in(folder)
        lock = own(name, folder)
        try:
            see_room(name, folder, OPENING_BYTES)
            return EdgeIndex(name, folder, config, load(name, folder), lock)
        except BaseException:
            os.close(lock)
            raise

    def drop(self, name: str) -> None:
        folder = self._folder(name)
        if not folder.exists():
            return
        lock = own(name, folder)  # keeps others out until the name is gone
        try:
            with translated(name):
                os.rename(folder, self._root / f".drop-{name}-{uuid4().hex}")
                sync_folder(self._root)
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
        sync_folder(self._root)

    def _sweep(self) -> None:
        """Delete what was dropped, and what a crashed creation left (a younger one may still be at work)."""
        for path in self._root.glob(".drop-*"):
            shutil.rmtree(path, ignore_errors=True)
        for path in self._root.glob(".new-*"):
            if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(path, ignore_errors=True)


def _config_in(folder: Path) -> StoreConfig:
    """What the index in a folder is made for."""
    try:
        return StoreConfig(**json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise IndexMissing(f"there is no index {folder.name!r} in {folder.parent}; {REMEDY}") from error
    except OSError as error:
        raise StoreUnavailable(f"{folder / CONFIG_FILE} cannot be read: {error}") from error
    except (ValueError, TypeError) as error:
        raise IndexDamaged(f"{folder / CONFIG_FILE} is damaged ({error}); {REMEDY}") from error


class EdgeIndex:
    """OpenIndex over one shard. Threads may share it; a call that is overtaken by `close` raises StoreError."""

    def __init__(self, name: str, folder: Path, config: StoreConfig, shard: edge.EdgeShard, lock: int) -> None:
        self._name = name
        self._folder = folder
        self._config = config
        self._shard: edge.EdgeShard | None = shard
        self._lock = lock  # descriptor
        self._turnstile = Turnstile()  # whoever replaces the shard is alone with it
        self._away = False  # a child process has the shard
        self._unsealed = SEAL_POINTS  # points written since the last seal; what was there before is not known

    @property
    def config(self) -> StoreConfig:
        return self._config

    def stored_config(self) -> StoreConfig:
        return _config_in(self._folder)

    @property
    def lost(self) -> bool:
        """Its files were deleted or replaced under it. Searches would go on for as long as it is open, over what nobody
        can find any more, and what is written would be gone with it."""
        if self._shard is None:
            return not self._away
        try:
            ours = os.path.samestat(os.fstat(self._lock), os.stat(self._folder / LOCK_FILE))
        except OSError:
            return True
        return not ours or not has_segments(self._folder)

    def upsert(self, points: Sequence[Point]) -> None:
        check(points, self._config.dimension)
        for part in batches(points, BATCH):
            with self._writable() as shard:
                shard.update(edge.UpdateOperation.upsert_points([_to_edge(point) for point in part]))
            self._unsealed += len(part)

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
            if self._unsealed >= SEAL_POINTS and self._may_seal(shard):
                self._unsealed = 0
                shard.optimize()

    def _may_seal(self, shard: edge.EdgeShard) -> bool:
        """Otherwise memory grows, and nothing else happens."""
        return can_seal(self._folder, shard) and free(self._folder) > WRITING_BYTES + sealing_bytes(self._config)

    def info(self) -> StoreInfo:
        return StoreInfo(points=self.count(), bytes_on_disk=allocated(self._folder))

    def optimize(self, stop: threading.Event | None = None) -> bool:
        if self.count() < GRAPH_FROM:
            return False
        see_room(self._name, self._folder, WRITING_BYTES + allocated(self._folder))
        with self._turnstile.alone(), self._whole() as shard:
            shard.flush()
            self._away, self._shard = True, None
            shard.close()
        try:
            optimize_in_child(self._folder, self._lock, stop)
        finally:
            try:
                self._shard = load(self._name, self._folder)
            finally:
                self._away = False
        return True

    def scrub(self, stop: threading.Event | None = None) -> None:
        """The points are copied into a new shard, which takes the place of the old one: segments and write-ahead log
        of that go whole, and with them everything that was deleted."""
        fresh = self._folder.parent / f".new-{self._name}-{uuid4().hex}"
        see_room(self._name, self._folder, WRITING_BYTES + allocated(self._folder))
        with translated(self._name):
            try:
                fresh.mkdir()
                shutil.copyfile(self._folder / CONFIG_FILE, fresh / CONFIG_FILE)
                make_shard(fresh / SHARD_FOLDER, self._config)
                if self._copy_into(fresh / SHARD_FOLDER, stop) >= GRAPH_FROM:
                    optimize_in_child(fresh, self._lock, stop)
                sync_tree(fresh)
                os.rename(fresh / SHARD_FOLDER, self._folder / NEW_SHARD)
            finally:
                shutil.rmtree(fresh, ignore_errors=True)
        with self._turnstile.alone(), self._whole() as shard:  # searches wait for the new one instead of failing
            self._away, self._shard = True, None
            shard.close()
            try:
                take_new_shard(self._folder)
                self._shard = load(self._name, self._folder)
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
                if count % SEAL_POINTS < len(points):
                    copy.flush()
                    copy.optimize()
            copy.flush()
        finally:
            copy.close()
        return count

    def close(self) -> None:
        shard, self._shard = self._shard, None
        if shard is not None:
            try:
                with translated(self._name):
                    shard.close()
            finally:
                os.close(self._lock)

    @contextmanager
    def _open(self) -> Iterator[edge.EdgeShard]:
        with self._turnstile.inside(), self._whole() as shard:
            yield shard

    @contextmanager
    def _whole(self) -> Iterator[edge.EdgeShard]:
        shard = self._shard
        if shard is None:
            raise closed(self._name)
        if self.lost:
            raise IndexMissing(f"the files of index {self._name!r} were deleted or replaced; {REMEDY}")
        with translated(self._name):
            yield shard

    @contextmanager
    def _writable(self) -> Iterator[edge.EdgeShard]:
        with self._open() as shard:
            see_room(self._name, self._folder, WRITING_BYTES)
            yield shard


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
