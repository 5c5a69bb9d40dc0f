"""From a fresh clone in a fresh environment: seconds to the first answer, and the size of what was installed.

    python -m tests.bench.fresh [--repository .]

Clones, runs `make install`, then `nvr-rag up` on the sample folder, and asks over HTTP until the right page answers.
Downloads are as fast as pip's cache: a second run shows what a machine with cached wheels sees.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import httpx

from tests.bench.common import table

QUESTION, ANSWER = "how do I go back to the previous retriever?", "promotion-and-rollback.pptx"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repository", default=".")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        clone = Path(temporary) / "clone"
        subprocess.run(["git", "clone", "--quiet", arguments.repository, str(clone)], check=True)
        started = time.perf_counter()
        subprocess.run(["make", "install"], cwd=clone, check=True, stdout=subprocess.DEVNULL)
        installed = time.perf_counter() - started
        answering, right = _first_answer(clone, Path(temporary) / "home")
        rows = [
            ["make install", installed],
            ["make run: until the server answers", answering],
            ["make run: until the right page answers", right],
            ["all together", installed + right],
        ]
        table("Seconds from a fresh clone", ["", "seconds"], rows)
        sizes = [
            ["environment", _size(clone / ".venv")],
            ["of it torch", _size(*(clone / ".venv").glob("lib/python3*/site-packages/torch"))],
            ["data folder with the sample", _size(Path(temporary) / "home")],
        ]
        table("Size on disk", ["", "MB"], sizes)


def _first_answer(clone: Path, home: Path) -> tuple[float, float]:
    started = time.perf_counter()
    process = subprocess.Popen(
        ["make", "run"],
        cwd=clone,
        env={**os.environ, "NVR_HOME": str(home), "NVR_API__PORT": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # make does not pass a signal on to what it runs
    )
    try:
        assert process.stdout is not None
        line = next(line for line in process.stdout if re.search(r"http://[\d.]+:\d+", line))
        answering = time.perf_counter() - started
        url = re.findall(r"http://[\d.]+:\d+", line)[0]
        with httpx.Client(base_url=url, timeout=60) as client:
            while not _answers(client):
                time.sleep(0.1)
        return answering, time.perf_counter() - started
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def _answers(client: httpx.Client) -> bool:
    answer = client.post("/v1/search", json={"query": QUESTION, "k": 3})
    if answer.status_code == 404:  # the collection is still to be made
        return False
    return ANSWER in json.dumps(answer.json())


def _size(*folders: Path) -> float:
    """MB of the blocks that files take: shard files are sparse."""
    blocks = [path.lstat().st_blocks for folder in folders for path in folder.rglob("*")]
    return sum(blocks) * 512 / 1e6


if __name__ == "__main__":
    main()
