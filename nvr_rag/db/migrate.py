"""Bring a database to this release's schema, at start, under a lock.

Migrations only add, and each names the oldest revision whose release may go on working beside it (`oldest`); the
database keeps that name. So an upgrade may roll: processes of the release before go on, and may even start again. A
database that has moved further on is refused and not touched.
"""

from __future__ import annotations

import re
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, select, text
from sqlalchemy.exc import ProgrammingError

from nvr_rag.db.session import Database, insert_or_update
from nvr_rag.db.tables import SchemaInfo
from nvr_rag.errors import ConfigurationError, NewerDataFolder

_LOCK = 0x6E7672  # any number that only we use
_FOLDER = Path(__file__).parent / "migrations"


def migrate(database: Database) -> None:
    """Apply what is missing. Raises, having changed nothing: NewerDataFolder for a database of a release that this one
    cannot work beside, ConfigurationError where this user may not change tables."""
    config = _config()
    scripts = ScriptDirectory.from_config(config)
    if _is_fit(database, scripts):
        return
    with database.write() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        current = _current(connection)
        if current in _known(scripts) or current is None:
            config.attributes["connection"] = connection
            _upgrade(config, scripts, connection)


def revision(database: Database) -> str | None:
    """The revision the database is at; None for an empty one."""
    with database.read() as connection:
        return _current(connection)


def revisions() -> list[str]:
    """The revisions that this release knows, its own last."""
    scripts = ScriptDirectory.from_config(_config())
    return [script.revision for script in scripts.walk_revisions()][::-1]


def _current(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", re.sub("%", "%%", str(_FOLDER)))
    config.set_main_option("path_separator", "os")
    return config


def _is_fit(database: Database, scripts: ScriptDirectory) -> bool:
    """Whether the database needs nothing of this release. Raises NewerDataFolder for one that has moved too far on."""
    with database.read() as connection:
        current = _current(connection)
        if current is None or current in _known(scripts):
            return current == scripts.get_current_head()
        if inspect(connection).has_table(SchemaInfo.__tablename__):
            oldest = connection.scalar(select(SchemaInfo.oldest))
            if oldest in _known(scripts):
                return True
    raise NewerDataFolder(
        f"this data was written by a newer nvr-rag (schema {current}) that this one cannot work beside; upgrade "
        "nvr-rag, or set NVR_HOME (and NVR_DATABASE_URL) to another place"
    )


def _upgrade(config: Config, scripts: ScriptDirectory, connection: Connection) -> None:
    try:
        command.upgrade(config, "head")
    except ProgrammingError as error:  # PostgreSQL's word for a right that is missing
        raise ConfigurationError(
            f"the database's user may not make or change its tables ({str(error.orig).splitlines()[0]}); give it the "
            "right to (GRANT CREATE ON SCHEMA), or start nvr-rag once with a user that has it"
        ) from error
    head = scripts.get_revision("head")
    insert_or_update(connection, SchemaInfo, [{"id": 1, "oldest": head.module.oldest}], key=("id",), values=("oldest",))


def _known(scripts: ScriptDirectory) -> set[str]:
    return {script.revision for script in scripts.walk_revisions()}
