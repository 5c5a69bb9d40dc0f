"""Erasing from the command line: questions, exit codes, what is told; and what laps have of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nvr_rag import registry
from nvr_rag.ids import chunk_id, document_id, sha256_text
from nvr_rag.query_log import QueryLog
from nvr_rag.removal import erasing
from nvr_rag.testing import HashEncoder
from nvr_rag.types import Query
from tests.integration.command_line import CommandLine
from tests.support import document
from training.erasing import BeginAnew, obey
from training.runs import RunFolder, run_folder
from training.splits import query_key

TEXT = "the zebraquartz"
CHUNK = chunk_id(document_id("default", "a"), sha256_text(TEXT), 0)


@pytest.fixture
def command_line(bare_home: Path, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    line = CommandLine(bare_home)
    monkeypatch.setattr("nvr_rag.commands.common.open_workspace", line.open_workspace)
    return line


def ask(command_line: CommandLine, text: str, user: str) -> None:
    with command_line.house() as house:
        log = QueryLog(house.database)
        query = Query(text=text, user=user)
        log.record(query, house.workspace.retriever.search(query))
        log.close()


def put(command_line: CommandLine) -> None:
    with command_line.house() as house:
        house.put(document("a", TEXT), document("b", "red fox"))
        house.catch_up()


def test_documents_are_erased_and_listed(command_line: CommandLine) -> None:
    put(command_line)
    answer = command_line.json("documents", "erase", "a", "nothing", "--yes", code=1)
    (erased,) = answer["erasures"]
    assert answer["unknown"] == ["nothing"]
    assert (erased["kind"], erased["pending"], erased["removed"]["chunks"]) == ("document", [], 1)
    assert command_line.json("erasures", "list")["erasures"] == [erased]
    assert command_line.json("erasures", "finish") == {"erasures": [], "problems": {}}
    assert [one["uri"] for one in command_line.json("documents", "list")["documents"]] == ["b"]
    shown = command_line("erasures", "list").stdout
    assert "document" in shown
    assert "nothing" in shown  # is left to remove


def test_nothing_is_erased_without_a_confirmation(command_line: CommandLine) -> None:
    put(command_line)
    result = command_line("documents", "erase", "a")
    assert result.exit_code == 2
    assert "--yes" in result.output
    ask(command_line, "who", "ann")
    assert command_line("users", "erase", "ann").exit_code == 2
    assert command_line.json("erasures", "list")["erasures"] == []
    assert len(command_line.json("documents", "list")["documents"]) == 2


def test_a_person_is_told_of_what_cannot_be_erased(command_line: CommandLine) -> None:
    put(command_line)
    result = command_line("documents", "erase", "a", "--yes")
    assert "Erased 1 document." in result.stdout
    assert "Backups that were made before still have it." in result.output


def test_users_are_erased(command_line: CommandLine) -> None:
    put(command_line)
    ask(command_line, "who is it", "ann")
    assert command_line.json("users", "erase", "ann", "--yes")["erasure"]["removed"]["queries"] == 1
    assert command_line("users", "erase", "ann", "--yes").exit_code == 1


# -- laps --------------------------------------------------------------------------------------------------------------


def lap(home: Path, run: str, *, steps: tuple[str, ...], corpus: bool, line: str = CHUNK) -> RunFolder:
    """A lap's folder after some steps, with a line that names something in every file, and one that does not."""
    folder = run_folder(home, run)
    folder.make()
    (folder.path / "config.json").write_text("{}")
    rows = [json.dumps({"id": line, "text": "zebraquartz"}), json.dumps({"id": "f" * 64, "text": "fox"})]
    for path in (folder.queries, folder.dev, folder.examples, folder.mined):
        path.write_text("\n".join(rows) + "\n")
    (folder.path / ".examples.jsonl.partial").write_text("zebraquartz")
    (folder.path / "report.json").write_text(json.dumps({"winners": [{"query": line}], "other": "f" * 64}))
    if corpus:
        folder.corpus.mkdir()
        (folder.corpus / "rows.jsonl").write_text("\n".join(rows) + "\n")
        (folder.corpus / "vectors.f32").write_bytes(b"0000")
    for step in steps:
        folder.finish(step, {"seconds": 1})
    return folder


