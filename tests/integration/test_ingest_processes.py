"""Workers that ingest, as processes: several at once, one of them killed, the others told to stop."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nvr_rag import collections, documents, jobs, uploads
from nvr_rag.jobs import Status
from nvr_rag.types import DocumentState
from nvr_rag.uploads import Folder, NewUpload
from tests.integration.test_compose_services import DOUBLE
from tests.support import House

PATIENCE = 120.0  # the machine may be busy
FOLDERS, FILES, UPLOADS = 3, 25, 12
# A killed worker's lease ends soon.
QUICK = "\nimport nvr_rag.jobs\nnvr_rag.jobs.LEASE_SECONDS = 4.0\n"


@contextmanager
def worker(tmp_path: Path, name: str) -> Iterator[subprocess.Popen[bytes]]:
    (tmp_path / "sitecustomize.py").write_text(DOUBLE + QUICK, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "NVR_INGEST__ROOTS": str(tmp_path / "share")}
    command = [str(Path(sys.executable).parent / "nvr-rag"), "worker", "--kinds", "ingest"]
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
    with worker(tmp_path, "first") as first:
        soon(lambda: "running" in states() or "done" in states(), tmp_path)
        first.send_signal(signal.SIGKILL)
        first.wait()
    with worker(tmp_path, "second") as second, worker(tmp_path, "third") as third:
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
