"""From settings to what the Qdrant client is told, and from what a server says of a collection to what it allows.

    creation(settings)          what an index is made with, as JSON: recorded in its row and in its collection
    creation_arguments(config)  the same in the client's words
    payload_indexes(config)     the fields that filters may ask for, and their indexes
    make_client(settings)       a client, not yet connected
    Shape.of(info)              how a collection may be asked: strict mode, quantization

Payload indexes are made before the first point, since HNSW links for filtered searches are laid when the graph is built
and later only by building it again. A filter's own fields and the permissions are known beforehand; which metadata
documents will have, and of what type, is not, and an index has one type and a price: Qdrant leaves that choice to its
users, and so do we (`metadata_indexes`). Without one, filters on metadata work unless strict mode forbids them.

`acl` is the tenant index: permissions partition an index as nothing else does, unless a metadata field is declared to.
"""

from __future__ import annotations

import ssl
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qdrant_client import QdrantClient, models

from nvr_rag.errors import ConfigurationError, StoreError
from nvr_rag.filters import ACL
from nvr_rag.settings import QdrantSettings
from nvr_rag.stores.base import StoreConfig
from nvr_rag.stores.conditions import json_path
from nvr_rag.stores.points import DENSE, INDEXED, LEXICAL

CONFIG_KEY = "nvr_rag"  # of a collection's metadata
_PASSED_ON = ("shard_number", "replication_factor", "write_consistency_factor")
_AT_CREATION = (
    *_PASSED_ON,
    "quantization",
    "quantized_in_ram",
    "vectors_on_disk",
    "payload_on_disk",
    "hnsw_on_disk",
    "metadata_indexes",
)
_SCHEMAS = {
    "keyword": models.PayloadSchemaType.KEYWORD,
    "number": models.PayloadSchemaType.FLOAT,  # compared as doubles, however they are written
    "boolean": models.PayloadSchemaType.BOOL,
    "tenant": models.KeywordIndexParams(type=models.KeywordIndexType.KEYWORD, is_tenant=True),
}
_OVERSAMPLING = {"int8": 2.0, "binary": 4.0}


def creation(settings: QdrantSettings) -> dict[str, Any]:
    """What indexes are made with under these settings: names and JSON values; what is left to the server is absent."""
    values = settings.model_dump(mode="json", include=set(_AT_CREATION))
    copies = values["replication_factor"]
    if copies and not values["write_consistency_factor"]:
        values["write_consistency_factor"] = copies // 2 + 1  # what was acknowledged outlives any smaller half
    return {key: values[key] for key in _AT_CREATION if values[key] is not None}


def creation_arguments(config: StoreConfig) -> dict[str, Any]:
    """For `QdrantClient.create_collection`. Settings that an index does not name are left to the server."""
    wanted = config.settings
    on_disk = wanted.get("vectors_on_disk") or None
    dense = models.VectorParams(size=config.dimension, distance=models.Distance.DOT, on_disk=on_disk)
    terms = models.SparseIndexParams(on_disk=True) if on_disk else None
    arguments: dict[str, Any] = {
        "vectors_config": {DENSE: dense},
        "sparse_vectors_config": {LEXICAL: models.SparseVectorParams(modifier=models.Modifier.IDF, index=terms)},
        "metadata": {CONFIG_KEY: asdict(config)},
        # A server may be told to hide new points until they are indexed; what was written is to be found at once.
        "optimizers_config": models.OptimizersConfigDiff(prevent_unoptimized=False),
        **{key: wanted[key] for key in _PASSED_ON if key in wanted},
    }
    if "payload_on_disk" in wanted:
        arguments["on_disk_payload"] = wanted["payload_on_disk"]
    if wanted.get("hnsw_on_disk"):
        arguments["hnsw_config"] = models.HnswConfigDiff(on_disk=True)
    quantized = _quantization(wanted)
    return arguments if quantized is None else arguments | {"quantization_config": quantized}


def _quantization(wanted: Mapping[str, Any]) -> models.ScalarQuantization | models.BinaryQuantization | None:
    in_ram = bool(wanted.get("quantized_in_ram"))
    match wanted.get("quantization"):
        case "int8":
            scalar = models.ScalarQuantizationConfig(type=models.ScalarType.INT8, always_ram=in_ram)
            return models.ScalarQuantization(scalar=scalar)
        case "binary":
            return models.BinaryQuantization(binary=models.BinaryQuantizationConfig(always_ram=in_ram))
    return None


