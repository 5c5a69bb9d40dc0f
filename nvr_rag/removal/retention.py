"""What is kept and for how long: the policy of the settings enters, what went away or would go leaves, rule by rule.

A rule removes what nothing needs any more, in small transactions, and says why. What answers searches, is being built,
or can be gone back to is needed, and so is whatever people have judged. Other packages contribute rules for what is
theirs (entry-point group `nvr_rag.retention`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, delete, exists, func, select

from nvr_rag import deployments, disk, indexes, jobs, registry
from nvr_rag.db import clock
from nvr_rag.db import tables as t
from nvr_rag.db.session import Database
from nvr_rag.encoders.bundled import BUNDLED
from nvr_rag.errors import Conflict, NotFound, NvrError, StoreBusy
from nvr_rag.job_rows import ENDED
from nvr_rag.registry import EncoderVersion
from nvr_rag.removal import superseded
from nvr_rag.removal.superseded import Pause
from nvr_rag.settings import RetentionSettings
from nvr_rag.workspace import Workspace

GROUP = "nvr_rag.retention"  # of the entry points
BATCH = 500  # rows in one transaction
_EXAMPLES = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Removal:
    """What one rule has removed, or would."""

    rule: str
    why: str
    count: int
    bytes: int | None  # on the disk, or of text in the database, which uses them again; None = cannot be known
    examples: Sequence[str] = ()

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pruning:
    """What a rule works with."""

    workspace: Workspace
    dry_run: bool  # it only says what it would remove
    pause: Pause  # looked at between two transactions

    @property
    def policy(self) -> RetentionSettings:
        return self.workspace.settings.retention


Rule = Callable[[Pruning], Removal]


def prune(workspace: Workspace, *, dry_run: bool = False, pause: Pause = lambda: False) -> list[Removal]:
    """Apply every rule, in an order in which one makes room for the next; what each came to, in that order.

    Doing it again is fine, and so is dying in the middle.
    """
    run, found = Pruning(workspace=workspace, dry_run=dry_run, pause=pause), []
    for rule in rules():
        if pause():
            break
        found.append(rule(run))
    return found


def rules() -> list[Rule]:
    """Our own rules and those of installed packages."""
    contributed = [entry.load() for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name)]
    own = [
        _unless_kept("deployments", "previous_days", previous_deployments),
        _unless_kept("encoders", "encoder_days", unneeded_encoders),
        _unless_kept("jobs", "job_days", ended_jobs),
        _unless_kept("queries", "query_days", old_queries),
        _unless_kept("versions", "version_days", superseded_versions),
        _unless_kept("cuts", "version_days", unused_cuts),
        _unless_kept("chunks", "version_days", loose_chunks),
    ]
    return [*own, *contributed]


def _unless_kept(name: str, setting: str, rule: Callable[[Pruning, float], Removal]) -> Rule:
    """A rule that gets its number of days; without one, everything is kept."""

    def applied(run: Pruning) -> Removal:
        days: float | None = getattr(run.policy, setting)
        return rule(run, days) if days is not None else Removal(rule=name, why="kept for ever", count=0, bytes=0)

    return applied


def before(connection: Connection, days: float) -> datetime:
    """The moment that long ago."""
    return clock.now(connection) - timedelta(days=days)


def previous_deployments(run: Pruning, days: float) -> Removal:
    """Retire deployments that served long ago; their indexes go with them."""
    with run.workspace.database.read() as connection:
        old = _old_deployments(connection, days)
        doomed = _needed_by_these_alone(connection, old)
    names = [f"deployment {one.id}" for one in old]
    size = sum(disk.allocated(run.workspace.home / "indexes" / name) for name in doomed.values())
    if not run.dry_run:
        for one in old:
            with suppress(Conflict, NotFound), run.workspace.database.write() as connection:
                deployments.retire(connection, one.id)  # unless it serves again by now
        _drop_retired(run.workspace)
    return Removal(
        rule="deployments",
        why=f"stopped serving more than {days:g} days ago, and another one can be gone back to",
        count=len(old),
        bytes=None if run.workspace.store.shared else size,
        examples=names[:_EXAMPLES],
    )


def _old_deployments(connection: Connection, days: float) -> list[deployments.Deployment]:
    """Those that have served, but the last one of each collection."""
    limit, old = before(connection, days), []
    for collection_id in connection.scalars(select(t.Collection.id).order_by(t.Collection.id)):
        with suppress(NotFound):
            last = deployments.last(connection, collection_id)
            found = deployments.all_of(connection, collection_id, ("previous",))
            old += [one for one in found if one.id != last.id and (one.stopped_at or one.created_at) < limit]
    return old


def _needed_by_these_alone(connection: Connection, old: Sequence[deployments.Deployment]) -> dict[int, str]:
    """Names of the indexes that go with these deployments, by id."""
    ids = {one.id for one in old}
    d = t.Deployment
    active = select(d.id, d.index_id).where(d.state.in_((*deployments.WAITING, *deployments.READY)))
    needed = {row.index_id for row in connection.execute(active) if row.id not in ids}
    gone = {one.index_id for one in old} - needed
    return {index_id: indexes.get(connection, index_id).name for index_id in sorted(gone)}


def _drop_retired(workspace: Workspace) -> None:
    """Drop what is not open here or elsewhere; whoever has it open drops it when he lets go of it."""
    with workspace.database.read() as connection:
        retired = [info.id for info in indexes.retired(connection)]
    for index_id in retired:
        if not workspace.has_open(index_id):
            with suppress(StoreBusy, NotFound):
                indexes.drop_retired(workspace.database, workspace.store, index_id)


def unneeded_encoders(run: Pruning, days: float) -> Removal:
    """Remove the files of encoder versions that nothing needs; their rows stay for what still names them."""
    with run.workspace.database.read() as connection:
        found = _unneeded(connection, run.workspace.settings.encoder, days)
    count = size = 0
    for version in found:
        if run.pause():
            break
        if run.dry_run:
            size += disk.allocated(run.workspace.home / version.source)
        else:
            try:
                size += run.workspace.discard(version.fingerprint)
            except NvrError:  # an index needs it now, or its files cannot be deleted: the next time perhaps
                continue
        count += 1
    return Removal(
        rule="encoders",
        why=f"no index has needed it for {days:g} days, nor a version that is needed to go back to its beginnings",
        count=count,
        bytes=size,
        examples=[version.fingerprint[: registry.SHORT] for version in found[:_EXAMPLES]],
    )


def _unneeded(connection: Connection, default: str, days: float) -> list[EncoderVersion]:
    i, limit = t.SearchIndex, before(connection, days)
    if connection.scalar(select(func.count()).select_from(t.Job).where(t.Job.state.not_in(ENDED))):
        return []  # a lap at work loads versions that no index may need any more
    versions = {one.fingerprint: one for one in registry.all_versions(connection)}
    dropped = select(i.encoder).where(i.dropped_at >= limit)
    needed = set(connection.scalars(select(i.encoder).where(i.dropped_at.is_(None)).union(dropped)))
    for one in versions.values():
        if one.created_at >= limit or one.source == BUNDLED or _is_default(one, default):
            needed.add(one.fingerprint)
    for fingerprint in list(needed):  # a lap begins with the first of a line
        while fingerprint in versions and (parent := versions[fingerprint].parent) is not None:
            needed.add(parent)
            fingerprint = parent
    return [one for one in versions.values() if one.fingerprint not in needed]


def _is_default(version: EncoderVersion, default: str) -> bool:
    """Whether new collections are made with it."""
    origin = (version.training or {}).get("added_from")
    names = {default, str(Path(default).expanduser().resolve())}
    return version.source in names or origin in names


def ended_jobs(run: Pruning, days: float) -> Removal:
    """Forget jobs that ended long ago."""
    database = run.workspace.database
    count = _count_ended(database, days) if run.dry_run else jobs.forget_finished(database, timedelta(days=days))
    return Removal(rule="jobs", why=f"ended more than {days:g} days ago", count=count, bytes=None)


def _count_ended(database: Database, days: float) -> int:
    """How many jobs `jobs.forget_finished` would delete."""
    j = t.Job
    newest = select(func.max(j.id)).group_by(j.kind, j.payload["collection"].as_string())
    with database.read() as connection:
        old = j.state.in_(ENDED) & (func.coalesce(j.finished_at, j.created_at) < before(connection, days))
        return connection.scalar(select(func.count()).select_from(j).where(old, j.id.not_in(newest))) or 0


def old_queries(run: Pruning, days: float) -> Removal:
    """Forget what was asked long ago, unless somebody has said something about an answer."""
    q, database = t.QueryRow, run.workspace.database
    with database.read() as connection:
        old = (q.created_at < before(connection, days)) & ~exists().where(t.FeedbackRow.query_id == q.id)
        measured = select(func.count(), func.coalesce(func.sum(func.length(q.text)), 0)).where(old)
        count, size = connection.execute(measured).one()
    if not run.dry_run:
        count = superseded.delete_in_batches(database, run.pause, lambda other: _delete_queries(other, old))
    return Removal(rule="queries", why=f"asked more than {days:g} days ago, without feedback", count=count, bytes=size)


def _delete_queries(connection: Connection, old: Any) -> int:
    q = t.QueryRow
    some = select(q.id).where(old).order_by(q.created_at).limit(BATCH)
    return connection.execute(delete(q).where(q.id.in_(some), old)).rowcount


def superseded_versions(run: Pruning, days: float) -> Removal:
    """Delete versions that were replaced long ago, or whose document was deleted."""
    count, size = superseded.remove_versions(run.workspace.database, days, dry_run=run.dry_run, pause=run.pause)
    return Removal(
        rule="versions",
        why=f"replaced or deleted more than {days:g} days ago, and out of every index",
        count=count,
        bytes=size,
    )


def unused_cuts(run: Pruning, days: float) -> Removal:
    """Delete where versions were cut for indexes that are gone."""
    count = superseded.remove_cuts(run.workspace.database, days, dry_run=run.dry_run, pause=run.pause)
    return Removal(
        rule="cuts",
        why=f"cut for an index that was dropped more than {days:g} days ago, and nobody has judged a chunk of it",
        count=count,
        bytes=None,
    )


def loose_chunks(run: Pruning, _days: float) -> Removal:
    """Delete chunks that stand in no version any more."""
    count, size = superseded.remove_chunks(run.workspace.database, dry_run=run.dry_run, pause=run.pause)
    return Removal(
        rule="chunks", why="stands in no version any more, and nobody has judged it", count=count, bytes=size
    )
