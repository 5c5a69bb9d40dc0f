"""Isolation: does any endpoint tell anybody what he may not know?

    python -m tests.bench.isolation --probes 5000 [--seed 1] [--memory]

Random documents, permissions and keys, on a data folder of its own with the store that everybody has (Edge; --memory
takes the test double); writers and an index that lags, all the while. A leak is a word, a title, a URI, metadata, an id
or a count in an answer that its caller could not know at any moment of the request. The exit code is 1 if there is one.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from nvr_rag.api.app import create_app
from nvr_rag.settings import IngestSettings, Settings
from nvr_rag.testing import HashEncoder, MemoryStore
from nvr_rag.workspace import Workspace
from tests.bench.common import table
from tests.integration.api_support import running
from tests.isolation.hunt import Found, endpoints, hunt
from tests.isolation.world import Idle, World


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--probes", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--memory", action="store_true")
    arguments = parser.parse_args()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as home:
        roots = Path(home) / "folders"
        roots.mkdir()
        settings = Settings(home=Path(home) / "home", ingest=IngestSettings(roots=[roots]))
        store = {"store": MemoryStore()} if arguments.memory else {}
        with Workspace(settings, encoder=HashEncoder(), **store) as workspace:
            world = World(workspace, arguments.seed)
            names = endpoints(create_app(workspace).routes)
            with running(workspace, [Idle()]) as api, world.busy(api.indexer):
                found = hunt(world, str(api.client.base_url), names, probes=arguments.probes, seed=arguments.seed)
            documents = len(world.oracle.documents)
    _show(found)
    took = time.perf_counter() - started
    print(f"{documents} documents, {len(world.holders)} keys, seed {arguments.seed}, {took:.0f} s")
    sys.exit(1 if any(one.leaks for one in found.values()) else 0)


def _show(found: dict[str, Found]) -> None:
    figures = {name: _figures(one) for name, one in sorted(found.items())}
    figures["all"] = [sum(column) for column in zip(*figures.values(), strict=True)]
    rows = [[name, *row] for name, row in figures.items()]
    table("Isolation", ["endpoint", "probes", "2xx", "4xx", "5xx", "leaks"], rows)
    for name, one in found.items():
        for leak in one.leaks[:10]:
            print(f"LEAK {name}: {leak}")


def _figures(one: Found) -> list[int]:
    return [one.probes, one.answers[2], one.answers[4], one.answers[5], len(one.leaks)]


if __name__ == "__main__":
    main()
