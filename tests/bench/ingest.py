"""Ingest beside other tools: the same folder, the same model, the same machine, one process at a time.

    python -m tests.bench.ingest --data ../shared/data/folders/18f-handbook --others PYTHON [--files 120] [--rounds 3]
                                 [--threads 2] [--tools nvr-rag LlamaIndex ...]

`--others` is a Python with llama-index-core, llama-index-vector-stores-qdrant, llama-index-embeddings-huggingface,
llama-index-readers-file, langchain-classic, langchain-community, langchain-qdrant, langchain-huggingface and txtai. How
each tool is used stands in tests/bench/rivals. Vectors lie in files everywhere: Qdrant in the client's local mode for
LlamaIndex and LangChain, Qdrant Edge here, txtai's own index.

Every file gets a word that no other has at its end. After the first run, and after an edit, a deletion, a rename, a
store that refuses a write in mid-run and a SIGKILL in mid-run, each followed by one more run of the same command, all
that can be found is read back: every file's word must be there once, under its path, and no other word.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from nvr_rag.encoders.bundled import bundled_directory
from tests.bench.common import table
from tests.bench.rivals.drive import TOOLS

_WORD = re.compile(r"\bm\d{4}x\d\b")


@dataclass(frozen=True, kw_only=True)
class Driver:
    """How to run a tool."""

    tool: str
    python: str
    threads: int

    def call(self, what: str, folder: Path, state: Path, *more: str) -> list[str]:
        line = [self.python, "-m", "tests.bench.rivals.drive", self.tool, what, str(folder), str(state)]
        return [*line, str(bundled_directory()), "--threads", str(self.threads), *more]

    def run(self, what: str, folder: Path, state: Path, *more: str) -> Any:
        done = subprocess.run(self.call(what, folder, state, *more), capture_output=True, text=True, env=_environment())
        lines = done.stdout.strip().splitlines()
        if done.returncode or not lines:
            return {"error": (done.stderr.strip().splitlines() or ["ended without a word"])[-1][:200]}
        return json.loads(lines[-1])

    def killed(self, folder: Path, state: Path, seconds: float) -> bool:
        """Start a run and kill it after so long; whether it was still at work."""
        process = subprocess.Popen(
            self.call("sync", folder, state), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=_environment()
        )
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            return True
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder with Markdown files")
    parser.add_argument("--others", required=True, metavar="PYTHON", help="a Python that has the other tools")
    parser.add_argument("--files", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=3, help="first runs that are timed; all tools take turns")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tools", nargs="*", default=list(TOOLS), choices=list(TOOLS))
    asked = parser.parse_args()
    drivers = [
        Driver(tool=tool, python=sys.executable if tool == "nvr-rag" else asked.others, threads=asked.threads)
        for tool in asked.tools
    ]
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        _copy(asked.data, work / "source", asked.files)
        firsts = _first_runs(drivers, work, asked.rounds)
        rows = [_row(driver, work, firsts[driver.tool]) for driver in drivers]
    table(f"Ingest, {asked.files} Markdown files, {asked.threads} threads, medians of {asked.rounds}", _HEADER, rows)


_HEADER = (
    "tool",
    "documents/s",
    "texts/s",
    "peak MB",
    "nothing new: seconds, encoded",
    "after an edit",
    "a deletion",
    "a rename (encoded)",
    "a refused write",
    "a kill",
)


def _copy(data: Path, folder: Path, count: int) -> None:
    """So many Markdown files, the first by name, each with its word."""
    found = sorted(path for path in data.rglob("*.md") if path.stat().st_size > 200)[:count]
    for number, path in enumerate(found):
        target = folder / f"{number:04d}-{path.name}"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(f"{path.read_text(encoding='utf-8').rstrip()}\n\n{_word(number, 1)}\n", encoding="utf-8")


def _word(number: int, version: int) -> str:
    return f"m{number:04d}x{version}"


def _first_runs(drivers: Sequence[Driver], work: Path, rounds: int) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {driver.tool: [] for driver in drivers}
    for turn in range(rounds):
        for driver in drivers:
            folder = work / "timed"
            shutil.copytree(work / "source", folder)
            found[driver.tool].append(driver.run("sync", folder, work / f"state-{driver.tool}-{turn}"))
            print(driver.tool, found[driver.tool][-1], flush=True)
            shutil.rmtree(folder)
    return found


def _row(driver: Driver, work: Path, firsts: Sequence[dict[str, Any]]) -> list[object]:
    files = len(list((work / "source").iterdir()))
    seconds = median(one["seconds"] for one in firsts)
    rates = [files / seconds, median(one["encoded"] / one["seconds"] for one in firsts)]
    peak = median(one["peak_mb"] for one in firsts)
    folder, state = work / f"{driver.tool}-docs", work / f"{driver.tool}-state"
    shutil.copytree(work / "source", folder)
    driver.run("sync", folder, state)
    again = driver.run("sync", folder, state)
    row: list[object] = [driver.tool, *rates, peak, f"{again['seconds']:.2f}, {again['encoded']}"]
    first, second, third = sorted(folder.iterdir())[:3]
    first.write_text(first.read_text(encoding="utf-8").replace(_word(0, 1), _word(0, 2)), encoding="utf-8")
    row.append(_after(driver, folder, state)[0])
    second.unlink()
    row.append(_after(driver, folder, state)[0])
    third.rename(third.with_name(f"renamed-{third.name}"))
    verdict, said = _after(driver, folder, state)
    row.append(f"{verdict} ({said.get('encoded')})")
    row.append(_refused(driver, work))
    row.append(_killed(driver, work, seconds))
    print(row, flush=True)
    return row


def _after(driver: Driver, folder: Path, state: Path) -> tuple[str, dict[str, Any]]:
    """One more run, and what is right after it."""
    said = driver.run("sync", folder, state)
    if said.get("error"):
        return f"error: {said['error']}", said
    return _verdict(driver, folder, state), said


def _verdict(driver: Driver, folder: Path, state: Path) -> str:
    dumped = driver.run("dump", folder, state)
    if isinstance(dumped, dict):
        return f"error: {dumped['error']}"
    found = Counter((source, word) for source, text in dumped for word in _WORD.findall(text))
    wanted = {(str(path), _WORD.findall(path.read_text(encoding="utf-8"))[-1]) for path in folder.iterdir()}
    counts = {
        "missing": len(wanted - found.keys()),
        "stale": len(found.keys() - wanted),
        "twice": sum(count > 1 for count in found.values()),
    }
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "right"


def _refused(driver: Driver, work: Path) -> str:
    """The store refuses the third write of a first run; then the same command once more."""
    if driver.tool == "txtai":
        return "- (its store is in its process)"
    folder, state = work / f"{driver.tool}-docs-refused", work / f"{driver.tool}-state-refused"
    shutil.copytree(work / "source", folder)
    said = driver.run("sync", folder, state, "--fail-at", "2")
    told = "" if said.get("error") else " (no error was raised)"
    return _after(driver, folder, state)[0] + told


def _killed(driver: Driver, work: Path, seconds: float) -> str:
    """A first run dies half way; then the same command once more."""
    folder, state = work / f"{driver.tool}-docs-killed", work / f"{driver.tool}-state-killed"
    shutil.copytree(work / "source", folder)
    started = time.perf_counter()
    driver.run("dump", folder, work / f"{driver.tool}-state-empty")  # what a process takes to be ready
    ready = time.perf_counter() - started
    at_work = driver.killed(folder, state, ready + seconds / 2)
    return _after(driver, folder, state)[0] + ("" if at_work else " (it had ended before the kill)")


def _environment() -> dict[str, str]:
    return {**os.environ, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "ANONYMIZED_TELEMETRY": "false"}


if __name__ == "__main__":
    main()
