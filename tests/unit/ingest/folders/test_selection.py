"""Which entries of a folder are wanted, compared with what git itself makes of the same patterns."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from ingest.folders.selection import Selection, relative
from ingest.folders.small_files import Unusable
from ingest.sources import SourceFile, walk
from nvr_rag.errors import InvalidInput

TREE = [
    "a.md",
    "b.log",
    "keep.log",
    "top.md",
    "sub/a.md",
    "sub/top.md",
    "sub/b.log",
    "build/x.md",
    "sub/build/y.md",
    "docs/draft.txt",
    "docs/deep/draft.txt",
    "docs/deep/final.txt",
    "temp1/x.md",
    "temp2/x.md",
    "x/y/z/w.md",
    "weird[1].md",
]
IGNORED = {
    "": "*.log\n!keep.log\n/top.md\nbuild/\n# comment\n\ndocs/**/draft.txt\ntemp[12]\n\\!odd.md\nweird\\[1\\].md\n",
    "sub/": "!b.log\na.md\n",
    "x/y/": "/z/*\n",
}


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_ignore_files_are_read_as_git_reads_them(tmp_path: Path) -> None:
    for name in (*TREE, "!odd.md"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("words")
    for folder, text in IGNORED.items():
        (tmp_path / folder / ".nvrignore").write_text(text)
        (tmp_path / folder / ".gitignore").write_text(text)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True, capture_output=True)
    listing = subprocess.run(
        ["git", "-C", str(tmp_path), "ls-files", "--others", "--exclude-standard", "-z"],
        capture_output=True,
        check=True,
    )
    untracked = {name for name in listing.stdout.decode().split("\0") if name}
    expected = {name for name in untracked if not name.rpartition("/")[2].startswith(".")}
    found = {relative(str(one.path), str(tmp_path)) for one in walk(tmp_path) if isinstance(one, SourceFile)}
    assert found == expected
    assert {"keep.log", "sub/b.log", "docs/deep/final.txt", "sub/top.md"} <= found
    assert not {"b.log", "sub/a.md", "build/x.md", "x/y/z/w.md", "docs/deep/draft.txt"} & found


def reasons(selection: Selection, *paths: str) -> list[str | None]:
    rules = selection.rules()
    return [rules.against(path.rstrip("/"), folder=path.endswith("/")) for path in paths]


def test_options() -> None:
    only = Selection(include=("*.md", "reports/"), exclude=("old/", "*.tmp.md"))
    assert reasons(only, "a.md", "x/a.md", "a.txt", "reports/a.txt", "x/", "old/", "x/old/", "x/a.tmp.md") == [
        None,
        None,
        "is not included",
        None,
        None,
        "is excluded",
        "is excluded",
        "is excluded",
    ]
    assert reasons(Selection(), "a", "b/") == [None, None]
    assert reasons(Selection(include=("*.md", "!secret.md")), "a.md", "secret.md") == [None, "is not included"]


def test_a_name_that_is_no_text() -> None:
    assert reasons(Selection(exclude=("*.log",)), "new\nline.log", "\udcff.log", "\udcff.md") == [
        "is excluded",
        "is excluded",
        None,
    ]


@pytest.mark.parametrize("pattern", ["", " ", "!", "# comment", "\\"])
def test_what_is_no_pattern(pattern: str) -> None:
    with pytest.raises(InvalidInput, match=r"is no pattern; write it as in a \.gitignore"):
        Selection(include=(pattern,)).rules()


def test_an_ignore_file_that_cannot_be_used(tmp_path: Path) -> None:
    file = tmp_path / ".nvrignore"
    for content, reason in (
        (b"a\n" * 600_000, "is larger than 1024 kB"),
        (b"ok\n!\n", "has a line that is no pattern"),
    ):
        file.write_bytes(content)
        with pytest.raises(Unusable, match=reason):
            Selection().rules().below("", file)
    file.write_bytes(b"\xff*.md\n")
    assert Selection().rules().below("", file).against("\udcffa.md", folder=False) == "is ignored by .nvrignore"
