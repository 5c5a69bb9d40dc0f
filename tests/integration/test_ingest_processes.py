"""Ingestion by processes: several workers at once, one of them killed, the others told to stop; a killed server."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from sqlalchemy import delete

from nvr_rag import collections, documents, jobs, uploads
from nvr_rag.db import tables as t
from nvr_rag.jobs import Status
from nvr_rag.running import processes
from nvr_rag.types import DocumentState
from nvr_rag.uploads import Folder, NewUpload
from tests.integration.test_compose_services import DOUBLE
from tests.support import House

PATIENCE = 120.0  # the machine may be busy
WORKER = ("worker", "--kinds", "ingest")
FOLDERS, FILES, UPLOADS = 3, 25, 12
# A killed worker's lease ends soon.
QUICK = "\nimport nvr_rag.jobs\nnvr_rag.jobs.LEASE_SECONDS = 4.0\n"


@contextmanager
def running(tmp_path: Path, name: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A command of ours, until it ends or the block does."""
    (tmp_path / "sitecustomize.py").write_text(DOUBLE + QUICK, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "NVR_INGEST__ROOTS": str(tmp_path / "share")}
    environment["NVR_API__PORT"] = "0"
    command = [str(Path(sys.executable).parent / "nvr-rag"), *arguments]
    with (tmp_path / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=log, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def soon(found: Callable[[], bool], tmp_path: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not found():
        said = "\n".join(log.read_text(encoding="utf-8") for log in sorted(tmp_path.glob("*.log")))
        assert time.monotonic() < deadline, said
        time.sleep(0.1)


def ask(house: House, share: Path) -> list[int]:
    """Jobs for some folders, and some uploads of one file each; their ids."""
    with house.database.read() as connection:
        made = collections.info(connection, "default").created_at.isoformat()
    asked = []
    for folder in range(FOLDERS):
        (share / str(folder)).mkdir(parents=True)
        for number in range(FILES):
            (share / str(folder) / f"{number}.txt").write_text(f"folder {folder} file {number}", encoding="utf-8")
        payload = {"source": str(share / str(folder)), "made": made}
        asked.append(jobs.enqueue_alone(house.database, "ingest", "default", payload))
    uploaded = Folder(house.home)
    mark = uploaded.mark()
    for number in range(UPLOADS):
        data = f"upload {number}".encode()
        (uploaded.path / f"up{number}").write_bytes(data)
        sha256 = hashlib.sha256(data).hexdigest()
        named = {"uri": f"upload:{number}", "name": f"{number}.txt", "media_type": "", "metadata": {}}
        with house.database.write() as connection:
            new = NewUpload(file=f"up{number}", sha256=sha256, **named)  # type: ignore[arg-type]
            asked.append(uploads.accept(connection, "default", mark, [new]))
    return asked


@pytest.mark.timeout(400)
def test_workers_share_the_jobs_and_take_over_from_one_that_is_killed(house: House, tmp_path: Path) -> None:
    asked = ask(house, tmp_path / "share")

    def states() -> list[str]:
        return [jobs.get(house.database, job).state for job in asked]

    house.workspace.close_index(house.index_id)
    with running(tmp_path, "first", *WORKER) as first:
        soon(lambda: "running" in states() or "done" in states(), tmp_path)
        first.send_signal(signal.SIGKILL)
        first.wait()
    with running(tmp_path, "second", *WORKER) as second, running(tmp_path, "third", *WORKER) as third:
        soon(lambda: set(states()) <= {"done", "failed"}, tmp_path)
        for process in (second, third):
            process.send_signal(signal.SIGTERM)
        assert [second.wait(60), third.wait(60)] == [0, 0]
    ended = [jobs.get(house.database, job) for job in asked]
    assert {job.status for job in ended} == {Status.DONE}, [job.error for job in ended]
    results = [job.result or {} for job in ended]
    assert [one["added"] + one["unchanged"] for one in results[:FOLDERS]] == [FILES] * FOLDERS
    assert {one["documents"][0]["outcome"] for one in results[FOLDERS:]} <= {"added", "unchanged"}
    with house.database.read() as connection:
        listed = documents.list_documents(connection, "default", limit=1000)
        head = collections.head_seq(connection, collections.find(connection, "default"))
    assert len(listed) == head == FOLDERS * FILES + UPLOADS  # each was stored, and once
    assert {one.state for one in listed} == {DocumentState.READY}
    assert Folder(house.home).names() == []


def serving(house: House, tmp_path: Path) -> str:
    """The address of the server, once it answers."""
    soon(lambda: bool(processes.alive(house.database, processes.SERVER)), tmp_path)
    return str(processes.alive(house.database, processes.SERVER)[0].url)


@pytest.mark.timeout(400)
def test_what_was_acknowledged_is_there_after_the_server_was_killed(house: House, tmp_path: Path) -> None:
    acknowledged: dict[str, str] = {}
    house.workspace.close_index(house.index_id)

    def send(url: str, sender: int) -> None:
        number = 0
        with suppress(httpx.HTTPError), httpx.Client(base_url=url, timeout=PATIENCE) as client:
            while True:  # until nobody answers any more
                uri, text = f"upload:{sender}-{number}", f"sender {sender} number {number} " * 3000
                answer = client.post("/v1/documents", files={"file": ("a.txt", text)}, data={"uri": uri})
                if answer.status_code == 202:
                    acknowledged[uri] = text.strip()
                number += 1

    with running(tmp_path, "killed", "serve", "--api-only") as server:
        url = serving(house, tmp_path)
        senders = [threading.Thread(target=send, args=(url, sender)) for sender in range(3)]
        for thread in senders:
            thread.start()
        soon(lambda: len(acknowledged) > 20, tmp_path)
        server.send_signal(signal.SIGKILL)
        server.wait()
        for thread in senders:
            thread.join()
    with house.database.write() as connection:
        connection.execute(delete(t.Process))
    with running(tmp_path, "second", *WORKER) as second:
        soon(lambda: not jobs.unfinished(house.database), tmp_path)
        second.send_signal(signal.SIGTERM)
        assert second.wait(60) == 0
    with house.database.read() as connection:
        for uri, text in acknowledged.items():
            document = documents.get(connection, "default", uri)
            assert documents.text_of(connection, document.id).strip() == text
    # What was on its way belongs to nobody: it is deleted once nobody can be at it any more.
    folder = Folder(house.home)
    left = folder.names()
    assert len(left) <= 3
    for name in left:
        os.utime(folder.path / name, (0, 0))
    assert uploads.sweep(house.database, folder) == len(left)
    assert folder.names() == []
