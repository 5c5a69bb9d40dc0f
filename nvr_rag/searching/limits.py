"""What may be asked: a query goes in, and nothing comes out unless it is outside the limits. Knows no index."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Any

from nvr_rag.errors import InvalidInput
from nvr_rag.types import GroupBy, Mmr, Mode, Query

MAX_K = 1000
MAX_QUERY_CHARACTERS = 10_000
MAX_CONTEXT = 10  # neighbouring chunks on each side
MAX_CANDIDATES = 1000  # among which diverse hits are chosen


def check_query(query: Query) -> None:
    """Raise InvalidInput, naming the field, for a query outside the limits."""
    text: object = query.text  # programs say anything
    if not isinstance(text, str) or not text.strip():
        raise InvalidInput("the query is empty; ask something", field="query")
    if len(query.text) > MAX_QUERY_CHARACTERS:
        raise InvalidInput(
            f"a query has at most {MAX_QUERY_CHARACTERS} characters, this one has {len(query.text)}; shorten it",
            field="query",
        )
    _check_whole("k", query.k, 1, MAX_K)
    _check_one_of("mode", query.mode, Mode)
    _check_one_of("group_by", query.group_by, GroupBy)
    check_context(query.context)
    if query.min_score is not None and not _is_finite(query.min_score):
        raise InvalidInput(f"min_score is a finite number, not {query.min_score!r}", field="min_score")
    if query.mmr is not None:
        mmr: object = query.mmr
        if not isinstance(mmr, Mmr):
            raise InvalidInput("mmr is an Mmr, such as Mmr(diversity=0.3)", field="mmr")
        _check_whole("mmr.candidates", query.mmr.candidates, 1, MAX_CANDIDATES)
        if not _is_finite(query.mmr.diversity) or not 0 <= query.mmr.diversity <= 1:
            raise InvalidInput(f"mmr.diversity is from 0 to 1, not {query.mmr.diversity!r}", field="mmr.diversity")


def check_context(context: int) -> None:
    """Raise InvalidInput for more neighbours than are joined to a hit."""
    _check_whole("context", context, 0, MAX_CONTEXT)


def _check_whole(field: str, value: Any, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise InvalidInput(f"{field} is a whole number from {least} to {most}, not {value!r}", field=field)


def _check_one_of(field: str, value: Any, kind: type[StrEnum]) -> None:
    known = [str(one) for one in kind]
    if value is not None and value not in known:
        raise InvalidInput(f"{field} is {' or '.join(known)}, not {value!r}", field=field)


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


@contextmanager
def numbered(number: int) -> Iterator[None]:
    """Let what is wrong with one of several searches name it."""
    try:
        yield
    except InvalidInput as error:
        error.field = f"searches[{number}].{error.field}" if error.field else f"searches[{number}]"
        raise
