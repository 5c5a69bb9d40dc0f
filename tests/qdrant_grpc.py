"""The gRPC side of the stand-in for a Qdrant server: every call that our stores make, answered as its REST twin is.

    with StandIn() as server, GrpcStandIn(server) as grpc_server:
        connect(QdrantSettings(url=server.url, grpc=True, grpc_port=grpc_server.port))

Messages are translated by the client's own converters, so what a test sees has crossed the wire in both directions.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any

import grpc  # type: ignore[import-untyped]
from qdrant_client import grpc as q
from qdrant_client import models
from qdrant_client.conversions.conversion import GrpcToRest, RestToGrpc
from qdrant_client.grpc.collections_service_pb2_grpc import CollectionsServicer, add_CollectionsServicer_to_server
from qdrant_client.grpc.points_service_pb2_grpc import PointsServicer, add_PointsServicer_to_server

from tests.qdrant_rest import Refused
from tests.qdrant_stand_in import StandIn

_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    404: grpc.StatusCode.NOT_FOUND,
    409: grpc.StatusCode.ALREADY_EXISTS,
}


class GrpcStandIn:
    """Listens on a port of its own for as long as it is entered."""

    def __init__(self, stand_in: StandIn) -> None:
        self.stand_in = stand_in
        self.failure: tuple[grpc.StatusCode, str] | None = None  # of every call from now on
        self._server = grpc.server(ThreadPoolExecutor(4))
        self.port = int(self._server.add_insecure_port("127.0.0.1:0"))
        add_CollectionsServicer_to_server(_Collections(self), self._server)  # type: ignore[no-untyped-call]
        add_PointsServicer_to_server(_Points(self), self._server)  # type: ignore[no-untyped-call]

    def __enter__(self) -> GrpcStandIn:
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.stop(None).wait()

    def answer(self, context: Any, method: str, path: str, body: Any = None) -> Any:
        """The result of the REST twin, or an end with its status."""
        sent = dict(context.invocation_metadata()).get("api-key")
        if self.stand_in.api_key not in (None, sent):
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "Invalid API key or JWT")
        if self.failure is not None:
            context.abort(*self.failure)
        try:
            return self.stand_in.answer(method, f"/collections{path}", _plain(body))
        except Refused as refused:
            context.abort(_CODES[refused.status], str(refused))


class _Collections(CollectionsServicer):
    def __init__(self, server: GrpcStandIn) -> None:
        self._server = server

    def CollectionExists(self, request: Any, context: Any) -> Any:  # noqa: N802
        found = self._server.answer(context, "GET", f"/{request.collection_name}/exists")
        return q.CollectionExistsResponse(result=q.CollectionExists(exists=found["exists"]))

    def List(self, request: Any, context: Any) -> Any:  # noqa: N802
        found = self._server.answer(context, "GET", "")["collections"]
        return q.ListCollectionsResponse(collections=[q.CollectionDescription(**one) for one in found])

    def Get(self, request: Any, context: Any) -> Any:  # noqa: N802
        found = self._server.answer(context, "GET", f"/{request.collection_name}")
        info = models.CollectionInfo.model_validate(found)
        return q.GetCollectionInfoResponse(result=RestToGrpc.convert_collection_info(info))

    def Create(self, request: Any, context: Any) -> Any:  # noqa: N802
        body = {
            "vectors": GrpcToRest.convert_vectors_config(request.vectors_config),
            "sparse_vectors": GrpcToRest.convert_sparse_vector_config(request.sparse_vectors_config),
            "metadata": GrpcToRest.convert_payload(request.metadata),
            "optimizers_config": GrpcToRest.convert_optimizers_config_diff(request.optimizers_config),
        }
        for name in ("shard_number", "replication_factor", "write_consistency_factor", "on_disk_payload"):
            if request.HasField(name):
                body[name] = getattr(request, name)
        if request.HasField("hnsw_config"):
            body["hnsw_config"] = GrpcToRest.convert_hnsw_config_diff(request.hnsw_config)
        if request.HasField("quantization_config"):
            body["quantization_config"] = GrpcToRest.convert_quantization_config(request.quantization_config)
        done = self._server.answer(context, "PUT", f"/{request.collection_name}", body)
        return q.CollectionOperationResponse(result=done)

    def Delete(self, request: Any, context: Any) -> Any:  # noqa: N802
        done = self._server.answer(context, "DELETE", f"/{request.collection_name}")
        return q.CollectionOperationResponse(result=done)


class _Points(PointsServicer):
    def __init__(self, server: GrpcStandIn) -> None:
        self._server = server

    def CreateFieldIndex(self, request: Any, context: Any) -> Any:  # noqa: N802
        kinds = {q.FieldType.FieldTypeKeyword: "keyword", q.FieldType.FieldTypeFloat: "float"}
        schema: Any = kinds.get(request.field_type, "bool")
        if request.HasField("field_index_params"):
            schema = GrpcToRest.convert_payload_schema_params(request.field_index_params)
        body = {"field_name": request.field_name, "field_schema": schema}
        return self._done(self._server.answer(context, "PUT", f"/{request.collection_name}/index", body))

    def Upsert(self, request: Any, context: Any) -> Any:  # noqa: N802
        body = {"points": [GrpcToRest.convert_point_struct(point) for point in request.points]}
        return self._done(self._server.answer(context, "PUT", f"/{request.collection_name}/points", body))

    def Delete(self, request: Any, context: Any) -> Any:  # noqa: N802
        body = GrpcToRest.convert_points_selector(request.points)
        return self._done(self._server.answer(context, "POST", f"/{request.collection_name}/points/delete", body))

    def UpdateBatch(self, request: Any, context: Any) -> Any:  # noqa: N802
        body = {"operations": [_overwrite(one.overwrite_payload) for one in request.operations]}
        done = self._server.answer(context, "POST", f"/{request.collection_name}/points/batch", body)
        return q.UpdateBatchResponse(result=[_COMPLETED for _ in done])

    def Get(self, request: Any, context: Any) -> Any:  # noqa: N802
        body = {"ids": [GrpcToRest.convert_point_id(id_) for id_ in request.ids], **_wanted(request)}
        found = self._server.answer(context, "POST", f"/{request.collection_name}/points", body)
        return q.GetResponse(result=[RestToGrpc.convert_retrieved_point(one) for one in found])

    def Scroll(self, request: Any, context: Any) -> Any:  # noqa: N802
        body: dict[str, Any] = {"limit": request.limit, **_wanted(request)}
        if request.HasField("offset"):
            body["offset"] = GrpcToRest.convert_point_id(request.offset)
        found = self._server.answer(context, "POST", f"/{request.collection_name}/points/scroll", body)
        after = found["next_page_offset"]
        return q.ScrollResponse(
            result=[RestToGrpc.convert_retrieved_point(one) for one in found["points"]],
            next_page_offset=None if after is None else RestToGrpc.convert_extended_point_id(after),
        )

    def Count(self, request: Any, context: Any) -> Any:  # noqa: N802
        found = self._server.answer(context, "POST", f"/{request.collection_name}/points/count", {"exact": True})
        return q.CountResponse(result=RestToGrpc.convert_count_result(found))

    def Query(self, request: Any, context: Any) -> Any:  # noqa: N802
        body = {
            "query": GrpcToRest.convert_query(request.query),
            "using": request.using,
            "limit": request.limit,
            "filter": GrpcToRest.convert_filter(request.filter) if request.HasField("filter") else None,
            "params": GrpcToRest.convert_search_params(request.params) if request.HasField("params") else None,
        }
        found = self._server.answer(context, "POST", f"/{request.collection_name}/points/query", body)
        return q.QueryResponse(result=[RestToGrpc.convert_scored_point(one) for one in found.points])

    def _done(self, _result: Any) -> Any:
        return q.PointsOperationResponse(result=_COMPLETED)


_COMPLETED = q.UpdateResult(operation_id=0, status=q.UpdateStatus.Completed)


def _overwrite(operation: Any) -> dict[str, Any]:
    """The only kind of operation that our stores send in a batch."""
    only = GrpcToRest.convert_filter(operation.points_selector.filter)
    return {"overwrite_payload": {"payload": GrpcToRest.convert_payload(operation.payload), "filter": only}}


def _wanted(request: Any) -> dict[str, Any]:
    return {
        "with_payload": GrpcToRest.convert_with_payload_interface(request.with_payload),
        "with_vector": GrpcToRest.convert_with_vectors_selector(request.with_vectors),
    }


def _plain(value: Any) -> Any:
    """What a body is made of as JSON would have it."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return value.model_dump(mode="json", exclude_none=True) if hasattr(value, "model_dump") else value
