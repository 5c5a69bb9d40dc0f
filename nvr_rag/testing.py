"""Doubles for tests of whatever is built on the seams: they pass the same contracts as the real parts.

`MemoryStore` keeps indexes in plain Python and can die like a process or lose power; `HashEncoder` turns texts into
deterministic vectors without a model; `WordReranker` counts shared words; `FaultyStore` wraps any store and fails at a
chosen call. None of them is fast.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from threading import Event, RLock
from typing import Any, TypeVar

import numpy as np

from nvr_rag.encoders.base import Vectors
from nvr_rag.encoders.spec import EncoderSpec
from nvr_rag.errors import IndexClosed, IndexExists, IndexMissing, StoreBusy
from nvr_rag.filters import Filter, matches
from nvr_rag.ids import sha256_json, sha256_text
from nvr_rag.stores.base import (
    OpenIndex,
    Point,
    Scored,
    SparseVector,
    Store,
    StoreConfig,
    StoredPoint,
    StoreInfo,
    Vector,
)
from nvr_rag.stores.points import best, check, check_name, stored

_WORDS = re.compile(r"\w+|[^\w\s]+")
_SPECIAL = ("[start]", "[end]")  # what real tokenizers put around every input

T = TypeVar("T")


class Crash(BaseException):
    """The process died here. Not an Exception, so that no handler of the code under test can go on."""


@dataclass(kw_only=True, slots=True)
class _Held:
    """One index of a MemoryStore; `flushed` is what a power cut leaves."""

    config: StoreConfig
    points: dict[str, Point] = field(default_factory=dict)
    flushed: dict[str, Point] = field(default_factory=dict)
    owner: MemoryIndex | None = None
    deleted: bool = False


class MemoryStore:
    """Store in memory. Every index has at most one owner: opening it again without closing raises StoreBusy."""

    shared = False

    def __init__(self) -> None:
        self._held: dict[str, _Held] = {}
        self._lock = RLock()

    def create(self, name: str, config: StoreConfig) -> None:
        with self._lock:
            if check_name(name) in self._held:
                raise IndexExists(f"there is an index {name!r} already")
            self._held[name] = _Held(config=config)

    def open(self, name: str) -> MemoryIndex:
        with self._lock:
            held = self._held.get(check_name(name))
            if held is None:
                raise IndexMissing(f"there is no index {name!r}; `nvr-rag verify --repair` rebuilds it")
            if held.owner is not None:
                raise StoreBusy(f"index {name!r} is open already")
            held.owner = MemoryIndex(held, self._lock)
            return held.owner

    def drop(self, name: str) -> None:
        with self._lock:
            held = self._held.get(check_name(name))
            if held is not None and held.owner is not None:
                raise StoreBusy(f"index {name!r} is open")
            self._held.pop(name, None)

    def names(self) -> list[str]:
        with self._lock:
            return sorted(self._held)

    def lose(self, name: str) -> None:
        """As if somebody had deleted an index, open or not."""
        with self._lock:
            self._held.pop(name).deleted = True

    def kill(self, *, power_cut: bool = False) -> None:
        """As if every owner had died: their open indexes fail from now on and can be opened anew. What was written
        stays, as with a killed process; with `power_cut` only what was flushed does."""
        with self._lock:
            for held in self._held.values():
                if held.owner is not None:
                    held.owner.close()
                if power_cut:
                    held.points = dict(held.flushed)


class MemoryIndex:
    """OpenIndex of a MemoryStore. Scores are exact, in double precision."""

    def __init__(self, held: _Held, lock: RLock) -> None:
        self._index = held
        self._lock = lock
        self._closed = False

    def _held(self) -> _Held:
        if self._closed:
            raise IndexClosed("this index is closed; open it again")
        if self._index.deleted:
            raise IndexMissing("this index was deleted; `nvr-rag verify --repair` rebuilds it")
        return self._index

    @property
    def config(self) -> StoreConfig:
        return self._index.config

    def stored_config(self) -> StoreConfig:
        with self._lock:
            return self._held().config

    @property
    def lost(self) -> bool:
        return self._closed or self._index.deleted

    def upsert(self, points: Sequence[Point]) -> None:
        with self._lock:
            held = self._held()
            check(points, held.config.dimension)
            for point in points:
                dense = np.array(point.dense, dtype=np.float32)
                held.points[point.id] = replace(point, dense=dense, payload=deepcopy(dict(point.payload)))

    def set_payload(self, payloads: Mapping[str, Mapping[str, Any]]) -> None:
        with self._lock:
            points = self._held().points
            for id_, payload in payloads.items():
                if id_ in points:
                    points[id_] = replace(points[id_], payload=deepcopy(dict(payload)))

    def delete(self, ids: Sequence[str]) -> None:
        with self._lock:
            points = self._held().points
            for id_ in ids:
                points.pop(id_, None)

    def search_dense(self, vector: Vector, k: int, where: Filter | None = None) -> list[Scored]:
        with self._lock:
            chosen = [point for point in self._held().points.values() if matches(where, point.payload)]
        if not chosen:
            return []
        scores = np.stack([point.dense for point in chosen]) @ np.asarray(vector, np.float32)  # (N, D) @ (D,) = (N,)
        return best([Scored(id=p.id, score=float(s)) for p, s in zip(chosen, scores, strict=True)], k)

    def search_lexical(self, vector: SparseVector, k: int, where: Filter | None = None) -> list[Scored]:
        with self._lock:
            points = [point for point in self._held().points.values() if point.lexical.indices]
        frequency = Counter(term for point in points for term in point.lexical.indices)
        weights = {
            term: value * math.log(1 + (len(points) - frequency[term] + 0.5) / (frequency[term] + 0.5))
            for term, value in zip(vector.indices, vector.values, strict=True)
        }
        scored = []
        for point in points:
            shared = [(t, v) for t, v in zip(point.lexical.indices, point.lexical.values, strict=True) if t in weights]
            if shared and matches(where, point.payload):
                scored.append(Scored(id=point.id, score=math.fsum(weights[t] * v for t, v in shared)))
        return best(scored, k)

    def get(self, ids: Sequence[str], *, with_vectors: bool = False) -> dict[str, StoredPoint]:
        with self._lock:
            points = self._held().points
            return {id_: _stored(points[id_], with_vectors) for id_ in ids if id_ in points}

    def read(self, ids: Sequence[str]) -> dict[str, Point]:
        with self._lock:
            points = self._held().points
            return {
                id_: replace(points[id_], dense=points[id_].dense.copy(), payload=deepcopy(dict(points[id_].payload)))
                for id_ in ids
                if id_ in points
            }

    def scan(self, *, with_vectors: bool = False, batch: int = 1000) -> Iterator[StoredPoint]:
        with self._lock:
            ids = sorted(self._held().points)
        for start in range(0, len(ids), batch):
            yield from self.get(ids[start : start + batch], with_vectors=with_vectors).values()

    def count(self) -> int:
        with self._lock:
            return len(self._held().points)

    def flush(self) -> None:
        with self._lock:
            held = self._held()
            held.flushed = dict(held.points)

    def info(self) -> StoreInfo:
        return StoreInfo(points=self.count(), bytes_on_disk=None)

    def optimize(self, stop: Event | None = None) -> bool:
        self._held()
        return False

    def scrub(self, stop: Event | None = None) -> None:
        """Nothing is kept of what was deleted."""
        with self._lock:
            held = self._held()
            held.flushed = dict(held.points)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            if self._index.owner is self:
                self._index.owner = None


def _stored(point: Point, with_vectors: bool) -> StoredPoint:
    return stored(point.id, point.payload, point.dense.copy() if with_vectors else None)


class HashEncoder:
    """Encoder without a model: each word is a fixed random direction, a text the normalised sum of its words.

    A token is a run of letters and digits or a run of punctuation; two special tokens surround every input. Texts that
    share words are near each other. Another `seed` is another encoder version with the same tokenizer. `encoded` counts
    the document inputs encoded so far, which shows what was embedded again.
    """

    def __init__(
        self,
        *,
        dimension: int = 64,
        max_tokens: int = 64,
        seed: int = 0,
        query_prompt: str = "query: ",
        document_prompt: str = "",
    ) -> None:
        self.encoded = 0
        self._lock = RLock()
        self._seed = seed
        self._spec = EncoderSpec(
            dimension=dimension,
            max_tokens=max_tokens,
            pooling="mean",
            normalize=True,
            query_prompt=query_prompt,
            document_prompt=document_prompt,
        )

    @property
    def spec(self) -> EncoderSpec:
        return self._spec

    @property
    def fingerprint(self) -> str:
        return sha256_json({"encoder": "hash-1", "seed": self._seed, "spec": asdict(self._spec)})

    @property
    def tokenizer_hash(self) -> str:
        return sha256_text(_WORDS.pattern)

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        return self._encode([self._spec.query_prompt + text for text in texts])

    def encode_documents(self, inputs: Sequence[str]) -> Vectors:
        with self._lock:
            self.encoded += len(inputs)
        return self._encode([self._spec.document_prompt + text for text in inputs])

    def count_tokens(self, inputs: Sequence[str]) -> list[int]:
        return self._count([self._spec.document_prompt + text for text in inputs])

    def count_query_tokens(self, texts: Sequence[str]) -> list[int]:
        return self._count([self._spec.query_prompt + text for text in texts])

    def _count(self, texts: Sequence[str]) -> list[int]:
        return [len(_SPECIAL) + len(_WORDS.findall(text)) for text in texts]

    def _encode(self, texts: Sequence[str]) -> Vectors:
        vectors = np.zeros((len(texts), self._spec.dimension), np.float32)
        for row, text in enumerate(texts):
            words = _WORDS.findall(text.lower())[: self._spec.max_tokens - len(_SPECIAL)]
            total = np.sum([_direction(word, self._spec.dimension, self._seed) for word in (*words, *_SPECIAL)], axis=0)
            vectors[row] = total / np.linalg.norm(total)
        return vectors


class WordReranker:
    """Reranker without a model: the share of the query's words that a text has, less a little for its length. `scored`
    counts the texts so far."""

    fingerprint = "words-1"

    def __init__(self) -> None:
        self.scored = 0
        self._lock = RLock()

    def score(self, query: str, texts: Sequence[str]) -> list[float]:
        with self._lock:
            self.scored += len(texts)
        wanted = set(_WORDS.findall(query.lower()))
        found = [_WORDS.findall(text.lower()) for text in texts]
        return [len(wanted.intersection(words)) / max(1, len(wanted)) - len(words) / 1e6 for words in found]


@lru_cache(maxsize=100_000)
def _direction(word: str, dimension: int, seed: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    number = int(sha256_text(f"{seed}:{word}")[:16], 16)
    return np.random.default_rng(number).standard_normal(dimension)


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """Where a FaultyStore fails: at the `call`-th call (from 1) of `method`, or of any method when that is None."""

    call: int
    method: str | None = None  # of Store or OpenIndex, e.g. "upsert"
    after: bool = False  # fail when the call has done its work, not before
    error: type[BaseException] = Crash  # or StoreUnavailable


class FaultyStore:
    """A store that fails once, at `fault`. `calls` names every call so far of the store and of the indexes opened
    from it (closing aside), so a test can fail between every two steps of what it saw succeed."""

    def __init__(self, store: Store, fault: Fault | None = None) -> None:
        self.store = store
        self.fault = fault
        self.calls: list[str] = []

    @property
    def shared(self) -> bool:
        return self.store.shared

    def call(self, method: str, work: Callable[[], T]) -> T:
        """Do `work` as a call of `method`, failing where the fault says so."""
        self.calls.append(method)
        failing = self._fails_now(method)
        if failing is None:
            return work()
        if failing.after:
            work()
        raise failing.error(f"injected {'after' if failing.after else 'before'} call {failing.call} of {method}")

    def _fails_now(self, method: str) -> Fault | None:
        fault = self.fault
        if fault is None or fault.method not in (None, method):
            return None
        seen = len(self.calls) if fault.method is None else self.calls.count(method)
        return fault if seen == fault.call else None

    def create(self, name: str, config: StoreConfig) -> None:
        self.call("create", lambda: self.store.create(name, config))

    def open(self, name: str) -> FaultyIndex:
        return FaultyIndex(self.call("open", lambda: self.store.open(name)), self)

    def drop(self, name: str) -> None:
        self.call("drop", lambda: self.store.drop(name))

    def names(self) -> list[str]:
        return self.call("names", self.store.names)


class FaultyIndex:
    """OpenIndex of a FaultyStore. A scan fails before its first or after its last point."""

    def __init__(self, index: OpenIndex, store: FaultyStore) -> None:
        self._index = index
        self._call = store.call

    @property
    def config(self) -> StoreConfig:
        return self._index.config

    @property
    def lost(self) -> bool:
        return self._index.lost

    def upsert(self, points: Sequence[Point]) -> None:
        self._call("upsert", lambda: self._index.upsert(points))

    def set_payload(self, payloads: Mapping[str, Mapping[str, Any]]) -> None:
        self._call("set_payload", lambda: self._index.set_payload(payloads))

    def delete(self, ids: Sequence[str]) -> None:
        self._call("delete", lambda: self._index.delete(ids))

    def search_dense(self, vector: Vector, k: int, where: Filter | None = None) -> list[Scored]:
        return self._call("search_dense", lambda: self._index.search_dense(vector, k, where))

    def search_lexical(self, vector: SparseVector, k: int, where: Filter | None = None) -> list[Scored]:
        return self._call("search_lexical", lambda: self._index.search_lexical(vector, k, where))

    def get(self, ids: Sequence[str], *, with_vectors: bool = False) -> dict[str, StoredPoint]:
        return self._call("get", lambda: self._index.get(ids, with_vectors=with_vectors))

    def read(self, ids: Sequence[str]) -> dict[str, Point]:
        return self._call("read", lambda: self._index.read(ids))

    def scan(self, *, with_vectors: bool = False, batch: int = 1000) -> Iterator[StoredPoint]:
        points = self._call("scan", lambda: list(self._index.scan(with_vectors=with_vectors, batch=batch)))
        yield from points

    def count(self) -> int:
        return self._call("count", self._index.count)

    def flush(self) -> None:
        self._call("flush", self._index.flush)

    def info(self) -> StoreInfo:
        return self._call("info", self._index.info)

    def optimize(self, stop: Event | None = None) -> bool:
        return self._call("optimize", lambda: self._index.optimize(stop))

    def scrub(self, stop: Event | None = None) -> None:
        self._call("scrub", lambda: self._index.scrub(stop))

    def close(self) -> None:
        self._index.close()
