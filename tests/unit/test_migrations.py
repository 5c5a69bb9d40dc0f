"""The schema: made once, checked quickly, and never touched when it is from the future."""

from __future__ import annotations

import re
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import event, text

import nvr_rag
from nvr_rag.db.migrate import migrate, revision
from nvr_rag.db.session import Database, sqlite_url
from nvr_rag.db.tables import Base
from nvr_rag.errors import ConfigurationError, DatabaseUnavailable, NewerDataFolder
from nvr_rag.settings import Settings
from nvr_rag.testing import HashEncoder, MemoryStore
from nvr_rag.workspace import Workspace

HEAD = "0005"
MIGRATIONS = Path(nvr_rag.__file__).parent / "db" / "migrations"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "corpus.sqlite3"


@pytest.fixture
def database(file: Path) -> Iterator[Database]:
    opened = Database(sqlite_url(file))
    yield opened
    opened.close()


def tables(file: Path) -> set[str]:
    connection = sqlite3.connect(file)
    try:
        return {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    finally:
        connection.close()


def test_the_migrations_make_what_the_tables_say(database: Database) -> None:
    migrate(database)
    with database.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "render_as_batch": True})
        assert compare_metadata(context, Base.metadata) == []


def test_the_migrations_make_every_constraint_that_the_tables_name(database: Database, file: Path) -> None:
    migrate(database)
    made, wanted = Database(sqlite_url(file)), Database("sqlite://")
    with wanted.write() as connection:
        Base.metadata.create_all(connection)
        expected = _shapes(connection.exec_driver_sql(_SCHEMA).all())
    with made.read() as connection:
        assert _shapes(connection.exec_driver_sql(_SCHEMA).all()) == expected
    made.close()
    wanted.close()


_SCHEMA = "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL AND name <> 'alembic_version'"


def _shapes(rows: object) -> dict[str, list[str]]:
    """Every line of every CREATE statement: columns, keys, checks and partial indexes, in no order. SQLite writes
    columns that were added later behind the last line."""
    return {
        name: sorted(
            part.strip(" ,\t)") for part in re.split(r"\n|, (?=\w+ (?:DATETIME|VARCHAR|JSON|INTEGER|TEXT)\b)", sql)
        )
        for name, sql in rows  # type: ignore[attr-defined]
    }


def test_a_second_start_writes_nothing_and_is_quick(database: Database, file: Path) -> None:
    migrate(database)
    database.close()
    before = file.read_bytes()
    statements: list[str] = []
    again = Database(sqlite_url(file))
    event.listen(again.engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    started = time.perf_counter()
    migrate(again)
    seconds = time.perf_counter() - started
    again.close()
    assert file.read_bytes() == before
    assert [statement for statement in statements if "IMMEDIATE" in statement] == []
    assert seconds < 1  # a tenth of this on an idle core; migrating takes longer


def test_a_data_folder_of_a_newer_release_is_refused_and_not_touched(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    file = home / "corpus.sqlite3"
    made = Database(sqlite_url(file))
    migrate(made)
    made.close()
    connection = sqlite3.connect(file)
    connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.execute("UPDATE schema_info SET oldest = '9998'")
    connection.commit()
    connection.close()
    before = file.read_bytes()
    with pytest.raises(NewerDataFolder, match="9999"):
        Workspace(Settings(home=home), store=MemoryStore(), encoder=HashEncoder())
    assert file.read_bytes() == before
    assert [path.name for path in home.iterdir()] == ["corpus.sqlite3"]


def test_a_database_of_the_next_release_is_worked_on_while_an_upgrade_rolls(file: Path, database: Database) -> None:
    migrate(database)
    with database.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    migrate(database)  # its `oldest` is a revision that this release knows
    assert revision(database) == "9999"


def test_a_database_from_before_that_was_kept_is_refused_when_it_is_unknown(file: Path, database: Database) -> None:
    migrate(database)
    with database.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        connection.execute(text("DROP TABLE schema_info"))
    with pytest.raises(NewerDataFolder, match="9999"):
        migrate(database)


def test_every_migration_says_which_releases_may_go_on_and_that_one_exists() -> None:
    scripts = ScriptDirectory(str(MIGRATIONS))
    revisions = [script.revision for script in scripts.walk_revisions()]
    head = scripts.get_revision("head")
    assert head is not None
    assert head.module.oldest in revisions


def test_a_migration_that_dies_half_way_leaves_nothing(
    database: Database, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dying(*args: object) -> None:
        real(*args)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    real = command.upgrade
    with monkeypatch.context() as patch:
        patch.setattr(command, "upgrade", dying)
        with pytest.raises(KeyboardInterrupt):
            migrate(database)
    assert (revision(database), tables(file)) == (None, set())
    migrate(database)
    assert revision(database) == HEAD


_PROGRAM = """
import sys
import nvr_rag
from nvr_rag.db.migrate import migrate, revision
from nvr_rag.db.session import Database, sqlite_url
database = Database(sqlite_url(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
migrate(database)
print(revision(database), flush=True)
"""


def test_two_processes_may_migrate_at_once(file: Path) -> None:
    started = [
        subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    answers = [process.communicate("go\n") for process in started]
    assert [answer for answer, _ in answers] == [f"{HEAD}\n", f"{HEAD}\n"]
    assert [process.returncode for process in started] == [0, 0]


def test_a_transaction_is_whole_or_not_at_all(database: Database) -> None:
    migrate(database)
    insert = text("INSERT INTO collection (name, language, next_seq, created_at) VALUES ('a', 'x', 1, '2026-01-01')")

    def half_a_transaction() -> None:
        with database.write() as connection:
            connection.execute(insert)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        half_a_transaction()
    with database.read() as connection:
        assert connection.scalar(text("SELECT count(*) FROM collection")) == 0


def test_a_reader_sees_one_state_throughout(database: Database) -> None:
    migrate(database)
    count = text("SELECT count(*) FROM collection")
    insert = text("INSERT INTO collection (name, language, next_seq, created_at) VALUES ('a', 'x', 1, '2026-01-01')")
    with database.read() as reader:
        assert reader.scalar(count) == 0
        with database.write() as writer:
            writer.execute(insert)
        assert reader.scalar(count) == 0
    with database.read() as reader:
        assert reader.scalar(count) == 1


def test_a_damaged_file_is_said_to_be(file: Path, database: Database) -> None:
    file.write_bytes(b"this is no database" * 300)
    with pytest.raises(ConfigurationError, match="damaged"):
        migrate(database)


def test_a_place_where_nothing_can_be_stored_is_said_to_be(file: Path, database: Database) -> None:
    file.mkdir()
    with pytest.raises(DatabaseUnavailable, match="unable to open"):
        migrate(database)


@pytest.mark.parametrize("url", ["mysql://host/db", "nonsense", "postgresql://h:port/db"])
def test_a_url_of_no_use_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError):
        Database(url)


def test_more_threads_than_connections_wait_for_their_turn(database: Database) -> None:
    migrate(database)
    barrier = threading.Barrier(40)

    def one(_: int) -> object:
        barrier.wait()
        with database.read() as connection:
            return connection.scalar(text("SELECT 1"))

    with ThreadPoolExecutor(40) as pool:
        assert list(pool.map(one, range(40))) == [1] * 40
