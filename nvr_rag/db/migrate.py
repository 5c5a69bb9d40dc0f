"""Bring a database to this release's schema, at start, under a lock; refuse one that a newer release has written."""

from __future__ import annotations

import re
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from nvr_rag.db.session import Database
from nvr_rag.errors import NewerDataFolder

_LOCK = 0x6E7672  # any number that only we use
_FOLDER = Path(__file__).parent / "migrations"


def migrate(database: Database) -> None:
    """Apply what is missing. Raises NewerDataFolder, having changed nothing, for a revision this release lacks."""
    config = _config()
    scripts = ScriptDirectory.from_config(config)
    if revision(database) == scripts.get_current_head():
        return
    with database.write() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        _refuse_unknown(_current(connection), scripts)
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def revision(database: Database) -> str | None:
    """The revision the database is at; None for an empty one."""
    with database.read() as connection:
        return _current(connection)


def _current(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", re.sub("%", "%%", str(_FOLDER)))
    config.set_main_option("path_separator", "os")
    return config


def _refuse_unknown(current: str | None, scripts: ScriptDirectory) -> None:
    known = {script.revision for script in scripts.walk_revisions()}
    if current is not None and current not in known:
        raise NewerDataFolder(
            f"this data folder was written by a newer nvr-rag (schema {current}); upgrade nvr-rag, "
            "or set NVR_HOME to another folder"
        )
