"""A server process under load while what answers is exchanged: nobody notices but by the answers.

Real processes, real (tiny) models, real Edge shards; documents come in all the while.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from nvr_rag.cli import app
from nvr_rag.encoders.torch import load_encoder
from nvr_rag.running import processes
from nvr_rag.settings import Settings
from nvr_rag.stores.edge import EdgeStore
from nvr_rag.workspace import Workspace
from tests.unit.encoders.conftest import Build

SERVE = """
from nvr_rag.api.server import run_server
from nvr_rag.settings import load_settings
run_server(load_settings(), lambda url: print(url, flush=True))
"""
QUERY = "blue fox"
WORDS = ("red", "green", "blue", "fox")
TEXTS = [
    " ".join(WORDS[int(digit)] for digit in f"{number:04}") for number in range(4000) if set(str(number)) <= set("0123")
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What a search came to."""

    begun: float  # monotonic seconds
    ended: float
    status: int
    body: Any

    @property
    def deployment(self) -> int:
        return int(self.body["deployment"]["id"])


@dataclass(kw_only=True, slots=True)
class Load:
    """Somebody who searches without pause, and somebody who brings documents."""

    url: str
    answers: list[Answer] = field(default_factory=list)
    brought: list[str] = field(default_factory=list)  # URIs
    failures: list[object] = field(default_factory=list)

    @contextmanager
    def running(self) -> Iterator[None]:
        stop = threading.Event()
        threads = [threading.Thread(target=self._repeat, args=(stop, work)) for work in (self._search, self._bring)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join()

    def _repeat(self, stop: threading.Event, work: Callable[[httpx.Client], None]) -> None:
        with httpx.Client(base_url=self.url, timeout=20) as client:
            while not stop.is_set():
                try:
                    work(client)
                except Exception as error:
                    self.failures.append(error)

    def _search(self, client: httpx.Client) -> None:
        begun = time.monotonic()
        answer = client.post("/v1/search", json={"query": QUERY, "k": 5})
        self.answers.append(Answer(begun=begun, ended=time.monotonic(), status=answer.status_code, body=answer.json()))

    def _bring(self, client: httpx.Client) -> None:
        number = len(self.brought)
        document = {"uri": f"new-{number}", "text": TEXTS[number % len(TEXTS)]}
        answer = client.post("/v1/documents", json={"documents": [document], "wait": True})
        if answer.status_code != 200:
            self.failures.append(answer.text)
        self.brought.append(document["uri"])
        time.sleep(0.05)


@dataclass(frozen=True, kw_only=True, slots=True)
class Site:
    """A data folder that a server process works on."""

    home: Path
    url: str
    encoders: list[str]  # directories of two models; the first is that of new collections

    def command(self, *arguments: str) -> Any:
        """The JSON of a command that is run beside the server."""
        result = CliRunner().invoke(app, [*arguments, "--json"], prog_name="nvr-rag")
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    def prepared(self) -> dict[str, str | None]:
        """What the server says in its row that it has loaded."""
        with Workspace(Settings(home=self.home)) as workspace:
            (server,) = processes.alive(workspace.database, "serve")
            return dict(server.prepared)


@pytest.fixture
def site(tmp_path: Path, tiny: Build, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    home, encoders = tmp_path / "home", [str(tiny("prompts", "first")), str(tiny("cls", "second"))]
    for name, value in {"HOME": str(home), "ENCODER": encoders[0], "THREADS": "1", "API__PORT": "0"}.items():
        monkeypatch.setenv(f"NVR_{name}", value)
    process = subprocess.Popen([sys.executable, "-c", SERVE], stdout=subprocess.PIPE, env={**os.environ}, text=True)
    assert process.stdout is not None
    try:
        yield Site(home=home, url=process.stdout.readline().strip(), encoders=encoders)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def becomes(wanted: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not wanted():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_switch_under_load(site: Site) -> None:
    with httpx.Client(base_url=site.url, timeout=60) as client:
        assert client.post("/v1/collections", json={"name": "default"}).status_code == 201
        documents = [{"uri": f"old-{number}", "text": text} for number, text in enumerate(TEXTS[:100])]
        answer = client.post("/v1/documents", json={"documents": documents, "wait": True, "timeout_seconds": 60})
        assert answer.status_code == 200
    load, switches = Load(url=site.url), []

    def switch(wanted: int, *arguments: str) -> None:
        begun = time.monotonic()
        done = site.command("deploy", *arguments)
        switches.append((begun, time.monotonic(), wanted))
        assert (done["serving"], done["prepared_by"]) == (wanted, 1)
        assert site.prepared() == {"1": None, "2": None}
        time.sleep(0.3)

    with load.running():
        model = site.command("models", "add", site.encoders[1])["model"]["fingerprint"]
        built = site.command("index", "build", "--model", model)["index"]
        assert built["encoded"] == 0, "the server builds, not the command"
        assert [one["id"] for one in built["deployments"]] == [2]
        switch(2, "promote", "2")
        switch(1, "rollback")
        switch(2, "promote", "2")
        assert site.command("index", "retire", "1", "--yes")["dropped"] is False  # it is the server's
        becomes(lambda: site.prepared() == {"2": None})
        becomes(lambda: len(EdgeStore(site.home / "indexes").names()) == 1)
        time.sleep(0.3)
    check(load, switches, [load_encoder(directory) for directory in site.encoders])
    with httpx.Client(base_url=site.url, timeout=60) as client:
        found = client.post("/v1/search", json={"query": QUERY, "k": 1000}).json()["hits"]
        assert {hit["document"]["uri"] for hit in found} >= set(load.brought)
    assert site.command("verify")["clean"] is True


def check(load: Load, switches: list[tuple[float, float, int]], encoders: list[Any]) -> None:
    """No request failed, and every answer is the one that was due at its time, by encoder and index of a kind."""
    assert load.failures == []
    assert {answer.status for answer in load.answers} == {200}
    assert len(load.answers) > 50
    assert len(load.brought) > 3
    spans = [(0.0, 0.0, 1), *switches]
    for answer in load.answers:
        before = [wanted for _begun, ended, wanted in spans if ended <= answer.begun][-1]
        meanwhile = [wanted for begun, ended, wanted in spans if begun < answer.ended and ended > answer.begun]
        assert answer.deployment in (before, *meanwhile)
        encoder = encoders[answer.deployment - 1]
        assert answer.body["deployment"]["encoder"] == encoder.fingerprint
    for number in (1, 2):
        own = [answer for answer in load.answers if answer.deployment == number]
        assert own
        for answer in (own[0], own[len(own) // 2], own[-1]):
            check_scores(answer, encoders[number - 1])


def check_scores(answer: Answer, encoder: Any) -> None:
    """The dense scores are those of this encoder, for the query and for the documents in its index."""
    hits = [hit for hit in answer.body["hits"] if hit["dense"]]
    assert hits
    query = encoder.encode_queries([QUERY])[0]  # (D,)
    vectors = encoder.encode_documents([hit["text"] for hit in hits])  # (N, D)
    assert [hit["dense"]["score"] for hit in hits] == pytest.approx((vectors @ query).tolist(), abs=1e-4)
