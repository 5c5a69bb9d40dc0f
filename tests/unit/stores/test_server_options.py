"""From settings to what a Qdrant server is told, and from its limits to how it is asked."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import SecretStr, ValidationError
from qdrant_client import QdrantClient, models

from nvr_rag.errors import StoreError
from nvr_rag.settings import QdrantSettings
from nvr_rag.stores.base import Scored, StoreConfig
from nvr_rag.stores.points import DENSE, LEXICAL, with_ties
from nvr_rag.stores.server_options import Shape, creation, creation_arguments, payload_indexes
from nvr_rag.stores.server_points import in_requests, overwrite, to_qdrant
from tests.contract.store_cases import point, terms


def made_with(**settings: Any) -> StoreConfig:
    return StoreConfig(dimension=4, encoder="e", settings=creation(QdrantSettings(**settings)))


# -- creation ----------------------------------------------------------------------------------------------------------


def test_what_is_left_to_the_server_is_not_recorded() -> None:
    assert creation(QdrantSettings()) == {
        "quantization": "none",
        "quantized_in_ram": True,
        "vectors_on_disk": False,
        "payload_on_disk": True,
        "hnsw_on_disk": False,
        "metadata_indexes": {},
    }


@pytest.mark.parametrize(("copies", "enough"), [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3)])
def test_more_than_half_of_the_copies_must_have_a_write(copies: int, enough: int) -> None:
    assert creation(QdrantSettings(replication_factor=copies))["write_consistency_factor"] == enough
    chosen = QdrantSettings(replication_factor=copies, write_consistency_factor=1)
    assert creation(chosen)["write_consistency_factor"] == 1


def test_an_index_without_settings_is_made_as_the_server_likes() -> None:
    arguments = creation_arguments(StoreConfig(dimension=4, encoder="e"))
    assert set(arguments) == {"vectors_config", "sparse_vectors_config", "metadata", "optimizers_config"}
    assert arguments["vectors_config"] == {DENSE: models.VectorParams(size=4, distance=models.Distance.DOT)}
    assert arguments["sparse_vectors_config"] == {LEXICAL: models.SparseVectorParams(modifier=models.Modifier.IDF)}


def test_new_points_are_never_hidden_until_they_are_indexed() -> None:
    assert creation_arguments(made_with())["optimizers_config"].prevent_unoptimized is False


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"quantization": "int8"}, {"scalar": {"type": "int8", "always_ram": True}}),
        ({"quantization": "int8", "quantized_in_ram": False}, {"scalar": {"type": "int8", "always_ram": False}}),
        ({"quantization": "binary"}, {"binary": {"always_ram": True}}),
    ],
)
def test_quantization(settings: dict[str, Any], expected: dict[str, Any]) -> None:
    quantized = creation_arguments(made_with(**settings))["quantization_config"]
    assert quantized.model_dump(mode="json", exclude_none=True) == expected


def test_memory_and_shards() -> None:
    arguments = creation_arguments(
        made_with(vectors_on_disk=True, payload_on_disk=False, hnsw_on_disk=True, shard_number=6, replication_factor=3)
    )
    assert arguments["vectors_config"][DENSE].on_disk is True
    assert arguments["sparse_vectors_config"][LEXICAL].index.on_disk is True
    assert arguments["on_disk_payload"] is False
    assert arguments["hnsw_config"].on_disk is True
    assert [arguments[f] for f in ("shard_number", "replication_factor", "write_consistency_factor")] == [6, 3, 2]
    assert "quantization_config" not in arguments


# -- payload indexes ---------------------------------------------------------------------------------------------------


def tenants(config: StoreConfig) -> list[str]:
    return [key for key, schema in payload_indexes(config).items() if getattr(schema, "is_tenant", False)]


def test_every_field_of_the_filter_language_has_an_index_and_permissions_partition() -> None:
    config = made_with()
    fields = {"document_id", "uri", "source", "title", "media_type", "updated_at", "acl"}
    assert set(payload_indexes(config)) == fields
    assert tenants(config) == ["acl"]


def test_a_declared_tenant_takes_the_place_of_the_permissions() -> None:
    config = made_with(
        metadata_indexes={"team": "tenant", "year": "number", "owner.name": "keyword", "done": "boolean"}
    )
    assert tenants(config) == ["metadata.team"]
    indexes = payload_indexes(config)
    assert indexes["metadata.year"] == models.PayloadSchemaType.FLOAT
    assert indexes["metadata.owner.name"] == models.PayloadSchemaType.KEYWORD
    assert indexes["metadata.done"] == models.PayloadSchemaType.BOOL
    assert indexes["acl"] == models.PayloadSchemaType.KEYWORD


# -- how a collection is asked -----------------------------------------------------------------------------------------


def info(quantized: Any = None, **strict: Any) -> models.CollectionInfo:
    client = QdrantClient(":memory:")
    client.create_collection("c", vectors_config=models.VectorParams(size=2, distance=models.Distance.DOT))
    found = client.get_collection("c")
    client.close()
    found.config.quantization_config = quantized
    found.config.strict_mode_config = models.StrictModeConfigOutput(**strict) if strict else None
    return found


INT8 = models.ScalarQuantization(scalar=models.ScalarQuantizationConfig(type=models.ScalarType.INT8))
BINARY = models.BinaryQuantization(binary=models.BinaryQuantizationConfig())


def test_vectors_that_are_not_quantized_are_searched_plainly() -> None:
    shape = Shape.of(info(), QdrantSettings())
    assert shape == Shape()
    assert shape.search_params(DENSE) is None


@pytest.mark.parametrize(
    ("quantized", "setting", "factor"), [(INT8, None, 2.0), (BINARY, None, 4.0), (BINARY, 8.0, 8.0), (INT8, 1.0, 1.0)]
)
def test_quantized_candidates_are_compared_again(quantized: Any, setting: float | None, factor: float) -> None:
    params = Shape.of(info(quantized), QdrantSettings(oversampling=setting)).search_params(DENSE)
    assert params is not None
    assert params.quantization is not None
    assert (params.quantization.rescore, params.quantization.oversampling) == (True, factor)
    assert params.indexed_only is False
    assert Shape.of(info(quantized), QdrantSettings()).search_params(LEXICAL) is None


def test_strict_mode_limits_only_while_it_is_on() -> None:
    limits: dict[str, Any] = {
        "max_query_limit": 5,
        "upsert_max_batchsize": 6,
        "max_timeout": 7,
        "search_max_oversampling": 1.5,
        "search_allow_exact": False,
    }
    off = Shape.of(info(BINARY, enabled=False, **limits), QdrantSettings(exact=True))
    assert off == Shape(oversampling=4.0, exact=True)
    on = Shape.of(info(BINARY, enabled=True, **limits), QdrantSettings())
    assert on == Shape(most_hits=5, most_points=6, most_seconds=7, oversampling=1.5)
    with pytest.raises(StoreError, match="NVR_QDRANT__EXACT"):
        Shape.of(info(enabled=True, **limits), QdrantSettings(exact=True))


def test_exact_searches_ignore_graphs_and_quantization() -> None:
    assert Shape(exact=True, oversampling=2.0).search_params(DENSE) == models.SearchParams(exact=True)
    assert Shape(exact=True).search_params(LEXICAL) is None


def test_ties_are_looked_for_as_far_as_a_store_lets_us() -> None:
    asked: list[int] = []

    def ask(limit: int) -> list[Any]:
        asked.append(limit)
        return [Scored(id=f"{n:03}", score=1.0) for n in range(limit)]

    assert len(with_ties(ask, 10, 12)) == 10
    assert asked == [12]
    assert len(with_ties(ask, 10, 10)) == 10
    assert asked == [12, 10]


# -- requests ----------------------------------------------------------------------------------------------------------


def test_requests_are_cut_by_count_and_by_bytes() -> None:
    points = [to_qdrant(point(n, lexical=terms(t1=1.0))) for n in range(10)]
    assert [len(part) for part in in_requests(points, 4, 10**6)] == [4, 4, 2]
    large = [to_qdrant(point(n, payload={"title": "x" * 1000})) for n in range(10)]
    assert [len(part) for part in in_requests(large, 100, 3 * 1250)] == [3, 3, 3, 1]
    assert [len(part) for part in in_requests(large, 100, 1)] == [1] * 10
    assert [entry.id for part in in_requests(large, 3, 10**6) for entry in part] == [entry.id for entry in large]
    assert list(in_requests([], 4, 4)) == []


def test_a_request_is_never_larger_than_it_was_thought_to_be() -> None:
    """The body of each request, as the client writes it, against the limit that it was cut for."""
    payload = {"title": "数据库" * 30, "metadata": {"ключ": [1, 2.5, None, True, 'a"b\n' * 20]}, "acl": ["p", "q"]}
    weights = terms(**{f"t{n}": 0.123456789 for n in range(40)})
    points = [to_qdrant(point(n, (0.1, -1 / 3, 1e-30, 12345.678), weights, payload)) for n in range(200)]
    parts = list(in_requests(points, 1000, 20_000))
    assert len(parts) > 10
    for part in parts:
        body = models.PointsList(points=part).model_dump_json(exclude_none=True).encode()
        assert len(body) <= 20_000
    operations = [overwrite(entry, payload) for entry in ("a", "b", "c")]
    assert [len(part) for part in in_requests(operations, 2, 10**6)] == [2, 1]


# -- settings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["localhost:6333", "ftp://host", "http://user:secret@host", "https://", "http://a b"])
def test_urls_that_are_none_or_hold_a_secret_are_refused(url: str) -> None:
    with pytest.raises(ValidationError):
        QdrantSettings(url=url)


@pytest.mark.parametrize("url", ["http://localhost:6333", "https://q.example.org", "http://[::1]:6333/qdrant"])
def test_urls(url: str) -> None:
    assert QdrantSettings(url=url).url == url


@pytest.mark.parametrize(("value", "expected"), [("majority", "majority"), ("2", 2), (3, 3), (None, None)])
def test_read_consistency(value: Any, expected: Any) -> None:
    assert QdrantSettings(read_consistency=value).read_consistency == expected


@pytest.mark.parametrize("key", ["secret-42\n", "secret-42\x00", "schlüssel-secret-42"])
def test_a_key_that_fits_no_header_is_refused_without_showing_it(key: str) -> None:
    with pytest.raises(ValidationError) as raised:
        QdrantSettings(api_key=SecretStr(key))
    assert "secret-42" not in str(raised.value)
    assert "no key has" in str(raised.value)


@pytest.mark.parametrize("field", ["metadata.year", "a b", 'a"b', "", "a..b", "a[0]"])
def test_metadata_indexes_name_fields_as_filters_do_without_the_prefix(field: str) -> None:
    with pytest.raises(ValidationError):
        QdrantSettings(metadata_indexes={field: "keyword"})
    QdrantSettings(metadata_indexes={"größe": "number", "a-b.c_d": "keyword"})
