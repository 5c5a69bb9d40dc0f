"""Texts and JSON values as every database and vector store can hold them. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from nvr_rag.errors import InvalidInput

MAX_METADATA_DEPTH = 16  # vector stores refuse deep payloads, and then only after the document is in the log
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def storable(text: str) -> str:
    """`text` as every engine can hold it, of the same length: NUL and lone surrogates become U+FFFD."""
    return _UNSTORABLE.sub("\ufffd", text)


def storable_json(value: Any, depth: int = 0) -> Any:
    """`value` with its strings made storable. Raises InvalidInput for what is not JSON, or too deep."""
    if depth > MAX_METADATA_DEPTH:
        raise InvalidInput(f"metadata may nest {MAX_METADATA_DEPTH} levels deep; flatten it", field="metadata")
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, Mapping):
        return {storable(str(key)): storable_json(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [storable_json(item, depth + 1) for item in value]
    if value is None or isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise InvalidInput(f"metadata holds JSON values only; {str(value)[:80]!r} is none", field="metadata")
