"""Ten rounds of tests/bench/kill.py: real processes die by SIGKILL, and nothing is lost. Before them, whether the model
that judges the rounds would notice."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import engines
from tests.killing.lives import rounds
from tests.killing.oracle import ABSENT, Oracle, Version, marks_in, text_of, version_of
from tests.killing.processes import Nursery

ROUNDS = 10
A: Version = ("tide", "m0001x00001", "m0001x00002", "m0001x00003")
B: Version = ("tide", "m0001x00001", "m0001x00004", "m0001x00003")
OTHER: Version = ("ebb", "m0002x00005")


@pytest.fixture
def oracle() -> Oracle:
    """Knows that a:// was A and is B, that b:// was deleted, and that c:// has OTHER."""
    known = Oracle()
    for versions in ({"a://1": A, "b://2": OTHER}, {"a://1": B, "b://2": ABSENT}, {"c://2": OTHER}):
        known.maybe(versions)
        known.sure(versions)
    return known


RIGHT = {"a://1": B, "c://2": OTHER}


def kinds(oracle: Oracle, found: dict[str, Version], *, lagging: bool = False) -> list[str]:
    return [fault.kind for fault in oracle.judge(found, lagging=lagging)]


def test_what_is_as_it_must_be_is_no_fault(oracle: Oracle) -> None:
    assert kinds(oracle, RIGHT) == []
    assert kinds(oracle, {**RIGHT, "b://2": ABSENT}) == []


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        ({"a://1": ABSENT}, "loss"),
        ({"a://1": A}, "loss"),  # the edit was acknowledged
        ({"a://1": B[:3]}, "loss"),
        ({"a://1": (*B, B[3])}, "duplicate"),
        ({"a://1": ("tide", *A[1:], B[2])}, "mixture"),
        ({"a://1": ("ebb", *B[1:])}, "mixture"),
        ({"b://2": OTHER}, "resurrection"),
        ({"d://4": OTHER}, "resurrection"),  # nobody has ever sent it
    ],
)
def test_what_is_wrong_is_told_apart(oracle: Oracle, wrong: dict[str, Version], kind: str) -> None:
    assert kinds(oracle, {**RIGHT, **wrong}) == [kind]


def test_while_an_index_lags_the_old_text_is_fine_and_a_deleted_one_is_not(oracle: Oracle) -> None:
    assert kinds(oracle, {**RIGHT, "a://1": A}, lagging=True) == []
    assert kinds(oracle, {**RIGHT, "b://2": OTHER}, lagging=True) == ["resurrection"]
    assert kinds(oracle, {**RIGHT, "a://1": (*A, B[2])}, lagging=True) == ["mixture"]


def test_what_was_not_acknowledged_may_be_there_or_not_but_whole_and_stays_as_it_was_found(oracle: Oracle) -> None:
    oracle.maybe({"a://1": A, "c://2": ABSENT}, together=True)
    assert kinds(oracle, RIGHT) == []
    assert kinds(oracle, {"a://1": A}) == []
    assert kinds(oracle, {"a://1": A, "c://2": OTHER}) == ["mixture"]  # half of one request
    assert kinds(oracle, {"a://1": (*A, B[2]), "c://2": OTHER}) == ["mixture"]
    oracle.settle({"a://1": A})
    assert kinds(oracle, {"a://1": A}) == []
    assert kinds(oracle, {"a://1": B}) == ["loss"]


def test_a_text_says_which_version_it_is_of() -> None:
    text = text_of(1, B)
    assert marks_in(text) == list(B[1:])
    first, rest = text[:200], text[200:]
    assert version_of([("tide", 200, rest), ("tide", 0, first)]) == B
    assert version_of([("tide", 0, text), ("ebb", 900, "m0001x00009")]) == ("ebb|tide", *B[1:], "m0001x00009")
    assert version_of([]) == ABSENT


@pytest.mark.timeout(900)  # half a minute on an idle core
@pytest.mark.parametrize("database", engines.ENGINES)
def test_ten_kills_cost_nothing(tmp_path: Path, database: str) -> None:
    with Nursery() as nursery:
        records = list(rounds(nursery, f"{database}+edge", tmp_path, count=ROUNDS, seed=7))
    assert [fault for record in records for fault in record.faults] == []
    assert len({record.operation for record in records}) > 3
    assert any(not record.ended for record in records)  # a kill that comes too late shows nothing
    assert any(record.restart_seconds is not None for record in records)
