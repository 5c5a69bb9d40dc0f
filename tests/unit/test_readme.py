"""The README must not lie: its tree names every file, and nothing that is not there."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def tree() -> dict[str, str]:
    """Paths in the README's tree, folders ending in a slash, with what is said of them."""
    section = README.split("## The tree", 1)[1].split("```", 2)[1]
    found: dict[str, str] = {}
    folders: list[str] = []
    for line in section.splitlines():
        match = re.fullmatch(r"((?:  )*)(\S+)\s+(\S.*)", line)
        if match:
            depth, name, words = len(match[1]) // 2, match[2], match[3]
            folders[depth:] = [name] if name.endswith("/") else []
            parents = folders[:depth] if name.endswith("/") else folders
            found["".join([*parents[:depth], name])] = words
    return found


def files() -> set[str]:
    """Every file of the project that git knows or would add."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    return {name for name in listed.stdout.splitlines() if (ROOT / name).exists()}


def test_the_tree_names_every_file_and_no_other() -> None:
    said = tree()
    whole = tuple(
        name
        for name in said
        if name.endswith("/") and not any(other != name and other.startswith(name) for other in said)
    )
    there = {name for name in files() if not name.startswith(whole)}
    empty = {name for name in there if name.endswith(("__init__.py", "py.typed")) and name not in said}
    assert there - set(said) - empty == set(), "files without a line in the README's tree"
    assert {name for name in said if not (ROOT / name).exists()} == set(), "lines of the tree without a file"


def test_every_line_says_something() -> None:
    assert all(len(words.split()) >= 2 for words in tree().values())


def test_links_to_files_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#:]+)\)", README)
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []
