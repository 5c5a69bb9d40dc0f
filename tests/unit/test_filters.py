"""The filter language: what is read, what is refused and how, and what a filter means for one document."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvr_rag.errors import InvalidFilter
from nvr_rag.filters import And, Equals, Exists, In, Not, Or, Range, fields_of, listed_values, matches, parse_filter


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
        ({"uri": {"equals": "u"}}, Equals(field="uri", value="u")),
        ({"metadata.n": {"equals": 0}}, Equals(field="metadata.n", value=0)),
        ({"source": "s"}, Equals(field="source", value="s")),
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


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1970-01-01", 0),
        ("1970-01-02", 86_400),
        ("1970-01-01T00:00:01", 1),
        ("1970-01-01T00:00:01Z", 1),
        ("1970-01-01t00:00:01z", 1),
        ("1970-01-01 01:00", 3600),
        ("1970-01-01T01:00:00+01:00", 0),
        ("1970-01-01T00:00:00-0130", 5400),
        ("1970-01-01T00:00:00.25Z", 0.25),
        ("1969-12-31", -86_400),
        ("2024-05-31T12:30:00.123456Z", 1_717_158_600.123456),
        ("0001-01-01T00:00:00+14:00", -62_135_596_800 - 14 * 3600),
        ("9999-12-31T23:59:59-14:00", 253_402_300_799 + 14 * 3600),
    ],
)
def test_times_are_read_as_utc_unless_they_say_otherwise(text: str, seconds: float) -> None:
    assert parse_filter({"updated_at": {"gte": text}}) == Range(field="updated_at", gte=seconds)
    assert matches(parse_filter({"updated_at": {"gte": text, "lte": text}}), {"updated_at": seconds})
    assert not matches(parse_filter({"updated_at": {"gt": text}}), {"updated_at": seconds})


@pytest.mark.parametrize("form", ["x", ["x"], None, {"equals": "x"}, {"in": ["x"]}, {"exists": False}, {"gt": 0}])
@pytest.mark.parametrize("field", ["acl", "ACL", "acl.", "acl[]", "metadata.x.acl[]", '"acl"', ".acl", "metadata..acl"])
def test_no_filter_can_name_the_permissions_of_an_index(field: str, form: Any) -> None:
    for value in ({field: form}, {"not": {field: form}}, {"or": [{"uri": "u"}, {field: form}]}):
        with pytest.raises(InvalidFilter, match="unknown field"):
            parse_filter(value)


def test_a_metadata_field_may_be_called_as_they_are() -> None:
    where = parse_filter({"metadata.acl": "x"})
    assert fields_of(where) == {"metadata.acl"}
    assert not matches(where, {"acl": ["x"], "metadata": {}})


def test_the_fields_that_a_filter_asks_for_are_told() -> None:
    value = {"or": [{"uri": "u"}, {"not": {"source": {"exists": True}, "metadata.a": {"in": [1]}}}]}
    assert fields_of(parse_filter(value)) == {"uri", "source", "metadata.a"}
    assert fields_of(parse_filter({"updated_at": {"lt": "2024-05-31"}, "title": "t"})) == {"updated_at", "title"}
    assert fields_of(None) == set()


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
        ({"uri": {}}, "operators are equals, in, exists, gt"),
        ({"uri": {"like": "x"}}, "operators are equals, in, exists, gt"),
        ({"uri": {"in": ["x"], "gt": 1}}, "only gt, gte, lt and lte go together"),
        ({"uri": {"equals": "x", "in": ["x"]}}, "only gt, gte, lt and lte go together"),
        ({"uri": {"equals": ["x"]}}, "uri: a value is"),
        ({"uri": {"equals": {"equals": "x"}}}, "uri: a value is"),
        ({"uri": {"equals": None}}, '"exists": false'),
        ({"uri": {"regex": "(a+)+$"}}, "operators are equals, in, exists, gt"),
        ({"title": {"$regex": ".*"}}, "operators are equals, in, exists, gt"),
        ({"title": {"match": {"text": "x"}}}, "operators are equals, in, exists, gt"),
        ({"title": {"contains": "x"}}, "operators are equals, in, exists, gt"),
        ({"title": {"prefix": "x"}}, "operators are equals, in, exists, gt"),
        ({"regex": {"title": ".*"}}, "unknown field 'regex'"),
        ({"updated_at": "2024-05-31"}, "updated_at: operators are gt, gte, lt, lte"),
        ({"updated_at": {"equals": "2024-05-31"}}, "updated_at: operators are gt, gte, lt, lte"),
        ({"updated_at": {"in": ["2024-05-31"]}}, "updated_at: operators are gt, gte, lt, lte"),
        ({"updated_at": {"exists": True}}, "updated_at: operators are gt, gte, lt, lte"),
        ({"updated_at": {}}, "updated_at: operators are gt, gte, lt, lte"),
        ({"updated_at": None}, "updated_at: operators are gt, gte, lt, lte"),
        ({"updated_at": {"gte": 1717113600}}, "ISO 8601"),
        ({"updated_at": {"gte": True}}, "ISO 8601"),
        ({"updated_at": {"gte": None}}, "ISO 8601"),
        ({"updated_at": {"gte": ""}}, "ISO 8601"),
        ({"updated_at": {"gte": "yesterday"}}, "ISO 8601"),
        ({"updated_at": {"gte": "31.5.2024"}}, "ISO 8601"),
        ({"updated_at": {"gte": "2024-05"}}, "ISO 8601"),
        ({"updated_at": {"gte": "20240531"}}, "ISO 8601"),
        ({"updated_at": {"gte": "2024-02-30"}}, "ISO 8601"),
        ({"updated_at": {"gte": "2024-05-31T25:00"}}, "ISO 8601"),
        ({"updated_at": {"gte": "2024-05-31T12"}}, "ISO 8601"),
        ({"updated_at": {"gte": "0000-01-01"}}, "ISO 8601"),
        ({"updated_at": {"gte": "10000-01-01"}}, "ISO 8601"),
        ({"updated_at": {"gte": "2024-05-31T12:00:00+99:00"}}, "ISO 8601"),
        ({"updated_at": {"gte": "２０２４-05-31"}}, "ISO 8601"),
        ({"updated_at": {"gte": "2024-05-31\n"}}, "ISO 8601"),
        ({"updated_at": {"gte": "2024-05-31\ud800"}}, "ISO 8601"),
        ({"updated_at.x": {"gte": "2024-05-31"}}, "unknown field"),
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
        ({"or": [*[{"uri": {"in": ["x"] * 1000}}] * 10, {"not": {"title": {"in": ["y"]}}}]}, "title: .* 10000 values"),
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
    where = parse_filter({"not": {"or": [{"uri": {"in": ["x"] * 1000}}, {"and": [{"title": {"in": [1, 2]}}] * 9}]}})
    assert listed_values(where) == 1018
    assert parse_filter({"or": [{"uri": {"in": ["x"] * 1000}}] * 10}) is not None


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["and", "or", "not", "uri", "updated_at", "metadata.x", "in", "gt", "exists", "equals"])
                | st.text(),
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
