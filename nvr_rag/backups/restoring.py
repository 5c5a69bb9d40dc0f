"""A backup enters; an installation that was empty holds what it holds, or nothing at all.

Everything is checked before anything is written, and the rows come in one transaction. Indexes get new names and begin
at nothing: whoever serves builds them from the documents. So a restored installation never writes into indexes of the
one that the backup was made of, even at the same Qdrant server.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, Table, inspect, text
from sqlalchemy.engine import make_url

from nvr_rag import disk, uploads
from nvr_rag.backups import manifest as manifests
from nvr_rag.backups import tables
from nvr_rag.backups.manifest import MODELS, RUNS, Manifest
from nvr_rag.backups.tables import Row
from nvr_rag.db import tables as t
from nvr_rag.db.migrate import revisions
from nvr_rag.db.session import Database
from nvr_rag.errors import ConfigurationError, Conflict, InvalidInput
from nvr_rag.ids import new_id
from nvr_rag.running import processes
from nvr_rag.settings import Settings
from nvr_rag.transfer.files import private_folder, sync_folder
from nvr_rag.workspace import Workspace

Report = Callable[[str, int], None]  # what is being done, and how much of it: bytes or rows

_LOCK = 0x6E767272  # any number that only we use
_GROWTH = 2.5  # a database and its journal take this much more than the rows themselves
_SPARE_BYTES = 64 * 2**20


def restore(settings: Settings, folder: Path, report: Report = lambda _what, _done: None) -> Manifest:
    """Restore a backup into the data folder and the database that the settings name; returns what was restored.

    Raises InvalidInput for a backup that is unfinished, damaged or of a newer release, Conflict for an installation
    that holds something: nothing is changed then. ConfigurationError: disk, database.
    """
    found = manifests.read(folder)
    if found.schema not in revisions():
        raise InvalidInput(
            f"the backup {folder} was written by nvr-rag {found.release}, which is newer (schema {found.schema}); "
            "upgrade nvr-rag to restore it",
            field="folder",
        )
    _check_empty(settings)
    manifests.check_files(folder, found, lambda done: report("Checking the backup", done))
    _check_room(settings, found)
    with Workspace(settings) as workspace, _staged(workspace.home, folder, found, report) as stage:
        if any(processes.alive(workspace.database, kind) for kind in (processes.SERVER, processes.WORKER)):
            raise Conflict("a server or a worker runs on this data folder; stop it before something is restored")
        with workspace.database.write() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
            _check_nothing_in(connection)
            _fill(connection, folder, found, report)
            tables.go_on_counting(connection)
            _give_names(workspace.home, stage)
    return found


def _check_empty(settings: Settings) -> None:
    """Raise Conflict unless the installation is new; look only, so that an old one is not even migrated."""
    url = make_url(settings.sql_url())
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").exists():
        return
    database = Database(settings.sql_url())
    try:
        with database.read() as connection:
            _check_nothing_in(connection)
    finally:
        database.close()


def _check_nothing_in(connection: Connection) -> None:
    taken = tables.any_rows(connection, inspect(connection).get_table_names())
    if taken is not None:
        raise Conflict(
            f"there is data here already (the table {taken} is not empty), and nothing is restored over it; set "
            "NVR_HOME to a new folder (--home), and NVR_DATABASE_URL, if it is set, to an empty database"
        )


def _check_room(settings: Settings, found: Manifest) -> None:
    home = settings.home.expanduser().absolute()
    while not home.exists():
        home = home.parent
    rows = 0 if settings.database_url else int(sum(table.unpacked for table in found.tables.values()) * _GROWTH)
    needed, left = rows + sum(file.bytes for file in found.files) + _SPARE_BYTES, disk.free(home)
    if left < needed:
        raise ConfigurationError(
            f"restoring needs about {needed / 1e6:,.0f} MB in {home}, and {left / 1e6:,.0f} MB are free; make room, or "
            "give another place"
        )


@contextmanager
def _staged(home: Path, folder: Path, found: Manifest, report: Report) -> Iterator[Path]:
    """Copies of the backup's files in the data folder, under a name that nobody takes for theirs."""
    stage = home / f".restore-{uuid.uuid4().hex}"
    try:
        stage.mkdir(mode=0o700)
        for file in found.files:
            target = stage / file.path
            private_folder(target.parent)
            shutil.copyfile(folder / file.path, target)
            report("Copying models", file.bytes)
        yield stage
    except OSError as error:
        raise ConfigurationError(
            f"{home} cannot be written to ({error.strerror or error}); nothing was restored"
        ) from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _give_names(home: Path, stage: Path) -> None:
    """Move what was staged to where it belongs: the last thing before the rows are committed. What a crash in between
    leaves is named by nothing, and a second try replaces it."""
    for kind in (MODELS, RUNS):
        for one in sorted((stage / kind).glob("*")):
            target = home / kind / one.name
            target.parent.mkdir(mode=0o700, exist_ok=True)
            disk.remove(target)
            one.rename(target)
            sync_folder(target.parent)


def _fill(connection: Connection, folder: Path, found: Manifest, report: Report) -> None:
    heads: dict[int, int] = {}
    for table in tables.kept_tables():
        if table.name not in found.tables:
            continue  # an older release did not have it
        entry = found.tables[table.name]
        count = tables.fill(connection, table, _as_restored(table, folder / entry.file.path, heads))
        report(f"Restoring {table.name}", count)
        if count != entry.rows:
            raise InvalidInput(f"the backup {folder} is damaged: {table.name} has {count} rows and not {entry.rows}")


def _as_restored(table: Table, path: Path, heads: dict[int, int]) -> Iterator[Row]:
    """The rows of a table as a restored installation has them; the heads of the collections' logs are noted."""
    rows = tables.rows_of(path, table)
    if table.name == t.EncoderVersion.__tablename__:
        rows = iter(_parents_first(list(rows)))
    for row in rows:
        if table.name == t.Collection.__tablename__:
            heads[row["id"]] = row["next_seq"] - 1
            yield row
        elif table.name == t.SearchIndex.__tablename__:
            yield _index(row, heads)
        elif table.name == t.Job.__tablename__:
            yield _job(row)
        else:
            yield row


def _parents_first(rows: Sequence[Row]) -> list[Row]:
    """Encoder versions, each after the one that it was fine-tuned from."""
    left = {row["fingerprint"]: row for row in rows}
    done: list[Row] = []
    while left:
        ready = [row for row in left.values() if row["parent"] not in left]
        done += [left.pop(row["fingerprint"]) for row in ready or list(left.values())]
    return done


def _index(row: Row, heads: Mapping[int, int]) -> Row:
    """An index that has nothing yet, and answers nothing before it has what the log has now. It gets another name."""
    head = heads.get(row["collection_id"], 0) or None
    forgotten = dict.fromkeys(("maintainer", "maintained_until", "progress"))
    begun = {"name": f"ix-{new_id()}", "applied_seq": 0, "purged_seq": 0, "rebuilt_to": head}
    return {**row, **forgotten, **begun}


def _job(row: Row) -> Row:
    """What somebody was working on waits for somebody else; what was uploaded and not yet parsed is not there."""
    if row["kind"] == uploads.KIND and row["state"] in ("queued", "running"):
        lost = "the uploaded file was not parsed yet when the backup was made, and is not in it; upload it again"
        ended = {"state": "failed", "error": lost, "finished_at": row["created_at"]}
        return {**row, **ended, "worker": None, "lease_until": None, "due_at": None}
    if row["state"] != "running":
        return row
    return {**row, "state": "queued", "worker": None, "lease_until": None}
