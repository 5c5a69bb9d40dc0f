"""What travels over HTTP where files come in: forms, folders to mirror, and their answers. No behaviour.

A form has texts only, so its fields are read from them; some hold JSON.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from nvr_rag.api.limits import MAX_WAIT_SECONDS, CollectionName, NoControls, NoNul, Opaque, Uri, bounded_json
from nvr_rag.api.schemas import Answer, Body


def _from_json(value: object) -> object:
    """A field of a form that holds JSON."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise PydanticCustomError("not_json", "must be JSON") from None


FromJson = BeforeValidator(_from_json)

_SWITCH = {"true": True, "True": True, "1": True, "false": False, "False": False, "0": False}  # as clients write them


def _from_text(value: object) -> object:
    """A field of a form that is on or off."""
    if isinstance(value, str) and value not in _SWITCH:
        raise PydanticCustomError("not_a_switch", "must be a boolean: true or false")
    return _SWITCH[value] if isinstance(value, str) else value


Switch = Annotated[bool, BeforeValidator(_from_text), WithJsonSchema({"enum": [True, False, *_SWITCH]})]


class UploadFields(Body):
    """What a form says about its files."""

    model_config = ConfigDict(extra="forbid", strict=False)  # a form has texts only

    collection: CollectionName = "default"
    uri: Uri | None = Field(
        default=None,
        description="Identity of the document: uploading it again replaces it. Default: upload: and the file's name. "
        "Only with a single file.",
    )
    title: Annotated[str, NoControls] = Field(
        default="", max_length=1000, description="Default: the document's own. Only with a single file."
    )
    metadata: Annotated[dict[str, Any], bounded_json(depth=6, characters=64_000), FromJson] = Field(
        default_factory=dict, description="A JSON object, over what the document says of itself; of every file."
    )
    acl: Annotated[list[Opaque] | None, FromJson] = Field(
        default=None,
        max_length=1000,
        description="A JSON list of the principals who may read it, null: everybody. Left out: those that the key is "
        "for; everybody where it names none. Of every file.",
    )
    wait: Switch = Field(default=False, description="Answer when the index that serves the collection has them.")
    timeout_seconds: float = Field(default=30.0, ge=0, le=MAX_WAIT_SECONDS, description="How long to wait at most.")


class UploadResult(Answer):
    """What became of a file; the last three are null while it is not parsed."""

    id: str = Field(description="Of the document.")
    uri: str
    bytes: int
    sha256: str
    outcome: Literal["added", "updated", "unchanged", "failed", "superseded"] | None = Field(
        description="superseded: something newer was accepted for the document, or it was deleted."
    )
    seq: int | None = Field(
        description="Number of the change in its collection; 0 when nothing changed, null for who does not read "
        "everything there."
    )
    error: str | None = Field(description="Why it could not be parsed.")


class UploadAnswer(Answer):
    """Stored durably, to be parsed by the job; `indexed` says whether searches find them already."""

    collection: str
    job: int = Field(description="GET /v1/jobs/{job} tells how far it is.")
    state: Literal["queued", "running", "done", "failed"] = Field(description="Of the job.")
    indexed: bool
    documents: list[UploadResult] = Field(description="In the order of the request.")
    error: str | None = Field(default=None, description="Why the job failed.")


Glob = Annotated[str, Field(min_length=1, max_length=1000), NoControls]


class IngestRequest(Body):
    """A folder or file on the server that a collection is to mirror."""

    path: Annotated[str, Field(min_length=1, max_length=4096), NoNul] = Field(
        description="Absolute, and inside one of the folders of NVR_INGEST__ROOTS."
    )
    collection: CollectionName = "default"
    include: list[Glob] = Field(default_factory=list, max_length=100, description="Only files that match one of these.")
    exclude: list[Glob] = Field(default_factory=list, max_length=100, description="No files that match one of these.")
    allow_empty: bool = Field(
        default=False, description="Delete what is stored of a folder that holds no documents any more."
    )
