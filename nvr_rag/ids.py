"""Names made from content: document ids, chunk ids, hashes. Pure: the same input gives the same name anywhere."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

_NAMESPACE = uuid.UUID("5b0c1f0e-7d0b-5b0a-9a6e-6e7672726167")


def sha256_text(text: str) -> str:
    """Hex sha256 of the UTF-8 bytes; lone surrogates, which UTF-8 cannot hold, are hashed as escapes."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def sha256_json(value: Mapping[str, Any] | Sequence[Any]) -> str:
    """Hex sha256 of the canonical JSON: sorted keys, no spaces, non-ASCII kept."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return sha256_text(text)


def document_id(collection: str, uri: str) -> str:
    """The uuid of the document at `uri` in `collection`: identity is the URI, not the content."""
    return str(uuid.uuid5(_NAMESPACE, f"{collection}\n{uri}"))


def chunk_id(document: str, text_sha256: str, occurrence: int) -> str:
    """The uuid of the `occurrence`-th (from 0) chunk with this text in this document.

    It does not depend on where the chunk stands, so an edit elsewhere in the document leaves it alone.
    """
    return str(uuid.uuid5(uuid.UUID(document), f"{text_sha256}:{occurrence}"))


def new_id() -> str:
    """A random uuid, for things whose content does not name them (queries, processes)."""
    return str(uuid.uuid4())
