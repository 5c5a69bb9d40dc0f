"""A running installation enters; a backup of one moment leaves: rows, models, reports of laps. Nothing waits for it.

Everything that was acknowledged before it began is in it. Indexes are not: they are made from the documents again.
Settings are not either, and with them no secret.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO, cast

from sqlalchemy import Connection, select, text

from nvr_rag import __version__, disk
from nvr_rag.backups import manifest as manifests
from nvr_rag.backups import tables
from nvr_rag.backups.manifest import MODELS, RUNS, TABLES, FileEntry, Manifest, TableEntry
from nvr_rag.db import tables as t
from nvr_rag.db.migrate import revision, revisions
from nvr_rag.errors import ConfigurationError, NewerDataFolder
from nvr_rag.transfer.files import private_folder, sync_folder
from nvr_rag.workspace import Workspace

Report = Callable[[str, int], None]  # what is being copied, and how many bytes of it so far

_REPORTS = ("*.json", "*.html", "steps/*.json")  # of a finished lap: what it came to, and not what it worked on
_FINISHED = "report.json"
_SPARE_BYTES = 64 * 2**20
_BLOCK = 2**20


def back_up(workspace: Workspace, folder: Path, report: Report = lambda _what, _bytes: None) -> Manifest:
    """Write a backup into a new or empty folder. Raises ConfigurationError: the folder, the disk; NewerDataFolder.

    What is interrupted leaves a folder without a manifest, which nobody takes for a backup.
    """
    _check_schema(workspace)
    manifests.new_folder(folder)
    created_at = t.now().isoformat(timespec="seconds")
    with _told(folder):
        with workspace.database.read() as connection:
            sources = _sources(connection)
            _check_room(connection, workspace, folder, sources)
            rows = _copy_tables(connection, folder, report)
        missing = [source for source in sources if not (workspace.home / source).is_dir()]
        models = [path for source in sources if source not in missing for path in _files(workspace.home / source)]
        files = [_copy(workspace.home, path, folder, report) for path in (*models, *_reports(workspace.home))]
        _check_schema(workspace)  # it may have moved on meanwhile
        made = Manifest(
            release=__version__,
            schema=revisions()[-1],
            created_at=created_at,
            tables=rows,
            files=tuple(file for file in files if file is not None),
            missing=tuple(source.removeprefix(f"{MODELS}/") for source in missing),
        )
        _sync(folder)
        manifests.write(folder, made)
    return made


def _check_schema(workspace: Workspace) -> None:
    if revision(workspace.database) != revisions()[-1]:
        raise NewerDataFolder(
            "this data belongs to a newer nvr-rag by now, and this one does not know all of it; make the backup with "
            "that one"
        )


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigurationError(
            f"the backup was not finished ({error.strerror or error}: {error.filename or folder}); delete {folder}, "
            "and try again"
        ) from error


def _sources(connection: Connection) -> list[str]:
    """Where the encoder versions are, in the data folder; bundled ones come with the installation."""
    e = t.EncoderVersion
    sources = connection.scalars(select(e.source).where(e.removed_at.is_(None)).order_by(e.source))
    return [source for source in sources if source.startswith(f"{MODELS}/")]


def _check_room(connection: Connection, workspace: Workspace, folder: Path, sources: Sequence[str]) -> None:
    """Raise ConfigurationError when there is no room: texts take half of what they do in a database, or less."""
    models = sum(disk.allocated(workspace.home / source) for source in sources)
    needed, left = _database_bytes(connection) // 2 + models + _SPARE_BYTES, disk.free(folder)
    if left < needed:
        raise ConfigurationError(
            f"the backup needs about {needed / 1e6:,.0f} MB in {folder}, and {left / 1e6:,.0f} MB are free; make room, "
            "or give another place"
        )


def _database_bytes(connection: Connection) -> int:
    if connection.dialect.name == "postgresql":
        return int(connection.scalar(text("SELECT pg_database_size(current_database())")) or 0)
    pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
    return int(pages or 0) * int(connection.exec_driver_sql("PRAGMA page_size").scalar() or 0)


def _copy_tables(connection: Connection, folder: Path, report: Report) -> dict[str, TableEntry]:
    found = {}
    for table in tables.kept_tables():
        path = f"{TABLES}/{table.name}.jsonl.gz"
        with _written(folder / path) as file:
            dumped = tables.dump(connection, table, cast(BinaryIO, file), partial(report, table.name))
        entry = FileEntry(path=path, bytes=file.bytes, sha256=file.sha256)
        found[table.name] = TableEntry(rows=dumped.rows, unpacked=dumped.unpacked, file=entry)
    return found


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink())


def _reports(home: Path) -> Iterator[Path]:
    """What finished laps came to. A lap that is at work begins anew in a restored installation."""
    for run in sorted((home / RUNS).glob("*")):
        if (run / _FINISHED).is_file():
            for pattern in _REPORTS:
                yield from sorted(path for path in run.glob(pattern) if path.is_file())


def _copy(home: Path, path: Path, folder: Path, report: Report) -> FileEntry | None:
    """Copy one file; None when it has gone meanwhile, with what it belongs to."""
    name = path.relative_to(home).as_posix()
    try:
        source = path.open("rb")
    except FileNotFoundError:
        return None
    with source, _written(folder / name) as file:
        while block := source.read(_BLOCK):
            file.write(block)
            report(name, file.bytes)
    return FileEntry(path=name, bytes=file.bytes, sha256=file.sha256)


@contextmanager
def _written(path: Path) -> Iterator[tables.Hashed]:
    """A new file for this user only, durable and as it was meant to be when the block ends well."""
    private_folder(path.parent)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        hashed = tables.Hashed(file)
        yield hashed
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    for parent, _, _ in os.walk(folder):
        sync_folder(Path(parent))
