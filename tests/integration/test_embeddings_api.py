"""Embeddings as OpenAI's clients ask for them, asked by the official package and by hand."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import numpy as np
import openai
import pytest

from nvr_rag import deployments
from nvr_rag.access.callers import Scope
from nvr_rag.testing import HashEncoder
from tests.integration.api_support import Api
from tests.integration.key_support import make_key
from tests.integration.lifecycle import Doubles

TEXTS = ["red fox jumps", "größer als π", "blue whale swims"]
REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"input": ""}, "input", "a text is blank"),
    ({"input": " \n"}, "input", "a text is blank"),
    ({"input": []}, "input", "at least 1 item"),
    ({"input": ["a", " "]}, "input[1]", "a text is blank"),
    ({"input": ["a"] * 257}, "input", "at most 256 items"),
    ({"input": "x" * 100_001}, "input", "at most 100000 characters, not 100001"),
    ({"input": ["a", "x" * 100_001]}, "input[1]", "at most 100000 characters"),
    ({"input": [1, 2, 3]}, "input", "numbers of another tokenizer's tokens mean nothing"),
    ({"input": [[1, 2], [3]]}, "input", "numbers of another tokenizer's tokens mean nothing"),
    ({"input": 7}, "input", "must be a text, or a list of texts, not 7"),
    ({"input": float("nan")}, "input", "must be a text, or a list of texts, not NaN"),
    ({"input": None}, "input", "not null"),
    ({"input": {"text": "x"}}, "input", "must be a text, or a list of texts"),
    ({"input": [True]}, "input[0]", "must be a valid string"),
    ({"input": "\ud800"}, "input[0]", "half of a surrogate pair"),
    ({"input": ["a", "\udfff"]}, "input[1]", "half of a surrogate pair"),
    ({"model": None}, "model", "must be a valid string"),
    ({"model": ""}, "model", "at least 1 character"),
    ({"model": "m" * 129}, "model", "at most 128 characters"),
    ({"encoding_format": "hex"}, "encoding_format", "'float' or 'base64'"),
    ({"input_type": "passage"}, "input_type", "'query' or 'document'"),
    ({"dimensions": 63}, "dimensions", "have 64 dimensions, not 63; leave dimensions out"),
    ({"dimensions": "64"}, "dimensions", "must be a valid integer"),
    ({"dimensions": 64.5}, "dimensions", "must be a valid integer"),
    ({"dimensions": 10**30}, "dimensions", "less than or equal to"),
    ({"dimensions": float("nan")}, "dimensions", "not NaN"),
    ({"user": 5}, "user", "must be a valid string"),
    ({"user": "a\x07"}, "user", "U+0007"),
    ({"user": "u" * 257}, "user", "at most 256 characters"),
    ({"prompt": "x"}, "prompt", "prompt is not a known field"),
]


def embed(api: Api, status: int = 200, **body: Any) -> dict[str, Any]:
    answer: dict[str, Any] = api.call("POST", "/v1/embeddings", status, json={"model": "default", **body})
    return answer


@pytest.fixture
def locked(api: Api) -> tuple[Api, str]:
    """An API with the collections "one" and "two", and a key that may search both."""
    api.workspace.create_collection("one")
    api.workspace.create_collection("two")
    return api, make_key(api.workspace, Scope.SEARCH)


def test_the_official_package_gets_the_encoders_own_vectors(locked: tuple[Api, str]) -> None:
    api, secret = locked
    expected = HashEncoder().encode_documents(TEXTS)
    with openai.OpenAI(base_url=f"{api.client.base_url}/v1", api_key=secret) as client:
        assert [model.id for model in client.models.list()] == ["collection:one", "collection:two"]
        packed = client.embeddings.create(input=TEXTS, model="collection:one")
        plain = client.embeddings.create(input=TEXTS, model="collection:two", encoding_format="float")
        queries = client.embeddings.create(input=TEXTS[0], model="default", extra_body={"input_type": "query"})
    for answer in (packed, plain):
        assert [item.index for item in answer.data] == [0, 1, 2]
        assert np.array_equal(np.array([item.embedding for item in answer.data], np.float32), expected)
    # "[start] red fox jumps [end]" are 5 tokens, as are the other two; the query has its prompt's "query" and ":".
    assert (packed.usage.prompt_tokens, packed.usage.total_tokens) == (15, 15)
    assert queries.usage.total_tokens == 7
    assert np.array_equal(np.array(queries.data[0].embedding, np.float32), HashEncoder().encode_queries(TEXTS[:1])[0])


async def test_the_official_package_without_threads(locked: tuple[Api, str]) -> None:
    api, secret = locked
    async with openai.AsyncOpenAI(base_url=f"{api.client.base_url}/v1", api_key=secret) as client:
        packed = await client.embeddings.create(input=TEXTS, model="collection:one", dimensions=64)
        plain = await client.embeddings.create(input=TEXTS, model="collection:one", encoding_format="float")
    assert [item.embedding for item in packed.data] == [item.embedding for item in plain.data]
    assert np.array_equal(np.array(plain.data[2].embedding, np.float32), HashEncoder().encode_documents(TEXTS)[2])


def test_the_official_package_raises_its_own_errors(locked: tuple[Api, str]) -> None:
    api, secret = locked
    feedback = make_key(api.workspace, Scope.FEEDBACK)
    one = make_key(api.workspace, Scope.SEARCH, collections=["one"])

    def error_of(secret: str, **options: Any) -> openai.APIStatusError:
        asked = {"input": "fox", "model": "default", **options}
        with (
            openai.OpenAI(base_url=f"{api.client.base_url}/v1", api_key=secret, max_retries=0) as client,
            pytest.raises(openai.APIStatusError) as caught,
        ):
            client.embeddings.create(**asked)
        return caught.value

    assert isinstance(error_of("nvr_wrong"), openai.AuthenticationError)
    assert isinstance(error_of(feedback), openai.PermissionDeniedError)
    unknown = error_of(one, model="collection:two")
    assert isinstance(unknown, openai.NotFoundError)
    assert unknown.body["detail"].startswith("no model 'collection:two'; there are: default, collection:one (")
    assert str(unknown) == f"Error code: 404 - {unknown.body['detail']}"
    invalid = error_of(secret, dimensions=3)
    assert isinstance(invalid, openai.UnprocessableEntityError)
    assert invalid.body["field"] == "dimensions"
    with openai.OpenAI(base_url=f"{api.client.base_url}/v1", api_key=one) as client:
        assert [model.id for model in client.models.list()] == ["collection:one"]


def test_where_there_are_no_keys_that_is_said(shared_api: Api) -> None:
    url = f"{shared_api.client.base_url}/v1"
    with (
        openai.OpenAI(base_url=url, api_key="anything") as client,
        pytest.raises(openai.AuthenticationError, match="there are no keys here: send none, or make one"),
    ):
        client.embeddings.create(input="fox", model="default")


def test_a_key_that_asks_too_often_meets_the_packages_error(locked: tuple[Api, str]) -> None:
    api, _ = locked
    secret = make_key(api.workspace, Scope.SEARCH, per_minute=1)
    with openai.OpenAI(base_url=f"{api.client.base_url}/v1", api_key=secret, max_retries=0) as client:
        client.embeddings.create(input="fox", model="default")
        with pytest.raises(openai.RateLimitError):
            client.embeddings.create(input="fox", model="default")


def test_base64_is_of_little_endian_floats(shared_api: Api) -> None:
    (one,) = embed(shared_api, input="fox", encoding_format="base64")["data"]
    (same,) = embed(shared_api, input="fox")["data"]
    assert list(struct.unpack("<64f", base64.b64decode(one["embedding"]))) == same["embedding"]


def test_what_an_encoder_has_no_room_for_is_told(shared_api: Api) -> None:
    answer = embed(shared_api, input=["fox", "fox " * 63, "fox " * 62])
    assert answer["truncated"] == [1]  # an input has 64 tokens, two of them special
    assert answer["usage"] == {"prompt_tokens": 3 + 64 + 64, "total_tokens": 3 + 64 + 64}
    assert answer["encoder"] == HashEncoder().fingerprint


def test_the_texts_of_a_request_are_limited_together(api: Api) -> None:
    problem = embed(api, 422, input=["x" * 99_000] * 11)
    assert problem["field"] == "input"
    assert "1089000 characters together, and a request may have 1000000" in problem["detail"]


def test_texts_that_take_too_long_are_given_up(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api.workspace.settings.api, "timeout_seconds", 1e-9)
    problem = embed(api, 503, input=["fox"] * 33)
    assert problem["type"] == "urn:nvr-rag:timed-out"
    assert "send fewer" in problem["detail"]


def test_many_texts_come_back_in_order(shared_api: Api) -> None:
    texts = [f"word{number}" for number in range(100)]
    answer = embed(shared_api, input=texts)
    got = np.array([item["embedding"] for item in answer["data"]], np.float32)
    assert np.array_equal(got, HashEncoder().encode_documents(texts))


def test_a_model_is_what_serves_its_collection_now(api: Api, doubles: Doubles) -> None:
    for name in ("default", "other"):
        api.workspace.create_collection(name)
    first, second = HashEncoder(), HashEncoder(seed=7)
    candidate = doubles.candidate(api.workspace, 7, "default")

    def encoders() -> dict[str, str]:
        return {model["id"]: model["encoder"] for model in api.call("GET", "/v1/models")["data"]}

    assert encoders() == {"collection:default": first.fingerprint, "collection:other": first.fingerprint}
    assert embed(api, input="fox")["encoder"] == first.fingerprint
    with api.workspace.database.write() as connection:
        deployments.prepare(connection, candidate.id)
        deployments.switch(connection, candidate.id)
    assert encoders() == {"collection:default": second.fingerprint, "collection:other": first.fingerprint}
    for model, encoder in (("default", second), ("collection:default", second), ("collection:other", first)):
        answer = embed(api, input="fox", model=model)
        assert answer["encoder"] == encoder.fingerprint
        assert answer["data"][0]["embedding"] == encoder.encode_documents(["fox"])[0].tolist()


def test_default_is_the_default_encoder_where_there_is_no_such_collection(api: Api) -> None:
    assert embed(api, input="fox")["encoder"] == HashEncoder().fingerprint
    assert api.call("GET", "/v1/models")["data"] == []


@pytest.mark.parametrize(
    "model", ["gpt-5", "collection:", "collection:other", "one", "collection:default\n", "DEFAULT"]
)
def test_an_unknown_model_is_answered_with_those_there_are(shared_api: Api, model: str) -> None:
    problem = embed(shared_api, 404, input="fox", model=model)
    assert "there are: default, collection:default (GET /v1/models)" in problem["detail"]


@pytest.mark.parametrize(("body", "field", "words"), REFUSED)
def test_bad_input_is_refused_by_name(shared_api: Api, body: dict[str, Any], field: str, words: str) -> None:
    content = json.dumps({"input": "fox", "model": "default", **body})
    problem = shared_api.call(
        "POST", "/v1/embeddings", 422, content=content, headers={"Content-Type": "application/json"}
    )
    assert problem["field"] == field
    assert words in problem["detail"]


@pytest.mark.parametrize("left_out", ["input", "model"])
def test_what_must_be_said_is_asked_for(shared_api: Api, left_out: str) -> None:
    body = {"input": "fox", "model": "default"}
    del body[left_out]
    problem = shared_api.call("POST", "/v1/embeddings", 422, json=body)
    assert problem["field"] == left_out
    assert problem["detail"] == f"{left_out} is required"