def bytes_of(folder: RunFolder) -> str:
    return "".join(path.read_text() for path in folder.path.rglob("*") if path.is_file())


def erase(command_line: CommandLine) -> Any:
    return command_line.json("documents", "erase", "a", "--yes")["erasures"][0]


def test_a_lap_that_has_ended_loses_the_lines_that_name_it(command_line: CommandLine) -> None:
    put(command_line)
    folder = lap(command_line.home, "1", steps=("collect", "mine", "train", "register"), corpus=False)
    erase(command_line)
    assert CHUNK not in bytes_of(folder)
    assert "zebraquartz" not in bytes_of(folder)
    assert json.loads((folder.path / "report.json").read_text())["winners"] == [{"query": "erased"}]
    for path in (folder.queries, folder.dev, folder.examples, folder.mined):
        assert [json.loads(line)["text"] for line in path.read_text().splitlines()] == ["fox"]
    assert folder.finished("register") is not None


def test_a_lap_that_is_yet_to_be_trained_begins_anew(command_line: CommandLine) -> None:
    put(command_line)
    folder = lap(command_line.home, "2", steps=("collect", "mine"), corpus=True)
    other = lap(command_line.home, "3", steps=("collect", "mine"), corpus=True, line="e" * 64)
    before = bytes_of(other).replace("zebraquartz", "", 1)  # what was half written goes
    erase(command_line)
    assert "zebraquartz" not in bytes_of(folder)
    assert folder.finished("collect") is None
    assert (folder.path / "config.json").exists()
    assert sorted(path.name for path in folder.path.iterdir()) == ["config.json", "owner.lock", "report.json", "steps"]
    assert other.finished("mine") is not None
    assert len(bytes_of(other)) == len(before)


def test_a_lap_that_is_at_work_clears_its_files_itself(command_line: CommandLine) -> None:
    put(command_line)
    folder = lap(command_line.home, "4", steps=("collect", "mine"), corpus=True)
    with folder.owned():
        assert erase(command_line)["pending"] == ["files"]
        assert "zebraquartz" in bytes_of(folder)
        assert command_line.json("erasures", "finish", code=1)["problems"].keys() == {"files"}
        with pytest.raises(BeginAnew):
            obey(folder)
        assert "zebraquartz" not in bytes_of(folder)
        obey(folder)  # once is enough
        lap(command_line.home, "4", steps=("collect",), corpus=True, line="e" * 64)
        assert command_line.json("erasures", "finish")["erasures"][0]["pending"] == []
        assert folder.finished("collect") is not None


def test_a_lap_that_reads_the_database_meanwhile_reads_it_again(command_line: CommandLine) -> None:
    """It may have the text in memory and nothing of it in its files yet."""
    put(command_line)
    folder = run_folder(command_line.home, "5")
    folder.make()
    with folder.owned():
        assert erase(command_line)["pending"] == ["files"]
        with pytest.raises(BeginAnew):
            obey(folder, at_work=True)
        obey(folder, at_work=True)


def test_what_a_user_asked_goes_from_laps_by_its_key(command_line: CommandLine) -> None:
    put(command_line)
    ask(command_line, "Where is it?", "ann")
    folder = lap(command_line.home, "6", steps=("collect",), corpus=False, line=query_key("Where is it?"))
    command_line.json("users", "erase", "ann", "--yes")
    assert "zebraquartz" not in bytes_of(folder)


def test_encoders_that_learned_from_it_are_named(command_line: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    put(command_line)
    lap(command_line.home, "7", steps=("collect", "register"), corpus=False)
    with command_line.house() as house, house.database.write() as connection:
        registry.register(connection, HashEncoder(seed=7), "double", training={"run": "7"})
        registry.register(connection, HashEncoder(seed=8), "double", training={"run": "8"})
    result = command_line("documents", "erase", "a", "--yes")
    assert f"nvr-rag models remove {HashEncoder(seed=7).fingerprint[:12]}" in result.output
    assert HashEncoder(seed=8).fingerprint[:12] not in result.output
    (listed,) = command_line.json("erasures", "list")["erasures"]
    assert listed["removed"]["encoders"] == [HashEncoder(seed=7).fingerprint]


def test_training_is_among_those_that_erase() -> None:
    assert [type(one).__name__ for one in erasing.installed()] == ["RunFiles"]
