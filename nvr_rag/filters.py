"""The filter language: JSON in, a small tree out, and what the tree means for one document's fields.

    {"media_type": "text/markdown"}                       equals; a list field matches when any element does
    {"media_type": {"equals": "text/markdown"}}           the same
    {"metadata.year": {"gte": 2020, "lt": 2024}}          range: gt, gte, lt, lte over numbers
    {"updated_at": {"gte": "2024-05-31"}}                 range over the time at which a version was stored: ISO 8601
    {"uri": {"in": ["file:///a.md", "file:///b.md"]}}     one of
    {"metadata.owner": {"exists": true}}                  present and not null
    {"and": [...]}, {"or": [...]}, {"not": {...}}         and several keys in one object mean "and"

Stores compile the tree; `matches` is its meaning in Python. Numbers are compared as doubles, however they are written;
true and false are not numbers. A list is looked into one level deep, an object inside a list not at all. Times are
seconds since 1970 in the tree and in the fields; a time without an offset is UTC, a date its midnight. Nothing is
matched by a pattern: that would read every document.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from nvr_rag.errors import InvalidFilter

TIME = "updated_at"
ACL = "acl"  # of an index, for permissions; no filter that comes from outside can name it
FIELDS = ("document_id", "uri", "source", "title", "media_type", TIME)
MAX_DEPTH = 8
MAX_CONDITIONS = 256
MAX_IN = 1000  # values in one list
MAX_VALUES = 10_000  # in all the lists of a filter together, and of all filters of a request
_RANGE = ("gt", "gte", "lt", "lte")
_OPERATORS = ("equals", "in", "exists", *_RANGE)
_ISO_TIME = re.compile(
    r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d{1,9})?)?(Z|[+-]\d\d:?\d\d)?)?", re.ASCII | re.IGNORECASE
)

Scalar = str | int | float | bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Equals:
    """The field, or any element of it, equals the value."""

    field: str
    value: Scalar


@dataclass(frozen=True, kw_only=True, slots=True)
class In:
    """The field, or any element of it, equals one of the values (at least one)."""

    field: str
    values: tuple[Scalar, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Range:
    """The field, or any element of it, is a number within the bounds."""

    field: str
    gt: float | None = None
    gte: float | None = None
    lt: float | None = None
    lte: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Exists:
    """The field is there, not null and not an empty list; a list of nulls is there."""

    field: str


@dataclass(frozen=True, kw_only=True, slots=True)
class And:
    parts: tuple[Filter, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Or:
    parts: tuple[Filter, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Not:
    part: Filter


Filter = Equals | In | Range | Exists | And | Or | Not


def parse_filter(value: Mapping[str, Any] | None) -> Filter | None:
    """Read a filter from JSON values. None and {} mean no filter. Raises InvalidFilter: the place and the remedy."""
    if not value:
        if value is None or isinstance(value, Mapping):
            return None
        raise InvalidFilter(f'a filter is a JSON object such as {{"media_type": "text/markdown"}}; got {value!r}')
    return _parse_object(value, 0, _Budget())


@dataclass(kw_only=True, slots=True)
class _Budget:
    """What the rest of a filter may still have."""

    conditions: int = MAX_CONDITIONS
    values: int = MAX_VALUES  # in lists


def _parse_object(value: Any, depth: int, budget: _Budget) -> Filter:
    if not isinstance(value, Mapping) or not value:
        raise InvalidFilter(f"expected a JSON object with at least one condition, got {_short(value)}")
    if depth > MAX_DEPTH:
        raise InvalidFilter(f"a filter may nest {MAX_DEPTH} levels deep; simplify it")
    parts = tuple(_parse_entry(key, entry, depth, budget) for key, entry in value.items())
    return parts[0] if len(parts) == 1 else And(parts=parts)


def _parse_entry(key: Any, entry: Any, depth: int, budget: _Budget) -> Filter:
    budget.conditions -= 1
    if budget.conditions < 0:
        raise InvalidFilter(f'a filter may have {MAX_CONDITIONS} conditions; use {{"in": [...]}} for long lists')
    if key in ("and", "or"):
        if not isinstance(entry, Sequence) or isinstance(entry, str) or not entry:
            raise InvalidFilter(f'"{key}" takes a list of at least one filter, got {_short(entry)}')
        parts = tuple(_parse_object(part, depth + 1, budget) for part in entry)
        return And(parts=parts) if key == "and" else Or(parts=parts)
    if key == "not":
        return Not(part=_parse_object(entry, depth + 1, budget))
    field = _field(key)
    return _parse_condition(field, entry, budget)


def _field(key: Any) -> str:
    if key in FIELDS or (isinstance(key, str) and key.startswith("metadata.") and _is_path(key)):
        return str(key)
    raise InvalidFilter(
        f"unknown field {_short(key)}; fields are {', '.join(FIELDS)} and metadata.<name>, "
        f"operators and, or, not" + (f'; did you mean "metadata.{key}"?' if _is_path(str(key)) else "")
    )


def _is_path(key: str) -> bool:
    """Letters of any script, digits, '_' and '-', in parts joined by dots: nothing a store reads as syntax."""
    return len(key) <= 256 and all(part and part.replace("_", "").replace("-", "").isalnum() for part in key.split("."))


def _parse_condition(field: str, entry: Any, budget: _Budget) -> Filter:
    if field == TIME:
        return _period(entry)
    if not isinstance(entry, Mapping):
        return Equals(field=field, value=_scalar(field, entry))
    if set(entry) == {"equals"}:
        return Equals(field=field, value=_scalar(field, entry["equals"]))
    if set(entry) == {"in"}:
        return _one_of(field, entry["in"], budget)
    if set(entry) == {"exists"}:
        if not isinstance(entry["exists"], bool):
            raise InvalidFilter(f'{field}: "exists" is true or false, got {_short(entry["exists"])}')
        return Exists(field=field) if entry["exists"] else Not(part=Exists(field=field))
    if entry and set(entry) <= set(_RANGE):
        return Range(field=field, **{name: _number(field, bound) for name, bound in entry.items()})
    together = " (only gt, gte, lt and lte go together)" if entry and set(entry) <= set(_OPERATORS) else ""
    raise InvalidFilter(
        f"{field}: operators are {', '.join(_OPERATORS)}{together}; got {_short(sorted(map(str, entry)))}"
    )


def _one_of(field: str, values: Any, budget: _Budget) -> In:
    if not isinstance(values, Sequence) or isinstance(values, str) or not values:
        raise InvalidFilter(f'{field}: "in" takes a list of at least one value, got {_short(values)}')
    if len(values) > MAX_IN:
        raise InvalidFilter(f'{field}: "in" takes at most {MAX_IN} values, got {len(values)}')
    budget.values -= len(values)
    if budget.values < 0:
        raise InvalidFilter(
            f'{field}: the "in" lists of a filter have at most {MAX_VALUES} values together; ask several times, or for '
            "what the documents have in common"
        )
    return In(field=field, values=tuple(_scalar(field, value) for value in values))


def _period(entry: Any) -> Range:
    if isinstance(entry, Mapping) and entry and set(entry) <= set(_RANGE):
        return Range(field=TIME, **{name: _time(bound) for name, bound in entry.items()})
    got = sorted(map(str, entry)) if isinstance(entry, Mapping) else entry
    raise InvalidFilter(
        f'{TIME}: operators are {", ".join(_RANGE)} with a date or time, as {{"gte": "2024-05-31"}}; got {_short(got)}'
    )


def _time(value: Any) -> float:
    """Seconds since 1970."""
    if isinstance(value, str) and _ISO_TIME.fullmatch(value):
        try:
            moment = datetime.fromisoformat(value.upper())
        except ValueError:  # no such day, or no such hour
            pass
        else:
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    raise InvalidFilter(
        f'{TIME}: a bound is an ISO 8601 date or time, as "2024-05-31" or "2024-05-31T12:30:00Z"; got {_short(value)}'
    )


def _scalar(field: str, value: Any) -> Scalar:
    if isinstance(value, str) and not _is_unicode(value):
        raise InvalidFilter(f"{field}: {_short(value)} is not valid Unicode (half of a surrogate pair)")
    if isinstance(value, (str, bool)):
        return value
    if isinstance(value, (int, float)) and _fits(value):
        return value
    raise InvalidFilter(
        f"{field}: a value is a string, a finite number, true or false; got {_short(value)}"
        + (' (what is not there is found by {"exists": false})' if value is None else "")
    )


def _number(field: str, value: Any) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and _fits(value):
        return float(value)
    raise InvalidFilter(f"{field}: a bound is a finite number; got {_short(value)}")


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _fits(value: float) -> bool:
    return -(2**53) <= value <= 2**53 if isinstance(value, int) else math.isfinite(value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def fields_of(where: Filter | None) -> set[str]:
    """The fields that a filter asks for."""
    match where:
        case None:
            return set()
        case And(parts=parts) | Or(parts=parts):
            return {field for part in parts for field in fields_of(part)}
        case Not(part=part):
            return fields_of(part)
        case _:
            return {where.field}


def listed_values(where: Filter | None) -> int:
    """How many values the lists of a filter have together."""
    match where:
        case And(parts=parts) | Or(parts=parts):
            return sum(listed_values(part) for part in parts)
        case Not(part=part):
            return listed_values(part)
        case In(values=values):
            return len(values)
        case _:
            return 0


def matches(where: Filter | None, fields: Mapping[str, Any]) -> bool:
    """Whether a document with these fields (nested under "metadata") passes."""
    match where:
        case None:
            return True
        case And(parts=parts):
            return all(matches(part, fields) for part in parts)
        case Or(parts=parts):
            return any(matches(part, fields) for part in parts)
        case Not(part=part):
            return not matches(part, fields)
        case Exists(field=field):
            return _lookup(fields, field) not in (None, [], ())
        case Equals(field=field, value=wanted):
            return any(_equal(value, wanted) for value in _values(fields, field))
        case In(field=field, values=wanted_values):
            return any(_equal(value, wanted) for value in _values(fields, field) for wanted in wanted_values)
        case Range(field=field):
            return any(_within(value, where) for value in _values(fields, field))


def _values(fields: Mapping[str, Any], path: str) -> Iterator[Any]:
    value = _lookup(fields, path)
    if isinstance(value, (list, tuple)):
        yield from value
    else:
        yield value


def _lookup(fields: Mapping[str, Any], path: str) -> Any:
    value: Any = fields
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _equal(value: Any, wanted: Scalar) -> bool:
    if isinstance(wanted, (bool, str)):
        return type(value) is type(wanted) and bool(value == wanted)
    number = _as_double(value)
    return number is not None and number == float(wanted)


def _as_double(value: Any) -> float | None:
    """None for what is not a number; beyond the doubles it is infinite."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _within(value: Any, bounds: Range) -> bool:
    number = _as_double(value)
    return (
        number is not None
        and (bounds.gt is None or number > bounds.gt)
        and (bounds.gte is None or number >= bounds.gte)
        and (bounds.lt is None or number < bounds.lt)
        and (bounds.lte is None or number <= bounds.lte)
    )
