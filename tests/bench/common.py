"""What the benchmarks share: a table, a server of one's own, quantiles, and child processes with their peak memory."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

BIN = Path(sys.executable).parent


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a Markdown table under a line that names the machine."""
    print(f"\n{title} ({platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()})\n")
    cells = [list(header), ["---"] * len(header), *[[_cell(value) for value in row] for row in rows]]
    for row in cells:
        print("| " + " | ".join(row) + " |")


def _cell(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def quantile(values: Sequence[float], q: float) -> float:
    """The value below which a share q of the values lies (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


def environment(home: Path, threads: int) -> dict[str, str]:
    return {
        **os.environ,
        "NVR_HOME": str(home),
        "NVR_THREADS": str(threads),
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
    }


def run(arguments: Sequence[str], env: dict[str, str]) -> tuple[dict[str, Any], float]:
    """Run a program to its end; what it printed, as JSON, and its peak memory (with its children's) in MB."""
    process = subprocess.Popen(arguments, env=env, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(map(str, arguments))} ended with {process.returncode}")
    return json.loads(printed), usage.ru_maxrss / 1024


@contextlib.contextmanager
def server(env: dict[str, str]) -> Iterator[str]:
    """`nvr-rag serve` on a free port, until the block ends; yields its URL once it answers."""
    process = subprocess.Popen(
        [str(BIN / "nvr-rag"), "serve", "--port", "0"],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield _url(process)
    finally:
        process.terminate()
        process.wait(30)


def _url(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        found = re.search(r"http://[\w.:\[\]]+", line)
        if found:
            threading.Thread(target=process.stdout.read, daemon=True).start()  # a full pipe would stop it
            return found.group().rstrip(".")
    raise SystemExit(f"the server did not start:\n{said}")
