"""Laps that cannot be run, or not to their end: they say why, leave what serves alone, and keep what is finished."""

from __future__ import annotations

import errno
import shutil
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from nvr_rag import deployments, disk
from nvr_rag.errors import ConfigurationError, Conflict, NvrError, Stopped, StoreError
from tests.integration.lap_support import (
    DEV,
    MIN_HOLDOUT,
    MIN_TRAIN,
    STEPS,
    TRAIN,
    Finished,
    Laboratory,
    Question,
    lab,
    make_model,
    small_laps,
    undisturbed,
)
from training import children, loop, page, preparation
from training.lap import Progress
from training.splits import Split

__all__ = ["lab", "small_laps", "undisturbed"]

pytestmark = pytest.mark.usefixtures("small_laps")

SERVING = {1: "serving"}


def only_reason(report: Mapping[str, Any]) -> str:
    [finding] = report["decision"]["findings"]
    return str(finding["text"])


# too little


@pytest.mark.parametrize(
    ("said", "words", "train"),
    [
        (lambda lab: [], "there are no judgments yet; send feedback on hits", 0),
        (lambda lab: lab.of(Split.TRAIN)[:1], f"1 judged queries are too few to train on: {MIN_TRAIN} are needed", 1),
        (lambda lab: lab.of(Split.HOLDOUT), f"0 judged queries are too few to train on: {MIN_TRAIN} are needed", 0),
        (
            lambda lab: [*lab.of(Split.TRAIN), *lab.of(Split.HOLDOUT)[1 - MIN_HOLDOUT :]],
            f"{MIN_HOLDOUT - 1} judged holdout queries are too few to decide by: {MIN_HOLDOUT} are needed",
            TRAIN,
        ),
    ],
)
def test_too_little_to_begin_with(
    lab: Laboratory, said: Callable[[Laboratory], list[Question]], words: str, train: int
) -> None:
    texts = {question.text for question in said(lab)}
    lab.say(lambda question: question.uri if question.text in texts else None)
    report = lab.lap(promote=True)
    assert report["outcome"] == "not_enough_evidence"
    assert only_reason(report).startswith(words)
    assert (report["data"]["splits"]["train"], report["next_steps"]) == (train, [])
    assert lab.finished() == ["collect"]
    assert lab.states() == SERVING
    assert not lab.folder().corpus.exists()
    assert page.HEADLINES["not_enough_evidence"] in (lab.folder().path / "report.html").read_text()


def test_a_dry_run_mines_what_is_too_little_for_a_lap(lab: Laboratory) -> None:
    first = lab.of(Split.TRAIN)[0]
    lab.say(lambda question: question.uri if question == first else None)
    report = lab.lap(dry_run=True)
    assert (report["outcome"], report["mining"]["pairs"], report["next_steps"]) == ("dry_run", 1, [])
    assert "1 judged queries are too few" in only_reason(report)
    assert lab.finished() == ["collect", "mine"]


def test_a_dry_run_without_anything_to_mine_says_so(lab: Laboratory) -> None:
    report = lab.lap(dry_run=True)
    assert (report["outcome"], report["mining"], report["next_steps"]) == ("dry_run", None, [])
    assert only_reason(report).startswith("there are no judgments yet")


def test_feedback_on_what_was_deleted_or_edited_since_is_left_out_and_counted(lab: Laboratory) -> None:
    lab.say()
    lab.delete("doc:00", "doc:01")
    lab.put({"doc:02": "zab zob"})
    gone = {"doc:00", "doc:01", "doc:02"}
    left = {split: [one for one in lab.of(split) if one.uri not in gone] for split in Split}
    report = lab.lap(dry_run=True)
    assert report["data"]["splits"] == {str(split): len(questions) for split, questions in left.items()}
    lost = TRAIN + DEV - len(left[Split.TRAIN]) - len(left[Split.DEV])
    counts = report["data"]["judgments"]["training"]
    assert (counts["gone"], counts["without_positive"]) == (lost, lost)
    assert lost > 0
    assert report["mining"]["pairs"] == len(left[Split.TRAIN])


def test_everything_judged_relevant_goes_while_it_is_mined(lab: Laboratory) -> None:
    def interrupted(progress: Progress) -> None:
        if progress.step == "mine" and progress.done:
            lab.delete(*lab.chunks)

    lab.say()
    report = lab.lap(tell=interrupted, promote=True)
    assert report["outcome"] == "not_enough_evidence"
    assert only_reason(report).startswith("nothing that was judged relevant can be found in the index")
    assert (lab.finished(), lab.states()) == (["collect", "mine"], SERVING)


@pytest.mark.parametrize("kept", [3, 0])
def test_what_the_gate_needs_goes_while_the_candidate_is_made(undisturbed: Finished, tmp_path: Path, kept: int) -> None:
    lab = undisturbed.before["judge"].copy(tmp_path / "copy")
    held_out = [question.uri for question in lab.of(Split.HOLDOUT)]
    lab.delete(*(set(held_out) - set(held_out[:kept])))
    left = sum(uri in held_out[:kept] for uri in held_out)
    report = lab.lap(promote=True)
    assert report["outcome"] == "not_enough_evidence"
    assert only_reason(report).startswith(f"{left} judged holdout queries are too few to decide by")
    assert lab.states() == {1: "serving", 2: "rejected"}
    assert (report["figures"], report["latency"]) == ([], None)


