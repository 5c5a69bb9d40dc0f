"""One round: an operation begins, something is killed at a random moment, everything is started again and looked at.

A life, a seeded RNG and a pace enter; a record of what happened leaves, as JSON.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from random import Random
from typing import Any

import httpx
import psycopg

from tests.killing.checks import check
from tests.killing.life import DEFAULT, SERVE, Life, Refused
from tests.killing.operations import ALONE, BOTH, COMMAND, FIRST, OPERATIONS, SERVER, Operation
from tests.killing.oracle import Fault
from tests.killing.processes import Stuck

_BEYOND = 1.1  # kills come up to this fraction of what an operation usually takes
_NOTHING_SECONDS = 0.06  # that a command takes at least, on an idle core
_AGAIN = 0.25  # of the restarts are killed, too
_AGAIN_SECONDS = 1.0  # within which
_TOLD = 10  # faults of a round: the rest is more of the same


class Pace:
    """What operations usually take, learned while they are watched: between one and one and a half times that, so that
    two kills of three come before the end."""

    def __init__(self) -> None:
        self._usual: dict[str, float] = {}  # seconds on an idle machine
        self._slow = 1.0  # times longer than on an idle machine

    def measure(self, life: Life) -> None:
        """See how busy the machine is, by a command that does next to nothing."""
        child = life.start("--version", as_json=False)
        child.finish()
        self._slow = max(1.0, (time.monotonic() - child.started) / _NOTHING_SECONDS)

    def usual(self, operation: Operation, target: str) -> float:
        """Seconds."""
        return self._slow * self._usual.get(f"{operation.name}, {target}", operation.usual_seconds)

    def learn(self, operation: Operation, target: str, *, took: float | None, survived: float) -> None:
        """An operation took so long; or it was killed after so long and had not finished."""
        usual = self.usual(operation, target)
        if took is not None:
            usual += (took - usual) / 3
        elif survived > usual / 2:
            usual *= 1.15
        self._usual[f"{operation.name}, {target}"] = usual / self._slow


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """What a round came to."""

    configuration: str
    life: int
    round: int  # of the life, from 0
    operation: str
    killed: str  # what was
    delay: float  # seconds from the beginning of the operation to the kill
    usual: float  # seconds that the operation takes
    acknowledged: bool  # all of the operation, before the kill or in spite of it
    ended: bool  # the operation had ended when the kill came
    phase: str  # what the database said right after the kill
    again: bool  # the restart was killed as well
    restart_seconds: float | None  # until the first search was answered; None where the server went on
    verified: str  # "clean", "mended" or "failed"
    faults: Sequence[str]
    seconds: float  # of the whole round
    kept: str | None  # the folder, where something was wrong

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def choose(rng: Random, *, first: bool) -> Operation:
    """The operation of a round; a life begins with its first ingest, as often as that takes."""
    return FIRST if first else rng.choices(OPERATIONS, [operation.weight for operation in OPERATIONS])[0]


def play(life: Life, rng: Random, pace: Pace, operation: Operation, *, place: tuple[int, int]) -> Record:
    """Play one round; `place` is the number of the life and that of the round in it."""
    started = time.monotonic()
    target = rng.choice(operation.targets)
    pace.measure(life)
    delay, again = rng.random() * _BEYOND * pace.usual(operation, target), rng.random() < _AGAIN
    faults: list[Fault] = []
    acknowledged, ended, phase, restart, verified = False, False, "unknown", None, "failed"
    usual = pace.usual(operation, target)
    try:
        life.stop_server() if target == ALONE else life.serve()
        before = _written(life)
        attempt = operation.begin(life, rng, target)
        attempt.wait(delay)
        ended = attempt.seconds is not None
        pace.learn(operation, target, took=attempt.seconds, survived=delay)
        if target in (SERVER, BOTH):
            life.kill_server()
        if target in (ALONE, COMMAND, BOTH):
            attempt.kill()
        phase = _phase(life, before)
        faults += attempt.settle()
        acknowledged = attempt.acknowledged
        if life.server is None:
            if again:
                _start_and_kill(life, rng)
            restart = _restart(life)
        found, verified = check(life, rng)
        faults += found
        faults += _tracebacks(life)
    except (Stuck, Refused, httpx.HTTPError) as error:
        faults.append(Fault(kind="unusable", about=type(error).__name__, words=str(error)))
    return Record(
        configuration=life.place.configuration,
        life=place[0],
        round=place[1],
        operation=operation.name,
        killed=target,
        delay=delay,
        usual=usual,
        acknowledged=acknowledged,
        ended=ended,
        phase=phase,
        again=again and restart is not None,
        restart_seconds=restart,
        verified=verified,
        faults=[str(fault) for fault in faults[:_TOLD]],
        seconds=time.monotonic() - started,
        kept=str(life.place.folder) if faults else None,
    )


def _start_and_kill(life: Life, rng: Random) -> None:
    child = life.begin_serving()
    child.wait(rng.random() * _AGAIN_SECONDS)
    child.kill()


def _restart(life: Life) -> float:
    """Seconds until the first search was answered."""
    server = life.serve()
    if life.has(DEFAULT):
        server.search("keeper", k=1)
    return time.monotonic() - server.child.started


_STATES = (  # whatever an operation commits changes one of these
    "SELECT name, next_seq FROM collection ORDER BY id",
    "SELECT id, state FROM deployment ORDER BY id",
    "SELECT id, state, applied_seq, purged_seq FROM search_index ORDER BY id",
    "SELECT id, state FROM job ORDER BY id",
    "SELECT count(*), sum(grade) FROM feedback",
    "SELECT id, CAST(pending AS text) FROM erasure ORDER BY id",
)
_BEHIND = (  # changes that live indexes have not applied and purged; first those of indexes that are being built
    "SELECT coalesce(sum(CASE WHEN d.state = 'candidate' THEN c.next_seq - 1 - applied_seq END), 0), "
    "coalesce(sum(c.next_seq - 1 - applied_seq), 0), coalesce(sum(c.next_seq - 1 - purged_seq), 0) "
    "FROM search_index i JOIN collection c ON c.id = i.collection_id JOIN deployment d ON d.index_id = i.id "
    "WHERE i.state = 'live'",
)


def _written(life: Life) -> list[list[tuple[Any, ...]]]:
    """By plain SQL: what has been committed."""
    return _looked(life, _STATES)


def _phase(life: Life, before: list[list[tuple[Any, ...]]]) -> str:
    """Where the kill has left the database."""
    if _written(life) == before:
        return "nothing written"
    ((building, behind, unpurged),) = _looked(life, _BEHIND)[0]
    if building:
        return "building"
    if behind:
        return "indexing"
    return "purging" if unpurged else "settled"


def _looked(life: Life, statements: Sequence[str]) -> list[list[tuple[Any, ...]]]:
    try:
        with life.place.look() as look:
            return [look(statement) for statement in statements]
    except (sqlite3.OperationalError, psycopg.errors.UndefinedTable):  # nothing is there yet
        return [[(0, 0, 0)]]


def _tracebacks(life: Life) -> list[Fault]:
    """Errors that nobody has foreseen, as the processes of this round wrote them down."""
    told = [
        child
        for child in life.children
        if "unexpected " in child.errors or (child.name == SERVE and "Traceback" in child.errors)
    ]
    life.children = [life.server.child] if life.server else []
    return [Fault(kind="other", about=child.name, words=child.errors[-400:]) for child in told]
