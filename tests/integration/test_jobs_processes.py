"""Jobs and real processes: each is done once by many at a time, and what a killed one had is taken over."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import update

from nvr_rag import jobs
from nvr_rag.db import tables as t
from nvr_rag.jobs import Status
from tests.support import House

JOBS, PROCESSES, THREADS = 200, 4, 2  # eight workers

_HEAD = """
import os, sys, threading, time
from nvr_rag import jobs
from nvr_rag.db.session import Database
database = Database(sys.argv[1])
"""

# Waits for its parent, then does whatever there is; each thread writes what it has done into a file of its own.
SHARES = (
    _HEAD
    + """
def work(path, worker):
    with open(path, "w") as done:
        while (job := jobs.claim(database, worker, ["work"])) is not None:
            done.write(f"{job.id} {job.attempts}\\n")
            assert jobs.finish(database, job.id, worker, result={}, error=None)

with database.read():
    pass
print("ready", flush=True)
sys.stdin.readline()
names = [(f"{sys.argv[2]}.{n}", f"{os.getpid()} {n}") for n in range(int(sys.argv[3]))]
threads = [threading.Thread(target=work, args=one) for one in names]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""
)

# Claims a job and keeps it for ever.
HOLDS = (
    _HEAD
    + """
jobs.LEASE_SECONDS = float(sys.argv[2])
job = jobs.claim(database, "doomed", ["work"])
print(job.id, job.attempts, flush=True)
while jobs.heartbeat(database, job.id, "doomed") is jobs.Hold.MINE:
    time.sleep(0.05)
"""
)


@contextmanager
def python(program: str, house: House, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    url = house.database.engine.url.render_as_string(hide_password=False)
    command = [sys.executable, "-c", program, url, *map(str, arguments)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_of_eight_workers_in_four_processes_each_job_is_done_by_one(house: House, tmp_path: Path) -> None:
    asked = [jobs.enqueue(house.database, "work", {"number": number}) for number in range(JOBS)]
    running = [python(SHARES, house, tmp_path / f"done{number}", THREADS) for number in range(PROCESSES)]
    processes = [one.__enter__() for one in running]
    try:
        assert [line(process) for process in processes] == ["ready"] * PROCESSES
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        assert [process.wait(120) for process in processes] == [0] * PROCESSES
    finally:
        for one in running:
            one.__exit__(None, None, None)
    shares = [path.read_text().splitlines() for path in sorted(tmp_path.glob("done*"))]
    assert len(shares) == PROCESSES * THREADS
    done = Counter(entry for share in shares for entry in share)
    assert done == Counter({f"{job_id} 1": 1 for job_id in asked})
    assert all(jobs.get(house.database, job_id).state == "done" for job_id in asked[:: JOBS // 10])
    assert jobs.unfinished(house.database) == []


def test_the_job_of_a_killed_worker_is_taken_over_when_its_lease_ends(house: House) -> None:
    lease = 1.5
    job_id = jobs.enqueue(house.database, "work", {})
    with python(HOLDS, house, lease) as worker:
        assert line(worker) == f"{job_id} 1"
        time.sleep(2 * lease)  # it keeps its lease as long as it lives
        assert jobs.claim(house.database, "heir", ["work"]) is None
        worker.send_signal(signal.SIGKILL)
        worker.wait()
        killed = time.monotonic()
        assert jobs.claim(house.database, "heir", ["work"]) is None
        while (job := jobs.claim(house.database, "heir", ["work"])) is None:
            assert time.monotonic() - killed < 30
            time.sleep(0.02)
    assert 0 < time.monotonic() - killed < lease + 10
    assert (job.id, job.attempts, job.worker) == (job_id, 2, "heir")
    assert [(one["attempt"], one["error"]) for one in job.failures] == [(1, "its worker died")]
    assert jobs.finish(house.database, job_id, "heir", result={}, error=None)


def test_a_job_that_kills_its_last_worker_ends_in_the_dead_letter(house: House) -> None:
    job_id = jobs.enqueue(house.database, "work", {})
    with house.database.write() as connection:  # those before have died of it too
        connection.execute(update(t.Job).values(attempts=jobs.MAX_ATTEMPTS - 1))
    with python(HOLDS, house, 1.5) as worker:
        assert line(worker) == f"{job_id} {jobs.MAX_ATTEMPTS}"
        worker.kill()
        worker.wait()
    while not jobs.get(house.database, job_id).lapsed:
        time.sleep(0.02)
    assert jobs.claim(house.database, "heir", ["work"]) is None
    dead = jobs.get(house.database, job_id)
    assert (dead.status, dead.error) == (Status.FAILED, "its worker died (given up after 5 attempts)")
    assert jobs.retry(house.database, job_id).status is Status.QUEUED
