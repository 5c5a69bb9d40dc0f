"""What can happen to a PostgreSQL server, and to SQLite's file."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

from tests.faults.clients import fair_or_none
from tests.faults.cluster import Cluster
from tests.faults.outcomes import Outcome, begin, outcome
from tests.faults.stage import POSTGRES, Scenario, Stage

_DOWN_SECONDS = 2.0
_PAUSED_SECONDS = 6.0
_LOCKED_SECONDS = 33.0  # longer than the 30 s that a process waits for SQLite's lock


@contextmanager
def _killed(cluster: Cluster) -> Iterator[None]:
    cluster.kill()
    yield
    cluster.start()


@contextmanager
def _stopped(cluster: Cluster) -> Iterator[None]:
    cluster.stop()
    yield
    cluster.start()


@contextmanager
def _rotated(cluster: Cluster) -> Iterator[None]:
    cluster.rotate("second")
    yield
    cluster.rotate("first")


def _kill(stage: Stage, name: str) -> Outcome:
    life, _ = stage.shared()
    return outcome(life, name, lambda: _killed(stage.cluster), _DOWN_SECONDS)


def _kill_edge(stage: Stage, name: str) -> Outcome:
    life = stage.life(url=stage.cluster.new_database())
    return outcome(life, name, lambda: _killed(stage.cluster), _DOWN_SECONDS)


def _stop(stage: Stage, name: str) -> Outcome:
    life, _ = stage.shared()
    return outcome(life, name, lambda: _stopped(stage.cluster), _DOWN_SECONDS)


def _idle(stage: Stage, name: str) -> Outcome:
    """Connections that the pool keeps are dead when the next request comes."""
    life, _ = stage.shared()
    begin(life)
    time.sleep(0.5)
    stage.cluster.stop()
    stage.cluster.start()
    return outcome(life, name, _nothing, 0.0)


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def _crowd(stage: Stage, name: str) -> Outcome:
    life, _ = stage.shared()
    return outcome(life, name, stage.cluster.crowded, _DOWN_SECONDS)


def _pause(stage: Stage, name: str) -> Outcome:
    life, _ = stage.shared()
    return outcome(life, name, stage.cluster.paused, _PAUSED_SECONDS)


def _rotate(stage: Stage, name: str) -> Outcome:
    life = stage.life(url=stage.cluster.new_database(locked=True))
    return outcome(life, name, lambda: _rotated(stage.cluster), _DOWN_SECONDS)


def _lock(seconds: float) -> Scenario:
    def play(stage: Stage, name: str) -> Outcome:
        life = stage.life()

        @contextmanager
        def locked() -> Iterator[None]:
            with closing(sqlite3.connect(life.place.home / "corpus.sqlite3", isolation_level=None)) as file:
                file.execute("PRAGMA busy_timeout = 10000")
                file.execute("BEGIN IMMEDIATE")
                yield
                file.execute("ROLLBACK")

        return outcome(life, name, locked, seconds)

    return Scenario(name=f"another process holds SQLite's lock for {seconds:.0f} s", play=play)


def _frozen(stage: Stage, name: str) -> Outcome:
    """Its clients wait, and are answered when it goes on."""
    life = stage.life()
    begin(life)
    server = life.serve().child.pid

    @contextmanager
    def frozen() -> Iterator[None]:
        os.kill(server, signal.SIGSTOP)
        yield
        os.kill(server, signal.SIGCONT)

    return outcome(life, name, frozen, _DOWN_SECONDS)


def _file_away(stage: Stage, name: str) -> Outcome:
    life = stage.life()

    @contextmanager
    def away() -> Iterator[None]:
        file = life.place.home / "corpus.sqlite3"
        file.rename(file.with_name("away"))
        yield
        file.with_name("away").rename(file)

    return outcome(life, name, away, _DOWN_SECONDS)


def _log_deleted(stage: Stage, name: str) -> Outcome:
    life = stage.life()

    @contextmanager
    def deleted() -> Iterator[None]:
        (life.place.home / "corpus.sqlite3-wal").unlink()
        yield

    def mend() -> None:
        life.stop_server()
        life.serve()

    return outcome(
        life, name, deleted, _DOWN_SECONDS, mend=mend, allowed=fair_or_none, note="mended by a restart in order"
    )


SCENARIOS = (
    Scenario(name="PostgreSQL killed", play=_kill, needs=POSTGRES),
    Scenario(name="PostgreSQL killed, indexes here", play=_kill_edge, needs=POSTGRES),
    Scenario(name="PostgreSQL stopped", play=_stop, needs=POSTGRES),
    Scenario(name="PostgreSQL restarted while nobody asks", play=_idle, needs=POSTGRES),
    Scenario(name="PostgreSQL has no connection to spare", play=_crowd, needs=POSTGRES),
    Scenario(name=f"PostgreSQL paused for {_PAUSED_SECONDS:.0f} s", play=_pause, needs=POSTGRES),
    Scenario(name="PostgreSQL's password rotated and rotated back", play=_rotate, needs=POSTGRES),
    _lock(3.0),
    _lock(_LOCKED_SECONDS),
    Scenario(name="the server stands still", play=_frozen),
    Scenario(name="SQLite's file taken away and put back", play=_file_away),
    Scenario(name="SQLite's log deleted", play=_log_deleted),
)
