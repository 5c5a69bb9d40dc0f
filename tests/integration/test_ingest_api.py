"""The Python interface: three lines in a notebook."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import ingest
from ingest import plan, reading, sync
from nvr_rag.errors import Conflict, InvalidInput, NvrError
from nvr_rag.testing import HashEncoder, MemoryStore
from nvr_rag.workspace import Workspace
from tests.integration.sync_support import InProcess


@pytest.fixture
def handbook(bare_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(reading, "Sandbox", InProcess)
    store, encoder, make = MemoryStore(), HashEncoder(), Workspace.__init__
    doubles = {"store": store, "encoder": encoder}
    monkeypatch.setattr(Workspace, "__init__", lambda self, *given, **named: make(self, *given, **{**doubles, **named}))
    folder = tmp_path / "handbook"
    folder.mkdir()
    (folder / "a.md").write_text("# A\n\nAlpha.")
    (folder / "empty.md").write_text("")
    monkeypatch.chdir(tmp_path)
    return folder


def test_the_three_lines_of_the_docstring(handbook: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ingest.__doc__ is not None
    lines = [line.strip() for line in ingest.__doc__.splitlines() if line.startswith("    ")]
    assert len(lines) == 3
    exec("\n".join(lines))
    said = capsys.readouterr().out
    assert said.startswith("1 [Failure(uri='file:///")
    assert "is empty (0 bytes)" in said


def test_what_it_would_do_is_told_before(handbook: Path) -> None:
    first = plan(handbook, collection="docs")
    assert [uri.rsplit("/", 1)[1] for uri in first.add] == ["a.md"]
    assert [failure.reason for failure in first.failed] == ["is empty (0 bytes)"]
    assert sync(handbook, collection="docs", exclude=["empty.md"]).added == 1
    (handbook / "a.md").write_text("# A\n\nBeta.")
    (handbook / "b.md").write_text("# B\n\nGamma.")
    (handbook / "empty.md").unlink()
    again = plan(handbook, collection="docs")
    assert (len(again.add), len(again.update), again.delete, again.unchanged) == (1, 1, [], 0)
    report = sync(str(handbook), "handbook/b.md", collection="docs")
    assert (report.added, report.updated, report.unchanged) == (1, 1, 1)


def test_a_workspace_of_one_s_own_stays_open(handbook: Path, workspace: Workspace) -> None:
    assert sync(handbook, workspace=workspace).added == 1
    assert sync(handbook, workspace=workspace).unchanged == 1


def test_another_data_folder(handbook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NVR_DATABASE_URL", raising=False)
    assert sync(handbook, home=tmp_path / "other").added == 1
    assert (tmp_path / "other" / "corpus.sqlite3").is_file()


def test_errors_are_of_one_tree(handbook: Path) -> None:
    for paths in ((), ("",), ("nowhere",)):
        with pytest.raises(InvalidInput):
            sync(*paths)
    with pytest.raises(InvalidInput, match="include is a list of patterns"):
        sync(handbook, include="*.md")
    sync(handbook)
    for path in handbook.iterdir():
        path.unlink()
    with pytest.raises(Conflict) as refused:
        sync(handbook)
    assert isinstance(refused.value, NvrError)
    assert not refused.value.retry
    assert sync(handbook, allow_empty=True).deleted == 2


def test_importing_it_is_quick() -> None:
    program = "import sys, ingest; print([n for n in ('numpy', 'sqlalchemy', 'torch', 'xberg') if n in sys.modules])"
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert told.stdout.strip() == "[]"
