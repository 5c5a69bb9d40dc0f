"""What a Qdrant server of version 1.19 answers to the REST requests that our stores make: a method, a path and a body
go in, a result or a Refused comes out. The points are in the Python client's local mode; this module adds what that
leaves out: payload indexes, the settings of a collection, strict mode, and the server's own words and status codes.

It knows no socket, no key and no fault. Not safe for threads: its caller has the lock.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter, ValidationError
from qdrant_client import models
from qdrant_client.local.qdrant_local import QdrantLocal

VERSION = "1.19.0"
_INSERT: TypeAdapter[Any] = TypeAdapter(models.PointInsertOperations)
_SELECTOR: TypeAdapter[Any] = TypeAdapter(models.PointsSelector)
_DONE = {"operation_id": 0, "status": "completed"}


class Refused(Exception):
    """An answer with an error: status code and the server's words."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(kw_only=True, slots=True)
class _Made:
    """What the local mode does not keep of a collection."""

    request: models.CreateCollection
    indexes: dict[str, dict[str, Any]] = field(default_factory=dict)  # by field: data_type and params
    strict: dict[str, Any] = field(default_factory=dict)


class Rest:
    """The collections of one server, in memory."""

    def __init__(self, strict_mode: Mapping[str, Any] | None = None) -> None:
        """`strict_mode` is what new collections get, as the configuration of a server can say."""
        self._local = QdrantLocal(":memory:")
        self._default_strict = dict(strict_mode or {})
        self._made: dict[str, _Made] = {}

    def answer(self, method: str, path: str, query: Mapping[str, str], body: Any) -> Any:
        """The "result" of an answer. Raises Refused."""
        for allowed, pattern, handler in _ROUTES:
            found = pattern.fullmatch(path)
            if found and method == allowed:
                try:
                    return handler(self, *found.groups(), body=body, query=query)
                except ValidationError as error:
                    raise Refused(400, f"Format error in JSON body: {error.errors()[0]['msg']}") from error
                except KeyError as error:
                    raise Refused(404, f"Not found: No point with id {error.args[0]} found") from error
                except ValueError as error:
                    raise Refused(400, f"Wrong input: {str(error).removeprefix('Wrong input: ')}") from error
        raise Refused(404, "")

    def lose(self, name: str) -> bool:
        """Drop a collection as a broken disk does: unasked. False when there is none."""
        self._made.pop(name, None)
        return self._local.delete_collection(name)

    def names(self) -> list[str]:
        return sorted(self._made)

    # -- collections ---------------------------------------------------------------------------------------------------

    def _list(self, *, body: Any, query: Any) -> Any:
        return {"collections": [{"name": name} for name in self.names()]}

    def _exists(self, name: str, *, body: Any, query: Any) -> Any:
        return {"exists": name in self._made}

    def _create(self, name: str, *, body: Any, query: Any) -> Any:
        request = models.CreateCollection.model_validate(body)
        if name in self._made:
            raise Refused(409, f"Wrong input: Collection `{name}` already exists!")
        self._local.create_collection(
            name,
            vectors_config=request.vectors,
            sparse_vectors_config=request.sparse_vectors,
            metadata=request.metadata,
        )
        strict = request.strict_mode_config.model_dump(exclude_none=True) if request.strict_mode_config else {}
        self._made[name] = _Made(request=request, strict=self._default_strict | strict)
        return True

    def _update(self, name: str, *, body: Any, query: Any) -> Any:
        made = self._of(name)
        diff = models.UpdateCollection.model_validate(body)
        if diff.strict_mode_config:
            made.strict.update(diff.strict_mode_config.model_dump(exclude_none=True))
        if diff.metadata:
            self._local.update_collection(name, metadata=diff.metadata)
        return True

    def _delete(self, name: str, *, body: Any, query: Any) -> Any:
        return self.lose(name)

    def _info(self, name: str, *, body: Any, query: Any) -> Any:
        made = self._of(name)
        info = self._local.get_collection(name).model_dump(mode="json", exclude_none=True)
        points = info["points_count"]
        info["payload_schema"] = {key: {**index, "points": points} for key, index in made.indexes.items()}
        info["update_queue"] = {"length": 0}
        request = made.request.model_dump(mode="json", exclude_none=True)
        config, params = info["config"], info["config"]["params"]
        for key, default in (("shard_number", 1), ("replication_factor", 1), ("write_consistency_factor", 1)):
            params[key] = request.get(key, default)
        params["on_disk_payload"] = request.get("on_disk_payload", True)
        config["hnsw_config"] |= request.get("hnsw_config", {})
        config["optimizer_config"] |= request.get("optimizers_config", {})
        config["quantization_config"] = request.get("quantization_config")
        config["strict_mode_config"] = {"enabled": False} | made.strict
        return info

    def _create_index(self, name: str, *, body: Any, query: Any) -> Any:
        made = self._of(name)
        index = models.CreateFieldIndex.model_validate(body)
        schema = index.field_schema
        if schema is None:
            raise Refused(400, "Bad request: field_schema is missing and could not be inferred")
        key, limit = _plain(index.field_name), self._strict(name).get("max_payload_index_count")
        if limit is not None and key not in made.indexes and len(made.indexes) >= limit:
            raise _strict(
                f"Collection already contains the maximum number of payload indices ({limit})",
                "Please delete an existing index before creating a new one.",
            )
        if isinstance(schema, models.PayloadSchemaType):
            made.indexes[key] = {"data_type": schema.value}
        else:
            params = schema.model_dump(mode="json", exclude_none=True)
            made.indexes[key] = {"data_type": params["type"], "params": params}
        return _DONE

    def _delete_index(self, name: str, key: str, *, body: Any, query: Any) -> Any:
        self._of(name).indexes.pop(_plain(key), None)
        return _DONE

    # -- points --------------------------------------------------------------------------------------------------------

    def _upsert(self, name: str, *, body: Any, query: Any) -> Any:
        request = _INSERT.validate_python(body)
        points = request.batch if isinstance(request, models.PointsBatch) else request.points
        self._check_upsert(name, points)
        self._local.upsert(name, points)
        return _DONE

    def _delete_points(self, name: str, *, body: Any, query: Any) -> Any:
        selector = _SELECTOR.validate_python(body)
        if isinstance(selector, models.FilterSelector):
            self._check_filter(name, selector.filter, "unindexed_filtering_update")
        self._of(name)
        self._local.delete(name, selector)
        return _DONE

    def _batch(self, name: str, *, body: Any, query: Any) -> Any:
        request = models.UpdateOperations.model_validate(body)
        self._of(name)
        for operation in request.operations:
            if isinstance(operation, models.UpsertOperation) and isinstance(operation.upsert, models.PointsList):
                self._check_upsert(name, operation.upsert.points)
            if isinstance(operation, models.OverwritePayloadOperation):
                self._check_filter(name, operation.overwrite_payload.filter, "unindexed_filtering_update")
        self._local.batch_update_points(name, request.operations)
        return [_DONE for _ in request.operations]

    def _overwrite(self, name: str, *, body: Any, query: Any) -> Any:
        request = models.SetPayload.model_validate(body)
        self._of(name)
        operation = models.OverwritePayloadOperation(overwrite_payload=request)
        self._local.batch_update_points(name, [operation])
        return _DONE

    def _retrieve(self, name: str, *, body: Any, query: Any) -> Any:
        request = models.PointRequest.model_validate(body)
        self._of(name)
        return self._local.retrieve(
            name,
            request.ids,
            with_payload=True if request.with_payload is None else request.with_payload,
            with_vectors=request.with_vector or False,
        )

    def _scroll(self, name: str, *, body: Any, query: Any) -> Any:
        request = models.ScrollRequest.model_validate(body)
        self._check_read(name, request.limit or 10, request.filter)
        points, offset = self._local.scroll(
            name,
            scroll_filter=request.filter,
            limit=request.limit or 10,
            order_by=request.order_by,
            offset=request.offset,
            with_payload=True if request.with_payload is None else request.with_payload,
            with_vectors=request.with_vector or False,
        )
        return {"points": points, "next_page_offset": offset}

    def _count(self, name: str, *, body: Any, query: Any) -> Any:
        request = models.CountRequest.model_validate(body)
        self._check_read(name, None, request.filter)
        return self._local.count(name, count_filter=request.filter)

    def _query(self, name: str, *, body: Any, query: Any) -> Any:
        return self._ask(name, models.QueryRequest.model_validate(body))

    def _query_batch(self, name: str, *, body: Any, query: Any) -> Any:
        request = models.QueryRequestBatch.model_validate(body)
        limit = self._strict(name).get("search_max_batchsize")
        _check_limit(len(request.searches), limit, "search batch size")
        return [self._ask(name, search) for search in request.searches]

    def _ask(self, name: str, request: models.QueryRequest) -> Any:
        limit = 10 if request.limit is None else request.limit
        self._check_read(name, limit, request.filter)
        self._check_params(name, request.params)
        query: Any = request.query
        return self._local.query_points(
            name,
            query=query,
            using=request.using,
            prefetch=request.prefetch,
            query_filter=request.filter,
            limit=limit,
            offset=request.offset,
            with_payload=request.with_payload or False,
            with_vectors=request.with_vector or False,
            score_threshold=request.score_threshold,
        )

    # -- what is refused -----------------------------------------------------------------------------------------------

    def _of(self, name: str) -> _Made:
        made = self._made.get(name)
        if made is None:
            raise Refused(404, f"Not found: Collection `{name}` doesn't exist!")
        return made

    def _strict(self, name: str) -> dict[str, Any]:
        """The limits of strict mode that are in force."""
        strict = self._of(name).strict
        return strict if strict.get("enabled") else {}

    def _check_upsert(self, name: str, points: Any) -> None:
        size = len(points.ids) if isinstance(points, models.Batch) else len(points)
        _check_limit(size, self._strict(name).get("upsert_max_batchsize"), "upsert limit")

    def _check_read(self, name: str, limit: int | None, where: models.Filter | None) -> None:
        if limit is not None:
            _check_limit(limit, self._strict(name).get("max_query_limit"), "limit")
        self._check_filter(name, where, "unindexed_filtering_retrieve")

    def _check_params(self, name: str, params: models.SearchParams | None) -> None:
        strict = self._strict(name)
        if params and params.exact and strict.get("search_allow_exact") is False:
            raise _strict("Exact search disabled!", "Set exact=false.")
        oversampling = params.quantization.oversampling if params and params.quantization else None
        if oversampling is not None:
            _check_limit(oversampling, strict.get("search_max_oversampling"), "oversampling")
        if params and params.hnsw_ef is not None:
            _check_limit(params.hnsw_ef, strict.get("search_max_hnsw_ef"), "hnsw_ef")

    def _check_filter(self, name: str, where: models.Filter | None, rule: str) -> None:
        strict = self._strict(name)
        conditions = list(_conditions(where))
        for condition in conditions if strict.get(rule) is False else ():
            key = getattr(condition, "key", None)
            if key is not None and _plain(key) not in self._of(name).indexes:
                raise _strict(
                    f'Index required but not found for "{_plain(key)}" of one of the following types: [keyword]',
                    "Create an index for this key or use a different filter.",
                )
        limit = strict.get("filter_max_conditions")
        if limit is not None and len(conditions) > limit:
            raise _strict(
                f"Filter condition limit reached ({len(conditions)} > {limit})",
                "Reduce the amount of conditions of your filter.",
            )
        size, most = max(map(_size, conditions), default=0), strict.get("condition_max_size")
        if most is not None and size > most:
            raise _strict(f"Condition size limit reached ({size} > {most})", "Reduce the size of your condition.")


