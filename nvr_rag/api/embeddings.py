"""Embeddings the way OpenAI's clients ask for them: texts in, vectors of an encoder that serves a collection out.

A model is what answers for a collection, so that the vectors of texts and those of its index can be compared.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from fastapi import APIRouter
from starlette.responses import Response

from nvr_rag import deployments, indexes
from nvr_rag.access.callers import Caller
from nvr_rag.api.authorization import SearchCaller
from nvr_rag.api.dependencies import PartsOf
from nvr_rag.api.embedding_schemas import (
    MAX_CHARACTERS,
    Embedding,
    EmbeddingAnswer,
    EmbeddingRequest,
    Model,
    ModelList,
    Usage,
)
from nvr_rag.api.openapi import problem_responses
from nvr_rag.encoders.base import Encoder, Vectors
from nvr_rag.errors import InvalidInput, NotFound, TimedOut
from nvr_rag.workspace import Workspace

PREFIX = "collection:"
DEFAULT = "default"
_NAMED = 20  # models in an error message
_AT_ONCE = 32  # texts encoded before the clock is looked at

router = APIRouter(prefix="/v1", tags=["embeddings"])


@router.post(
    "/embeddings",
    summary="Make vectors of texts",
    response_model=EmbeddingAnswer,
    responses=problem_responses(404, 422, 503, body=True),
)
def embed(body: EmbeddingRequest, parts: PartsOf, caller: SearchCaller) -> Response:
    """As OpenAI's: with its clients, /v1 of this server is the base URL, and `input_type` goes into `extra_body`."""
    _check_texts(body.input)
    encoder = _encoder(parts.workspace, body.model, caller)
    _check_dimensions(body.dimensions, encoder.spec.dimension)
    query = body.input_type == "query"
    counts = (encoder.count_query_tokens if query else encoder.count_tokens)(body.input)
    encode = encoder.encode_queries if query else encoder.encode_documents
    vectors = _in_time(encode, body.input, parts.workspace.settings.api.timeout_seconds)
    answer = _answer(body, encoder, vectors, counts)
    # Made into JSON here, in the worker thread; FastAPI would validate it again in another one.
    return Response(answer.model_dump_json(), media_type="application/json")


@router.get("/models", summary="List what texts can be embedded with", responses=problem_responses(503))
def list_models(parts: PartsOf, caller: SearchCaller) -> ModelList:
    """The encoders that answer for collections, by the collection's name; `default` is that of the one called so."""
    with parts.workspace.database.read() as connection:
        serving = deployments.all_serving(connection)
        known = {name: serving[name] for name in sorted(serving) if caller.knows(name)}
        every = {index.id: index for index in indexes.all_infos(connection)} if known else {}
    return ModelList(
        data=[
            Model(
                id=PREFIX + name,
                created=int(deployment.created_at.timestamp()),
                encoder=every[deployment.index_id].encoder,
                dimensions=every[deployment.index_id].dimension,
            )
            for name, deployment in known.items()
        ]
    )


def _check_texts(texts: Sequence[str]) -> None:
    """Raise InvalidInput for what has no vector worth having, and for too much of it."""
    for position, text in enumerate(texts):
        if not text.strip():
            raise InvalidInput(
                "a text is blank, and nothing is like it; leave it out",
                field=f"input[{position}]" if position else "input",
            )
    total = sum(map(len, texts))
    if total > MAX_CHARACTERS:
        raise InvalidInput(
            f"the texts have {total} characters together, and a request may have {MAX_CHARACTERS}; send several",
            field="input",
        )


def _check_dimensions(wanted: int | None, there: int) -> None:
    if wanted is not None and wanted != there:
        raise InvalidInput(
            f"the vectors of this model have {there} dimensions, not {wanted}; leave dimensions out", field="dimensions"
        )


def _encoder(workspace: Workspace, model: str, caller: Caller) -> Encoder:
    """The encoder that a model's name stands for. Raises NotFound: what there is for this caller."""
    name = DEFAULT if model == DEFAULT else model.removeprefix(PREFIX)
    with workspace.database.read() as connection:
        serving = deployments.all_serving(connection)
        deployment = serving.get(name) if caller.knows(name) else None
        fingerprint = indexes.get(connection, deployment.index_id).encoder if deployment else None
    if fingerprint is not None and model in (DEFAULT, PREFIX + name):
        return workspace.encoder(fingerprint)
    if model == DEFAULT:
        return workspace.default_encoder()
    raise _unknown(model, [known for known in sorted(serving) if caller.knows(known)])


def _unknown(model: str, known: Sequence[str]) -> NotFound:
    there = ", ".join([DEFAULT, *(PREFIX + name for name in known[:_NAMED])])
    more = f" and {len(known) - _NAMED} more" if len(known) > _NAMED else ""
    return NotFound(f"no model {model[:80]!r}; there are: {there}{more} (GET /v1/models)")


def _in_time(encode: Callable[[Sequence[str]], Vectors], texts: Sequence[str], seconds: float) -> Vectors:
    """The vectors of texts, some at a time. Raises TimedOut when the server has no more time for them."""
    deadline = time.monotonic() + seconds
    found = []
    for start in range(0, len(texts), _AT_ONCE):
        if time.monotonic() > deadline:
            raise TimedOut("the texts take longer than the server spends on a request; send fewer, or shorter ones")
        found.append(encode(texts[start : start + _AT_ONCE]))
    return np.concatenate(found)


def _answer(body: EmbeddingRequest, encoder: Encoder, vectors: Vectors, counts: Sequence[int]) -> EmbeddingAnswer:
    most = encoder.spec.max_tokens
    read = sum(min(count, most) for count in counts)
    return EmbeddingAnswer(
        data=[
            Embedding(index=index, embedding=one) for index, one in enumerate(_written(vectors, body.encoding_format))
        ],
        model=body.model,
        encoder=encoder.fingerprint,
        truncated=[position for position, count in enumerate(counts) if count > most],
        usage=Usage(prompt_tokens=read, total_tokens=read),
    )


def _written(vectors: Vectors, encoding: str) -> list[Any]:
    """Each vector as numbers, or as the base64 of little-endian float32."""
    if encoding == "float":
        return list(vectors.tolist())
    return [base64.b64encode(row).decode("ascii") for row in vectors.astype("<f4")]
