"""One door to the database: open, migrate, read, write.

Enters a URL; leaves SQLAlchemy connections inside transactions. Knows the differences between SQLite and PostgreSQL so
that nothing else has to.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from sqlalchemy import URL, ColumnElement, Connection, Engine, bindparam, create_engine, event, func, select, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DatabaseError, DBAPIError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as NoFreeConnection
from sqlalchemy.pool import QueuePool

from nvr_rag.db.tables import Base
from nvr_rag.errors import ConfigurationError, DatabaseUnavailable

BUSY_TIMEOUT_SECONDS = 30
_READERS_SECONDS = 2  # that emptying the log waits for whoever reads
_NO_RIGHT, _DISK_FULL = "42501", "53100"  # PostgreSQL's codes


class Database:
    """The corpus log's database. Safe to share between threads; every method opens its own transaction."""

    def __init__(self, url: str) -> None:
        """Connect lazily; see `migrate` for the schema. Raises ConfigurationError for a URL that cannot be used."""
        try:
            self._engine = _make_engine(url)
        except ImportError as error:
            raise ConfigurationError("PostgreSQL needs its driver: pip install 'nvr-rag[postgres]'") from error
        except ValueError:  # its message may hold a part of the password
            raise ConfigurationError("the database URL cannot be used: its port is not a number") from None
        except SQLAlchemyError as error:
            raise ConfigurationError(f"the database URL cannot be used: {error}") from error
        own = self._engine.dialect.name == "sqlite" and self._engine.url.database
        self._file = _File(Path(own)) if own else None

    @property
    def engine(self) -> Engine:
        return self._engine

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that sees one state of the database throughout and writes nothing."""
        with self._connect() as connection:
            if self._engine.dialect.name == "sqlite":
                connection.exec_driver_sql("BEGIN")
            else:
                connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            yield connection

    @contextmanager
    def write(self, *, durable: bool = True) -> Iterator[Connection]:
        """A transaction that commits when the block ends well, and is durable against a power cut from there.

        With `durable=False` it survives a killed process at once, and a power cut with the next durable commit. On
        SQLite one writes at a time; on PostgreSQL writers meet at the rows that they lock first, the collection's above
        all, and see what was committed before they had the lock.
        """
        with self._connect() as connection:
            if self._engine.dialect.name == "sqlite":
                connection.exec_driver_sql(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
                # Taking the write lock at once: a read lock that is widened later can fail half-way.
                connection.exec_driver_sql("BEGIN IMMEDIATE")
                if self._file is not None:
                    self._file.see_log(connection)
            elif not durable:
                connection.execute(text("SET LOCAL synchronous_commit = off"))
            yield connection
            connection.commit()

    def check(self, connection: Connection) -> None:
        """Raise DatabaseUnavailable when what is written now would be lost, as far as a reader can tell: `connection`
        is one of this database that has read something."""
        if self._file is not None:
            self._file.see_log(connection)

    @contextmanager
    def _connect(self) -> Iterator[Connection]:
        if self._file is not None:
            self._file.see()
        with _wrapped(), self._engine.connect() as connection:
            yield connection

    def scrub(self) -> None:
        """Let the file keep nothing of rows that are gone: it is written anew, and its log emptied. Takes a second for
        every few hundred megabytes, and as much room again; writers wait meanwhile. Raises DatabaseUnavailable.

        PostgreSQL does this itself, in its own time: its vacuum frees the rows, and new ones take their place.
        """
        if self._engine.dialect.name != "sqlite":
            return
        with _wrapped(), self._engine.connect() as connection:
            connection.exec_driver_sql("VACUUM")
            connection.exec_driver_sql(f"PRAGMA busy_timeout = {_READERS_SECONDS * 1000}")
            busy = connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").one()[0]
            connection.exec_driver_sql(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_SECONDS * 1000}")
        if busy:
            raise DatabaseUnavailable("somebody reads the database: its log cannot be emptied yet; try again")

    def close(self) -> None:
        self._engine.dispose()


class _File:
    """SQLite's file and its log, which somebody may delete or replace while we have them open. Nothing would be amiss
    until the last process lets go of them, and then everything that was written into them meanwhile would be lost."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int] | None = None  # device and inode; None until the file is there

    def see(self) -> None:
        """Raise DatabaseUnavailable when this is not the file that it was."""
        try:
            status = os.stat(self._path)
            found = (status.st_dev, status.st_ino)
        except OSError:  # connecting will say what is wrong
            found = None
        self._seen = self._seen or found
        if found != self._seen:
            raise DatabaseUnavailable(
                f"{self._path} was deleted or replaced under this process; put it back, or stop every nvr-rag process, "
                "restore a backup and start again"
            )

    def see_log(self, connection: Connection) -> None:
        """Raise DatabaseUnavailable when the log that this connection has opened has no name any more."""
        log = f"{self._path}-wal"
        if not os.path.exists(log) and connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal":
            raise DatabaseUnavailable(
                f"{log} was deleted under this process; stop nvr-rag in order (Ctrl-C or SIGTERM), which saves what is "
                "in there, and start it again"
            )


