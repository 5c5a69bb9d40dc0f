"""`nvr-rag ingest` and `up` as a person meets them: what they say, how they end, and what bad input comes to."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from nvr_rag.commands import common
from nvr_rag.running import processes
from nvr_rag.testing import MemoryStore
from tests.integration.command_line import CommandLine


@pytest.fixture
def run(bare_home: Path, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    """A command line on an empty data folder."""
    line = CommandLine(bare_home)
    monkeypatch.setattr(common, "open_workspace", line.open_workspace)
    return line


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "tea.md").write_text("# Tea\n\nGreen tea is hot.\n")
    (folder / "sea.txt").write_text("Blue whales swim.")
    return folder


def test_what_was_done_is_told(run: CommandLine, docs: Path) -> None:
    (docs / "photo.jpg").write_bytes(b"\xff\xd8")
    (docs / "empty.md").write_bytes(b"")
    result = run("ingest", str(docs))
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert lines[0].startswith("3 documents in ")
    assert lines[0].endswith(": 2 added, 1 failed")
    assert lines[1] == "2 chunks: 2 encoded, 0 vectors reused, 0 kept, 0 deleted"
    assert any(line.startswith("passed over: 1 ") and "image" in line for line in lines)
    assert any(line.startswith("failed: ") and "empty.md is empty" in line for line in lines)
    assert run("search", "green tea", "-k", "1").stdout.splitlines()[0].split()[:2] == ["1.", "Tea"]


def test_the_same_as_json(run: CommandLine, docs: Path) -> None:
    first = run.json("ingest", str(docs), "--collection", "notes")
    assert (first["collection"], first["added"], first["failed"], first["work"]["encoded"]) == ("notes", 2, [], 2)
    second = run.json("ingest", str(docs), "--collection", "notes")
    assert (second["added"], second["unchanged"], second["work"]["encoded"]) == (0, 2, 0)


def test_a_missing_path_is_named_and_nothing_else_is_done(run: CommandLine, docs: Path) -> None:
    result = run("ingest", str(docs), str(docs / "nowhere"))
    assert result.exit_code == 2
    assert "nowhere: there is no such file or folder" in result.stderr
    assert run.json("collections", "list")["collections"] == []


def test_an_empty_folder_is_told(run: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    result = run("ingest", str(tmp_path / "nothing"))
    assert result.exit_code == 1
    assert "no documents in" in result.stderr


def test_an_emptied_folder_is_kept_until_told_otherwise(run: CommandLine, docs: Path) -> None:
    run.json("ingest", str(docs))
    for path in docs.iterdir():
        path.unlink()
    refused = run.json("ingest", str(docs), code=1)
    assert "--allow-empty" in refused["error"]["message"]
    assert len(run.json("documents", "list")["documents"]) == 2
    assert run.json("ingest", str(docs), "--allow-empty")["deleted"] == 2


def test_a_text_of_200_mb_is_refused_by_its_size(run: CommandLine, docs: Path) -> None:
    with (docs / "huge.txt").open("wb") as file:
        file.truncate(200_000_000)
    failed = run.json("ingest", str(docs), code=1)["failed"]
    assert [failure["uri"].rsplit("/", 1)[1] for failure in failed] == ["huge.txt"]
    assert "larger than 100 MB" in failed[0]["reason"]


def test_an_encrypted_file_is_told(run: CommandLine, docs: Path) -> None:
    shutil.copy(Path(__file__).parent.parent / "data" / "files" / "encrypted.pdf", docs)
    failed = run.json("ingest", str(docs), code=1)["failed"]
    assert "encrypted" in failed[0]["reason"]
    assert run.json("documents", "list", "--state", "failed")["documents"][0]["error"] == failed[0]["reason"]


def test_an_incomplete_model_directory_is_told(
    bare_home: Path, tmp_path: Path, docs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"model_type": "bert"}))
    monkeypatch.setenv("NVR_ENCODER", str(model))
    line = CommandLine(bare_home)
    refused = line.json("ingest", str(docs), code=1)
    assert refused["error"]["type"] == "EncoderError"
    assert str(model) in refused["error"]["message"]
    assert line.json("collections", "list")["collections"] == []


def test_up_beside_a_server_ingests_into_it(run: CommandLine, docs: Path) -> None:
    with run.house() as house:
        processes.announce(house.database, "serve", "http://127.0.0.1:1")
    result = run("up", str(docs))
    assert result.exit_code == 0
    assert "A server runs on this data folder already: http://127.0.0.1:1" in result.stderr
    assert len(run.json("documents", "list")["documents"]) == 2
    assert isinstance(run.store, MemoryStore)
    assert run.json("up", str(docs))["unchanged"] == 2
