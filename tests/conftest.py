"""Fixtures of all tests: few threads, and houses with doubles for store and encoder on folders of their own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from zlib import crc32

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before anything imports numpy or torch
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from nvr_rag.settings import Settings
from nvr_rag.testing import HashEncoder, MemoryStore
from nvr_rag.workspace import Workspace
from tests import engines
from tests.support import House


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With NVR_TEST_POSTGRES_SAMPLE=n, one in n of the tests that run on both databases runs on PostgreSQL, always the
    same ones: for those who have minutes, not half an hour."""

    def kept(item: pytest.Item) -> bool:
        callspec = getattr(item, "callspec", None)
        both = callspec is not None and callspec.params.get("engine") == "postgresql"
        return not both or crc32(item.nodeid.encode()) % sample == 0

    sample = int(os.environ.get("NVR_TEST_POSTGRES_SAMPLE", "1"))
    config.hook.pytest_deselected(items=[item for item in items if not kept(item)])
    items[:] = [item for item in items if kept(item)]


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test reads or writes the settings and the data folder of whoever runs it."""
    for name in [name for name in os.environ if name.startswith("NVR_") and not name.startswith("NVR_TEST_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NVR_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="session", params=engines.ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    """The kind of database: whatever asks for it, or for a data folder below, runs on each."""
    return str(request.param)


@pytest.fixture(scope="session")
def empty_home(engine: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A migrated data folder without collections, to be copied: migrating takes a tenth of a second."""
    home = tmp_path_factory.mktemp("template") / "home"
    if engine == "postgresql":
        engines.new_home(home)
    Workspace(Settings(**engines.options_of(home)), store=MemoryStore(), encoder=HashEncoder()).close()
    yield home
    engines.forget(home)


@pytest.fixture(scope="session")
def furnished_home(empty_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A data folder with an empty collection "default", to be copied."""
    home = engines.copy_home(empty_home, tmp_path_factory.mktemp("template") / "home")
    with Workspace(Settings(**engines.options_of(home)), store=MemoryStore(), encoder=HashEncoder()) as opened:
        opened.create_collection("default")
    yield home
    engines.forget(home)


@pytest.fixture
def bare_home(empty_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A data folder of this test's own without collections; the environment names it."""
    yield _named(engines.copy_home(empty_home, tmp_path / "home"), monkeypatch)
    engines.forget(tmp_path)


@pytest.fixture
def workspace(bare_home: Path) -> Iterator[Workspace]:
    """A workspace over MemoryStore and HashEncoder without collections."""
    with Workspace(Settings(home=bare_home), store=MemoryStore(), encoder=HashEncoder()) as opened:
        yield opened


@pytest.fixture
def home(furnished_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A data folder of this test's own, with an empty collection "default"; the environment names it."""
    yield _named(engines.copy_home(furnished_home, tmp_path / "home"), monkeypatch)
    engines.forget(tmp_path)


def _named(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let every process that a test starts find the data folder and its database."""
    monkeypatch.setenv("NVR_HOME", str(home))
    url = engines.url_of(home)
    if url is not None:
        monkeypatch.setenv("NVR_DATABASE_URL", url)
    return home


@pytest.fixture
def house(home: Path) -> Iterator[House]:
    """A house with an empty collection "default"."""
    opened = House(home)
    yield opened
    opened.close()