def sqlite_url(path: Path) -> str:
    return f"sqlite:///{path}"


def _make_engine(url: str) -> Engine:
    parsed = make_url(url)
    if parsed.get_backend_name() == "postgresql":
        engine = create_engine(
            parsed.set(drivername="postgresql+psycopg").update_query_dict(_to_dead_servers(parsed)),
            isolation_level="READ COMMITTED",  # whatever the server's default: see Database.write
            pool_pre_ping=True,  # a server that was restarted costs nobody an error
            hide_parameters=True,
        )
        event.listen(engine, "connect", _prepare_postgresql)
        return engine
    if parsed.get_backend_name() != "sqlite":
        raise ConfigurationError(f"the database must be SQLite or PostgreSQL, not {parsed.get_backend_name()}")
    engine = create_engine(
        parsed,
        connect_args={"timeout": BUSY_TIMEOUT_SECONDS, "check_same_thread": False},
        hide_parameters=True,  # texts of documents and queries do not belong in error messages and logs
        **_pooling(parsed),
    )
    event.listen(engine, "connect", _prepare_sqlite)
    return engine


def _pooling(url: URL) -> dict[str, Any]:
    """The connection that was used last is taken first: what it has in its cache, others need not have as well. A
    database in memory has no pool that could."""
    dialect: Any = url.get_dialect()
    pooled = issubclass(dialect.get_pool_class(url), QueuePool)
    return {"pool_use_lifo": True} if pooled else {}


def _to_dead_servers(url: URL) -> dict[str, str]:
    """How long to wait for a server that has gone without a word; what the URL itself says counts."""
    wanted = {
        "application_name": "nvr-rag",
        "connect_timeout": "10",
        "keepalives_idle": "30",
        "keepalives_interval": "10",
        "keepalives_count": "3",
        "tcp_user_timeout": "30000",
    }
    return {name: value for name, value in wanted.items() if name not in url.query}


def _prepare_postgresql(connection: Any, _record: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"SET lock_timeout = '{BUSY_TIMEOUT_SECONDS}s'")
    connection.commit()


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # The driver would begin transactions behind our back, and too late; we say BEGIN ourselves.
    connection.isolation_level = None
    for pragma in ("journal_mode = WAL", "foreign_keys = ON", f"busy_timeout = {BUSY_TIMEOUT_SECONDS * 1000}"):
        connection.execute(f"PRAGMA {pragma}")


