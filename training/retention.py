"""What is kept of laps: folders that are old and that nobody needs any more go. A rule for nvr_rag.removal.retention.

The newest ones stay, and so do those that are at work or whose deployment serves, is kept ready, or waits.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from sqlalchemy import select

from nvr_rag import deployments, disk, jobs
from nvr_rag.db import tables as t
from nvr_rag.errors import ConfigurationError
from nvr_rag.removal.retention import Pruning, Removal, before
from training.runs import FOLDER, LapBusy, RunFolder, run_folder

_EXAMPLES = 5


def old_runs(run: Pruning) -> Removal:
    """Remove the folders of laps that ended long ago."""
    policy = run.policy
    if policy.run_days is None:
        return Removal(rule="laps", why="kept for ever", count=0, bytes=0)
    found = _old(run, policy.run_days)
    count = size = 0
    for folder in found:
        if run.pause():
            break
        taken = disk.allocated(folder.path)
        if run.dry_run or _removed(folder):
            count, size = count + 1, size + taken
    if not run.dry_run:
        _sweep(run.workspace.home / FOLDER)
    return Removal(
        rule="laps",
        why=f"touched more than {policy.run_days:g} days ago, and not among the newest {policy.run_count}",
        count=count,
        bytes=size,
        examples=[folder.path.name for folder in found[:_EXAMPLES]],
    )


def _old(run: Pruning, days: float) -> list[RunFolder]:
    """Folders that may go, oldest first."""
    newest_first = sorted(_folders(run.workspace.home / FOLDER), key=_touched, reverse=True)
    needed = _needed(run)
    with run.workspace.database.read() as connection:
        limit = before(connection, days).timestamp()
    old = [folder for folder in newest_first[run.policy.run_count :] if _touched(folder) < limit]
    return [folder for folder in reversed(old) if folder.path.name not in needed]


def _needed(run: Pruning) -> set[str]:
    """Names of laps that go on, or whose deployment may still be asked for."""
    database, d = run.workspace.database, t.Deployment
    with database.read() as connection:
        states = (*deployments.WAITING, *deployments.READY)
        made = connection.scalars(select(d.run).where(d.run.is_not(None), d.state.in_(states))).all()
    at_work = [str(job.payload.get("run", "")) for job in jobs.unfinished(database)]
    return {*at_work, *(str(name) for name in made)}


def _folders(root: Path) -> Sequence[RunFolder]:
    found = []
    for path in sorted(root.iterdir()) if root.is_dir() else ():
        with suppress(ConfigurationError):  # not a lap's
            found.append(run_folder(root.parent, path.name))
    return [folder for folder in found if folder.path.is_dir()]


def _touched(folder: RunFolder) -> float:
    """When a file last appeared in it, in seconds since 1970."""
    times = [path.stat().st_mtime for path in (folder.path, *folder.path.glob("*.json"), *folder.path.glob("steps/*"))]
    return max(times)


def _removed(folder: RunFolder) -> bool:
    """Whether it could be removed; not while somebody works on it."""
    with suppress(LapBusy, OSError), folder.owned():
        disk.remove(folder.path)
        return True
    return False


def _sweep(root: Path) -> None:
    """Delete what a crash has left of a removal."""
    for path in root.glob(".*.removed"):
        shutil.rmtree(path, ignore_errors=True)
