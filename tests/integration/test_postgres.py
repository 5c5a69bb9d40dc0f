"""What only a database server can do to us: connections that die, locks that wait, rights that are missing."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.engine import make_url

from nvr_rag import collections, corpus
from nvr_rag.db import session
from nvr_rag.db.migrate import migrate, revision
from nvr_rag.db.session import Database
from nvr_rag.errors import ConfigurationError, DatabaseUnavailable
from nvr_rag.query_log import QueryLog
from nvr_rag.settings import Settings
from nvr_rag.testing import HashEncoder, MemoryStore
from nvr_rag.types import Query
from nvr_rag.workspace import Workspace
from tests import engines
from tests.support import House, document

pytestmark = pytest.mark.skipif(engines.SERVER is None, reason="NVR_TEST_POSTGRES_URL names no server")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[House]:
    """A house whose database is on the server, with an empty collection "default"."""
    house = House(engines.new_home(tmp_path / "home"))
    house.workspace.create_collection("default")
    yield house
    house.close()
    engines.forget(tmp_path)


def pid(connection: Connection) -> int:
    return int(connection.execute(text("SELECT pg_backend_pid()")).scalar_one())


def cut(house: House, *pids: int) -> None:
    """End connections as an administrator does, or a server that is restarted."""
    with house.database.read() as connection:
        for one in pids or connection.scalars(
            text("SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()")
        ):
            connection.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": one})


def uris(house: House) -> set[str]:
    with house.database.read() as connection:
        return set(connection.scalars(text("SELECT uri FROM document")))


def test_a_connection_lost_in_a_transaction_leaves_nothing_of_it(server: House) -> None:
    def write() -> None:
        with server.database.write() as connection:
            corpus.put(connection, "default", [document("half", "one")])
            cut(server, pid(connection))
            corpus.put(connection, "default", [document("other half", "two")])

    with pytest.raises(DatabaseUnavailable, match=r"lost|did not answer"):
        write()
    assert uris(server) == set()
    assert server.put(document("half", "one"))[0].seq == 1


def test_a_connection_lost_before_the_commit_commits_nothing(server: House) -> None:
    def write() -> None:
        with server.database.write() as connection:
            corpus.put(connection, "default", [document("half", "one")])
            cut(server, pid(connection))

    with pytest.raises(DatabaseUnavailable):
        write()
    assert uris(server) == set()


def test_a_connection_lost_while_reading_is_told_and_the_next_read_goes_on(server: House) -> None:
    def read() -> None:
        with server.database.read() as connection:
            cut(server, pid(connection))
            connection.execute(text("SELECT 1"))

    with pytest.raises(DatabaseUnavailable):
        read()
    assert uris(server) == set()


def test_idle_connections_that_were_cut_cost_nobody_an_error(server: House) -> None:
    server.put(document("a", "red fox"))
    server.catch_up()
    barrier = threading.Barrier(5)

    def use(_: int) -> None:
        with server.database.read() as connection:
            barrier.wait()
            connection.execute(text("SELECT 1"))

    with ThreadPoolExecutor(5) as pool:
        list(pool.map(use, range(5)))
    cut(server)
    assert server.texts("fox") == ["red fox"]
    with ThreadPoolExecutor(5) as pool:
        list(pool.map(use, range(5)))


def test_the_query_log_goes_on_after_its_connection_was_cut(server: House) -> None:
    server.put(document("a", "red fox"))
    server.catch_up()
    log = QueryLog(server.database)
    result = server.workspace.retriever.search(Query(text="fox"))
    first = log.record(Query(text="fox"), result)
    cut(server)
    second = log.record(Query(text="fox"), result)
    log.close()
    with server.database.read() as connection:
        assert set(connection.scalars(text("SELECT id FROM query"))) == {first, second}


def test_writers_that_wait_for_each_other_both_end(server: House) -> None:
    """Two transactions take two collections' locks in opposite order: the database ends one, and what it wrote goes."""
    server.workspace.create_collection("other")
    barrier = threading.Barrier(2)

    def write(first: str, second: str) -> str:
        try:
            with server.database.write() as connection:
                corpus.put(connection, first, [document("a", f"{first} first")])
                barrier.wait(10)
                corpus.put(connection, second, [document("b", f"{second} second")])
        except DatabaseUnavailable as error:
            return str(error)
        return "well"

    with ThreadPoolExecutor(2) as pool:
        ended = sorted(pool.map(write, ("default", "other"), ("other", "default")))
    assert ended == ["the database did not answer: deadlock detected", "well"]
    with server.database.read() as connection:
        heads = [collections.head_seq(connection, collections.find(connection, name)) for name in ("default", "other")]
    assert heads == [1, 1]


