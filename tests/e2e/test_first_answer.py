"""The main job as a user does it: installed commands, real processes, the real encoder, the sample folder."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

COMMAND = str(Path(sys.executable).parent / "nvr-rag")
HANDBOOK = Path(__file__).parent.parent / "data" / "handbook"
QUESTIONS = HANDBOOK.parent / "handbook-questions.jsonl"
PATIENCE = 120.0


pytestmark = pytest.mark.xdist_group(
    "first answer"
)  # one after the other: each goes on with what the one before has left


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("e2e") / "home"


def environment(home: Path) -> dict[str, str]:
    return {**os.environ, "NVR_HOME": str(home), "NVR_API__PORT": "0", "OMP_NUM_THREADS": "1"}


def run(home: Path, *arguments: str, code: int = 0) -> dict[str, Any]:
    """One command with --json; what it said."""
    done = subprocess.run(
        [COMMAND, *arguments, "--json"], env=environment(home), capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == code, (done.stdout, done.stderr)
    return dict(json.loads(done.stdout))


@contextlib.contextmanager
def serving(home: Path, *arguments: str) -> Iterator[tuple[httpx.Client, subprocess.Popen[str]]]:
    """A server in a process of its own; a client for it once it has said its address."""
    process = subprocess.Popen(
        [COMMAND, *arguments],
        env=environment(home),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if found := re.search(r"http://[\d.]+:\d+", line):
                break
        else:
            raise AssertionError("the server said no address")
        with httpx.Client(base_url=found.group(), timeout=PATIENCE) as client:
            yield client, process
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=PATIENCE)


def settled(client: httpx.Client, documents: int) -> None:
    """Wait until the collection has so many documents, and its index all of them."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        answer = client.get("/v1/collections/default")
        if answer.status_code == 200:
            body = answer.json()
            lag = sum(index["lag"] for index in body["indexes"])
            if body["documents"]["ready"] == documents and lag == 0:
                return
        time.sleep(0.1)
    raise AssertionError(f"not settled in time: {answer.text}")


def ask(client: httpx.Client, question: str, **options: Any) -> dict[str, Any]:
    answer = client.post("/v1/search", json={"query": question, **options})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def names(answer: dict[str, Any]) -> list[str]:
    return [hit["document"]["uri"].rsplit("/", 1)[1] for hit in answer["hits"]]


def test_up_answers_questions_about_the_handbook(home: Path) -> None:
    files = len([path for path in HANDBOOK.iterdir() if path.is_file()])
    with serving(home, "up", str(HANDBOOK)) as (client, process):
        settled(client, files)
        assert client.get("/readyz").status_code == 200
        questions = [json.loads(line) for line in QUESTIONS.read_text(encoding="utf-8").splitlines()]
        answered = [
            bool(set(names(ask(client, entry["question"], k=5))) & set(entry["answers"])) for entry in questions
        ]
        assert sum(answered) >= 50, f"{sum(answered)} of {len(answered)} questions answered"
        answer = ask(client, "how do I go back to the previous retriever?")
        feedback = {
            "query_id": answer["query_id"],
            "chunk_id": answer["hits"][0]["chunk_id"],
            "kind": "relevant",
            "grade": 2,
        }
        assert client.post("/v1/feedback", json=feedback).json()["new"] == 1
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0


def test_commands_work_without_a_server(home: Path) -> None:
    found = run(home, "search", "how do I go back to the previous retriever?", "-k", "3")
    assert "promotion-and-rollback.pptx" in [hit["document"]["uri"].rsplit("/", 1)[1] for hit in found["hits"]]
    again = run(home, "ingest", str(HANDBOOK))
    assert (again["added"], again["updated"], again["deleted"], again["work"]["encoded"]) == (0, 0, 0, 0)
    run(home, "verify")
    assert run(home, "status")["servers"] == []


def test_a_server_killed_in_mid_ingest_loses_nothing(home: Path, tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    for number in range(60):
        (docs / f"{number}.md").write_text(f"# Item {number}\n\nThe code word of item {number} is word{number}x.\n")
    with serving(home, "up", str(docs), "--collection", "crash") as (client, process):
        while client.get("/v1/collections/crash").status_code == 404:
            time.sleep(0.05)
        time.sleep(0.3)
        process.kill()
        process.wait()
    assert run(home, "ingest", str(docs), "--collection", "crash")["failed"] == []
    run(home, "verify", "--collection", "crash")
    with serving(home, "serve") as (client, _):
        for number in (0, 31, 59):
            answer = ask(client, f"word{number}x", collection="crash", mode="lexical", k=5)
            assert names(answer) == [f"{number}.md"]


def test_commands_beside_a_server_share_its_index(home: Path, tmp_path: Path) -> None:
    note = tmp_path / "notes" / "note.md"
    note.parent.mkdir()
    note.write_text("# Garden\n\nThe zucchini is watered on Tuesdays.\n")
    with serving(home, "serve") as (client, _):
        assert run(home, "ingest", str(note.parent))["added"] == 1
        assert names(ask(client, "when is the zucchini watered?", k=1)) == ["note.md"]
        found = run(home, "search", "when is the zucchini watered?", "-k", "1")
        assert found["hits"][0]["document"]["title"] == "Garden"
        note.write_text("# Garden\n\nThe zucchini is watered on Fridays.\n")
        assert run(home, "ingest", str(note.parent))["updated"] == 1
        assert "Fridays" in ask(client, "when is the zucchini watered?", k=1)["hits"][0]["text"]
        run(home, "verify", "--repair")
        shown = run(home, "documents", "show", note.as_uri())
        run(home, "documents", "delete", shown["document"]["id"])
        assert "note.md" not in names(ask(client, "when is the zucchini watered?", k=50))
        assert run(home, "status")["servers"] != []
