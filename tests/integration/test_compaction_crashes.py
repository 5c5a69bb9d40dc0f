"""A build and a compaction die between every two steps that leave a trace: what serves goes on, and the next run ends
well. Steps are the calls of the store and the commits of the database, as in test_crashes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import pytest
from sqlalchemy import Connection

from nvr_rag import deployments, promotion, workspace
from nvr_rag.stores.base import Store
from nvr_rag.testing import Crash, FaultyStore, MemoryStore
from nvr_rag.upkeep import compaction, rounds, verification
from tests import engines
from tests.integration.lifecycle import Doubles, catch_up
from tests.integration.test_crashes import Saved
from tests.support import House, document, paragraphs

T = TypeVar("T")
Work = Callable[[House], None]


class Life:
    """One process: it does its work to the end, or dies at step `fatal`."""

    def __init__(self, saved: Saved, work: Work, fatal: int | None = None, *, after: bool = False) -> None:
        self.steps: list[str] = []
        self._fatal, self._after = fatal, after
        house = House(saved.home, store=MortalStore(saved.store, self))
        self._write = house.database.write
        house.database.write = self._commit  # type: ignore[method-assign]
        with suppress(Crash):
            work(house)
        self._fatal = None
        house.close()

    def step(self, name: str, *, after: bool) -> None:
        """A step begins, or has ended: die if it is the fatal one."""
        if not after:
            self.steps.append(name)
        if len(self.steps) == self._fatal and after == self._after:
            raise Crash(name)

    @contextmanager
    def _commit(self, *, durable: bool = True) -> Iterator[Connection]:
        with self._write(durable=durable) as connection:
            yield connection
            self.step("commit", after=False)
        self.step("commit", after=True)


class MortalStore(FaultyStore):
    """A store whose calls are steps in a life."""

    def __init__(self, store: Store, life: Life) -> None:
        super().__init__(store)
        self._life = life

    def call(self, method: str, work: Callable[[], T]) -> T:
        self._life.step(method, after=False)
        answer = work()
        self._life.step(method, after=True)
        return answer


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several rounds of a few changes, and no looking for migrations."""
    monkeypatch.setattr(rounds, "CHANGES_A_ROUND", 4)
    monkeypatch.setattr(rounds, "CHUNKS_A_GROUP", 4)
    monkeypatch.setattr(compaction, "ASKED", 2)
    monkeypatch.setattr(workspace, "migrate", lambda database: None)


@pytest.fixture
def start(furnished_home: Path, tmp_path: Path) -> Saved:
    """Four documents, two of them changed, one deleted; the index is level."""
    saved = Saved(home=furnished_home, store=MemoryStore()).copy(tmp_path / "start")
    house = House(saved.home, store=saved.store)
    house.put(*[document(f"d{number}", f"red fox\n\nwhale {number}") for number in range(4)])
    house.catch_up()
    house.put(document("d0", "red fox\n\nowl 0"), document("d1", "owl 1"))
    house.delete("d3")
    house.catch_up()
    house.close()
    return saved


def shown(house: House) -> set[tuple[str, str]]:
    return {(hit.uri, hit.text) for hit in house.hits("fox whale owl", k=50)}


def compact(house: House) -> None:
    if not compaction.done_already(house.workspace, "default", 1):
        compaction.compact(house.workspace, "default", paragraphs)


EXPECTED = {("d0", "red fox"), ("d0", "owl 0"), ("d1", "owl 1"), ("d2", "red fox"), ("d2", "whale 2")}


def check(house: House) -> None:
    """Exactly this is shown, by a new index that holds exactly what the documents say; nothing waits any more."""
    assert shown(house) == EXPECTED
    with house.database.read() as connection:
        serving = deployments.serving(connection, "default").index_id
        assert serving != 1
        assert deployments.all_of(connection, 1, deployments.WAITING) == []
    found = verification.verify(house.database, house.workspace.index(serving))
    assert (found.clean, found.checked) == (True, len(EXPECTED))
    house.put(document("d9", "late"))
    catch_up(house.workspace)
    assert house.texts("late", k=1) == ["late"]


@pytest.mark.parametrize("power_cut", [False, True], ids=["killed after", "power cut before"])
def test_a_compaction_that_dies_is_gone_on_with(start: Saved, tmp_path: Path, power_cut: bool) -> None:
    steps = Life(start.copy(tmp_path / "dry"), compact).steps
    assert {"create", "open", "get", "upsert", "flush", "optimize", "search_dense", "scan", "commit"} <= set(steps)
    for number in engines.some(range(1, len(steps) + 1), start.home):
        saved = start.copy(tmp_path / str(number))
        Life(saved, compact, number, after=not power_cut)
        saved.store.kill(power_cut=power_cut)
        house = House(saved.home, store=saved.store)
        assert shown(house) == EXPECTED, number
        encoded = house.encoder.encoded
        compact(house)
        assert house.encoder.encoded - encoded <= 2  # "whale 0" and "whale 1", which a round on the way still shows
        check(house)
        promotion.roll_back(house.workspace, collection="default")
        assert house.texts("late", k=1) == ["late"]
        house.close()


@pytest.mark.parametrize("power_cut", [False, True], ids=["killed after", "power cut before"])
def test_a_build_and_its_promotion_that_die_are_gone_on_with(
    start: Saved, tmp_path: Path, doubles: Doubles, power_cut: bool
) -> None:
    house = House(start.home, store=start.store)
    other = doubles.register(house.database, 1)
    house.close()

    def build(house: House) -> None:
        candidate = house.workspace.propose("default", other, run="the lap")
        catch_up(house.workspace)
        if candidate.state != "serving":
            promotion.promote(house.workspace, candidate.id, collection="default")

    steps = Life(start.copy(tmp_path / "dry"), build).steps
    assert {"create", "open", "upsert", "flush", "scan", "commit"} <= set(steps)
    for number in engines.some(range(1, len(steps) + 1), start.home):
        saved = start.copy(tmp_path / str(number))
        Life(saved, build, number, after=not power_cut)
        saved.store.kill(power_cut=power_cut)
        house = House(saved.home, store=saved.store)
        assert shown(house) == EXPECTED, number
        build(house)
        check(house)
        house.close()
