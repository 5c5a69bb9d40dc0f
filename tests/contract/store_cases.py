"""What the store contract is run on: points to write, and random documents and filters."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any

import numpy as np
from hypothesis import strategies as st

from nvr_rag.stores.base import Point, SparseVector, StoreConfig

CONFIG = StoreConfig(dimension=4, encoder="f" * 64, settings={"note": "größer", "nested": {"list": [1, 2.5, None]}})


def uid(number: int) -> str:
    """Ids in the order of their numbers."""
    return str(uuid.UUID(int=number))


def vector(*values: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.array((*values, *[0.0] * (4 - len(values))), dtype=np.float32)


def terms(**weights: float) -> SparseVector:
    """terms(t3=1.0) is the vector with weight 1 at term 3."""
    pairs = sorted((int(name[1:]), weight) for name, weight in weights.items())
    return SparseVector(indices=[term for term, _ in pairs], values=[weight for _, weight in pairs])


def point(
    number: int,
    dense: tuple[float, ...] = (1.0,),
    lexical: SparseVector | None = None,
    payload: dict[str, Any] | None = None,
) -> Point:
    hashes = {"input_hash": f"input-{number}", "payload_hash": f"payload-{number}"}
    return Point(id=uid(number), dense=vector(*dense), lexical=lexical or terms(), payload=hashes | (payload or {}))


# Few distinct values, so that filters and documents meet; the clients' local mode compares integers beyond 2**53
# exactly where everyone else has doubles, hence no larger ones.
_SCALARS = st.sampled_from(
    [True, False, 0, 1, -1, 2, 1.0, 0.5, -0.0, 2**53, 1e300, "", "a", "b", "1", "true", "数据 é"]
)
_KEYS = st.sampled_from(["a", "a-b", "b_c", "0", "ключ", "日本"])
_LISTS = st.lists(_SCALARS | st.none() | st.lists(_SCALARS, max_size=2), max_size=3)
_VALUES = st.recursive(
    _SCALARS | st.none() | _LISTS,
    lambda inner: (
        st.dictionaries(_KEYS, inner, max_size=3) | st.lists(st.dictionaries(_KEYS, inner, max_size=2), max_size=2)
    ),
    max_leaves=4,
)
# A day, an hour and a microsecond apart; as a store keeps them and as a filter says them.
_MOMENTS = st.sampled_from(
    [
        "1969-12-31T23:59:59.999999Z",
        "2024-05-31T00:00:00Z",
        "2024-05-31T00:00:00.000001Z",
        "2024-05-31T01:00:00+01:00",
        "2024-05-31T12:30:00.123456Z",
        "9999-12-31T23:59:59.999999Z",
    ]
)
_TOP = st.sampled_from(["", "a", "b", "1", "数据 é"])


def documents() -> st.SearchStrategy[dict[str, Any]]:
    """Filterable fields of a document, some of them missing."""
    return st.fixed_dictionaries(
        {},
        optional={
            "document_id": _TOP,
            "uri": _TOP,
            "source": _TOP,
            "title": _TOP,
            "media_type": _TOP,
            "updated_at": _MOMENTS.map(lambda text: datetime.fromisoformat(text).timestamp()),
            "metadata": st.dictionaries(_KEYS, _VALUES, max_size=3),
        },
    )


def filters() -> st.SearchStrategy[dict[str, Any]]:
    """Filters as callers write them."""
    paths = st.lists(_KEYS, min_size=1, max_size=2).map(lambda keys: ".".join(("metadata", *keys)))
    fields = st.sampled_from(["document_id", "uri", "source", "title", "media_type"]) | paths
    bounds = st.sampled_from([-1, 0, 0.5, 1, 2, 2**53, 1e300])
    conditions = (
        _SCALARS
        | st.fixed_dictionaries({"equals": _SCALARS})
        | st.fixed_dictionaries({"in": st.lists(_SCALARS, min_size=1, max_size=4)})
        | st.fixed_dictionaries({"exists": st.booleans()})
        | st.dictionaries(st.sampled_from(["gt", "gte", "lt", "lte"]), bounds, min_size=1, max_size=2)
    )
    periods = st.dictionaries(st.sampled_from(["gt", "gte", "lt", "lte"]), _MOMENTS, min_size=1, max_size=2)
    return st.recursive(
        st.dictionaries(fields, conditions, min_size=1, max_size=2) | st.fixed_dictionaries({"updated_at": periods}),
        lambda inner: (
            st.fixed_dictionaries({"and": st.lists(inner, min_size=1, max_size=3)})
            | st.fixed_dictionaries({"or": st.lists(inner, min_size=1, max_size=3)})
            | st.fixed_dictionaries({"not": inner})
        ),
        max_leaves=4,
    )
