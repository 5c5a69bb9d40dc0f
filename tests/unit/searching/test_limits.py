"""What may be asked."""

from __future__ import annotations

from typing import Any

import pytest

from nvr_rag.errors import InvalidFilter, InvalidInput
from nvr_rag.searching.limits import check_query, numbered
from nvr_rag.types import Mmr, Mode, Query


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"k": 0}, "k"),
        ({"k": 1001}, "k"),
        ({"k": 2.5}, "k"),
        ({"k": "10"}, "k"),
        ({"k": True}, "k"),
        ({"text": 5}, "query"),
        ({"mode": "fuzzy"}, "mode"),
        ({"mode": ["dense"]}, "mode"),
        ({"group_by": "source"}, "group_by"),
        ({"mmr": {"diversity": 0.5}}, "mmr"),
        ({"context": -1}, "context"),
        ({"context": 11}, "context"),
        ({"context": None}, "context"),
        ({"min_score": float("nan")}, "min_score"),
        ({"min_score": float("inf")}, "min_score"),
        ({"min_score": "0.5"}, "min_score"),
        ({"mmr": Mmr(diversity=1.1)}, "mmr.diversity"),
        ({"mmr": Mmr(diversity=-0.1)}, "mmr.diversity"),
        ({"mmr": Mmr(diversity=float("nan"))}, "mmr.diversity"),
        ({"mmr": Mmr(diversity=0.5, candidates=0)}, "mmr.candidates"),
        ({"mmr": Mmr(diversity=0.5, candidates=1001)}, "mmr.candidates"),
    ],
)
def test_what_is_outside_the_limits_is_named(options: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_query(Query(**{"text": "x", **options}))
    assert caught.value.field == field
    assert field.split(".")[0] in str(caught.value)


def test_what_is_inside_is_not() -> None:
    for mmr in (None, Mmr(diversity=0), Mmr(diversity=1, candidates=1000)):
        check_query(Query(text="x", k=1000, context=10, min_score=-5, mmr=mmr, mode=Mode.DENSE))
    check_query(Query(text="x", mode="hybrid", group_by="document"))  # type: ignore[arg-type]  # as programs say it


def test_one_of_several_searches_is_named() -> None:
    with pytest.raises(InvalidFilter) as caught, numbered(3):
        raise InvalidFilter("no such field")
    assert caught.value.field == "searches[3].filter"
