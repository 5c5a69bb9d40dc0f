"""A lap's folder: found again after a crash, whole or not at all, and one process's at a time."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nvr_rag.errors import ConfigurationError, Conflict
from nvr_rag.ids import new_id
from nvr_rag.testing import Crash
from training.recipe import load_recipe
from training.runs import LapBusy, LapConfig, RunFolder, run_folder

CONFIG = LapConfig(
    run="lap",
    collection="Größe",
    recipe=replace(load_recipe("quick"), rule="naive", learning_rate=1.25e-5),
    deployment=3,
    teacher="t" * 64,
    teacher_source="/data/models/t",
    base="b" * 64,
    base_source="bundled:all-MiniLM-L6-v2",
    threads=2,
    min_queries=200,
    min_gain=0.01,
    started_at="2025-11-21T02:00:00+00:00",
)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = run_folder(tmp_path, "lap")
    made.make()
    return made


def test_what_a_lap_was_begun_with_is_read_back(folder: RunFolder) -> None:
    assert folder.config() is None
    folder.begin(CONFIG)
    assert run_folder(folder.path.parent.parent, "lap").config() == CONFIG


def test_what_a_newer_release_has_added_does_no_harm(folder: RunFolder) -> None:
    folder.begin(CONFIG)
    path = folder.path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "colour": "red"}))
    assert folder.config() == CONFIG


@pytest.mark.parametrize(
    "change",
    [lambda content: content.pop("base"), lambda content: content["recipe"].pop("margin")],
    ids=["a field is missing", "a number of the recipe is missing"],
)
def test_what_another_release_has_begun_is_refused(folder: RunFolder, change: Any) -> None:
    folder.begin(CONFIG)
    content = json.loads((folder.path / "config.json").read_text())
    change(content)
    (folder.path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ConfigurationError, match=r"begun by another release .*; begin a new one: nvr-rag retrain"):
        folder.config()


def test_a_step_is_finished_once_its_result_is_there(folder: RunFolder) -> None:
    assert folder.finished("mine") is None
    folder.finish("mine", {"pairs": 3, "seconds": 0.5})
    assert folder.finished("mine") == {"pairs": 3, "seconds": 0.5}
    assert folder.finished("train") is None


def test_a_result_that_was_half_written_does_not_count(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(_self: Path, _target: Path) -> None:
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", dies)
        for write in (lambda: folder.finish("mine", {"pairs": 3}), lambda: folder.begin(CONFIG)):
            with pytest.raises(Crash):
                write()
    assert (folder.finished("mine"), folder.config()) == (None, None)
    folder.finish("mine", {"pairs": 4})
    assert folder.finished("mine") == {"pairs": 4}


def test_room_is_made_without_losing_what_is_needed_to_go_on(folder: RunFolder) -> None:
    folder.begin(CONFIG)
    folder.finish("mine", {"pairs": 3})
    for large in (folder.corpus, folder.model, folder.path / ".model.abc123"):  # the last one: of a killed training
        large.mkdir()
        (large / "weights").write_bytes(b"1")
    for small in (folder.queries, folder.dev, folder.mined, folder.mining, folder.examples, folder.report):
        small.write_text("{}")
    before = {path.name for path in folder.path.iterdir()}
    folder.forget_model()
    assert before - {path.name for path in folder.path.iterdir()} == {"model", ".model.abc123"}
    folder.forget_files()
    folder.forget_files()
    assert before - {path.name for path in folder.path.iterdir()} == {"corpus", "model", ".model.abc123"}
    assert folder.finished("mine") == {"pairs": 3}


@pytest.mark.parametrize("run", ["", "..", "../x", "a/b", "/etc", "a.b", "a b", "a\0b", "~"])
def test_a_name_that_is_no_id_is_refused(tmp_path: Path, run: str) -> None:
    with pytest.raises(ConfigurationError, match="is not the id of a lap"):
        run_folder(tmp_path, run)


def test_ids_are_names(tmp_path: Path) -> None:
    run = new_id()
    assert run_folder(tmp_path, run).path == tmp_path / "runs" / run


# whose it is


@contextmanager
def another_process(folder: RunFolder) -> Iterator[subprocess.Popen[str]]:
    """A process that works on the lap until it is killed."""
    program = (
        "import sys, pathlib; from training.runs import RunFolder\n"
        "with RunFolder(pathlib.Path(sys.argv[1])).owned(): print('working', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(folder.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "working\n"
        yield process
        process.kill()


def test_a_lap_has_one_process_and_is_abandoned_when_that_has_died(folder: RunFolder) -> None:
    assert not folder.abandoned()  # nobody on this machine has begun it
    with another_process(folder) as process:
        with pytest.raises(LapBusy, match="another process works on the lap lap"), folder.owned():
            raise AssertionError("unreachable")
        assert not folder.abandoned()
        process.kill()
        process.wait()
        assert folder.abandoned()
        with folder.owned():
            assert not folder.abandoned()
        assert folder.abandoned()


def test_an_error_lets_go_of_the_lap(folder: RunFolder) -> None:
    with pytest.raises(ZeroDivisionError), folder.owned():
        print(1 / 0)
    with folder.owned():
        assert issubclass(LapBusy, Conflict)
