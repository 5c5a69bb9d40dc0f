"""Which folders of laps go: old ones that nobody needs, and no other."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from sqlalchemy import insert

from nvr_rag import jobs
from nvr_rag.db import tables as t
from nvr_rag.removal.retention import Pruning, Removal
from nvr_rag.settings import RetentionSettings
from tests.support import House
from training.retention import old_runs
from training.runs import run_folder


def lap(house: House, name: str, days: float) -> Path:
    """A lap's folder that was touched so many days ago."""
    folder = run_folder(house.home, name)
    folder.make()
    (folder.path / "report.json").write_text("{}" + " " * 5000)
    moment = time.time() - days * 86400
    for path in (folder.path / "report.json", folder.path / "steps", folder.path):
        os.utime(path, (moment, moment))
    return folder.path


def pruned(house: House, *, dry_run: bool = False, run_days: float | None = 90, run_count: int = 1) -> Removal:
    policy = RetentionSettings(run_days=run_days, run_count=run_count)
    house.workspace.settings = house.workspace.settings.model_copy(update={"retention": policy})
    return old_runs(Pruning(workspace=house.workspace, dry_run=dry_run, pause=lambda: False))


def there(house: House) -> set[str]:
    return {path.name for path in (house.home / "runs").iterdir()}


def test_old_laps_go_and_the_newest_stay(house: House) -> None:
    for name, days in (("a", 400), ("b", 300), ("c", 200), ("d", 10)):
        lap(house, name, days)
    (house.home / "runs" / "not a lap").mkdir()
    planned = pruned(house, dry_run=True, run_count=2)
    assert (planned.count, planned.examples) == (2, ["a", "b"])
    assert planned.bytes is not None
    assert planned.bytes >= 10_000
    assert there(house) == {"a", "b", "c", "d", "not a lap"}
    assert pruned(house, run_days=350, run_count=2).count == 1
    assert pruned(house, run_days=None, run_count=2).count == 0
    assert pruned(house, run_count=2).count == 1
    assert there(house) == {"c", "d", "not a lap"}


def test_there_need_not_be_any(house: House) -> None:
    assert pruned(house).count == 0


def test_laps_that_are_needed_stay_however_old_they_are(house: House) -> None:
    lap(house, "newest", 1)
    for name in ("serves", "retired", "waits"):
        lap(house, name, 400)
    with house.database.write() as connection:
        for name, state in (("serves", "previous"), ("retired", "retired")):
            connection.execute(
                insert(t.Deployment).values(collection_id=1, index_id=1, mode="dense", fusion={}, state=state, run=name)
            )
    jobs.enqueue(house.database, "retrain", {"collection": "default", "run": "waits"})
    with run_folder(house.home, "works").owned():
        lap(house, "works", 400)
        assert pruned(house).count == 1
        assert there(house) == {"serves", "waits", "works", "newest"}
    assert pruned(house).count == 1
    assert there(house) == {"serves", "waits", "newest"}


def test_what_a_crash_left_of_a_removal_goes(house: House) -> None:
    lap(house, "a", 1)
    (house.home / "runs" / ".b.removed" / "steps").mkdir(parents=True)
    pruned(house)
    assert there(house) == {"a"}


@pytest.mark.parametrize("value", ["", "none", "None"])
def test_kept_for_ever(house: House, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVR_RETENTION__RUN_DAYS", value)
    from nvr_rag.settings import load_settings

    assert load_settings().retention.run_days is None
