"""Indexes as collections of a Qdrant server or cluster, shared by any number of processes.

A collection's metadata hold the StoreConfig; its name is a prefix and the index's name, so that a server can be shared.
`QdrantClient(":memory:")` serves tests. No index here ever has an owner: StoreBusy is not raised.

Reads see what was acknowledged: every write waits until each readable copy has applied it (a copy that has not is taken
out of service before the answer), and goes through a leader, so that all copies see one order. Searches walk the HNSW
graph where Qdrant has built one, from about 10 MB of vectors a segment; smaller segments are compared in full.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from qdrant_client import QdrantClient, models

from nvr_rag.errors import (
    IndexClosed,
    IndexExists,
    IndexMismatch,
    IndexMissing,
    InvalidInput,
    StoreError,
    StoreUnavailable,
)
from nvr_rag.filters import Filter
from nvr_rag.settings import QdrantSettings
from nvr_rag.stores.base import Point, Scored, SparseVector, StoreConfig, StoredPoint, StoreInfo, Vector
from nvr_rag.stores.conditions import Words, compile_filter
from nvr_rag.stores.points import DENSE, HASHES, LEXICAL, batches, check, check_name, is_id, whole, with_ties
from nvr_rag.stores.server_errors import missing
from nvr_rag.stores.server_link import Server
from nvr_rag.stores.server_options import (
    CONFIG_KEY,
    Shape,
    creation_arguments,
    make_client,
    payload_indexes,
    plain_path,
)
from nvr_rag.stores.server_points import from_qdrant, in_requests, overwrite, sparse, to_qdrant
from nvr_rag.stores.server_retries import Deadline

_WORDS = Words(
    filter=models.Filter,
    field=models.FieldCondition,
    value=models.MatchValue,
    any=models.MatchAny,
    range=models.Range,
)

T = TypeVar("T")


def connect(where: QdrantSettings | str) -> QdrantServerStore:
    """The indexes on a server, named by settings or by a URL alone. Connects at the first call, so a server that is
    down raises there. Raises ConfigurationError for TLS files that cannot be used."""
    settings = QdrantSettings(url=where) if isinstance(where, str) else where
    return QdrantServerStore(make_client(settings), settings)


class QdrantServerStore:
    """All indexes on one server whose collections begin with the prefix of the settings."""

    shared = True

    def __init__(self, client: QdrantClient, settings: QdrantSettings | None = None) -> None:
        self._server = Server(client, settings or QdrantSettings())

    def create(self, name: str, config: StoreConfig) -> None:
        collection = self._collection(name)
        if self._server.ask(name, lambda client, _: client.collection_exists(collection)):
            raise IndexExists(f"there is an index {name!r} on the server already; drop it first")
        self._server.once(name, lambda client: client.create_collection(collection, **creation_arguments(config)))
        try:
            if _config_of(self._info(name)) is None:
                raise StoreError(
                    "the Qdrant server is too old: it keeps no metadata of collections; 1.16 or later does"
                )
            self._index_payload(name, config, known=())
        except StoreError as error:
            if not error.retry:  # refused for good: nothing is left behind
                self._server.ask(name, lambda client, seconds: client.delete_collection(collection, timeout=seconds))
            raise

    def open(self, name: str) -> QdrantServerIndex:
        info = self._info(name)
        config = _config_of(info)
        if config is None:
            raise _not_ours(self._collection(name))
        _check_vectors(name, info, config)
        shape = Shape.of(info, self._server.settings)
        self._index_payload(name, config, known=info.payload_schema)  # a crash may have cut `create` short
        return QdrantServerIndex(name, self._server, self._collection(name), config, shape)

    def drop(self, name: str) -> None:
        try:
            if CONFIG_KEY not in (self._info(name).config.metadata or {}):
                raise _not_ours(self._collection(name))
        except IndexMissing:
            return
        collection = self._collection(name)
        self._server.ask(name, lambda client, seconds: client.delete_collection(collection, timeout=seconds))

    def names(self) -> list[str]:
        prefix = self._server.settings.prefix
        found = self._server.ask("*", lambda client, _: client.get_collections().collections)
        return sorted(one.name.removeprefix(prefix) for one in found if one.name.startswith(prefix))

    def _collection(self, name: str) -> str:
        return self._server.settings.prefix + check_name(name)

    def _info(self, name: str) -> models.CollectionInfo:
        collection = self._collection(name)
        return self._server.ask(name, lambda client, _: client.get_collection(collection))

    def _index_payload(self, name: str, config: StoreConfig, known: Mapping[str, Any] | tuple[()]) -> None:
        there = {plain_path(field) for field in known}
        for field, schema in payload_indexes(config).items():
            if field not in there:
                self._index_field(name, field, schema)

    def _index_field(self, name: str, field: str, schema: Any) -> None:
        collection, writing = self._collection(name), self._server.writing
        self._server.ask(
            name,
            lambda client, seconds: client.create_payload_index(
                collection, field, field_schema=schema, timeout=seconds, **writing
            ),
        )


class QdrantServerIndex:
    """OpenIndex over one collection. Closing it lets go of nothing, since nothing is owned."""

    def __init__(self, name: str, server: Server, collection: str, config: StoreConfig, shape: Shape) -> None:
        self._name = name
        self._server = server
        self._collection = collection
        self._config = config
        self._shape = shape
        self._closed = False

    @property
    def config(self) -> StoreConfig:
        return self._config

    def stored_config(self) -> StoreConfig:
        found = _config_of(self._ask(lambda client, _: client.get_collection(self._collection)))
        if found is None:
            raise _not_ours(self._collection)
        return found

    @property
    def lost(self) -> bool:
        return False  # every call names the collection anew

    def upsert(self, points: Sequence[Point]) -> None:
        check(points, self._config.dimension)
        for part in self._requests([to_qdrant(point) for point in points]):
            self._write("upsert", part)

    def set_payload(self, payloads: Mapping[str, Mapping[str, Any]]) -> None:
        for part in self._requests([overwrite(id_, payload) for id_, payload in payloads.items() if is_id(id_)]):
            self._write("batch_update_points", part)

    def delete(self, ids: Sequence[str]) -> None:
        for part in batches([id_ for id_ in ids if is_id(id_)], self._server.settings.batch_points):
            self._write("delete", models.PointIdsList(points=list(part)))

    def search_dense(self, vector: Vector, k: int, where: Filter | None = None) -> list[Scored]:
        return self._search(np.asarray(vector, np.float32).tolist(), DENSE, k, where)

    def search_lexical(self, vector: SparseVector, k: int, where: Filter | None = None) -> list[Scored]:
        return self._search(sparse(vector), LEXICAL, k, where) if vector.indices else []

    def _search(self, query: Any, using: str, k: int, where: Filter | None) -> list[Scored]:
        condition, params = compile_filter(where, _WORDS), self._shape.search_params(using)
        deadline, most = self._server.deadline(), self._shape.most_hits
        if most is not None and k > most:
            raise InvalidInput(
                f"the Qdrant server's strict mode returns at most {most} points, {k} were asked for; ask for fewer, or "
                "raise the collection's max_query_limit",
                field="k",
            )

        def ask(limit: int) -> list[Scored]:
            answer = self._ask(
                lambda client, seconds: client.query_points(
                    self._collection,
                    query=query,
                    using=using,
                    query_filter=condition,
                    search_params=params,
                    limit=limit,
                    with_payload=False,
                    timeout=seconds,
                    **self._server.reading,
                ),
                deadline,
            )
            return [Scored(id=str(point.id), score=point.score) for point in answer.points]

        return with_ties(ask, k, most)

    def get(self, ids: Sequence[str], *, with_vectors: bool = False) -> dict[str, StoredPoint]:
        found: dict[str, StoredPoint] = {}
        for part in batches([id_ for id_ in ids if is_id(id_)], self._server.settings.batch_points):
            records = self._retrieve(list(part), with_payload=HASHES, with_vectors=[DENSE] if with_vectors else False)
            found.update((str(record.id), from_qdrant(record)) for record in records)
        return found

    def read(self, ids: Sequence[str]) -> dict[str, Point]:
        found: dict[str, Point] = {}
        for part in batches([id_ for id_ in ids if is_id(id_)], self._server.settings.batch_points):
            records = self._retrieve(list(part), with_payload=True, with_vectors=True)
            found.update((str(record.id), whole(str(record.id), record.payload, record.vector)) for record in records)
        return found

    def _retrieve(self, ids: list[str], **what: Any) -> list[models.Record]:
        return self._ask(
            lambda client, seconds: client.retrieve(
                self._collection, ids, timeout=seconds, **what, **self._server.reading
            )
        )

    def scan(self, *, with_vectors: bool = False, batch: int = 1000) -> Iterator[StoredPoint]:
        """In the order of the server, which scrolls by id: as numbers, as which our ids sort like their texts."""
        offset: Any = None
        while True:
            records, offset = self._page(offset, min(batch, self._shape.most_hits or batch), with_vectors)
            yield from map(from_qdrant, records)
            if offset is None:
                return

    def _page(self, offset: Any, limit: int, with_vectors: bool) -> tuple[list[models.Record], Any]:
        return self._ask(
            lambda client, seconds: client.scroll(
                self._collection,
                limit=limit,
                offset=offset,
                with_payload=HASHES,
                with_vectors=[DENSE] if with_vectors else False,
                timeout=seconds,
                **self._server.reading,
            )
        )

    def count(self) -> int:
        """One copy's number: the client asks for it without a consistency."""
        return self._ask(lambda client, seconds: client.count(self._collection, exact=True, timeout=seconds)).count

    def flush(self) -> None:
        """Nothing to do: a write that was waited for is in the server's write-ahead log, and what is in there "will not
        be lost even if a power loss occurs" (Qdrant's documentation). The server syncs that log to its disk every
        `flush_interval_sec` (5 s); what a power cut of the only copy may take before that, other copies keep, and
        `nvr-rag verify --repair` brings back from the corpus log."""
        self._alive()

    def info(self) -> StoreInfo:
        """A server does not tell how large a collection is on its disk."""
        return StoreInfo(points=self.count(), bytes_on_disk=None)

    def optimize(self, stop: threading.Event | None = None) -> bool:
        """A server does it by itself, all the time."""
        return False

    def scrub(self, stop: threading.Event | None = None) -> None:
        """Its optimiser rewrites segments in its own time; an index that is compacted is written anew at once."""

    def close(self) -> None:
        self._closed = True

    def _alive(self) -> None:
        if self._closed:
            raise IndexClosed(f"index {self._name!r} is closed; open it again")

    def _ask(self, work: Callable[[QdrantClient, int], T], deadline: Deadline | None = None) -> T:
        self._alive()
        most = self._shape.most_seconds
        return self._server.ask(
            self._name, lambda client, seconds: work(client, min(seconds, most or seconds)), deadline
        )

    def _write(self, method: str, what: Any) -> None:
        """Call this method of the client, and see to it that the server has done what it was asked."""

        def acknowledged(client: QdrantClient, seconds: int) -> None:
            result = getattr(client, method)(self._collection, what, timeout=seconds, **self._server.writing)
            for one in result if isinstance(result, list) else [result]:
                if one.status != models.UpdateStatus.COMPLETED:
                    raise StoreUnavailable(
                        f"index {self._name!r}: the Qdrant server has taken a write but not applied it ({one.status})"
                    )

        self._ask(acknowledged)

    def _requests(self, items: Sequence[T]) -> Iterator[list[T]]:
        """As many at a time as the settings and strict mode allow."""
        settings = self._server.settings
        most = min(settings.batch_points, self._shape.most_points or settings.batch_points)
        return in_requests(items, most, settings.batch_bytes)


