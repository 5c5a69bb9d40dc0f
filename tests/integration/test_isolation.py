"""Nobody is told what he may not read, on any path, while documents and permissions change and an index lags: a few
hundred random probes. tests/bench/isolation.py sends thousands."""

from __future__ import annotations

from pathlib import Path

from nvr_rag.api.app import create_app
from nvr_rag.settings import IngestSettings, Settings
from nvr_rag.testing import HashEncoder, MemoryStore
from nvr_rag.workspace import Workspace
from tests.integration.api_support import running
from tests.isolation.hunt import endpoints, hunt
from tests.isolation.probes import PROBES
from tests.isolation.world import Idle, World


def test_every_endpoint_has_a_probe(workspace: Workspace) -> None:
    names = endpoints(create_app(workspace).routes)
    assert [name for name in names if name not in PROBES] == []
    assert "POST /v1/search" in names


def test_nothing_leaks(bare_home: Path, tmp_path: Path) -> None:
    roots = tmp_path / "folders"
    roots.mkdir()
    settings = Settings(home=bare_home, ingest=IngestSettings(roots=[roots]))
    with Workspace(settings, store=MemoryStore(), encoder=HashEncoder()) as workspace:
        _hunt(workspace)


def _hunt(workspace: Workspace) -> None:
    world = World(workspace, 7, size=30, holders=14)
    names = endpoints(create_app(workspace).routes)
    with running(workspace, [Idle()]) as api, world.busy(api.indexer):
        found = hunt(world, str(api.client.base_url), names, probes=400, seed=7)
    assert {name: one.leaks for name, one in found.items() if one.leaks} == {}
    assert sum(one.probes for one in found.values()) == 400
    assert sum(one.answers[2] for one in found.values()) > 80  # most keys are good for something
