"""The door to SQLite: a file or a log that is taken away under an open database loses nothing that was acknowledged."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from nvr_rag.db.session import Database, sqlite_url
from nvr_rag.errors import DatabaseUnavailable


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    """A database with one table and one row, 1."""
    opened = Database(sqlite_url(tmp_path / "data.sqlite3"))
    with opened.write() as connection:
        connection.execute(text("CREATE TABLE numbers (number INTEGER)"))
    add(opened, 1)
    yield opened
    opened.close()


def add(database: Database, number: int) -> None:
    with database.write() as connection:
        connection.execute(text("INSERT INTO numbers VALUES (:number)"), {"number": number})


def numbers(database: Database) -> list[int]:
    with database.read() as connection:
        return list(connection.scalars(text("SELECT number FROM numbers ORDER BY number")))


def test_a_file_that_was_taken_away_is_not_written_to(database: Database, tmp_path: Path) -> None:
    file, away = tmp_path / "data.sqlite3", tmp_path / "away"
    file.rename(away)
    for use in (lambda: add(database, 2), lambda: numbers(database)):
        with pytest.raises(DatabaseUnavailable, match=r"data\.sqlite3 was deleted or replaced"):
            use()
    assert not file.exists()  # nor is an empty one begun in its place
    away.rename(file)
    add(database, 3)
    assert numbers(database) == [1, 3]


def test_another_file_in_its_place_is_not_taken_for_it(database: Database, tmp_path: Path) -> None:
    (tmp_path / "data.sqlite3").rename(tmp_path / "away")
    (tmp_path / "data.sqlite3").write_bytes(b"")
    with pytest.raises(DatabaseUnavailable, match="deleted or replaced"):
        add(database, 2)


def test_what_a_deleted_log_holds_is_saved_by_closing(database: Database, tmp_path: Path) -> None:
    (tmp_path / "data.sqlite3-wal").unlink()
    with pytest.raises(DatabaseUnavailable, match="stop nvr-rag in order"):
        add(database, 2)
    assert numbers(database) == [1]
    database.close()
    add(database, 3)
    assert numbers(database) == [1, 3]


def test_a_database_that_lets_go_of_its_log_makes_another(database: Database) -> None:
    """SQLite deletes the log itself when nobody has the database open."""
    for number in (2, 3):
        database.close()
        add(database, number)
    assert numbers(database) == [1, 2, 3]
