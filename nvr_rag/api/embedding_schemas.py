"""What travels through /v1/embeddings and /v1/models: OpenAI's shapes, as strict as ours. No behaviour.

Clients of OpenAI's API know the fields without a description; those that have one are ours, or mean something of ours.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from nvr_rag.api.limits import Opaque
from nvr_rag.api.schemas import Answer, Body

MAX_TEXTS = 256  # in one request
MAX_TEXT_CHARACTERS = 100_000  # of one text
MAX_CHARACTERS = 1_000_000  # of all texts of a request

# That a text is not blank, be it empty or not, is for the route to say.
_Text = Annotated[str, Field(max_length=MAX_TEXT_CHARACTERS, json_schema_extra={"minLength": 1, "pattern": r"\S"})]
_Texts = Annotated[list[_Text], Field(min_length=1, max_length=MAX_TEXTS)]


def _as_list(value: Any) -> Any:
    """One text is a list of one. Raises for what cannot be texts, in words that say why."""
    if isinstance(value, str):
        _check_length(value)
        return [value]
    if not isinstance(value, list):
        raise PydanticCustomError("not_texts", "must be a text, or a list of texts")
    if any(isinstance(item, (int, list)) and not isinstance(item, bool) for item in value[:MAX_TEXTS]):
        raise PydanticCustomError(
            "token_ids",
            "must be text: numbers of another tokenizer's tokens mean nothing to this encoder "
            "(in LangChain's OpenAIEmbeddings: check_embedding_ctx_length=False)",
        )
    return value


def _check_length(text: str) -> None:
    """Said here of a single text, which would be called input[0] by the list."""
    if len(text) > MAX_TEXT_CHARACTERS:
        raise PydanticCustomError(
            "string_too_long",
            "must have at most {most} characters, not {length}",
            {"most": MAX_TEXT_CHARACTERS, "length": len(text)},
        )


class EmbeddingRequest(Body):
    """Texts to be made into vectors."""

    input: Annotated[_Texts, BeforeValidator(_as_list, json_schema_input_type=_Text | _Texts)] = Field(
        description=f"A text, or up to {MAX_TEXTS}, with up to {MAX_CHARACTERS} characters together. "
        "Of each the encoder reads as many tokens as it has room for."
    )
    model: str = Field(
        min_length=1, max_length=128, description="collection:NAME for the encoder of what serves it, or default."
    )
    encoding_format: Literal["float", "base64"] = Field(
        default="float", description="base64: of float32, the lowest byte first."
    )
    dimensions: int | None = Field(
        default=None, ge=1, le=2**31 - 1, description="What the encoder has; other lengths are refused."
    )
    input_type: Literal["query", "document"] = Field(
        default="document", description="What the texts are: encoders may read questions in another way than documents."
    )
    user: Opaque | None = Field(default=None, description="Taken, and not kept.")


class Embedding(Answer):
    """The vector of one text."""

    object: Literal["embedding"] = "embedding"
    index: int = Field(description="Which of the texts, from 0.")
    embedding: list[float] | str


class Usage(Answer):
    """Tokens that the encoder read, special ones and its prompt included."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingAnswer(Answer):
    """Vectors, in the order of the texts."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str = Field(description="As it was asked for.")
    encoder: str = Field(description="Fingerprint of the encoder version: vectors of two of them cannot be compared.")
    truncated: list[int] = Field(description="Which of the texts were longer than what the encoder reads, from 0.")
    usage: Usage


class Model(Answer):
    """Something that texts can be embedded with."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="When it began to serve, in seconds since 1970.")
    owned_by: Literal["nvr-rag"] = "nvr-rag"
    encoder: str = Field(description="Fingerprint of the encoder version.")
    dimensions: int


class ModelList(Answer):
    """Everything that can be named as a model."""

    object: Literal["list"] = "list"
    data: list[Model]
