"""`nvr-rag export` and `nvr-rag import` over a real data folder."""

from __future__ import annotations

import gzip
import json
import os
import stat
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from qdrant_client import QdrantClient, models

from nvr_rag import cli
from nvr_rag.commands import common
from tests import engines
from tests.integration.command_line import CommandLine
from tests.qdrant_stand_in import StandIn
from tests.support import document, paragraphs


@pytest.fixture
def run(bare_home: Path, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    """A command line on a collection with the documents tea.md and sea.md."""
    line = _line(bare_home, monkeypatch)
    with line.house() as house:
        house.put(document("file:///tea.md", "green tea is hot"), document("file:///sea.md", "blue whale"))
        house.catch_up()
    return line


@pytest.fixture
def other(empty_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: CommandLine) -> CommandLine:
    """A second installation without collections; from now on commands run on this one."""
    home = engines.copy_home(empty_home, tmp_path / "other")
    monkeypatch.setenv("NVR_HOME", str(home))
    url = engines.url_of(home)
    if url is not None:
        monkeypatch.setenv("NVR_DATABASE_URL", url)
    return _line(home, monkeypatch)


def _line(home: Path, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    line = CommandLine(home)
    monkeypatch.setattr(common, "open_workspace", line.open_workspace)
    monkeypatch.setattr("nvr_rag.chunkings.installed_chunker", lambda: paragraphs)
    monkeypatch.setattr(cli, "entry_points", lambda **_: list[EntryPoint]())
    return line


def export(run: CommandLine, path: Path, *options: str) -> Path:
    result = run("export", "--output", str(path), *options)
    assert result.exit_code == 0, result.output
    return path


def test_what_was_exported_is_imported_and_found(
    run: CommandLine, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    path = export(run, tmp_path / "x.jsonl.gz", "--with", "all")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(gzip.decompress(path.read_bytes()).splitlines()) == 8
    other: CommandLine = request.getfixturevalue("other")

    report = other.json("import", str(path))

    assert {name: report[name] for name in ("added", "unchanged", "created", "dry_run")} == {
        "added": 2,
        "unchanged": 0,
        "created": ["default"],
        "dry_run": False,
    }
    assert other.json("search", "green tea", "-k", "1")["hits"][0]["document"]["uri"] == "file:///tea.md"
    assert other.json("import", str(path))["unchanged"] == 2


def test_export_to_a_pipe(run: CommandLine) -> None:
    result = run("export", "-c", "default")
    assert result.exit_code == 0
    kinds = [json.loads(line)["type"] for line in result.stdout.splitlines()]
    assert kinds == ["header", "collection", "document", "document", "trailer"]
    assert "Not in the file: chunks, judgments, feedback" in result.stderr


def test_export_tells_a_program_what_it_wrote(run: CommandLine, tmp_path: Path) -> None:
    told = run.json("export", "-o", str(tmp_path / "x.jsonl"), "--with", "chunks")
    assert told["counts"] == {
        "collections": 1,
        "documents": 2,
        "chunks": 2,
        "judgments": 0,
        "queries": 0,
        "feedback": 0,
    }
    assert told["left_out"] == ["judgments", "feedback"]
    assert run("export", "--json").exit_code == 2


def test_a_file_is_replaced_only_when_told_so_and_only_by_a_whole_one(run: CommandLine, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("old")
    result = run("export", "-o", str(path))
    assert result.exit_code == 2
    assert "--yes" in result.stderr
    assert run("export", "-o", str(path), "--yes", "-c", "nope").exit_code == 1
    assert path.read_text() == "old"
    export(run, path, "--yes")
    assert path.read_text() != "old"
    assert os.listdir(tmp_path).count("x.jsonl") == 1
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".x.jsonl")]


def test_export_into_a_folder_that_is_not_there(run: CommandLine, tmp_path: Path) -> None:
    result = run("export", "-o", str(tmp_path / "no" / "x.jsonl"))
    assert result.exit_code == 2
    assert "folder that is there" in result.stderr


def test_a_full_disk_leaves_nothing(run: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nvr_rag.transfer.files.os.fsync", full)
    (tmp_path / "out").mkdir()
    result = run("export", "-o", str(tmp_path / "out" / "x.jsonl"))
    assert result.exit_code == 1
    assert "No space left" in result.stderr
    assert os.listdir(tmp_path / "out") == []


def test_a_broken_file_changes_nothing(run: CommandLine, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    path = export(run, tmp_path / "x.jsonl")
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join([*lines[:3], '{"type": "document"}\n', *lines[4:]]), encoding="utf-8")
    other: CommandLine = request.getfixturevalue("other")
    result = other("import", str(path), "--json")
    assert result.exit_code == 2
    assert "line 4" in json.loads(result.stdout)["error"]["message"]
    assert other.json("collections", "list") == {"collections": []}


def test_a_dry_run_does_nothing(run: CommandLine, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    path = export(run, tmp_path / "x.jsonl")
    other: CommandLine = request.getfixturevalue("other")
    result = other("import", str(path), "--dry-run", "--collection", "new")
    assert result.exit_code == 0
    assert "2 documents: would be 2 added" in result.stdout
    assert "new collection: new" in result.stdout
    assert other.json("collections", "list") == {"collections": []}


@pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection")
def test_import_from_qdrant(run: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    with StandIn(api_key="a-key") as server:
        client = QdrantClient(url=server.url, api_key="a-key", check_compatibility=False)
        client.create_collection("theirs", models.VectorParams(size=2, distance=models.Distance.COSINE))
        payload = {"page_content": "sour cherry", "metadata": {"source": "cherry"}}
        points = [models.PointStruct(id=1, vector=[1, 0], payload=payload), models.PointStruct(id=2, vector=[1, 0])]
        client.upsert("theirs", points, wait=True)
        client.close()
        command = ("import", "--from-qdrant", server.url, "--qdrant-collection", "theirs")

        refused = run(*command)
        assert refused.exit_code == 1
        assert "QDRANT_API_KEY" in refused.stderr

        monkeypatch.setenv("QDRANT_API_KEY", "a-key")
        told = run(*command)
        assert told.exit_code == 0, told.output
        assert "2 points, 1 document of default: 1 added" in told.stdout
        assert "without a text: 1 points" in told.stdout
        assert run.json("search", "cherry", "-k", "1")["hits"][0]["document"]["uri"] == "cherry"


def test_import_says_what_is_missing(run: CommandLine) -> None:
    assert run("import").exit_code == 2
    assert run("import", "--from-qdrant", "http://127.0.0.1:1").exit_code == 2
    assert run("import", "x.jsonl", "--from-qdrant", "http://h", "--qdrant-collection", "x").exit_code == 2
