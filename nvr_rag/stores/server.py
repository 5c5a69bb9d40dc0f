"""Indexes as collections of a Qdrant server or cluster, shared by any number of processes.

A collection's metadata hold the StoreConfig; its name is a prefix and the index's name, so that a server can be shared.
`QdrantClient(":memory:")` serves tests. No index here ever has an owner: StoreBusy is not raised.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np
from qdrant_client import QdrantClient, models
from qdrant_client.common.client_exceptions import QdrantException
from qdrant_client.http.exceptions import ApiException, ResponseHandlingException, UnexpectedResponse

from nvr_rag.errors import IndexExists, IndexMissing, NvrError, StoreError, StoreUnavailable
from nvr_rag.filters import FIELDS, Filter
from nvr_rag.stores.base import Point, Scored, SparseVector, StoreConfig, StoredPoint, StoreInfo, Vector
from nvr_rag.stores.conditions import Words, compile_filter
from nvr_rag.stores.points import DENSE, HASHES, LEXICAL, batches, check, check_name, is_id, stored, whole, with_ties

BATCH = 256  # points a request: under 2 MB as JSON at 384 dimensions
INDEXED = (*FIELDS, "acl")  # payload fields that get a keyword index
_AT_CREATION = ("shard_number", "replication_factor", "write_consistency_factor")  # store settings that we pass on
_CONFIG_KEY = "nvr_rag"

_WORDS = Words(
    filter=models.Filter,
    field=models.FieldCondition,
    value=models.MatchValue,
    any=models.MatchAny,
    range=models.Range,
)


def connect(
    url: str, *, api_key: str | None = None, timeout_seconds: int = 30, prefix: str = "nvr-"
) -> QdrantServerStore:
    """The indexes on the server at `url`. Connects at the first call, so a server that is down raises there."""
    client = QdrantClient(url=url, api_key=api_key, timeout=timeout_seconds, check_compatibility=False)
    return QdrantServerStore(client, prefix=prefix)


class QdrantServerStore:
    """All indexes on one server whose collections begin with `prefix`."""

    def __init__(self, client: QdrantClient, *, prefix: str = "nvr-") -> None:
        self._client = client
        self._prefix = prefix

    def create(self, name: str, config: StoreConfig) -> None:
        collection = self._collection(name)
        with _translated(name):
            if self._client.collection_exists(collection):
                raise IndexExists(f"there is an index {name!r} on the server already; drop it first")
            self._client.create_collection(
                collection,
                vectors_config={DENSE: models.VectorParams(size=config.dimension, distance=models.Distance.DOT)},
                sparse_vectors_config={LEXICAL: models.SparseVectorParams(modifier=models.Modifier.IDF)},
                metadata={_CONFIG_KEY: asdict(config)},
                **{key: config.settings[key] for key in _AT_CREATION if key in config.settings},
            )
            self._index_payload(collection, ())

    def open(self, name: str) -> QdrantServerIndex:
        collection = self._collection(name)
        with _translated(name):
            info = self._client.get_collection(collection)
            try:
                config = StoreConfig(**(info.config.metadata or {})[_CONFIG_KEY])
            except (KeyError, TypeError) as error:
                raise IndexMissing(f"collection {collection!r} was not made by nvr-rag or is damaged") from error
            self._index_payload(collection, info.payload_schema)  # a crash may have cut `create` short
        return QdrantServerIndex(name, self._client, collection, config)

    def drop(self, name: str) -> None:
        with _translated(name):
            self._client.delete_collection(self._collection(name))

    def names(self) -> list[str]:
        with _translated("*"):
            collections = [collection.name for collection in self._client.get_collections().collections]
        return sorted(name.removeprefix(self._prefix) for name in collections if name.startswith(self._prefix))

    def _collection(self, name: str) -> str:
        return self._prefix + check_name(name)

    def _index_payload(self, collection: str, known: Mapping[str, Any] | tuple[()]) -> None:
        for field in INDEXED:
            if field not in known:
                self._client.create_payload_index(collection, field, models.PayloadSchemaType.KEYWORD, wait=True)


class QdrantServerIndex:
    """OpenIndex over one collection. Closing it lets go of nothing, since nothing is owned."""

    def __init__(self, name: str, client: QdrantClient, collection: str, config: StoreConfig) -> None:
        self._name = name
        self._client = client
        self._collection = collection
        self._config = config
        self._closed = False

    @property
    def config(self) -> StoreConfig:
        return self._config

    @property
    def lost(self) -> bool:
        return False  # every call names the collection anew

    def upsert(self, points: Sequence[Point]) -> None:
        check(points, self._config.dimension)
        for part in batches(points, BATCH):
            with self._open() as client:
                client.upsert(self._collection, [_to_qdrant(point) for point in part], wait=True)

    def set_payload(self, payloads: Mapping[str, Mapping[str, Any]]) -> None:
        operations = [_overwrite(id_, payload) for id_, payload in payloads.items() if is_id(id_)]
        for part in batches(operations, BATCH):
            with self._open() as client:
                client.batch_update_points(self._collection, list(part), wait=True)

    def delete(self, ids: Sequence[str]) -> None:
        for part in batches([id_ for id_ in ids if is_id(id_)], BATCH):
            with self._open() as client:
                client.delete(self._collection, models.PointIdsList(points=list(part)), wait=True)

    def search_dense(self, vector: Vector, k: int, where: Filter | None = None) -> list[Scored]:
        return self._search(np.asarray(vector, np.float32).tolist(), DENSE, k, where)

    def search_lexical(self, vector: SparseVector, k: int, where: Filter | None = None) -> list[Scored]:
        return self._search(_sparse(vector), LEXICAL, k, where) if vector.indices else []

    def _search(self, query: Any, using: str, k: int, where: Filter | None) -> list[Scored]:
        condition = compile_filter(where, _WORDS)

        def ask(limit: int) -> list[Scored]:
            with self._open() as client:
                answer = client.query_points(
                    self._collection, query=query, using=using, query_filter=condition, limit=limit, with_payload=False
                )
            return [Scored(id=str(point.id), score=point.score) for point in answer.points]

        return with_ties(ask, k)

    def get(self, ids: Sequence[str], *, with_vectors: bool = False) -> dict[str, StoredPoint]:
        found: dict[str, StoredPoint] = {}
        for part in batches([id_ for id_ in ids if is_id(id_)], BATCH):
            with self._open() as client:
                records = client.retrieve(
                    self._collection, list(part), with_payload=HASHES, with_vectors=_wanted(with_vectors)
                )
            found.update((str(record.id), _stored(record)) for record in records)
        return found

    def read(self, ids: Sequence[str]) -> dict[str, Point]:
        found: dict[str, Point] = {}
        for part in batches([id_ for id_ in ids if is_id(id_)], BATCH):
            with self._open() as client:
                records = client.retrieve(self._collection, list(part), with_payload=True, with_vectors=True)
            found.update((str(record.id), whole(str(record.id), record.payload, record.vector)) for record in records)
        return found

    def scan(self, *, with_vectors: bool = False, batch: int = 1000) -> Iterator[StoredPoint]:
        offset: Any = None
        while True:
            with self._open() as client:
                records, offset = client.scroll(
                    self._collection,
                    limit=batch,
                    offset=offset,
                    with_payload=HASHES,
                    with_vectors=_wanted(with_vectors),
                )
            yield from map(_stored, records)
            if offset is None:
                return

    def count(self) -> int:
        with self._open() as client:
            return client.count(self._collection, exact=True).count

    def flush(self) -> None:
        """Nothing to do: a write with wait=True was in the server's write-ahead log before it returned."""
        with self._open():
            pass

    def info(self) -> StoreInfo:
        return StoreInfo(points=self.count(), bytes_on_disk=None)

    def close(self) -> None:
        self._closed = True

    @contextmanager
    def _open(self) -> Iterator[QdrantClient]:
        if self._closed:
            raise StoreError(f"index {self._name!r} is closed; open it again")
        with _translated(self._name):
            yield self._client


