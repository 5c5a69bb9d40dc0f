"""The values that a request may carry: kinds of strings, and JSON objects of bounded depth and size.

Each is a type for the schemas, with its limits in OpenAPI where OpenAPI can say them. It knows no route.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Any

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from nvr_rag.corpus import MAX_URI_CHARACTERS

MAX_ITEMS = 1000  # documents or feedback in one request
MAX_TEXT_CHARACTERS = 10_000_000
MAX_WAIT_SECONDS = 60.0
_LARGEST_INTEGER = 2**53  # beyond it a double, which is what filters compare, cannot tell neighbours apart

_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def _no_controls(text: str) -> str:
    found = _CONTROLS.search(text)
    if found:
        raise PydanticCustomError(
            "control_character",
            "must not contain control characters, but has {code}",
            {"code": f"U+{ord(found[0]):04X}"},
        )
    return text


def _no_nul(text: str) -> str:
    if "\x00" in text:
        raise PydanticCustomError("nul", "must not contain NUL (U+0000)")
    return text


def bounded_json(*, depth: int, characters: int) -> AfterValidator:
    """A check for a JSON object: at most so many levels deep and about so many characters long, finite numbers only."""

    def check(value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value is not None and _walk(value, depth, characters) < 0:
            raise PydanticCustomError(
                "json_too_large", "must not be larger than {limit} characters as JSON", {"limit": characters}
            )
        return value

    return AfterValidator(check)


def _walk(value: Any, depth: int, left: int) -> int:
    """Characters left after this value, negative when there were too few. Raises for what cannot be stored."""
    if isinstance(value, str):
        _check_unicode(value)
        return left - len(value) - 2
    if isinstance(value, (dict, list)):
        if depth == 0:
            raise PydanticCustomError("json_too_deep", "must not nest lists and objects so deep")
        for part in (*value, *value.values()) if isinstance(value, dict) else value:
            left = _walk(part, depth - 1, left - 1)
            if left < 0:
                break
        return left - 2
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        _check_number(value)
        return left - 8
    return left - 4


def _check_unicode(text: str) -> None:
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise PydanticCustomError("not_unicode", "must be valid Unicode, but has half of a surrogate pair")


def _check_number(number: float) -> None:
    if isinstance(number, int) and abs(number) > _LARGEST_INTEGER:
        raise PydanticCustomError(
            "number_too_large", "must have integers between -2^53 and 2^53; send longer ones as text"
        )
    if not math.isfinite(number):
        raise PydanticCustomError("not_finite", "must have finite numbers; NaN and Infinity are not JSON")


NoControls = AfterValidator(_no_controls)
NoNul = AfterValidator(_no_nul)

CollectionName = Annotated[str, Field(max_length=64, description="Name of a collection."), NoControls]
Identifier = Annotated[str, Field(min_length=1, max_length=64), NoControls]
Opaque = Annotated[str, Field(min_length=1, max_length=256), NoControls]
Uri = Annotated[str, Field(min_length=1, max_length=MAX_URI_CHARACTERS), NoControls]
