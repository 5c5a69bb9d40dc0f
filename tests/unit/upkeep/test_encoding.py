"""Groups on their way through an encoder: two at a time, done in their order, equal inputs encoded once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from nvr_rag.upkeep.aside import Aside
from nvr_rag.upkeep.encoding import Encoding
from nvr_rag.upkeep.writing import Group, Work

SECONDS = 30


class Encoder:
    """Its vector of a text is the text; it may be told what to wait for."""

    def __init__(self, before: Callable[[Sequence[str]], object] = len) -> None:
        self.before, self.heard, self.running, self.most = before, list[list[str]](), 0, 0
        self.lock = threading.Lock()

    def encode_documents(self, texts: Sequence[str]) -> list[str]:
        with self.lock:
            self.heard.append(list(texts))
            self.running += 1
            self.most = max(self.most, self.running)
        try:
            self.before(texts)
        finally:
            with self.lock:
                self.running -= 1
        return list(texts)


def group(*texts: str) -> Group:
    new: Any = [SimpleNamespace(input_hash=f"hash of {text}", text=text) for text in texts]
    return Group(wanted=new, new=new, repaint={}, vectors={})


def run(encoder: Encoder, groups: Sequence[Group], work: Work) -> list[Group]:
    """The groups in the order in which they were done."""
    done: list[Group] = []
    index: Any = SimpleNamespace(encoder=encoder)
    with Aside("side") as aside, Encoding(index, work, aside) as encoding:
        for each in groups:
            encoding.make_room()
            encoding.begin(each, lambda each=each: done.append(each))  # type: ignore[misc]
        while encoding.wait(SECONDS):
            pass
    return done


def test_two_at_a_time_and_never_three() -> None:
    together = threading.Barrier(2)
    encoder = Encoder(lambda _: together.wait(SECONDS))
    groups = [group(f"text {number}") for number in range(8)]
    assert run(encoder, groups, Work()) == groups
    assert encoder.most == 2


def test_one_that_is_done_sooner_waits_for_the_one_before_it() -> None:
    second = threading.Event()

    def before(texts: Sequence[str]) -> None:
        if texts == ["a"]:
            assert second.wait(SECONDS)
        else:
            second.set()

    groups = [group("a"), group("b"), group("c"), group("d")]
    assert run(Encoder(before), groups, Work()) == groups


def test_what_others_are_about_to_have_is_encoded_once() -> None:
    """The second group wants what the first one has not yet, and the third is not done when all others are begun:
    nobody waits for a vector, and all have theirs when they are done."""
    together, last = threading.Barrier(2), threading.Event()

    def before(texts: Sequence[str]) -> None:
        if "d" in texts:
            assert last.wait(SECONDS)
        elif "f" in texts:
            last.set()
        elif len(texts) == 2:
            together.wait(SECONDS)

    encoder = Encoder(before)
    wanted = [("a", "echo"), ("echo", "b", "c"), ("a", "c", "d", "echo"), ("a", "e", "echo"), ("d", "f")]
    groups = [group(*texts) for texts in wanted]
    assert run(encoder, groups, Work()) == groups
    assert sorted(encoder.heard) == [["a", "echo"], ["b", "c"], ["d"], ["e"], ["f"]]
    assert [sorted(each.vectors.values()) for each in groups] == [sorted(texts) for texts in wanted]
    assert [each.encoded for each in groups] == [2, 2, 1, 1, 1]


def test_what_is_to_follow_groups_follows_them_and_nothing_else() -> None:
    may, order = threading.Event(), list[str]()
    index: Any = SimpleNamespace(encoder=Encoder(lambda _: may.wait(SECONDS)))
    with Aside("side") as aside, Encoding(index, Work(), aside) as encoding:
        encoding.then(lambda: order.append("at once"))
        aside.do(lambda: None).result()
        assert order == ["at once"]
        encoding.begin(group("a"), lambda: order.append("a"))
        encoding.then(lambda: order.append("after a"))
        aside.do(lambda: None).result()
        assert order == ["at once"]
        assert encoding.wait(0.01)
        may.set()
        while encoding.wait(SECONDS):
            pass
    assert order == ["at once", "a", "after a"]


def test_an_error_ends_it_after_what_came_before() -> None:
    first = threading.Event()

    def before(texts: Sequence[str]) -> None:
        if texts == ["a"]:
            assert first.wait(SECONDS)
        if texts == ["b"]:
            first.set()
            raise ValueError("no vector of b")

    done: list[str] = []
    encoder = Encoder(before)
    index: Any = SimpleNamespace(encoder=encoder)

    def all_of_them() -> None:
        with Aside("side") as aside, Encoding(index, Work(), aside) as encoding:
            for text in "abcdef":
                encoding.make_room()
                encoding.begin(group(text), lambda text=text: done.append(text))  # type: ignore[misc]

    with pytest.raises(ValueError, match="no vector of b"):
        all_of_them()
    assert done == ["a"]
    assert encoder.running == 0
    assert len(encoder.heard) < 6


def test_time_in_which_two_are_encoded_counts_once() -> None:
    together, work = threading.Barrier(2), Work()
    pause = threading.Event()

    def before(_: Sequence[str]) -> None:
        together.wait(SECONDS)
        pause.wait(0.2)

    run(Encoder(before), [group("a"), group("b")], work)
    assert 0.2 <= work.seconds["encode"] < 0.35
