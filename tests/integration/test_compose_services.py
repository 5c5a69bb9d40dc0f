"""The services of compose.yaml as processes: their commands, settings, secrets and health checks, without Docker.

A real PostgreSQL server and a stand-in for Qdrant take the places of the two servers, a folder that of the volume, a
double that of the encoder, and addresses are put in place of the names that a network of containers would know.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy.engine import URL, make_url

from nvr_rag.db.session import Database
from nvr_rag.running import processes
from tests import engines
from tests.composition import composition, seconds
from tests.integration.command_line import CommandLine
from tests.qdrant_stand_in import StandIn

PATIENCE = 240.0  # three processes start, and the machine may be busy
KEY = "a key for Qdrant"
WHALE = "The blue whale is the largest animal that has ever lived."
QUESTION = "Which animal is the largest?"
# Python runs this file by itself at every start: the commands stay what they are, and load no model library.
DOUBLE = """
import sys
from types import ModuleType

def load_encoder(source, *, threads=None):
    from nvr_rag.testing import HashEncoder
    return HashEncoder()

library = sys.modules["nvr_rag.encoders.torch"] = ModuleType("nvr_rag.encoders.torch")
library.load_encoder = load_encoder
"""
OTHERS = ("Bread rises because yeast makes gas.", "The tide follows the moon.")


class Composed:
    """The services, each started by its own command in its own environment."""

    def __init__(self, folder: Path, database: URL, qdrant: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.services: dict[str, Any] = composition(API_PORT=str(self.port))["services"]
        self._folder, self._database, self._qdrant = folder, database, qdrant
        self._secrets = folder / "secrets"
        self._secrets.mkdir()
        (folder / "sitecustomize.py").write_text(DOUBLE, encoding="utf-8")
        (self._secrets / "database_password").write_text(f"{database.password or 'nobody asks'}\n", encoding="utf-8")
        (self._secrets / "qdrant__api_key").write_text(f"{KEY}\n", encoding="utf-8")

    def environment(self, name: str) -> dict[str, str]:
        """What the service has in its container, on this machine's addresses."""
        own: Mapping[str, str] = self.services[name]["environment"]
        place = {part: getattr(self._database, part) for part in ("username", "host", "port", "database")}
        moved = {
            "NVR_HOME": str(self._folder / "home"),
            "NVR_SECRETS_DIR": str(self._secrets),
            "NVR_DATABASE_URL": make_url(own["NVR_DATABASE_URL"]).set(**place).render_as_string(),
            "NVR_QDRANT__URL": self._qdrant,
        }
        assert set(moved) <= set(own)
        programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("NVR_")}
        return {**inherited, "PATH": programs, "PYTHONPATH": str(self._folder), **own, **moved}

    @contextmanager
    def running(self, name: str) -> Iterator[subprocess.Popen[bytes]]:
        """A service from its start to its end; what it says goes into a file."""
        command = ["nvr-rag", *self.services[name]["command"]]
        with (self._folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                command, env=self.environment(name), cwd=self._folder, stdout=log, stderr=subprocess.STDOUT
            )
            try:
                yield process
            finally:
                ended = process.poll()
                process.kill()
                process.wait()
                assert ended in (None, 0), f"{name} ended with {ended}: {self.said(name)}"

    def said(self, name: str) -> str:
        return (self._folder / f"{name}.log").read_text(encoding="utf-8")

    def healthy(self, name: str) -> bool:
        """What the service's own health check finds."""
        kind, *command = self.services[name]["healthcheck"]["test"]
        assert kind == "CMD"
        checked = subprocess.run(command, env=self.environment(name), capture_output=True, timeout=PATIENCE)
        return checked.returncode == 0

    def until(self, name: str, process: subprocess.Popen[bytes], found: Callable[[], Any]) -> Any:
        """What `found` gives once it is true; the service must live until then."""
        deadline = time.monotonic() + PATIENCE
        while not (answer := found()):
            assert process.poll() is None, self.said(name)
            assert time.monotonic() < deadline, self.said(name)
            time.sleep(0.5)
        return answer

    def until_healthy(self, name: str, process: subprocess.Popen[bytes], says: str) -> None:
        """A check costs a second of processor time, so it is not asked before the service says that it is there."""
        self.until(name, process, lambda: says in self.said(name))
        self.until(name, process, lambda: self.healthy(name))

    def stop(self, name: str, process: subprocess.Popen[bytes]) -> float:
        """End a service as Docker does; how long it took. It must end by itself, and well."""
        begun = time.monotonic()
        process.send_signal(signal.SIGTERM)
        code = process.wait(seconds(self.services[name]["stop_grace_period"]))
        assert code == 0, self.said(name)
        return time.monotonic() - begun


