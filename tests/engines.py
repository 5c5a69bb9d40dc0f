"""The databases that tests run on: SQLite always, and PostgreSQL as well where NVR_TEST_POSTGRES_URL names a server.

A data folder of a test has its database: the file in it, or a database on the server that is made as a copy of another
data folder's. Whoever opens a data folder in a test asks here for its URL, and whoever copies one copies it here.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from sqlalchemy.engine import make_url

SERVER = os.environ.get("NVR_TEST_POSTGRES_URL")
ENGINES = ("sqlite", "postgresql") if SERVER else ("sqlite",)

_names: dict[Path, str] = {}  # of the databases on the server, by data folder


def url_of(home: Path) -> str | None:
    """The database URL of a data folder; None where the database is in it."""
    name = _names.get(home)
    return None if name is None else _url(name)


def options_of(home: Path) -> dict[str, Any]:
    """What Settings for a data folder are to be given, so that they find its database."""
    url = url_of(home)
    return {"home": home} if url is None else {"home": home, "database_url": url}


def new_home(home: Path) -> Path:
    """Give a data folder, which need not be there, an empty database on the server."""
    _names[home] = _make("template0")
    return home


def copy_home(source: Path, target: Path) -> Path:
    """A copy of a data folder that no process has open, with its database."""
    shutil.copytree(source, target)
    if source in _names:
        _names[target] = _make(_names[source])
    return target


def some(numbers: Sequence[int], home: Path) -> Sequence[int]:
    """All of the steps at which something may die on SQLite; six of them on a server, where each takes a copy of a
    database, and where the steps are the same."""
    return numbers if url_of(home) is None else numbers[:: max(1, len(numbers) // 6)]


def forget(under: Path) -> None:
    """Drop the databases of the data folders in a folder."""
    for home in [home for home in _names if home.is_relative_to(under)]:
        name = _names.pop(home)
        with _server() as connection:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def _make(template: str) -> str:
    name = f"nvr_test_{uuid.uuid4().hex[:16]}"
    statement = sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY FILE_COPY ENCODING 'UTF8'")
    with _server() as connection:
        connection.execute(statement.format(sql.Identifier(name), sql.Identifier(template)))
    return name


def _url(name: str) -> str:
    assert SERVER is not None
    return make_url(SERVER).set(database=name).render_as_string(hide_password=False)


@contextmanager
def _server() -> Iterator[psycopg.Connection[Any]]:
    assert SERVER is not None
    url = make_url(SERVER).set(drivername="postgresql")
    with psycopg.connect(url.render_as_string(hide_password=False), autocommit=True) as connection:
        yield connection
