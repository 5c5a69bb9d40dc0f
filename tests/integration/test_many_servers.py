"""`nvr-rag serve --api-only --processes 2`: what /metrics tells adds up, and nobody notices when one dies.

Real processes and a real PostgreSQL, a real if tiny model, and the stand-in for a Qdrant server.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from nvr_rag import corpus
from nvr_rag.running import processes
from nvr_rag.settings import QdrantSettings, Settings
from nvr_rag.upkeep import indexing
from nvr_rag.workspace import Workspace
from tests import engines
from tests.integration.metrics_support import Scrape
from tests.qdrant_stand_in import StandIn
from tests.support import document, paragraphs
from tests.unit.encoders.conftest import Build

SECONDS = 120
SERVE = "from nvr_rag.cli import main; main()"


def begin(environment: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SERVE, "serve", "--api-only", *arguments, "--json"],
        env={**os.environ, **environment, "NVR_API__PORT": "0", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def until(happened: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + SECONDS
    while not (found := happened()):
        assert time.monotonic() < deadline, f"not within {SECONDS} s: {what}"
        time.sleep(0.1)
    return found


class Site:
    """Servers behind one address, and what they share."""

    def __init__(self, workspace: Workspace, environment: dict[str, str]) -> None:
        self.workspace = workspace
        self.process = begin(environment, "--processes", "2")
        self.logs: list[dict[str, Any]] = []
        assert self.process.stdout is not None
        said = "".join(self.process.stdout.readline() for _ in range(3))
        self.url = json.loads(said)["url"]

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        """On a connection of its own: whoever of them takes it answers."""
        with httpx.Client(base_url=self.url, timeout=60, trust_env=False, verify=False) as client:
            return client.request(method, path, **options)

    def search(self, times: int) -> None:
        for _ in range(times):
            response = self.ask("POST", "/v1/search", json={"query": "tea"})
            assert response.status_code == 200, response.text

    def scrape(self) -> Scrape:
        response = self.ask("GET", "/metrics")
        assert response.status_code == 200, response.text
        return Scrape(response.text)

    def pids(self) -> set[int]:
        """Those that have loaded the encoder."""
        found = processes.alive(self.workspace.database, processes.SERVER)
        assert {one.url for one in found} <= {self.url}
        return {one.pid for one in found if list(one.prepared.values()) == [None]}

    def stop(self) -> tuple[int, Sequence[str]]:
        self.process.send_signal(signal.SIGTERM)
        _, errors = self.process.communicate(timeout=SECONDS)
        return self.process.returncode, errors.splitlines()


@pytest.fixture
def site(tmp_path: Path, tiny: Build) -> Iterator[Site]:
    """Two servers, with a document that is found."""
    if engines.SERVER is None:
        pytest.skip("NVR_TEST_POSTGRES_URL names no server")
    home, model = engines.new_home(tmp_path / "home"), tiny()
    with StandIn() as store:
        settings = Settings(
            **engines.options_of(home), encoder=str(model), qdrant=QdrantSettings(url=store.url), threads=1
        )
        environment = {
            "NVR_HOME": str(home),
            "NVR_DATABASE_URL": str(engines.url_of(home)),
            "NVR_ENCODER": str(model),
            "NVR_QDRANT__URL": store.url,
            "NVR_LOG_FORMAT": "json",
            "NVR_LOG_LEVEL": "info",
        }
        with Workspace(settings) as workspace:
            workspace.create_collection("default")
            with workspace.database.write() as connection:
                corpus.put(connection, "default", [document("a", "green tea")])
            indexing.catch_up(workspace.database, workspace.index(1), paragraphs)
            site = Site(workspace, environment)
            try:
                yield site
            finally:
                with site.process:  # closes its pipes
                    site.process.kill()
    engines.forget(tmp_path)


def test_counts_add_up_through_the_death_of_one(site: Site) -> None:
    first = until(lambda: len(site.pids()) == 2 and site.pids(), "both have said that they are there")
    site.search(40)
    found = site.scrape()
    assert found.value("queries_total", collection="default") == 40
    assert found.value("http_request_seconds_count", route="/v1/search", method="POST", status="2xx") == 40
    assert found.value("search_stage_seconds_count", stage="encode") == 40
    assert found.value("requests_in_flight") == 0
    assert found.value("index_lag_changes", collection="default") == 0
    assert found.value("processes", kind="serve") == 2

    victim = min(first)
    os.kill(victim, signal.SIGKILL)
    site.search(20)  # by the one that is left, and the next one once it is there
    until(lambda: len(site.pids() - {victim}) == 2, "another one has taken its place")
    site.search(20)
    found = site.scrape()
    assert found.value("queries_total", collection="default") == 80
    assert found.value("http_request_seconds_count", route="/v1/search", method="POST", status="2xx") == 80
    assert found.value("requests_in_flight") == 0

    code, lines = site.stop()
    assert code == 0, lines
    with pytest.raises(httpx.ConnectError):
        site.ask("GET", "/livez")
    assert site.pids() - {victim} == set()  # they have signed off
    logged = [json.loads(line) for line in lines]  # every line of all three processes
    assert {"time", "level", "logger", "message"} <= set.intersection(*(set(line) for line in logged))
    searches = [line for line in logged if line.get("path") == "/v1/search"]
    assert len(searches) == 80
    assert len({line["request_id"] for line in searches}) == 80
    assert all(line["status"] == 200 and line["query_id"] and line["collection"] == "default" for line in searches)
    assert any(str(victim) in line["message"] and "-9" in line["message"] for line in logged)
    assert "tea" not in "\n".join(lines)


def test_when_their_parent_is_gone_they_end_as_well(site: Site) -> None:
    pids = until(lambda: len(site.pids()) == 2 and site.pids(), "both have said that they are there")
    site.process.kill()
    until(lambda: not any(_runs(pid) for pid in pids), "nobody is left")
    with pytest.raises(httpx.ConnectError):
        site.ask("GET", "/livez")


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["serve", "--processes", "2"], 2, "--api-only"),
        (["serve", "--api-only", "--processes", "2"], 1, "NVR_QDRANT__URL"),
        (["serve", "--api-only", "--processes", "0"], 2, "processes"),
    ],
)
def test_where_there_can_be_only_one(tmp_path: Path, arguments: list[str], code: int, words: str) -> None:
    environment = {**os.environ, "NVR_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "-c", SERVE, *arguments], env=environment, capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == code
    assert words in done.stderr