@pytest.fixture
def composed(tmp_path: Path) -> Iterator[Composed]:
    engines.new_home(tmp_path / "home")
    url = engines.url_of(tmp_path / "home")
    assert url is not None
    with StandIn(api_key=KEY) as qdrant:
        yield Composed(tmp_path, make_url(url), qdrant.url)
    engines.forget(tmp_path)


@pytest.mark.skipif(engines.SERVER is None, reason="NVR_TEST_POSTGRES_URL names no server")
@pytest.mark.timeout(900)
def test_a_document_goes_through_the_api_and_the_worker_and_is_found(composed: Composed, tmp_path: Path) -> None:
    database = Database(engines.url_of(tmp_path / "home") or "")
    assert not composed.healthy("api")
    with (
        composed.running("api") as api,
        httpx.Client(base_url=f"http://127.0.0.1:{composed.port}", timeout=PATIENCE) as client,
    ):
        composed.until_healthy("api", api, "Serving at")
        assert client.post("/v1/collections", json={"name": "default"}).status_code == 201
        documents = [{"uri": f"test://{number}", "text": text} for number, text in enumerate((WHALE, *OTHERS))]
        put = client.post("/v1/documents", json={"documents": documents, "wait": True, "timeout_seconds": 1})
        assert put.status_code == 202, put.text  # durable; but the API leaves the indexing to the worker
        assert search(client) == []

        with composed.running("worker") as worker, composed.running("trainer") as trainer:
            composed.until_healthy("worker", worker, "Working: index, ingest")
            assert composed.until("worker", worker, lambda: search(client))[0] == WHALE
            composed.until_healthy("trainer", trainer, "Working: train")
            assert kinds(database) >= {"retrain", "verify", "ingest", "upload"}
            upload = {"file": ("owl.md", b"# Owls\n\nOwls turn their heads by 270 degrees.")}
            sent = client.post("/v1/documents", files=upload, data={"wait": "true", "timeout_seconds": "60"}).json()
            assert (sent["state"], sent["documents"][0]["outcome"]) == ("done", "added"), sent
            job = client.post("/v1/retrain", json={"dry_run": True}).json()["id"]
            done = composed.until("trainer", trainer, lambda: finished(client, job))
            assert "there are no judgments yet" in str(done["result"]["reasons"]), done  # so the trainer has looked
            composed.stop("trainer", trainer)
            composed.stop("worker", worker)
        assert kinds(database) == set()
        assert not composed.healthy("worker")
        assert search(client)[0] == WHALE  # the API answers without them
        composed.stop("api", api)
    assert processes.alive(database, processes.SERVER) == []
    database.close()
    assert KEY not in "".join(composed.said(name) for name in ("api", "worker", "trainer"))


def test_a_worker_is_healthy_while_one_of_this_machine_beats(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = CommandLine(home)
    assert line.json("worker", "--check", code=1)["error"]["type"] == "NotFound"
    with line.house() as house:
        worker = processes.announce(house.database, processes.WORKER, job_kinds=["verify"])
        processes.announce(house.database, processes.SERVER, "http://127.0.0.1:9", job_kinds=[])
    assert line.json("worker", "--check")["workers"] == [
        {"pid": os.getpid(), "host": socket.gethostname(), "job_kinds": ["verify"]}
    ]
    assert line("worker", "--check").stdout == f"Alive: process {os.getpid()}\n"
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(socket, "gethostname", lambda: "elsewhere")
        assert line("worker", "--check").exit_code == 1
    with line.house() as house:
        processes.withdraw(house.database, worker)
    assert line("worker", "--check").exit_code == 1


def test_a_database_that_nobody_has_used_has_no_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVR_DATABASE_URL", f"sqlite:///{tmp_path / 'new.sqlite3'}")
    result = CommandLine(tmp_path)("worker", "--check")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "no worker is alive" in result.stderr


def search(client: httpx.Client) -> list[str]:
    answer = client.post("/v1/search", json={"query": QUESTION, "k": 3})
    assert answer.status_code == 200, answer.text
    return [hit["text"] for hit in answer.json()["hits"]]


def finished(client: httpx.Client, job: int) -> dict[str, Any] | None:
    found: dict[str, Any] = client.get(f"/v1/jobs/{job}").json()
    return found if found["finished_at"] else None


def kinds(database: Database) -> set[str]:
    """Of the jobs that workers take."""
    return {kind for worker in processes.alive(database, processes.WORKER) for kind in worker.job_kinds or ()}