def payload_indexes(config: StoreConfig) -> dict[str, Any]:
    """The schema of every payload index by its path, paths as Qdrant writes them."""
    declared: Mapping[str, str] = config.settings.get("metadata_indexes") or {}
    acl = "keyword" if "tenant" in declared.values() else "tenant"
    kinds = {**INDEXED, ACL: acl}
    kinds |= {f"metadata.{field}": kind for field, kind in declared.items()}
    return {plain_path(json_path(field)): _SCHEMAS[kind] for field, kind in kinds.items()}


def plain_path(path: str) -> str:
    """A path without the quotes that its parts do not need: our parts have no dot, bracket or quote in them."""
    return path.replace('"', "")


def make_client(settings: QdrantSettings) -> QdrantClient:
    """A client for the server that the settings name. Raises ConfigurationError: which file cannot be used."""
    try:
        tls = _tls(settings)
        with warnings.catch_warnings():  # a key over plain HTTP is the business of whoever set both
            warnings.filterwarnings("ignore", message="Api key is used with an insecure connection")
            return QdrantClient(
                url=settings.url,
                api_key=settings.api_key.get_secret_value() if settings.api_key else None,
                timeout=settings.timeout_seconds,
                prefer_grpc=settings.grpc,
                grpc_port=settings.grpc_port,
                check_compatibility=False,  # it would ask in a thread of its own, and only warn
                **tls,
            )
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(
            f"a certificate or key named by NVR_QDRANT__CA_FILE, __CLIENT_CERTIFICATE_FILE or __CLIENT_KEY_FILE cannot "
            f"be used: {error}"
        ) from error


def _tls(settings: QdrantSettings) -> dict[str, Any]:
    authorities, certificate, key = settings.ca_file, settings.client_certificate_file, settings.client_key_file
    if authorities is None and certificate is None:
        return {}
    context = ssl.create_default_context(cafile=str(authorities) if authorities else None)
    if certificate is not None:
        context.load_cert_chain(certificate, key)
    files = {"root_certificates": authorities, "certificate_chain": certificate, "private_key": key}
    return {"verify": context, "grpc_options": {name: _bytes(file) for name, file in files.items()}}


def _bytes(file: Path | None) -> bytes | None:
    return file.read_bytes() if file else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """How a collection may be asked. What strict mode does not limit is None."""

    most_hits: int | None = None  # the largest `limit`
    most_points: int | None = None  # in one upsert
    most_seconds: int | None = None  # the largest `timeout`
    oversampling: float | None = None  # None: the vectors are not quantized
    exact: bool = False

    @classmethod
    def of(cls, info: models.CollectionInfo, settings: QdrantSettings) -> Shape:
        """From what the server says of a collection. Raises StoreError when strict mode and settings disagree."""
        strict = info.config.strict_mode_config
        if strict is None or not strict.enabled:
            return cls(oversampling=_oversampling(info, settings), exact=settings.exact)
        if settings.exact and strict.search_allow_exact is False:
            raise StoreError("the Qdrant server's strict mode forbids exact searches; unset NVR_QDRANT__EXACT")
        oversampling, most = _oversampling(info, settings), strict.search_max_oversampling
        return cls(
            most_hits=strict.max_query_limit,
            most_points=strict.upsert_max_batchsize,
            most_seconds=strict.max_timeout,
            oversampling=min(oversampling, most) if oversampling and most else oversampling,
            exact=settings.exact,
        )

    def search_params(self, using: str) -> models.SearchParams | None:
        """For a search in one of the vectors. Quantized candidates are always compared again by the vectors themselves,
        which Qdrant does by itself for binary ones only. `indexed_only` stays off: it hides what is not indexed yet."""
        if using != DENSE:
            return None  # lexical searches are exact, by an index that is always there
        if self.exact:
            return models.SearchParams(exact=True)
        if self.oversampling is None:
            return None
        return models.SearchParams(
            quantization=models.QuantizationSearchParams(rescore=True, oversampling=self.oversampling)
        )


def _oversampling(info: models.CollectionInfo, settings: QdrantSettings) -> float | None:
    quantized = info.config.quantization_config
    if quantized is None:
        return None
    kind = "int8" if isinstance(quantized, models.ScalarQuantization) else "binary"
    return settings.oversampling or _OVERSAMPLING[kind]
