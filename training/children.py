"""Running a child process of a lap from the parent's side: a step and a folder in, its result out, progress on the way.

The child dies with the parent (its stdin ends), and is ended when `stop` is set. What it prints for people is kept in
the lap's folder.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

from nvr_rag.errors import NvrError, Stopped
from training.runs import RunFolder

_END_SECONDS = 10.0  # that a child may take to end when it is told to
_LAST_LINES = 5  # of what a child said before it died, in the error

Report = Callable[[Mapping[str, Any]], None]


def run_child(step: str, folder: RunFolder, *, threads: int, report: Report, stop: threading.Event) -> dict[str, Any]:
    """Run `python -m training.child STEP FOLDER` to its end. Raises NvrError with the child's words, Stopped."""
    log = folder.path / f"{step}.log"
    with log.open("wb") as said:
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-P", "-m", "training.child", step, str(folder.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            env=_environment(threads),
        )
        watcher = threading.Thread(target=_end_when_stopped, args=(process, stop), daemon=True)
        watcher.start()
        try:
            result = _follow(process, report)
        finally:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                pipe.close()
            watcher.join()
    if stop.is_set():
        raise Stopped(f"stopped while the lap was at {step!r}")
    if result is None:
        words = " / ".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LAST_LINES:])
        raise NvrError(
            f"the process of the step {step!r} died ({_death(process.returncode)}): {words or 'it said nothing'}"
        )
    return result


def _follow(process: subprocess.Popen[bytes], report: Report) -> dict[str, Any] | None:
    """Read what the child tells until it ends; None when it ends without a result. Raises NvrError for its error."""
    assert process.stdout is not None
    result: dict[str, Any] | None = None
    for line in process.stdout:
        try:
            told = json.loads(line)
        except ValueError:  # cut off by its death
            continue
        if "error" in told:
            raise NvrError(told["error"])
        if "result" in told:
            result = told["result"]
        else:
            report(told)
    process.wait()
    return result


def _end_when_stopped(process: subprocess.Popen[bytes], stop: threading.Event) -> None:
    while process.poll() is None:
        if stop.wait(0.2):
            process.terminate()
            try:
                process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
            return


def _death(code: int | None) -> str:
    if code is not None and code < 0:
        return f"signal {-code}" + (", perhaps for want of memory" if code == -9 else "")
    return f"exit code {code}"


def _environment(threads: int) -> dict[str, str]:
    """Threads are limited before the libraries start them; nothing is fetched, nothing is reported anywhere.

    glibc learns from the first large tensors that are freed to keep such blocks, and the batches' ever other sizes then
    leave holes: a training grew by 200 MB a step (measured). With a fixed threshold it stays where it was.
    """
    limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    return {
        **os.environ,
        **limits,
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONUNBUFFERED": "1",
        "MALLOC_MMAP_THRESHOLD_": str(2**20),
    }
