"""Maintenance dies between every two steps that leave a trace, and nothing is ever wrong.

Steps are the calls of the store and the commits of the database. A dry run lists them; then each of them is the last
that a process did, or the first that it did not do, before it was killed or the power went. Right after the crash every
document shows one of its versions whole and no deleted one shows at all; after catching up the index holds exactly what
the log says, and would survive another power cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import pytest
from sqlalchemy import Connection

from nvr_rag import workspace
from nvr_rag.ids import chunk_id, document_id, sha256_text
from nvr_rag.stores.base import Store
from nvr_rag.testing import Crash, FaultyStore, MemoryStore
from nvr_rag.upkeep import progress, rounds
from tests import engines
from tests.support import House, document

T = TypeVar("T")
Texts = tuple[str, ...]  # of a document, a paragraph each; every paragraph has the word "word"
GONE: Texts = ()

FIRST: dict[str, Texts] = {
    "edited": ("word one", "word two", "word three", "word four"),
    "deleted": ("word common",),
    "there and back": ("word A", "word kept"),
    "renamed": ("word five", "word six", "word six"),
    "other title": ("word seven", "word common"),
    "untouched": ("word eight",),
    "empty": (),
}
EDITED = ("word two", "word 2.5", "word three")


def put(house: House, uri: str, texts: Texts, title: str = "") -> None:
    house.put(document(uri, "\n\n".join(texts), title=title, metadata={"title": title}))


def ingest(house: House) -> None:
    for uri, texts in FIRST.items():
        put(house, uri, texts)


def change(house: House) -> None:
    put(house, "edited", EDITED)
    house.delete("deleted")
    put(house, "there and back", ("word B", "word kept"))
    put(house, "there and back", FIRST["there and back"])
    put(house, "new name", FIRST["renamed"])
    house.delete("renamed")
    put(house, "other title", FIRST["other title"], title="other")
    house.put(document("untouched", "word eight", metadata={"title": "repainted"}))


def change_again(house: House) -> None:
    put(house, "deleted", FIRST["deleted"])
    put(house, "edited", FIRST["edited"])
    put(house, "there and back", ("word B",))
    house.delete("there and back", "other title")
    put(house, "empty", ("word nine",))
    put(house, "untouched", ())


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Changes to the log, and what every document may show while indexes follow: the last is what it comes to."""

    apply: Callable[[House], None]
    shows: Mapping[str, Sequence[Texts]]

    @property
    def after(self) -> dict[str, Texts]:
        return {uri: shown[-1] for uri, shown in self.shows.items() if shown[-1]}


PHASES = {
    "first ingest": Phase(apply=ingest, shows={uri: (GONE, texts) for uri, texts in FIRST.items()}),
    "changes": Phase(
        apply=change,
        shows={
            "edited": (FIRST["edited"], EDITED),
            "deleted": (GONE,),
            "there and back": (FIRST["there and back"], ("word B", "word kept"), FIRST["there and back"]),
            "renamed": (GONE,),
            "new name": (GONE, FIRST["renamed"]),
            "other title": (FIRST["other title"],),
            "untouched": (FIRST["untouched"],),
            "empty": (GONE,),
        },
    ),
    "more changes": Phase(
        apply=change_again,
        shows={
            "edited": (EDITED, FIRST["edited"]),
            "deleted": (GONE, FIRST["deleted"]),
            "there and back": (GONE,),
            "renamed": (GONE,),
            "new name": (FIRST["renamed"],),
            "other title": (GONE,),
            "untouched": (FIRST["untouched"], GONE),
            "empty": (GONE, ("word nine",)),
        },
    ),
}


@dataclass(frozen=True, kw_only=True)
class Saved:
    """Everything that outlives a process, at one moment."""

    home: Path
    store: MemoryStore

    def copy(self, home: Path) -> Saved:
        store = MemoryStore()
        store._held = {
            name: replace(held, points=dict(held.points), flushed=dict(held.flushed), owner=None)
            for name, held in self.store._held.items()
        }
        return Saved(home=engines.copy_home(self.home, home), store=store)


