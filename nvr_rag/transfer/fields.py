"""The fields of one JSON object, read as what they must be, or refused in words that name line, field and value.

Knows no record: which fields there are is for the caller to say.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any, NoReturn, TypeVar

from nvr_rag.errors import InvalidInput
from nvr_rag.storable import storable, storable_json

_HASH = re.compile(r"[0-9a-f]{64}")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_SHOWN = 80  # characters of a value in a message
_LARGEST = 2**31 - 1  # what an integer column of every engine can hold

Kind = TypeVar("Kind", bound=StrEnum)


class Fields:
    """A JSON object whose fields are taken one by one; `done` refuses those that nobody took."""

    def __init__(self, where: str, values: Any) -> None:
        """`where` begins every message, such as "export.jsonl, line 3"."""
        self.where = where
        if not isinstance(values, Mapping):
            self.refuse(f"a JSON object is expected, not {_shown(values)}")
        self._values = dict(values)

    def refuse(self, message: str, field: str | None = None) -> NoReturn:
        raise InvalidInput(f"{self.where}: {message}", field=field)

    def done(self) -> None:
        """Raise InvalidInput for a field that was not taken: it may be misspelt, or mean something that is not done."""
        if self._values:
            name = next(iter(self._values))
            self.refuse(f"unknown field {_shown(name)}; remove it", name)

    def has(self, name: str) -> bool:
        """Whether the field is there and not null."""
        return self._values.get(name) is not None

    def take(self, name: str, wanted: str, kinds: type | tuple[type, ...]) -> Any:
        """The value of a field that must be there; booleans are no numbers."""
        if name not in self._values:
            self.refuse(f"the field {name!r} is missing; it is {wanted}", name)
        value = self._values.pop(name)
        if not isinstance(value, kinds) or isinstance(value, bool):
            self.refuse(f"the field {name!r} is {wanted}, not {_shown(value)}", name)
        return value

    def drop(self, name: str) -> None:
        """Take a field that says nothing."""
        self._values.pop(name, None)

    def text(self, name: str, *, most: int | None = None) -> str:
        value: str = self.take(name, "a text", str)
        self._check_storable(name, value)
        if most is not None and len(value) > most:
            self.refuse(f"the field {name!r} has {len(value)} characters; {most} are the most", name)
        return value

    def optional_text(self, name: str) -> str | None:
        if self.has(name):
            return self.text(name)
        self.take(name, "a text or null", type(None))
        return None

    def number(self, name: str, *, least: int = 0, most: int = _LARGEST) -> int:
        value: int = self.take(name, f"a whole number from {least}", int)
        if not least <= value <= most:
            self.refuse(f"the field {name!r} is a whole number from {least} to {most}, not {_shown(value)}", name)
        return value

    def optional_number(self, name: str, *, least: int = 0, most: int = _LARGEST) -> int | None:
        if self.has(name):
            return self.number(name, least=least, most=most)
        self.take(name, "a whole number or null", type(None))
        return None

    def score(self, name: str) -> float:
        value = self.take(name, "a number", (int, float))
        if isinstance(value, float) and not math.isfinite(value):
            self.refuse(f"the field {name!r} is a number, not {value}", name)
        return value  # type: ignore[no-any-return]  # an integer stays one, so that it is written as it was read

    def one_of(self, name: str, kind: type[Kind]) -> Kind:
        value = self.text(name)
        if value not in list(kind):
            self.refuse(f"the field {name!r} is one of {', '.join(kind)}, not {_shown(value)}", name)
        return kind(value)

    def hash(self, name: str) -> str:
        return self._matching(name, _HASH, "64 hexadecimal digits in lower case")

    def uuid(self, name: str) -> str:
        return self._matching(name, _UUID, "a UUID in lower case")

    def moment(self, name: str) -> datetime:
        value = self.text(name)
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            moment = None
        if moment is None or moment.tzinfo is None:
            self.refuse(f"the field {name!r} is a time such as 2026-01-31T12:00:00+00:00, not {_shown(value)}", name)
        return moment

    def texts(self, name: str) -> list[str]:
        value: list[Any] = self.take(name, "a list of texts", list)
        if not all(isinstance(item, str) for item in value):
            self.refuse(f"the field {name!r} is a list of texts, not {_shown(value)}", name)
        for item in value:
            self._check_storable(name, item)
        return value

    def offsets(self, name: str, most: int) -> Sequence[int]:
        """Ascending whole numbers from 0 to `most`."""
        value: list[Any] = self.take(name, "a list of whole numbers", list)
        whole = all(isinstance(item, int) and not isinstance(item, bool) for item in value)
        if not whole or value != sorted(value) or any(not 0 <= item <= most for item in value):
            self.refuse(f"the field {name!r} is a list of ascending whole numbers from 0 to {most}", name)
        return value

    def mapping(self, name: str) -> dict[str, Any]:
        """A JSON object that can be stored."""
        value = self.take(name, "a JSON object", dict)
        try:
            return dict(storable_json(value))
        except InvalidInput as error:
            self.refuse(f"the field {name!r} cannot be stored: {error}", name)

    def optional_mapping(self, name: str) -> dict[str, Any] | None:
        if self.has(name):
            return self.mapping(name)
        self.take(name, "a JSON object or null", type(None))
        return None

    def parts(self, name: str) -> list[Fields]:
        """A list of JSON objects."""
        items: list[Any] = self.take(name, "a list of JSON objects", list)
        return [Fields(f"{self.where}, {name}[{i}]", item) for i, item in enumerate(items)]

    def part(self, name: str) -> Fields | None:
        """A JSON object, or None for null."""
        value = self.take(name, "a JSON object or null", (dict, type(None)))
        return None if value is None else Fields(f"{self.where}, {name}", value)

    def _check_storable(self, name: str, value: str) -> None:
        if storable(value) != value:
            self.refuse(f"the field {name!r} has NUL or a lone surrogate in it, which cannot be stored", name)

    def _matching(self, name: str, pattern: re.Pattern[str], wanted: str) -> str:
        value = self.text(name)
        if not pattern.fullmatch(value):
            self.refuse(f"the field {name!r} is {wanted}, not {_shown(value)}", name)
        return value


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
