"""What the stores do alike: check points and names, cut into batches, break ties. Pure; knows no store."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from nvr_rag.errors import InvalidInput, StoreError
from nvr_rag.filters import ACL, FIELDS, TIME
from nvr_rag.stores.base import Point, Scored, SparseVector, StoredPoint, Vector

DENSE, LEXICAL = "dense", "lexical"  # the two vectors of a point
HASHES = ["input_hash", "payload_hash"]  # what a scan reads of a payload
INDEXED = {**dict.fromkeys(FIELDS, "keyword"), TIME: "number", ACL: "keyword"}  # what is asked for anyway

TIE_SLACK = 16  # candidates asked for beyond k, to see whether a tie is cut
MAX_TIES = 4096  # beyond k; of more equal scores than this, which ones are found is arbitrary
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")

T = TypeVar("T")

NO_VECTOR = np.zeros(0, np.float32)
NO_TERMS = SparseVector(indices=(), values=())


def check(points: Iterable[Point], dimension: int) -> None:
    """Raise StoreError for a point that no store could give back: wrong shape, not finite, id not a uuid."""
    for point in points:
        if point.dense.shape != (dimension,):
            raise StoreError(
                f"point {point.id} has a vector of shape {point.dense.shape}, the index takes ({dimension},); "
                "encode it with the encoder of this index"
            )
        if not np.isfinite(point.dense).all():
            raise StoreError(f"the vector of point {point.id} has values that are not finite; check the encoder")
        if not is_id(point.id):
            raise StoreError(f"point id {point.id!r} is not a uuid in lower case with hyphens")


def is_id(text: str) -> bool:
    """Whether this is a uuid as `str(UUID)` writes it. Qdrant knows other spellings; ours are compared as text."""
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False


def batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Consecutive slices of at most `size`."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def stored(id_: str, payload: Mapping[str, Any] | None, dense: Vector | None) -> StoredPoint:
    """A point as a store answers, which may have lost its payload."""
    hashes = [str((payload or {}).get(name) or "") for name in HASHES]
    return StoredPoint(id=id_, input_hash=hashes[0], payload_hash=hashes[1], dense=dense)


def whole(id_: str, payload: Mapping[str, Any] | None, vectors: Any) -> Point:
    """A point as a Qdrant store answers, which may have lost any part of it."""
    named = vectors if isinstance(vectors, dict) else {}
    dense, terms = named.get(DENSE), named.get(LEXICAL)
    return Point(
        id=id_,
        dense=NO_VECTOR if dense is None else np.asarray(dense, np.float32),
        lexical=NO_TERMS if terms is None else SparseVector(indices=tuple(terms.indices), values=tuple(terms.values)),
        payload=dict(payload or {}),
    )


def best(scored: Iterable[Scored], k: int) -> list[Scored]:
    """The k best: by score descending, then by id ascending."""
    return sorted(scored, key=lambda hit: (-hit.score, hit.id))[:k]


def with_ties(ask: Callable[[int], list[Scored]], k: int, most: int | None = None) -> list[Scored]:
    """The k best of what `ask(limit)` returns, ties by id.

    Qdrant cuts ties arbitrarily, so more is asked for until the last score is below the k-th, or MAX_TIES are seen, or
    as much as a store gives at all: `most`, at least k.
    """
    if k <= 0:
        return []
    last = k + MAX_TIES if most is None else min(k + MAX_TIES, most)
    limit = min(k + TIE_SLACK, last)
    while True:
        found = ask(limit)
        if len(found) < limit or found[-1].score < found[k - 1].score or limit >= last:
            return best(found, k)
        limit = min(k + 8 * (limit - k), last)


def is_name(text: str) -> bool:
    """Whether an index may be called this: no path, nothing hidden, fit for any file system and URL."""
    return _NAME.fullmatch(text) is not None


def check_name(name: str) -> str:
    """The name itself. Raises InvalidInput."""
    if not is_name(name):
        raise InvalidInput(
            f"an index name has 1 to 128 letters, digits, '_', '-' and '.', a letter or digit first; got {name!r}",
            field="name",
        )
    return name
