"""Lanes: work side by side, in order, and never more of it than there are lanes."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from nvr_rag.encoders.lanes import MOST, Lanes


def test_results_come_in_the_order_of_the_items() -> None:
    def slow_first(item: int) -> int:
        time.sleep(0.02 if item == 0 else 0)
        return item * 2

    assert list(Lanes(3).map(slow_first, range(40))) == [item * 2 for item in range(40)]
    assert list(Lanes(3).map(slow_first, [])) == []


def test_as_many_at_once_as_there_are_lanes_whoever_asks() -> None:
    lanes, lock, running, most = Lanes(3), threading.Lock(), 0, 0

    def step(item: int) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.005)
        with lock:
            running -= 1
        return item

    callers = [threading.Thread(target=lambda: list(lanes.map(step, range(12)))) for _ in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(30)
    assert most == 3


def test_the_threads_of_torch_are_shared_out_and_its_number_stays() -> None:
    before = torch.get_num_threads()
    together = threading.Barrier(MOST)  # every lane takes one item

    def threads(_: int) -> int:
        together.wait(30)
        torch.ones(4).sum()  # what a thread does first must not change its number
        return torch.get_num_threads()

    try:
        shares = list(Lanes(2 * MOST + 3).map(threads, range(MOST)))
        assert sorted(shares) == [2] * (MOST - 3) + [3] * 3
        found: list[int] = []
        later = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        later.start()
        later.join()
        assert found == [2 * MOST + 3]
    finally:
        torch.set_num_threads(before)


def test_an_error_ends_it_and_what_waits_is_not_begun() -> None:
    begun: list[int] = []

    def step(item: int) -> int:
        begun.append(item)
        if item == 2:
            raise ValueError("bad item")
        return item

    lanes = Lanes(1)
    with pytest.raises(ValueError, match="bad item"):
        list(lanes.map(step, range(100)))
    assert len(begun) <= 5
    assert list(lanes.map(lambda item: item, [1, 2])) == [1, 2]  # and the lanes go on


def test_one_caller_does_not_keep_another_waiting_for_long() -> None:
    """A long list hands in only a few items ahead, so somebody else's come between them."""
    lanes, order = Lanes(1), list[str]()

    def step(item: str) -> None:
        order.append(item)
        time.sleep(0.01)

    long = threading.Thread(target=lambda: list(lanes.map(step, ["long"] * 50)))
    long.start()
    while len(order) < 3:
        time.sleep(0.001)
    list(lanes.map(step, ["short"]))
    assert order.index("short") < 12
    long.join(30)


def test_lanes_that_rested_have_no_threads_and_go_on() -> None:
    lanes = Lanes(2)
    assert list(lanes.map(lambda item: item, [1, 2])) == [1, 2]
    assert lanes._pool is not None
    threads = lanes._pool._threads
    lanes.rest()
    assert len(threads) == 2
    assert not any(thread.is_alive() for thread in threads)
    assert list(lanes.map(lambda item: item, [3, 4])) == [3, 4]
    lanes.rest()
    lanes.rest()


def test_who_has_least_left_goes_first() -> None:
    """Of two long lists the one that began first is done first, and not both at the end; a short one passes both."""
    lanes, order, may = Lanes(1), list[str](), threading.Event()

    def step(item: str) -> None:
        may.wait(30)
        order.append(item)

    callers = []
    for name, items in (("first", 10), ("second", 10), ("short", 2)):
        call = len(lanes._calls)
        callers.append(threading.Thread(target=lambda name=name, items=items: list(lanes.map(step, [name] * items))))  # type: ignore[misc]
        callers[-1].start()
        while len(lanes._calls) == call:
            time.sleep(0.001)
    may.set()
    for caller in callers:
        caller.join(30)
    assert order == ["first", *["short"] * 2, *["first"] * 9, *["second"] * 10]


def test_a_caller_that_leaves_takes_its_items_along() -> None:
    lanes, done = Lanes(1), list[int]()

    def step(item: int) -> None:
        time.sleep(0.005)
        done.append(item)

    results = lanes.map(step, range(100))
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert list(lanes.map(lambda item: item, [1])) == [1]
    assert len(done) < 100


def test_a_long_list_has_its_turn_while_short_ones_keep_coming() -> None:
    lanes, done, short = Lanes(1), threading.Event(), list[int]()

    def step(_: int) -> None:
        time.sleep(0.001)

    def keep_coming() -> None:
        while not done.is_set():
            short.extend(0 for _ in lanes.map(step, range(5)))

    others = [threading.Thread(target=keep_coming) for _ in range(2)]
    for other in others:
        other.start()
    long = threading.Thread(target=lambda: list(lanes.map(step, range(100))))
    long.start()
    long.join(30)
    there = long.is_alive()
    done.set()
    for other in others:
        other.join(30)
    long.join(30)
    assert not there
    assert len(short) > 100  # and most turns were theirs
