"""nvr-rag as a process of its own: how fast it starts, what it loads, and how it lives with pipes."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.command_line import CommandLine
from tests.support import document

PROGRAM = "from nvr_rag.cli import main; main()"


def run(*arguments: str, program: str = PROGRAM) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=120)


def test_help_is_there_at_once() -> None:
    def processor_seconds() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    took = []
    for _ in range(3):
        before = processor_seconds()
        assert run("--help").returncode == 0
        took.append(processor_seconds() - before)
    assert min(took) < 0.6  # 0.2 on an idle machine


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["status"],
        ["documents", "list"],
        ["collections", "list"],
        ["documents", "delete", "x"],
        ["models", "list"],
        ["index", "list"],
        ["deploy", "list"],
    ],
)
def test_what_needs_no_encoder_loads_no_torch(home: Path, arguments: list[str]) -> None:
    program = """
import sys
from nvr_rag.cli import main
try:
    main()
finally:
    print([name for name in ("torch", "transformers", "sentence_transformers", "xberg") if name in sys.modules])
"""
    assert run(*arguments, program=program).stdout.splitlines()[-1] == "[]"


def test_json_is_alone_on_stdout_and_nothing_moves_when_piped(home: Path) -> None:
    well = run("status", "--json")
    assert (well.returncode, well.stderr) == (0, "")
    assert json.loads(well.stdout)["home"] == str(home)
    wrong = run("search", "x", "--collection", "nope", "--json")
    assert wrong.returncode == 1
    assert json.loads(wrong.stdout)["error"]["type"] == "NoCollection"
    assert wrong.stderr == "Error: no collection 'nope'; there are: default\n"


def test_a_reader_that_has_seen_enough_is_no_error(home: Path) -> None:
    line = CommandLine(home)
    with line.house() as house:
        house.put(*(document(f"file:///{'x' * 2000}/{number}", "text") for number in range(200)))
    command = [sys.executable, "-c", PROGRAM, "documents", "list", "--limit", "1000"]
    for option in ([], ["--json"]):
        with subprocess.Popen([*command, *option], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.read(5)
            process.stdout.close()
            assert process.stderr.read() == b""
            assert process.wait(60) == 0


def test_nobody_reads_at_all(home: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        for arguments in (["--help"], ["status"], ["status", "--json"]):
            command = [sys.executable, "-c", PROGRAM, *arguments]
            result = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, timeout=60)
            assert (result.returncode, result.stderr) == (0, b"")
    finally:
        os.close(writing)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is closed to root")
def test_a_data_folder_that_may_not_be_written(home: Path) -> None:
    home.chmod(0o500)
    try:
        result = run("status")
    finally:
        home.chmod(0o700)
    assert result.returncode == 1
    assert result.stderr.startswith(f"Error: the data folder {home} cannot be written to")
