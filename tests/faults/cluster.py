"""A PostgreSQL server of one's own that can be killed, paused and crowded: real files, fsync on, a free port of this
machine. `Cluster` makes it, starts it and stops it; it knows nothing of the product.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg

_PATIENCE_SECONDS = 60.0
_USER = "nvr"
_SLOTS = 24  # connections that may be open at a time; three of them are kept for a superuser


def programs() -> Path | None:
    """The folder of the newest PostgreSQL server that is installed; None where there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1].parent
    there = shutil.which("postgres")
    return Path(there).parent if there else None


class Cluster:
    """One server in a folder of its own. A context manager: at its end nothing of it is left."""

    def __init__(self) -> None:
        found = programs()
        assert found is not None, "there is no PostgreSQL server here"
        self._bin = found
        self._folder = Path(tempfile.mkdtemp(prefix="nvr-faults-pg-"))
        self._data = self._folder / "data"
        self._process: subprocess.Popen[bytes] | None = None
        self.port = _free_port()

    def __enter__(self) -> Cluster:
        if os.geteuid() == 0:  # the server refuses to run as root
            there = pwd.getpwnam("postgres")
            os.chown(self._folder, there.pw_uid, there.pw_gid)
        self._run("initdb", "-D", str(self._data), "-U", _USER, "--auth=trust", "-E", "UTF8", "--locale=C.UTF-8")
        guarded = "host all locked 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\n"
        (self._data / "pg_hba.conf").write_text(guarded, encoding="utf-8")
        self.start()
        self.sql("CREATE ROLE locked LOGIN SUPERUSER PASSWORD 'first'")
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def start(self) -> float:
        """Start it and wait until it answers; seconds that this took."""
        begun = time.monotonic()
        options = {"listen_addresses": "127.0.0.1", "max_connections": str(_SLOTS), "fsync": "on"}
        arguments = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        self._process = subprocess.Popen(
            [self._bin / "postgres", "-D", self._data, "-p", str(self.port), "-k", self._folder, *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            **self._user,
        )
        while True:
            with suppress(psycopg.OperationalError), self._connect():
                return time.monotonic() - begun
            if self._process.poll() is not None or time.monotonic() > begun + _PATIENCE_SECONDS:
                raise RuntimeError(f"PostgreSQL does not start ({self._process.poll()})")
            time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL to all of its processes."""
        if self._process is not None:
            for pid in self._pids():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """As `pg_ctl stop -m fast` does: connections are cut, and everything is written."""
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)
        self._process.wait(_PATIENCE_SECONDS)
        self._process = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """None of its processes moves while the block runs."""
        held = self._pids()
        for pid in held:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in held:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    @contextmanager
    def crowded(self) -> Iterator[int]:
        """Every connection is taken while the block runs, those of others having been cut; how many."""
        taken: list[psycopg.Connection[Any]] = []
        try:
            with suppress(psycopg.OperationalError):
                while len(taken) < _SLOTS:
                    taken.append(self._connect())
                    self._cut(taken[0])
            yield len(taken)
        finally:
            for connection in taken:
                connection.close()

    def rotate(self, password: str) -> None:
        """Another password for the role "locked", whose connections are cut."""
        with self._connect() as connection:
            connection.execute(f"ALTER ROLE locked PASSWORD '{password}'".encode())
            self._cut(connection)

    def new_database(self, *, locked: bool = False) -> str:
        """The URL of a new, empty database; as the role "locked" with its first password, or one that needs none."""
        name = f"faults_{uuid.uuid4().hex[:12]}"
        self.sql(f"CREATE DATABASE {name} TEMPLATE template0")
        who = "locked:first" if locked else _USER
        return f"postgresql://{who}@127.0.0.1:{self.port}/{name}"

    def sql(self, statement: str) -> None:
        """Run a statement."""
        with self._connect() as connection:
            connection.execute(statement.encode())

    def _connect(self) -> psycopg.Connection[Any]:
        url = f"postgresql://{_USER}@127.0.0.1:{self.port}/postgres"
        return psycopg.connect(url, autocommit=True, connect_timeout=5)

    def _cut(self, connection: psycopg.Connection[Any]) -> None:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname LIKE 'faults_%' AND pid != pg_backend_pid()"
        )

    def _pids(self) -> list[int]:
        """The server's process, and its children."""
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text(encoding="ascii")
        return [self._process.pid, *map(int, children.split())]

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run([self._bin / program, *arguments], check=True, cwd="/", capture_output=True, **self._user)

    @property
    def _user(self) -> dict[str, Any]:
        return {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])
