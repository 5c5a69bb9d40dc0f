"""The seam to vector stores: what an index of points can be asked, whoever keeps it.

"Point" and "payload" are words of this package only. A point's id is a chunk id; its payload holds what filters may
ask for (`document_id`, `uri`, `source`, `title`, `media_type`, `updated_at`, `acl`, `metadata`) and the two hashes;
never a text. Every store gets the same vectors: dense ones from the encoder, lexical ones from `lexical.py`.

Every method may raise StoreUnavailable (a retry can help), those of an open index also IndexMissing and IndexDamaged
(a rebuild can). An open index may be used by several threads.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nvr_rag.filters import Filter

Vector = NDArray[np.float32]  # (D,)


@dataclass(frozen=True, kw_only=True, slots=True)
class SparseVector:
    """A lexical vector: term ids, ascending and unique, and their weights."""

    indices: Sequence[int]
    values: Sequence[float]


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreConfig:
    """What an index is made for; kept by the store beside the points and returned when it is opened."""

    dimension: int  # of the dense vectors
    encoder: str  # fingerprint of the only encoder whose vectors belong here
    settings: Mapping[str, Any] = field(default_factory=dict)  # store settings (sharding, quantisation ...)


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One chunk on its way into an index."""

    id: str
    dense: Vector
    lexical: SparseVector
    payload: Mapping[str, Any]  # contains "input_hash" and "payload_hash"


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredPoint:
    """What a scan or a look-up returns."""

    id: str
    input_hash: str  # "" where the point has none that can be read
    payload_hash: str
    dense: Vector | None = None  # only when asked for


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """A candidate: the best have the highest score."""

    id: str
    score: float


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreInfo:
    """Figures for a person."""

    points: int
    bytes_on_disk: int | None  # allocated, not apparent: shard files are sparse; None where it cannot be known


class OpenIndex(Protocol):
    """One index, open in this process."""

    @property
    def config(self) -> StoreConfig:
        """As it was when the index was opened."""

    def stored_config(self) -> StoreConfig:
        """As the store has it now: somebody may have put another index in its place. Asks the store each time."""

    @property
    def lost(self) -> bool:
        """Whether this is no longer what the store has under its name: only opening it anew can help."""

    def upsert(self, points: Sequence[Point]) -> None:
        """Write points; one with a known id replaces the old one whole. Visible to searches at once, but durable
        against a power cut only after `flush`."""

    def set_payload(self, payloads: Mapping[str, Mapping[str, Any]]) -> None:
        """Replace the payloads of the points with these ids, vectors untouched; unknown ids are ignored."""

    def delete(self, ids: Sequence[str]) -> None:
        """Remove points; unknown ids are ignored."""

    def search_dense(self, vector: Vector, k: int, where: Filter | None = None) -> list[Scored]:
        """At most k points by inner product with `vector` (D,), best first, ties by id ascending."""

    def search_lexical(self, vector: SparseVector, k: int, where: Filter | None = None) -> list[Scored]:
        """At most k points by inner product with IDF applied, best first, ties by id; only those sharing a term."""

    def get(self, ids: Sequence[str], *, with_vectors: bool = False) -> dict[str, StoredPoint]:
        """The points with these ids; unknown ids are absent from the answer."""

    def read(self, ids: Sequence[str]) -> dict[str, Point]:
        """Everything that is kept under these ids, whatever state it is in: `dense` of any shape, empty where there is
        none, and any payload. Unknown ids are absent from the answer."""

    def scan(self, *, with_vectors: bool = False, batch: int = 1000) -> Iterator[StoredPoint]:
        """Every point, in ascending order of id, in bounded memory."""

    def count(self) -> int: ...

    def flush(self) -> None:
        """Return only when everything written before is durable against a power cut."""

    def info(self) -> StoreInfo: ...

    def optimize(self, stop: threading.Event | None = None) -> bool:
        """Make searches of many points fast, where that is not done all the time; True if there was anything to do.

        For an index that nobody searches yet: until it returns other calls raise StoreUnavailable. May take minutes,
        and may be done again at any time, also after a crash in the middle. Raises Stopped.
        """

    def scrub(self, stop: threading.Event | None = None) -> None:
        """Return only when no file of ours has anything left of points that were deleted or replaced.

        Nobody may write meanwhile; searches go on, save for a moment in which they raise StoreUnavailable. What a
        server keeps in its own files, and until when, is its own business: there nothing is done. Raises Stopped.
        """

    def close(self) -> None:
        """Let go of the index so that another process may own it. Twice is fine; other calls after it fail."""


class Store(Protocol):
    """All indexes at one place."""

    @property
    def shared(self) -> bool:
        """Whether several processes may have an index open at once. Then who writes needs its lease; otherwise whoever
        has it open owns it."""

    def create(self, name: str, config: StoreConfig) -> None:
        """Make an empty index, durably. Raises IndexExists."""

    def open(self, name: str) -> OpenIndex:
        """Raises IndexMissing, StoreBusy (another process owns it)."""

    def drop(self, name: str) -> None:
        """Remove an index and all that belongs to it; one that is not there is fine. Raises StoreBusy."""

    def names(self) -> list[str]:
        """All indexes here, sorted."""
