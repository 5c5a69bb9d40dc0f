"""Fixtures of the API's tests: the real app behind a real socket, over doubles for store and encoder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nvr_rag.settings import ApiSettings, Settings
from nvr_rag.testing import HashEncoder, MemoryStore
from nvr_rag.workspace import Workspace
from tests import engines
from tests.integration.api_support import Api, running
from tests.integration.lifecycle import Doubles
from tests.unit.encoders.conftest import saved_models, tiny  # noqa: F401 (fixtures)

MAX_BODY_BYTES = 1_000_000


def pytest_configure(config: pytest.Config) -> None:
    """langchain-tests marks some of its tests for plugins that are not used here."""
    for name in ("benchmark", "vcr"):
        config.addinivalue_line("markers", f"{name}: of langchain-tests")


@pytest.fixture
def api(workspace: Workspace) -> Iterator[Api]:
    """An API of this test's own, without collections."""
    with running(workspace) as api:
        yield api


@pytest.fixture(scope="module")
def shared_api(furnished_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """An API for tests that change nothing: a collection "default" with two documents, small bodies only."""
    home = engines.copy_home(furnished_home, tmp_path_factory.mktemp("shared") / "home")
    settings = Settings(**engines.options_of(home), api=ApiSettings(max_body_bytes=MAX_BODY_BYTES))
    with Workspace(settings, store=MemoryStore(), encoder=HashEncoder()) as workspace, running(workspace) as api:
        api.put({"uri": "a", "text": "red fox jumps\n\nblue whale swims"}, {"uri": "b", "text": "green tea is hot"})
        yield api
    engines.forget(home)


@pytest.fixture
def doubles(monkeypatch: pytest.MonkeyPatch) -> Doubles:
    """Encoder versions without models, which every workspace can load."""
    made = Doubles()
    monkeypatch.setattr(Workspace, "_load", lambda workspace, source: made.load(workspace, source))
    return made
