"""`nvr-rag backup` and `nvr-rag restore` over real data folders."""

from __future__ import annotations

import json
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from nvr_rag import cli
from nvr_rag.commands import common
from tests import engines
from tests.integration.command_line import CommandLine
from tests.integration.lifecycle import catch_up
from tests.support import document


@pytest.fixture
def run(bare_home: Path, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    """A command line on a collection with two documents."""
    line = CommandLine(bare_home)
    monkeypatch.setattr(common, "open_workspace", line.open_workspace)
    monkeypatch.setattr(cli, "entry_points", lambda **_: list[EntryPoint]())
    with line.house() as house:
        house.put(document("file:///tea.md", "green tea is hot"), document("file:///sea.md", "blue whale"))
        house.catch_up()
    return line


def test_there_and_back(run: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "backup"
    told = run("backup", str(folder))
    assert told.exit_code == 0, told.output
    assert "1 collection(s), 2 documents" in told.stdout
    refused = run("restore", str(folder))
    assert refused.exit_code == 1
    assert "data here already" in refused.stderr
    home = tmp_path / "other"
    if engines.url_of(run.home) is not None:
        engines.new_home(home)
        monkeypatch.setenv("NVR_DATABASE_URL", engines.url_of(home) or "")

    restored = run("--home", str(home), "restore", str(folder))

    assert restored.exit_code == 0, restored.output
    assert "2 documents, as of" in restored.stdout
    assert "nvr-rag serve" in restored.stdout
    other = CommandLine(home)
    monkeypatch.setattr(common, "open_workspace", other.open_workspace)
    with other.open_workspace() as workspace:
        catch_up(workspace)
    found = other.json("search", "green tea", "-k", "1")
    assert found["hits"][0]["document"]["uri"] == "file:///tea.md"


def test_a_program_is_told(run: CommandLine, tmp_path: Path) -> None:
    told = run.json("backup", str(tmp_path / "backup"))
    assert (told["rows"]["document"], told["missing_models"]) == (2, [])
    assert told["bytes"] > 0
    again = run("backup", str(tmp_path / "backup"), "--json")
    assert again.exit_code == 1
    assert "not empty" in json.loads(again.stdout)["error"]["message"]


def test_what_is_no_backup(run: CommandLine, tmp_path: Path) -> None:
    assert run("restore", str(tmp_path / "nothing")).exit_code == 2
    assert "no manifest.json" in run("restore", str(tmp_path)).stderr
