"""A second thread: in order, one at a time, and nothing after an error."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future

import pytest

from nvr_rag.upkeep.aside import Aside


def test_steps_are_done_in_order_by_one_other_thread() -> None:
    done: list[tuple[int, str]] = []

    def step(number: int) -> Callable[[], int]:
        def work() -> int:
            done.append((number, threading.current_thread().name))
            return number * 2

        return work

    with Aside("side") as aside:
        futures = [aside.do(step(number)) for number in range(20)]
        assert [future.result() for future in futures] == [number * 2 for number in range(20)]
    assert [number for number, _ in done] == list(range(20))
    assert {name for _, name in done} == {"side_0"}


def test_after_a_step_that_failed_none_is_begun() -> None:
    done: list[int] = []

    def failing() -> None:
        with Aside("side") as aside:
            futures.append(aside.do(lambda: 1 / 0))
            futures.append(aside.do(lambda: done.append(1)))

    futures: list[Future[object]] = []
    with pytest.raises(ZeroDivisionError):  # on leaving: nobody need ask each of them
        failing()
    assert done == []
    assert [type(future.exception()) for future in futures] == [ZeroDivisionError] * 2


def test_what_was_asked_for_is_done_also_after_an_error_of_the_caller() -> None:
    done: list[int] = []
    begun, may_go_on = threading.Event(), threading.Event()

    def slow() -> None:
        begun.set()
        assert may_go_on.wait(30)
        done.append(1)

    def interrupted() -> None:
        with Aside("side") as aside:
            aside.do(slow)
            aside.do(lambda: done.append(2))
            assert begun.wait(30)
            threading.Timer(0.05, may_go_on.set).start()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert done == [1, 2]