# what fails, and goes on


def test_without_room_for_another_index_a_lap_fails_and_goes_on_when_there_is(
    undisturbed: Finished, tmp_path: Path, small_laps: pytest.MonkeyPatch
) -> None:
    lab = undisturbed.before["build"].copy(tmp_path / "copy")
    with small_laps.context() as patch:
        patch.setattr(disk, "free", lambda _folder: 1_000_000)
        with pytest.raises(StoreError, match="another index needs about"):
            lab.lap()
    failed = lab.report()
    assert (failed["outcome"], failed["promoted"]) == ("failed", False)
    assert "make room" in failed["error"]
    assert failed["next_steps"][0]["command"] == "nvr-rag retrain --resume --collection default"
    assert [step["name"] for step in failed["steps"]] == list(STEPS[:4])
    assert page.HEADLINES["failed"] in (lab.folder().path / "report.html").read_text()
    assert (lab.states(), len(lab.store.names())) == (SERVING, 1)
    small_laps.setattr(preparation, "run_child", unreachable)
    assert lab.lap()["outcome"] == "accept"
    assert lab.states() == {1: "serving", 2: "candidate"}


def unreachable(*_: Any, **__: Any) -> dict[str, Any]:
    raise AssertionError("this step is finished")


def test_a_report_that_cannot_be_written_does_not_hide_why_a_lap_failed(
    lab: Laboratory, small_laps: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def broken(*_: Any, **__: Any) -> dict[str, Any]:
        raise NvrError("the reason")

    lab.say()
    small_laps.setattr(loop, "write_report", full)
    small_laps.setattr(preparation, "run_child", broken)
    with pytest.raises(NvrError, match="the reason"):
        lab.lap()


@pytest.mark.parametrize("step", ["mine", "train"])
def test_a_model_whose_files_have_changed_is_not_used(lab: Laboratory, tmp_path: Path, step: str) -> None:
    def changed(progress: Progress) -> None:
        if progress.step == step and not progress.done:
            [kept] = (lab.home / "models").iterdir()
            shutil.copy(other / "model.safetensors", kept / "model.safetensors")

    other = make_model(tmp_path / "other", seed=8)
    lab.say()
    with pytest.raises(NvrError, match=r"no longer the encoder version .* put its files back"):
        lab.lap(tell=changed)
    assert "put its files back" in lab.report()["error"]
    assert (lab.finished(), lab.states()) == (list(STEPS[: STEPS.index(step)]), SERVING)


def test_the_last_words_of_a_child_that_dies_are_told(
    lab: Laboratory, tmp_path: Path, small_laps: pytest.MonkeyPatch
) -> None:
    dying = tmp_path / "dying"
    dying.write_text("#!/bin/sh\necho 'out of luck' >&2\necho 'and of memory' >&2\nkill -9 $$\n")
    dying.chmod(0o700)
    lab.say()
    small_laps.setattr(preparation, "run_child", children.run_child)
    small_laps.setattr(sys, "executable", str(dying))
    with pytest.raises(NvrError, match=r"'mine' died \(signal 9, perhaps for want of memory\): out of luck / and"):
        lab.lap()
    assert (lab.finished(), lab.states()) == (["collect"], SERVING)


def test_a_lap_that_is_told_to_stop_stops_and_has_not_failed(lab: Laboratory) -> None:
    stop = threading.Event()
    lab.say()
    with pytest.raises(Stopped):
        lab.lap(stop=stop, advanced=stop.set)
    assert lab.finished() == ["collect"]
    assert not (lab.folder().path / "report.json").exists()


def test_a_lap_of_another_release_is_not_gone_on_with(undisturbed: Finished, tmp_path: Path) -> None:
    lab = undisturbed.before["mine"].copy(tmp_path / "copy")
    config = lab.folder().path / "config.json"
    config.write_text(config.read_text().replace('"teacher"', '"tutor"'))
    with pytest.raises(ConfigurationError, match="begun by another release"):
        lab.lap()


def test_a_candidate_that_somebody_has_given_up_is_not_built(undisturbed: Finished, tmp_path: Path) -> None:
    lab = undisturbed.before["choose"].copy(tmp_path / "copy")
    (lab.folder().path / "steps" / "build.json").unlink()  # it died while it built
    with lab.open() as workspace, workspace.database.write() as connection:
        deployments.reject(connection, 2)
    with pytest.raises(Conflict, match="deployment 2, is rejected already; begin another lap"):
        lab.lap()
    assert lab.states() == {1: "serving", 2: "rejected"}


def test_a_command_lets_go_of_the_index_while_it_trains_and_a_server_does_not(
    lab: Laboratory, small_laps: pytest.MonkeyPatch
) -> None:
    def looked(*_: Any, **__: Any) -> dict[str, Any]:
        opened.append(lab.store._held[lab.store.names()[0]].owner is not None)
        raise NvrError("seen")

    opened: list[bool] = []
    lab.say()
    small_laps.setattr(preparation, "run_child", looked)
    with pytest.raises(NvrError, match="seen"):
        lab.lap()
    with lab.open() as workspace:
        assert workspace.index(1)
        with pytest.raises(NvrError, match="seen"):
            lab.lap("other", inside=workspace)
        assert workspace.has_open(1)
    assert opened == [False, True]