def _plain(path: str) -> str:
    """A path as the server writes it: parts that need no quotes have none."""
    return re.sub(r'"([\w-]+)"', r"\1", path)


def _strict(problem: str, remedy: str) -> Refused:
    return Refused(400, f"Bad request: {problem}. Help: {remedy}")


def _check_limit(value: float, limit: float | None, name: str) -> None:
    if limit is not None and value > limit:
        raise _strict(
            f'Limit exceeded {value} > {limit} for "{name}"', f'Reduce the "{name}" parameter to or below {limit}.'
        )


def _conditions(where: models.Filter | None) -> Iterator[Any]:
    """The leaves of a filter."""
    for group in (where.must, where.should, where.must_not) if where else ():
        for condition in group if isinstance(group, list) else [group] if group else []:
            if isinstance(condition, models.Filter):
                yield from _conditions(condition)
            else:
                yield condition


def _size(condition: Any) -> int:
    """How many values a condition lists."""
    match = getattr(condition, "match", None)
    if isinstance(match, models.MatchAny):
        return len(match.any)
    return len(condition.has_id) if isinstance(condition, models.HasIdCondition) else 0


_NAME = "/collections/([^/]+)"
_ROUTES: list[tuple[str, re.Pattern[str], Callable[..., Any]]] = [
    (method, re.compile(pattern), handler)
    for method, pattern, handler in (
        ("GET", "/collections", Rest._list),
        ("GET", f"{_NAME}/exists", Rest._exists),
        ("PUT", _NAME, Rest._create),
        ("PATCH", _NAME, Rest._update),
        ("DELETE", _NAME, Rest._delete),
        ("GET", _NAME, Rest._info),
        ("PUT", f"{_NAME}/index", Rest._create_index),
        ("DELETE", f"{_NAME}/index/([^/]+)", Rest._delete_index),
        ("PUT", f"{_NAME}/points", Rest._upsert),
        ("POST", f"{_NAME}/points", Rest._retrieve),
        ("POST", f"{_NAME}/points/delete", Rest._delete_points),
        ("POST", f"{_NAME}/points/batch", Rest._batch),
        ("PUT", f"{_NAME}/points/payload", Rest._overwrite),
        ("POST", f"{_NAME}/points/scroll", Rest._scroll),
        ("POST", f"{_NAME}/points/count", Rest._count),
        ("POST", f"{_NAME}/points/query", Rest._query),
        ("POST", f"{_NAME}/points/query/batch", Rest._query_batch),
    )
]
