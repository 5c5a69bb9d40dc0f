"""`nvr-rag ingest` and `up` as a person meets them: what they say, how they end, and what bad input comes to."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
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


def test_a_dry_run_tells_and_does_nothing(run: CommandLine, docs: Path) -> None:
    (docs / "empty.md").write_bytes(b"")
    (docs / ".nvrignore").write_text("*.log")
    (docs / "x.log").write_text("x")
    result = run("ingest", str(docs), "--dry-run", "--collection", "notes")
    assert result.exit_code == 1, "a document would fail"
    assert result.stdout.splitlines() == [
        "3 documents: 2 to add, 1 failed. Nothing was done.",
        f"add: file://{docs}/sea.txt",
        f"add: file://{docs}/tea.md",
        "passed over: 1 (each is hidden)",
        "passed over: 1 (each is ignored by .nvrignore)",
        f"failed: file://{docs}/empty.md is empty (0 bytes)",
    ]
    assert run.json("collections", "list")["collections"] == []
    (docs / "empty.md").unlink()
    run.json("ingest", str(docs))
    (docs / "tea.md").write_text("# Tea\n\nBlack tea is hot.\n")
    (docs / "sea.txt").unlink()
    (docs / "new.md").write_text("New.")
    told = run.json("ingest", str(docs), "--dry-run")
    names = {verb: [uri.rsplit("/", 1)[1] for uri in told[verb]] for verb in ("add", "update", "delete")}
    assert names == {"add": ["new.md"], "update": ["tea.md"], "delete": ["sea.txt"]}
    assert (told["dry_run"], told["seen"], told["unchanged"], told["failed"]) == (True, 2, 0, [])
    report = run.json("ingest", str(docs))
    assert (report["added"], report["updated"], report["deleted"]) == (1, 1, 1)


def test_a_dry_run_over_lines_asks_the_log_itself(run: CommandLine, tmp_path: Path) -> None:
    feed = tmp_path / "feed.jsonl"
    feed.write_text('{"id": "a", "text": "one"}\n{"id": "b", "text": "two"}\n')
    assert run.json("ingest", str(feed), "--dry-run")["add"] == ["a", "b"]
    run.json("ingest", str(feed))
    feed.write_text('{"id": "a", "text": "one"}\n{"id": "b", "text": "three"}\n{"id": "c", "text": "x"}\n{broken\n')
    for _ in range(2):
        told = run.json("ingest", str(feed), "--dry-run", code=1)
        assert (told["unchanged"], told["update"], told["add"]) == (1, ["b"], ["c"])
        assert told["failed"][0]["uri"].endswith("feed.jsonl#L4")


def test_a_dry_run_says_what_would_be_refused(run: CommandLine, docs: Path) -> None:
    run.json("ingest", str(docs))
    told = run.json("ingest", str(docs), "--exclude", "*", "--dry-run", code=1)
    assert told["delete"] == []
    assert "--allow-empty" in told["refused"][0]
    assert len(run.json("ingest", str(docs), "--exclude", "*", "--dry-run", "--allow-empty")["delete"]) == 2


def test_patterns(run: CommandLine, docs: Path) -> None:
    assert run.json("ingest", str(docs), "--include", "*.md", "--include", "*.rst")["added"] == 1
    told = run.json("ingest", str(docs), "--exclude", "*.md")
    assert (told["added"], told["deleted"], told["skipped"]) == (1, 1, {"is excluded": 1})
    refused = run.json("ingest", str(docs), "--exclude", "!", code=2)
    assert refused["error"]["field"] == "exclude"
    assert run.json("ingest", str(docs), "--dry-run", "--watch", code=2)["error"]["field"] == "watch"


def test_who_may_not_read_is_told(run: CommandLine, docs: Path) -> None:
    (docs / "tea.md.meta.json").write_text('{"acl": ["group:tea"]}')
    result = run("ingest", str(docs))
    assert "1 of the new documents have an acl: nobody finds them who cannot prove a name" in result.stdout
    assert run.json("documents", "show", f"file://{docs}/tea.md")["document"]["acl"] == ["group:tea"]


def test_odd_names_are_shown_harmlessly(run: CommandLine, docs: Path) -> None:
    (docs / "new\nline \x1b[31mred.md").write_bytes(b"")
    (docs / os.fsdecode(b"\xff.md")).write_bytes(b"")
    for told in (run("ingest", str(docs)).stdout, run("ingest", str(docs), "--dry-run").stdout):
        assert "\x1b" not in told
        assert f"failed: file://{docs}/new%0Aline%20%1B%5B31mred.md is empty (0 bytes)" in told.splitlines()
        assert f"failed: file://{docs}/%FF.md is empty (0 bytes)" in told.splitlines()


def test_where_the_time_went(run: CommandLine, docs: Path) -> None:
    told = run.json("ingest", str(docs))
    assert set(told["seconds"]) == {"walk", "parse", "commit", "read", "total"}
    assert 0 < told["seconds"]["walk"] < told["seconds"]["read"] <= told["seconds"]["total"]
    assert "encode" in told["work"]["seconds"]


OVER_A_REAL_STORE = """
import sys, time
from ingest.sandbox import Sandbox
from nvr_rag.cli import main
from nvr_rag.commands import common
from nvr_rag.settings import load_settings
from nvr_rag.testing import HashEncoder
from nvr_rag.workspace import Workspace
common.open_workspace = lambda: Workspace(load_settings(), encoder=HashEncoder())
"""
SLOWLY = """
parse = Sandbox.parse
def slow(self, *given, **named):
    time.sleep(0.05)
    print("parsing", file=sys.stderr, flush=True)
    return parse(self, *given, **named)