def test_a_stricter_default_of_the_server_does_not_make_writers_fail(server: House) -> None:
    """With SERIALIZABLE, whoever waits for a row that somebody else changes meanwhile fails instead of going on."""
    with server.database.write() as connection:
        name = connection.execute(text("SELECT current_database()")).scalar_one()
        connection.execute(text(f'ALTER DATABASE "{name}" SET default_transaction_isolation = serializable'))
    server.database.engine.dispose()

    def write(number: int) -> None:
        for i in range(10):
            server.put(document(f"{number}/{i}", f"text {number} {i}"))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert len(uris(server)) == 40


def test_a_lock_that_is_never_let_go_of_is_told(server: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "BUSY_TIMEOUT_SECONDS", 1)
    hasty = Database(str(engines.url_of(server.home)))
    with server.database.write() as connection:
        corpus.put(connection, "default", [document("a", "one")])
        with pytest.raises(DatabaseUnavailable, match="lock timeout"), hasty.write() as other:
            corpus.put(other, "default", [document("b", "two")])
    hasty.close()
    assert uris(server) == {"a"}


def test_what_reads_cannot_write(server: House) -> None:
    with pytest.raises(Exception, match="read-only"), server.database.read() as connection:
        connection.execute(text("DELETE FROM document"))


@pytest.fixture
def stranger(server: House) -> Iterator[str]:
    """The URL of the house's database for a user who may connect and nothing else."""
    name = f"nvr_stranger_{uuid.uuid4().hex[:8]}"
    with server.database.write() as connection:
        connection.execute(text(f"CREATE ROLE {name} LOGIN PASSWORD 'hidden word'"))
    url = make_url(str(engines.url_of(server.home))).set(username=name, password="hidden word")
    yield url.render_as_string(hide_password=False)
    with server.database.write() as connection:
        connection.execute(text(f"DROP OWNED BY {name}"))
        connection.execute(text(f"DROP ROLE {name}"))


def test_a_user_without_rights_is_told_what_to_grant(stranger: str) -> None:
    database = Database(stranger)
    with pytest.raises(ConfigurationError, match="permission denied") as told:
        migrate(database)
    database.close()
    assert "hidden word" not in str(told.value)


def test_a_user_who_may_not_migrate_is_told_and_nothing_is_changed(stranger: str, tmp_path: Path) -> None:
    home = engines.new_home(tmp_path / "empty")
    own = make_url(stranger).set(database=make_url(str(engines.url_of(home))).database)
    database = Database(own.render_as_string(hide_password=False))
    with pytest.raises(ConfigurationError, match="GRANT CREATE"):
        migrate(database)
    assert revision(database) is None
    database.close()
    engines.forget(home)


def test_a_server_that_is_not_there_is_told_without_the_password() -> None:
    database = Database("postgresql://somebody:hidden%20word@127.0.0.1:1/nowhere")
    with pytest.raises(DatabaseUnavailable, match="Connection refused") as told, database.read():
        pass
    assert told.value.retry
    assert "hidden" not in str(told.value)


def test_two_processes_migrate_an_empty_database_at_once(tmp_path: Path) -> None:
    home = engines.new_home(tmp_path / "empty")

    def start(_: int) -> str:
        Workspace(Settings(**engines.options_of(home)), store=MemoryStore(), encoder=HashEncoder()).close()
        return "started"

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(start, range(4))) == ["started"] * 4
    engines.forget(home)