class Process:
    """One process's life: it opens the index and follows the log until it is done, or dies at step `fatal`."""

    def __init__(self, saved: Saved, fatal: int | None = None, *, after: bool = False) -> None:
        self.steps: list[str] = []
        self.durable = True  # everything committed so far survives a power cut
        self._fatal, self._after = fatal, after
        house = House(saved.home, store=MortalStore(saved.store, self))
        self._write = house.database.write
        house.database.write = self._commit  # type: ignore[method-assign]
        with suppress(Crash):
            house.catch_up()
            assert self.durable, "a power cut could take back what the index has applied"
        house.close()

    def dies(self, *, after: bool) -> None:
        """Raise Crash when the current step is the fatal one."""
        if len(self.steps) == self._fatal and after == self._after:
            raise Crash(self.steps[-1])

    @contextmanager
    def _commit(self, *, durable: bool = True) -> Iterator[Connection]:
        with self._write(durable=durable) as connection:
            yield connection
            self.steps.append("commit")
            self.dies(after=False)
        self.durable = durable
        self.dies(after=True)


class MortalStore(FaultyStore):
    """A store whose calls are steps in the life of a process."""

    def __init__(self, store: Store, process: Process) -> None:
        super().__init__(store)
        self._process = process

    def call(self, method: str, work: Callable[[], T]) -> T:
        assert self._process.durable, "a power cut could take back chunks whose points are in the store"
        self._process.steps.append(method)
        self._process.dies(after=False)
        answer = work()
        self._process.dies(after=True)
        return answer


def shown(house: House) -> dict[str, Texts]:
    """Every document that a search for everything shows, its chunks in the order of the text."""
    found: dict[str, list[tuple[int, str]]] = {}
    for hit in house.hits("word", k=100):
        found.setdefault(hit.uri, []).append((hit.start, hit.text))
    return {uri: tuple(text for _, text in sorted(hits)) for uri, hits in found.items()}


def check_right_after(house: House, phase: Phase) -> None:
    seen = shown(house)
    assert set(seen) <= set(phase.shows)
    for uri, allowed in phase.shows.items():
        assert seen.get(uri, GONE) in allowed, uri


def expected_points(documents: Mapping[str, Texts]) -> set[str]:
    return {
        chunk_id(document_id("default", uri), sha256_text(text), texts[:i].count(text))
        for uri, texts in documents.items()
        for i, text in enumerate(texts)
    }


def check_caught_up(house: House, phase: Phase) -> None:
    house.catch_up()
    row = house.row
    assert row.applied_seq == row.purged_seq
    assert shown(house) == phase.after
    found = house.verify()
    assert (found.clean, found.checked) == (True, len(expected_points(phase.after)))
    assert house.points() == expected_points(phase.after)


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several rounds and several groups a round in a scenario of a few documents."""
    monkeypatch.setattr(rounds, "CHANGES_A_ROUND", 4)
    monkeypatch.setattr(rounds, "CHUNKS_A_GROUP", 3)


@pytest.fixture(autouse=True)
def migrated_already(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking for migrations is half of what it takes to open a house, and there are hundreds to open."""
    monkeypatch.setattr(workspace, "migrate", lambda database: None)
    monkeypatch.setattr(progress, "TELL_SECONDS", 1e9)  # a word on how a build goes need not survive a power cut


@pytest.fixture(scope="module")
def starts(furnished_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Saved]]:
    """For each phase: its changes are in the log, and the index is as the phase before has left it."""
    folder = tmp_path_factory.mktemp("phases")
    saved = Saved(home=furnished_home, store=MemoryStore())
    starts = {}
    for name, phase in PHASES.items():
        saved = saved.copy(folder / name)
        house = House(saved.home, store=saved.store)
        phase.apply(house)
        house.close()
        starts[name] = saved.copy(folder / f"start of {name}")
        Process(saved)
    yield starts
    engines.forget(folder)


@pytest.mark.parametrize("power_cut", [False, True], ids=["killed after", "power cut before"])
@pytest.mark.parametrize("name", PHASES)
def test_a_crash_at_any_step_costs_nothing(
    starts: dict[str, Saved], tmp_path: Path, name: str, power_cut: bool
) -> None:
    """After one step is before the next: killed after each and cut off before each, both are tried on both sides."""
    phase = PHASES[name]
    steps = Process(starts[name].copy(tmp_path / "dry")).steps
    assert {"open", "get", "upsert", "flush", "commit"} <= set(steps)
    assert name == "first ingest" or {"delete", "set_payload"} & set(steps)
    for number in engines.some(range(1, len(steps) + 1), starts[name].home):
        saved = starts[name].copy(tmp_path / str(number))
        Process(saved, number, after=not power_cut)
        saved.store.kill(power_cut=power_cut)
        house = House(saved.home, store=saved.store)
        check_right_after(house, phase)
        check_caught_up(house, phase)
        saved.store.kill(power_cut=True)
        index = saved.store.open(house.row.name)
        assert {point.id for point in index.scan()} == expected_points(phase.after)
        house.close()
        engines.forget(saved.home)
    engines.forget(tmp_path)
