"""Fixtures of all tests: few threads, and houses with doubles for store and encoder on folders of their own."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before anything imports numpy or torch
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from nvr_rag.settings import Settings
from nvr_rag.testing import HashEncoder, MemoryStore
from nvr_rag.workspace import Workspace
from tests.support import House


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test reads or writes the settings and the data folder of whoever runs it."""
    for name in [name for name in os.environ if name.startswith("NVR_") and not name.startswith("NVR_TEST_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NVR_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="session")
def empty_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated data folder without collections, to be copied: migrating takes a tenth of a second."""
    home = tmp_path_factory.mktemp("template") / "home"
    Workspace(Settings(home=home), store=MemoryStore(), encoder=HashEncoder()).close()
    return home


@pytest.fixture(scope="session")
def furnished_home(empty_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with an empty collection "default", to be copied."""
    home = Path(shutil.copytree(empty_home, tmp_path_factory.mktemp("template") / "home"))
    with Workspace(Settings(home=home), store=MemoryStore(), encoder=HashEncoder()) as opened:
        opened.create_collection("default")
    return home


@pytest.fixture
def workspace(empty_home: Path, tmp_path: Path) -> Iterator[Workspace]:
    """A workspace over MemoryStore and HashEncoder without collections."""
    home = Path(shutil.copytree(empty_home, tmp_path / "home"))
    with Workspace(Settings(home=home), store=MemoryStore(), encoder=HashEncoder()) as opened:
        yield opened


@pytest.fixture
def home(furnished_home: Path, tmp_path: Path) -> Path:
    """A data folder of this test's own, with an empty collection "default"."""
    return Path(shutil.copytree(furnished_home, tmp_path / "home"))


@pytest.fixture
def house(home: Path) -> Iterator[House]:
    """A house with an empty collection "default"."""
    opened = House(home)
    yield opened
    opened.close()