@contextmanager
def _wrapped() -> Iterator[None]:
    try:
        yield
    except OperationalError as error:
        raise DatabaseUnavailable(_words(error)) from error
    except NoFreeConnection as error:
        raise DatabaseUnavailable("all connections to the database are in use; try again") from error
    except DBAPIError as error:
        if error.connection_invalidated:
            raise DatabaseUnavailable(f"the connection to the database was lost: {_first_line(error)}") from error
        if getattr(error.orig, "sqlstate", None) == _NO_RIGHT:
            raise ConfigurationError(
                f"the database's user may not do this ({_first_line(error)}); let nvr-rag use the user that owns the "
                "tables, or grant it SELECT, INSERT, UPDATE and DELETE on all of them"
            ) from error
        if type(error) is DatabaseError:  # SQLite's word for a file that it cannot read
            raise ConfigurationError(f"the database is damaged ({error.orig}); restore it from a backup") from error
        raise


def _words(error: DBAPIError) -> str:
    """What is wrong, and what to do where waiting is not enough."""
    said = _first_line(error)
    if "is full" in said or getattr(error.orig, "sqlstate", None) == _DISK_FULL:
        return f"the database has no room to write in ({said}); nothing was lost: make room on its disk and try again"
    if "readonly database" in said or "read-only" in said:
        return f"the database cannot be written to ({said}); nothing was lost: make it writable and try again"
    return f"the database did not answer: {said}"


def _first_line(error: DBAPIError) -> str:
    """The driver's message without its hints; it may name a host and a user, never a password."""
    return next(iter(str(error.orig).strip().splitlines()), type(error.orig).__name__)


def insert_ignore(connection: Connection, table: type[Base], rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows; those whose key is there already are left as they are."""
    if rows:
        connection.execute(_ignoring(connection.dialect.name, table), list(rows))


def insert_or_update(
    connection: Connection,
    table: type[Base],
    rows: Sequence[Mapping[str, Any]],
    *,
    key: Sequence[str],
    values: Sequence[str],
) -> None:
    """Insert rows; of those whose `key` is there already, take over `values`."""
    if rows:
        statement = _insert(connection.dialect.name, table)
        taken = {name: statement.excluded[name] for name in values}
        connection.execute(statement.on_conflict_do_update(index_elements=list(key), set_=taken), list(rows))


def among(connection: Connection, column: Any, values: Sequence[str | int]) -> ColumnElement[bool]:
    """`column IN values`, for lists of hundreds, whose length is another one each time. On SQLite the list is one
    value: a place for each would make another statement of every length, and a connection remembers its last 128
    statements, at 260 kB for a thousand places."""
    return _among(connection.dialect.name, column, listed(connection, values))


def among_bound(dialect: str, column: Any, name: str) -> ColumnElement[bool]:
    """The same in a statement that is made once; it is executed with what `listed` makes of the values."""
    return _among(dialect, column, bindparam(name, expanding=dialect != "sqlite"))


def listed(connection: Connection, values: Sequence[str | int]) -> Any:
    """The values of a list for `among_bound`."""
    return json.dumps(list(values)) if connection.dialect.name == "sqlite" else values


def _among(dialect: str, column: Any, values: Any) -> ColumnElement[bool]:
    if dialect == "sqlite":
        each: Any = func.json_each(values)
        values = select(each.table_valued("value").c.value)
    found: ColumnElement[bool] = column.in_(values)
    return found


def bytewise(connection: Connection, column: Any) -> Any:
    """A text column in the order in which Python compares ids, for ORDER BY: PostgreSQL's own is that of a language,
    and some languages read digraphs ("aa" comes after "z" in Danish)."""
    return column.collate("C") if connection.dialect.name == "postgresql" else column


@cache
def _ignoring(dialect: str, table: type[Base]) -> Any:
    """The statement of `insert_ignore`, made once."""
    return _insert(dialect, table).on_conflict_do_nothing()


def _insert(dialect: str, table: type[Base]) -> Any:
    """The engine's own INSERT: the standard has no word for what to do on a conflict."""
    return postgresql.insert(table) if dialect == "postgresql" else sqlite.insert(table)
