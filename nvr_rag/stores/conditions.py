"""A filter tree goes in, the same filter in Qdrant's words comes out, for the in-process library or for the client.

Both libraries name the classes alike; what differs is in `Words`. The meaning is that of `filters.matches`, and the
contract suite compares the two on random filters and documents. It knows no store.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nvr_rag.filters import And, Equals, Exists, Filter, In, Not, Or, Range, Scalar


@dataclass(frozen=True, kw_only=True, slots=True)
class Words:
    """The classes of one of the two libraries."""

    filter: Callable[..., Any]  # Filter(must=, should=, must_not=)
    field: Callable[..., Any]  # FieldCondition(key=, match=, range=, is_empty=)
    value: Callable[..., Any]  # MatchValue(value=)
    any: Callable[..., Any]  # MatchAny(any=)
    range: Callable[..., Any]  # Range(gt=, gte=, lt=, lte=)
    boolean: Callable[[bool], Any] = bool  # how this library takes a truth value


def compile_filter(where: Filter | None, words: Words) -> Any:
    """The filter for a search, None for no filter."""
    return None if where is None else words.filter(must=[_condition(where, words)])


def _condition(where: Filter, words: Words) -> Any:
    match where:
        case And(parts=parts):
            return words.filter(must=[_condition(part, words) for part in parts])
        case Or(parts=parts):
            return words.filter(should=[_condition(part, words) for part in parts])
        case Not(part=part):
            return words.filter(must_not=[_condition(part, words)])
        case Exists(field=field):
            return words.filter(must_not=[words.field(key=json_path(field), is_empty=True)])
        case Equals(field=field, value=value):
            return _one_of(field, (value,), words)
        case In(field=field, values=values):
            return _one_of(field, values, words)
        case Range(field=field):
            return words.field(key=json_path(field), range=words.range(**_tighter(where)))


def _tighter(bounds: Range) -> dict[str, float]:
    """One bound at most for each end: of two, Qdrant's index of a sealed segment passes over the one that includes."""
    found = {}
    if bounds.gt is not None and (bounds.gte is None or bounds.gt >= bounds.gte):
        found["gt"] = bounds.gt
    elif bounds.gte is not None:
        found["gte"] = bounds.gte
    if bounds.lt is not None and (bounds.lte is None or bounds.lt <= bounds.lte):
        found["lt"] = bounds.lt
    elif bounds.lte is not None:
        found["lte"] = bounds.lte
    return found


def _one_of(field: str, values: tuple[Scalar, ...], words: Words) -> Any:
    """Strings and truth values are matched; numbers are ranges of one value, since 2020 would not match 2020.0."""
    key = json_path(field)
    strings = [value for value in values if isinstance(value, str)]
    conditions = [words.field(key=key, match=words.any(any=strings))] if strings else []
    for value in values:
        if isinstance(value, bool):
            conditions.append(words.field(key=key, match=words.value(value=words.boolean(value))))
        elif not isinstance(value, str):
            conditions.append(words.field(key=key, range=words.range(gte=float(value), lte=float(value))))
    return conditions[0] if len(conditions) == 1 else words.filter(should=conditions)


def json_path(field: str) -> str:
    """A field of the filter language as a path into a payload; parts are quoted, so that none is read as syntax."""
    first, *rest = field.split(".")
    return ".".join((first, *(f'"{part}"' for part in rest)))