@contextmanager
def _translated(name: str) -> Iterator[None]:
    try:
        yield
    except NvrError:
        raise
    except ResponseHandlingException as error:
        raise StoreUnavailable(
            f"index {name!r}: no usable answer from the Qdrant server ({error.source}); is it up?"
        ) from error
    except UnexpectedResponse as error:
        raise _refusal(name, error) from error
    except (ApiException, QdrantException) as error:  # the latter: too many requests
        raise StoreUnavailable(f"index {name!r}: the Qdrant server refused for now ({error})") from error
    except ValueError as error:  # how the client refuses a request by itself, and how its local mode reports
        raise _local_refusal(name, error) from error


def _refusal(name: str, error: UnexpectedResponse) -> StoreError:
    status = error.status_code or 0
    if status == 404:
        return IndexMissing(_missing(name))
    if status == 409:
        return IndexExists(f"there is an index {name!r} on the server already; drop it first")
    if status in (401, 403):
        return StoreError(f"the Qdrant server refused our key ({status}); set NVR_QDRANT__API_KEY")
    if status in (408, 429) or status >= 500:
        return StoreUnavailable(f"index {name!r}: the Qdrant server failed ({error})")
    return StoreError(f"index {name!r}: the Qdrant server refused the request ({error})")


def _local_refusal(name: str, error: ValueError) -> StoreError:
    if "not found" in str(error):
        return IndexMissing(_missing(name))
    return StoreError(f"index {name!r}: {error}")


def _missing(name: str) -> str:
    return f"there is no index {name!r} on the Qdrant server; `nvr-rag verify --repair` rebuilds it from the corpus log"


def _to_qdrant(point: Point) -> models.PointStruct:
    vectors: dict[str, Any] = {DENSE: np.asarray(point.dense, np.float32).tolist()}
    if point.lexical.indices:  # IDF counts the points that have a lexical vector; an empty one is none
        vectors[LEXICAL] = _sparse(point.lexical)
    return models.PointStruct(id=point.id, vector=vectors, payload=dict(point.payload))


def _overwrite(id_: str, payload: Mapping[str, Any]) -> models.OverwritePayloadOperation:
    only = models.Filter(must=[models.HasIdCondition(has_id=[id_])])  # by filter: an unknown id is no error
    return models.OverwritePayloadOperation(overwrite_payload=models.SetPayload(payload=dict(payload), filter=only))


def _sparse(vector: SparseVector) -> models.SparseVector:
    return models.SparseVector(indices=list(vector.indices), values=list(vector.values))


def _wanted(with_vectors: bool) -> list[str] | bool:
    return [DENSE] if with_vectors else False


def _stored(record: models.Record) -> StoredPoint:
    vectors: Any = record.vector
    return stored(
        str(record.id), record.payload, np.asarray(vectors[DENSE], np.float32) if vectors and DENSE in vectors else None
    )
