"""A lock that goes round."""

from __future__ import annotations

import threading
import time

from nvr_rag.running.turns import Turns


def test_who_waits_comes_before_who_has_just_had_it() -> None:
    turns, order = Turns(), list[str]()

    def wait() -> None:
        with turns:
            order.append("the other")

    other = threading.Thread(target=wait)
    with turns:
        assert not turns.wanted
        other.start()
        while not turns.wanted:
            time.sleep(0.001)
    for _ in range(3):  # at once: an ordinary lock would be had again before the other thread wakes up
        with turns:
            order.append("again")
    other.join()
    assert order == ["the other", "again", "again", "again"]
    assert not turns.locked()


def test_who_does_not_want_to_wait_is_told_at_once() -> None:
    turns = Turns()
    assert turns.acquire(blocking=False)
    assert turns.locked()
    assert not turns.acquire(blocking=False)
    assert not turns.wanted
    turns.release()
    assert not turns.locked()


def test_many_threads_never_have_it_together() -> None:
    turns, inside, most, done = Turns(), 0, 0, 0

    def work() -> None:
        nonlocal inside, most, done
        for _ in range(50):
            with turns:
                inside += 1
                most = max(most, inside)
                time.sleep(0)
                inside -= 1
                done += 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert (most, done) == (1, 300)
