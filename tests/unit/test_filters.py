"""The filter language: what is read, what is refused and how, and what a filter means for one document."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvr_rag.errors import InvalidFilter
from nvr_rag.filters import And, Equals, Exists, In, Not, Or, Range, matches, parse_filter


@pytest.mark.parametrize("value", [None, {}])
def test_no_filter_lets_everything_pass(value: Any) -> None:
    assert parse_filter(value) is None
    assert matches(None, {})


@pytest.mark.parametrize(
    ("value", "tree"),
    [
        ({"uri": "u"}, Equals(field="uri", value="u")),
        ({"metadata.a-b.c_d": True}, Equals(field="metadata.a-b.c_d", value=True)),
        ({"metadata.год": 2020}, Equals(field="metadata.год", value=2020)),
        ({"title": {"in": ["a", "b"]}}, In(field="title", values=("a", "b"))),
        ({"metadata.n": {"gte": 1, "lt": 2.5}}, Range(field="metadata.n", gte=1.0, lt=2.5)),
        ({"metadata.n": {"exists": True}}, Exists(field="metadata.n")),
        ({"metadata.n": {"exists": False}}, Not(part=Exists(field="metadata.n"))),
        ({"uri": "u", "title": "t"}, And(parts=(Equals(field="uri", value="u"), Equals(field="title", value="t")))),
        (
            {"or": [{"uri": "u"}, {"uri": "v"}]},
            Or(parts=(Equals(field="uri", value="u"), Equals(field="uri", value="v"))),
        ),
        ({"not": {"and": [{"uri": "u"}]}}, Not(part=And(parts=(Equals(field="uri", value="u"),)))),
    ],
)
def test_every_form_is_read(value: dict[str, Any], tree: Any) -> None:
    assert parse_filter(value) == tree


def nested(depth: int) -> dict[str, Any]:
    return {"not": nested(depth - 1)} if depth else {"uri": "u"}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "JSON object"),
        (["uri"], "JSON object"),
        ("uri", "JSON object"),
        (0, "JSON object"),
        ({"author": "x"}, 'did you mean "metadata.author"'),
        ({"metadata": "x"}, "unknown field"),
        ({"metadata.": "x"}, "unknown field"),
        ({"metadata.a..b": "x"}, "unknown field"),
        ({'metadata.a"b': "x"}, "unknown field"),
        ({"metadata.a[]": "x"}, "unknown field"),
        ({"metadata." + "a" * 256: "x"}, "unknown field"),
        ({"metadata.\ud800": "x"}, "unknown field"),
        ({1: "x"}, "unknown field"),
        ({"uri": None}, "uri: a value is"),
        ({"uri": ["a"]}, "uri: a value is"),
        ({"uri": float("nan")}, "finite"),
        ({"metadata.n": 2**53 + 1}, "finite"),
        ({"metadata.n": 10**400}, "finite"),
        ({"uri": "\ud800"}, "not valid Unicode"),
        ({"uri": {"in": ["\udfff"]}}, "not valid Unicode"),
        ({"uri": {}}, "operators are in, exists, gt"),
        ({"uri": {"like": "x"}}, "operators are in, exists, gt"),
        ({"uri": {"in": ["x"], "gt": 1}}, "operators are in, exists, gt"),
        ({"uri": {"in": []}}, "at least one value"),
        ({"uri": {"in": "abc"}}, "at least one value"),
        ({"uri": {"in": ["x"] * 1001}}, "at most 1000"),
        ({"uri": {"exists": 1}}, "true or false"),
        ({"metadata.n": {"gt": "1"}}, "a bound is a finite number"),
        ({"metadata.n": {"gt": True}}, "a bound is a finite number"),
        ({"metadata.n": {"lt": float("inf")}}, "a bound is a finite number"),
        ({"and": []}, "at least one filter"),
        ({"or": {"uri": "u"}}, "at least one filter"),
        ({"or": "uri"}, "at least one filter"),
        ({"and": [{}]}, "at least one condition"),
        ({"not": {}}, "at least one condition"),
        ({"not": [{"uri": "u"}]}, "JSON object"),
        (nested(9), "levels deep"),
        ({"and": [{"uri": "u"}] * 300}, "256 conditions"),
    ],
)
def test_what_is_wrong_is_said_with_the_place(value: Any, message: str) -> None:
    with pytest.raises(InvalidFilter, match=message) as raised:
        parse_filter(value)
    assert raised.value.field == "filter"
    assert len(str(raised.value)) < 400


def test_the_limits_themselves_are_allowed() -> None:
    assert parse_filter(nested(8)) is not None
    assert parse_filter({"and": [{"uri": "u"}] * 255}) is not None


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["and", "or", "not", "uri", "metadata.x", "in", "gt", "exists"]) | st.text(),
                inner,
                max_size=3,
            )
        ),
    )
)
def test_any_json_is_read_or_refused_but_never_breaks(value: Any) -> None:
    with contextlib.suppress(InvalidFilter):
        parse_filter(value)


FIELDS: dict[str, Any] = {
    "uri": "file:///a.md",
    "media_type": "text/markdown",
    "metadata": {
        "year": 2020,
        "rating": 4.5,
        "draft": False,
        "one": 1,
        "tags": ["red", "blue", 7, True],
        "deep": {"er": {"still": "here"}},
        "null": None,
        "empty": [],
        "nulls": [None],
        "objects": [{"name": "x"}],
        "lists": [["x"]],
        "object": {},
        "huge": 10**400,
        "tiny": -(10**400),
    },
}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"uri": "file:///a.md"}, True),
        ({"uri": "FILE:///A.MD"}, False),
        ({"title": ""}, False),  # missing is not the empty string
        ({"metadata.year": 2020.0}, True),
        ({"metadata.year": "2020"}, False),
        ({"metadata.one": True}, False),  # 1 is not true
        ({"metadata.draft": 0}, False),  # nor false 0
        ({"metadata.draft": False}, True),
        ({"metadata.draft": {"gte": 0}}, False),
        ({"metadata.tags": "blue"}, True),
        ({"metadata.tags": 7}, True),
        ({"metadata.tags": 1}, False),
        ({"metadata.tags": {"in": ["green", "red"]}}, True),
        ({"metadata.tags": {"gt": 6}}, True),
        ({"metadata.tags": {"gt": 7}}, False),
        ({"metadata.rating": {"gt": 4, "lte": 4.5}}, True),
        ({"metadata.rating": {"gt": 4.5}}, False),
        ({"metadata.huge": {"gt": 1e300}}, True),
        ({"metadata.tiny": {"gt": 1e300}}, False),
        ({"metadata.deep.er.still": "here"}, True),
        ({"metadata.deep.er.gone": {"exists": False}}, True),
        ({"metadata.year.x": {"exists": True}}, False),
        ({"metadata.null": {"exists": True}}, False),
        ({"metadata.empty": {"exists": True}}, False),
        ({"metadata.nulls": {"exists": True}}, True),
        ({"metadata.object": {"exists": True}}, True),
        ({"metadata.objects.name": "x"}, False),
        ({"metadata.lists": "x"}, False),
        ({"not": {"metadata.missing": "x"}}, True),
        ({"uri": "file:///a.md", "media_type": "text/plain"}, False),
        ({"or": [{"media_type": "text/plain"}, {"metadata.year": {"lt": 2021}}]}, True),
        ({"and": [{"media_type": "text/markdown"}, {"not": {"metadata.year": 2020}}]}, False),
    ],
)
def test_the_meaning_for_one_document(value: dict[str, Any], expected: bool) -> None:
    assert matches(parse_filter(value), FIELDS) is expected
