"""What a reader may see, said to a database and to a vector store. `Reader.may_read` is what both mean."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, bindparam, func, or_, select, true

from nvr_rag.db import tables as t
from nvr_rag.filters import ACL, Exists, Filter, In, Not, Or
from nvr_rag.types import Reader

NOBODY = ""  # no principal is called so: what an index keeps of a document that nobody may read
FIELD = ACL


class Shape(StrEnum):
    """Readers of one shape get the same statement; what differs is bound to it."""

    EVERYTHING = "everything"
    NAMED = "named"  # has principals
    ANYBODY = "anybody"


def shape(reader: Reader) -> Shape:
    """The shape of a reader's statements."""
    return Shape.EVERYTHING if reader.everything else Shape.NAMED if reader.principals else Shape.ANYBODY


def readable(dialect: str, shape: Shape, acl: Any = t.Document.acl) -> ColumnElement[bool]:
    """A condition on rows of `document`, or on another column with an acl; a statement that has it is executed with
    what `bound` says."""
    if shape == Shape.EVERYTHING:
        return true()
    if shape == Shape.ANYBODY:
        nobody_named: ColumnElement[bool] = acl.is_(None)
        return nobody_named
    # The engines' own words for the elements of a JSON list.
    elements: Any = func.json_array_elements_text if dialect == "postgresql" else func.json_each
    each = elements(acl).table_valued("value")
    named = select(1).select_from(each).where(each.c.value.in_(bindparam("principals", expanding=True)))
    return or_(acl.is_(None), named.exists())


def bound(reader: Reader) -> dict[str, Any]:
    """The values for a condition of `readable`."""
    return {"principals": sorted(reader.principals)} if shape(reader) == Shape.NAMED else {}


def restriction(reader: Reader) -> Filter | None:
    """The same for an index, whose points carry `kept`; None for who reads everything."""
    unrestricted = Not(part=Exists(field=FIELD))
    match shape(reader):
        case Shape.EVERYTHING:
            return None
        case Shape.ANYBODY:
            return unrestricted
        case Shape.NAMED:
            return Or(parts=(unrestricted, In(field=FIELD, values=tuple(sorted(reader.principals)))))


def kept(acl: Sequence[str] | None) -> list[str] | None:
    """What an index keeps of an acl: to a store an empty list is like none at all, which is for everybody."""
    return None if acl is None else list(acl) or [NOBODY]
