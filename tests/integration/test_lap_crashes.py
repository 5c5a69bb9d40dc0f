"""A lap dies in every step, at work and on both sides of the moment at which its result is noted; it goes on behind its
last finished step and ends as one does that nothing has disturbed. And the processes that do its heavy work.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from nvr_rag import registry
from nvr_rag.errors import NvrError, Stopped
from nvr_rag.testing import Crash
from nvr_rag.upkeep.verification import verify
from tests.integration.lap_support import (
    DOCUMENTS,
    STEPS,
    TRAIN,
    Finished,
    Laboratory,
    lab,
    small_laps,
    undisturbed,
)
from training import children, loop, preparation
from training.lap import Lap, Progress
from training.runs import RunFolder

__all__ = ["lab", "small_laps", "undisturbed"]

pytestmark = pytest.mark.usefixtures("small_laps")

TIMES = ("started_at", "finished_at", "steps")
AT_WORK = ("mine", "train", "build", "choose", "judge", "conclude")  # steps that tell how far they are


class Mortal:
    """Dies where it is told to, and counts how often a step was begun."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.begun: Counter[str] = Counter()
        self._fatal: tuple[str, str] | None = None  # step, moment
        self._finish = RunFolder.finish
        patch.setattr(loop, "STEPS", tuple((name, self._counted(name, step)) for name, step in loop.STEPS))
        patch.setattr(RunFolder, "finish", lambda folder, step, result: self._note(folder, step, result))

    def dies(self, lab: Laboratory, step: str, moment: str) -> None:
        self._fatal = (step, moment)
        with pytest.raises(Crash):
            lab.lap(tell=self._hear, promote=True)
        self._fatal = None

    def _counted(self, name: str, step: Callable[[Lap], dict[str, Any]]) -> Callable[[Lap], dict[str, Any]]:
        def work(lap: Lap) -> dict[str, Any]:
            self.begun[name] += 1
            return step(lap)

        return work

    def _hear(self, progress: Progress) -> None:
        at_work = progress.done > 0 or progress.words == "switched"
        if self._fatal == (progress.step, "at work") and at_work:
            raise Crash(f"{progress.step} at work")

    def _note(self, folder: RunFolder, step: str, result: Mapping[str, Any]) -> None:
        if self._fatal == (step, "before"):
            raise Crash(f"before {step} is noted")
        self._finish(folder, step, result)
        if self._fatal == (step, "after"):
            raise Crash(f"after {step} is noted")


def lasting(report: Mapping[str, Any]) -> dict[str, Any]:
    """What a report says that is not about time."""
    kept = {name: value for name, value in report.items() if name not in TIMES}
    return {**kept, "training": {name: value for name, value in kept["training"].items() if name != "seconds"}}


def test_a_lap_that_dies_in_every_step_ends_as_if_nothing_had_happened(
    lab: Laboratory, undisturbed: Finished, small_laps: pytest.MonkeyPatch
) -> None:
    lab.say()
    mortal = Mortal(small_laps)
    for number, step in enumerate(STEPS):
        moments = ("at work", "before", "after") if step in AT_WORK else ("before", "after")
        for moment in moments:
            mortal.dies(lab, step, moment)
            assert lab.finished() == list(STEPS[: number + (moment == "after")])
        assert mortal.begun[step] == len(moments)
    begun = Counter(mortal.begun)
    report = lab.lap(promote=True)
    assert mortal.begun == begun  # everything was finished
    assert lasting(report) == lasting(undisturbed.report)
    assert report["training"]["encoder"] == undisturbed.report["training"]["encoder"]
    assert lab.states() == {1: "previous", 2: "serving"}
    assert len(lab.indexes()) == len(lab.store.names()) == 2
    assert len(list((lab.home / "models").iterdir())) == 2
    with lab.open() as workspace:
        found = verify(workspace.database, workspace.index(2))
        assert (found.clean, found.checked) == (True, DOCUMENTS)
        with workspace.database.read() as connection:
            for encoder in (report["training"]["base"], report["training"]["encoder"]):
                assert len(registry.measured(connection, encoder)) == 1
    names = {path.name for path in lab.folder().path.iterdir()}
    assert names == {path.name for path in undisturbed.lab.folder().path.iterdir()}


# child processes


def test_real_children_make_what_was_made_without_them(
    lab: Laboratory, undisturbed: Finished, small_laps: pytest.MonkeyPatch
) -> None:
    def hear(progress: Progress) -> None:
        if progress.step == "register":
            raise Crash("the children have finished")
        told.append((progress.step, progress.done, progress.total))

    told: list[tuple[str, int, int | None]] = []
    lab.say()
    small_laps.setattr(preparation, "run_child", children.run_child)
    with pytest.raises(Crash):
        lab.lap(tell=hear)
    trained, expected = lab.result("train"), undisturbed.report["training"]
    assert (trained["encoder"], trained["curve"]) == (expected["encoder"], expected["curve"])
    assert trained["peak_memory_bytes"] > 100e6  # torch alone takes more
    steps = expected["steps"]
    assert {("mine", 0, None), ("mine", TRAIN, TRAIN), ("train", 1, steps), ("train", steps, steps)} <= set(told)


@pytest.fixture
def waiting(undisturbed: Finished, tmp_path: Path) -> RunFolder:
    """The folder of a lap whose queries never come: a child that mines waits for them."""
    folder = undisturbed.before["mine"].copy(tmp_path / "copy").folder()
    folder.queries.unlink()
    os.mkfifo(folder.queries)
    return folder


def test_a_child_whose_parent_has_died_ends_by_itself(waiting: RunFolder) -> None:
    command = [sys.executable, "-m", "training.child", "mine", str(waiting.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as orphan:
        assert orphan.stdin is not None
        with pytest.raises(subprocess.TimeoutExpired):
            orphan.wait(1.0)
        orphan.stdin.close()  # as the kernel does when the parent has died, however it died
        try:
            assert orphan.wait(30) == 3
        finally:
            orphan.kill()


def test_a_child_is_ended_when_its_lap_is_told_to_stop(waiting: RunFolder) -> None:
    stop = threading.Event()
    threading.Timer(0.5, stop.set).start()
    with pytest.raises(Stopped, match="'mine'"):
        children.run_child("mine", waiting, threads=1, report=lambda _: None, stop=stop)


def test_what_a_child_cannot_do_it_says_in_words(waiting: RunFolder) -> None:
    waiting.queries.unlink()
    waiting.queries.write_text("no query\n")
    with pytest.raises(NvrError, match=r"queries.jsonl, line 1: not JSON"):
        children.run_child("mine", waiting, threads=1, report=lambda _: None, stop=threading.Event())
