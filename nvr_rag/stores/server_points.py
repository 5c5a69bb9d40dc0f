"""Points, payloads and vectors in the words of the Qdrant client, and cut into requests that a server takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from qdrant_client import models

from nvr_rag.stores.base import Point, SparseVector, StoredPoint
from nvr_rag.stores.points import DENSE, LEXICAL, stored

_NUMBER_BYTES = 24  # a float32 written as JSON has at most so many characters, its comma included

T = TypeVar("T")


def to_qdrant(point: Point) -> models.PointStruct:
    """A point to write."""
    vectors: dict[str, Any] = {DENSE: np.asarray(point.dense, np.float32).tolist()}
    if point.lexical.indices:  # IDF counts the points that have a lexical vector; an empty one is none
        vectors[LEXICAL] = sparse(point.lexical)
    return models.PointStruct(id=point.id, vector=vectors, payload=dict(point.payload))


def overwrite(id_: str, payload: Mapping[str, Any]) -> models.OverwritePayloadOperation:
    """A payload to replace."""
    only = models.Filter(must=[models.HasIdCondition(has_id=[id_])])  # by filter: an unknown id is no error
    return models.OverwritePayloadOperation(overwrite_payload=models.SetPayload(payload=dict(payload), filter=only))


def sparse(vector: SparseVector) -> models.SparseVector:
    """A lexical vector."""
    return models.SparseVector(indices=list(vector.indices), values=list(vector.values))


def from_qdrant(record: models.Record) -> StoredPoint:
    """A point as it was answered."""
    vectors: Any = record.vector
    dense = np.asarray(vectors[DENSE], np.float32) if vectors and DENSE in vectors else None
    return stored(str(record.id), record.payload, dense)


def in_requests(items: Sequence[T], most_items: int, most_bytes: int) -> Iterator[list[T]]:
    """Consecutive parts of at most so many items and, unless a single one is larger, of at most so many bytes."""
    part: list[T] = []
    size = 0
    for item in items:
        weight = _weight(item)
        if part and (len(part) == most_items or size + weight > most_bytes):
            yield part
            part, size = [], 0
        part.append(item)
        size += weight
    if part:
        yield part


def _weight(item: Any) -> int:
    """About the most bytes that a point or an operation has in a request."""
    if isinstance(item, models.PointStruct):
        vectors: Any = item.vector
        numbers = len(vectors[DENSE]) + 2 * (len(vectors[LEXICAL].indices) if LEXICAL in vectors else 0)
        return _NUMBER_BYTES * numbers + _text_bytes(item.payload)
    return _text_bytes(item.overwrite_payload.payload)


def _text_bytes(value: Any) -> int:
    """Bytes of a payload as JSON: its characters, each counted as the longest that UTF-8 has for its kind."""
    match value:
        case str():
            return len(value.encode("utf-8", "replace")) + 3
        case Mapping():
            return 2 + sum(_text_bytes(key) + _text_bytes(entry) + 1 for key, entry in value.items())
        case list() | tuple():
            return 2 + sum(_text_bytes(entry) + 1 for entry in value)
    return _NUMBER_BYTES