def _config_of(info: models.CollectionInfo) -> StoreConfig | None:
    """None for a collection that is not ours. Raises IndexMissing for ours when it can no longer be read."""
    kept = (info.config.metadata or {}).get(CONFIG_KEY)
    if kept is None:
        return None
    try:
        return StoreConfig(**kept)
    except TypeError as error:
        raise IndexMissing(f"the metadata of a collection are damaged ({error}); {missing('in it')}") from error


def _not_ours(collection: str) -> StoreError:
    return StoreError(
        f"the Qdrant collection {collection!r} was not made by nvr-rag and is left alone; set NVR_QDRANT__PREFIX to "
        "what no other collection begins with"
    )


def _check_vectors(name: str, info: models.CollectionInfo, config: StoreConfig) -> None:
    """Raise IndexMismatch unless the collection has the vectors that the index was made with."""
    dense: Any = info.config.params.vectors
    lexical = info.config.params.sparse_vectors or {}
    found = {key: (one.size, one.distance.value) for key, one in dense.items()} if isinstance(dense, dict) else dense
    found_idf = {key: one.modifier == models.Modifier.IDF for key, one in lexical.items()}
    if found != {DENSE: (config.dimension, models.Distance.DOT.value)} or found_idf != {LEXICAL: True}:
        raise IndexMismatch(
            f"the Qdrant collection of the index {name!r} has the vectors {found} and {sorted(found_idf)}, not one "
            f"{DENSE!r} of {config.dimension} numbers compared by inner product and one {LEXICAL!r} with IDF; "
            "run nvr-rag verify --repair to rebuild it"
        )