Sandbox.parse = slow
"""


def started(*arguments: str, slowly: bool = False) -> subprocess.Popen[str]:
    program = f"{OVER_A_REAL_STORE}{SLOWLY if slowly else ''}main()"
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_ctrl_c_tells_what_was_done_and_the_next_run_goes_on(bare_home: Path, docs: Path) -> None:
    for name in range(300):
        (docs / f"{name}.txt").write_text(f"number{name} " * 20)
    process = started("ingest", str(docs), "--json", slowly=True)
    assert process.stderr is not None
    for _ in range(20):
        assert "parsing" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    told, noted = process.communicate(timeout=60)
    assert process.returncode == 130, noted
    first = json.loads(told)
    assert first["stopped"]
    assert 10 < first["added"] < 302
    assert first["deleted"] == 0
    assert "the next run goes on" in noted
    second = json.loads(started("ingest", str(docs), "--json").communicate(timeout=60)[0])
    assert (second["added"] + first["added"], second["unchanged"]) == (302, first["added"])
    assert first["work"]["encoded"] + second["work"]["encoded"] >= 302


def test_watching_ends_with_ctrl_c(bare_home: Path, docs: Path) -> None:
    process = started("ingest", str(docs), "--watch", "--scan-every", "1")
    assert process.stdout is not None
    assert "2 added" in process.stdout.readline()
    (docs / "new.md").write_text("New.")
    assert "1 added" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[0] == ""
    assert process.returncode == 0


def test_watching_with_json_ends_with_one_document(bare_home: Path, docs: Path) -> None:
    (docs / "empty.md").write_bytes(b"")
    process = started("ingest", str(docs), "--watch", "--json", "--scan-every", "1")
    assert process.stderr is not None
    assert "Watching" in process.stderr.readline()
    line = CommandLine(bare_home)
    begun = time.monotonic()
    while (
        len(line.json("collections", "list")["collections"]) == 0
        or len(line.json("documents", "list")["documents"]) < 3
    ):
        assert time.monotonic() - begun < 30
    process.send_signal(signal.SIGTERM)
    told = json.loads(process.communicate(timeout=60)[0])
    assert (told["added"], told["deleted"], len(told["failed"])) == (2, 0, 1)
    assert told["runs"] >= 1
