"""Imports go one way, and each outside library is imported behind its seam only."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("nvr_rag", "ingest", "training")

# Who may import a library: nobody else does. A new file that needs one belongs behind the seam instead.
SEAMS = {
    "qdrant_edge": {
        "nvr_rag/stores/edge.py",
        "nvr_rag/stores/edge_segments.py",
        "nvr_rag/stores/edge_shards.py",
        "nvr_rag/stores/lexical.py",
    },
    "qdrant_client": {
        f"nvr_rag/stores/{name}.py"
        for name in ("foreign", "server", "server_errors", "server_link", "server_options", "server_points")
    },
    "xberg": {"ingest/parsers/extraction.py"},
    "python_multipart": {"nvr_rag/api/multipart.py"},
    "pathspec": {"ingest/folders/selection.py"},
    "watchfiles": {"ingest/folders/changes.py"},
    "langchain_core": {"nvr_rag/langchain.py"},
    "mcp": {"nvr_rag/mcp/server.py"},
    "mcp_types": {"nvr_rag/mcp/server.py"},
}


def sources() -> Iterator[tuple[str, ast.Module]]:
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            yield file.relative_to(ROOT).as_posix(), ast.parse(file.read_text(encoding="utf-8"), str(file))


def imported(tree: ast.Module) -> Iterator[str]:
    """Top names of everything that a module imports, at any depth, by statement or by name in a call."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield (node.module or "").split(".")[0]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            assert node.args, "a module is imported by name"
            assert isinstance(node.args[0], ast.Constant), "the name of a module is written out"
            yield str(node.args[0].value).split(".")[0]


IMPORTS = {name: set(imported(tree)) for name, tree in sources()}


def test_something_was_read() -> None:
    assert {"nvr_rag/corpus.py", "nvr_rag/db/tables.py", "ingest/__init__.py"} <= set(IMPORTS)
    assert "sqlalchemy" in IMPORTS["nvr_rag/corpus.py"]


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("nvr_rag", {"ingest", "training", "tests"}),
        ("ingest", {"training", "tests"}),
        ("training", {"ingest", "tests"}),
    ],
)
def test_packages_import_one_way(package: str, forbidden: set[str]) -> None:
    wrong = {name: names & forbidden for name, names in IMPORTS.items() if name.startswith(f"{package}/")}
    assert {name: names for name, names in wrong.items() if names} == {}


@pytest.mark.parametrize("library", SEAMS)
def test_an_outside_library_stays_behind_its_seam(library: str) -> None:
    assert {name for name, names in IMPORTS.items() if library in names} <= SEAMS[library]


@pytest.mark.parametrize("module", ["nvr_rag", "nvr_rag.cli", "nvr_rag.workspace"])
def test_importing_loads_no_torch(module: str) -> None:
    if not (ROOT / f"{module.replace('.', '/')}.py").exists() and not (ROOT / module).is_dir():
        pytest.skip(f"there is no {module} yet")
    program = f"import sys, {module}; print([m for m in ('torch', 'transformers', 'xberg') if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert answer.stdout.strip() == "[]"
