"""Candidates for tests: encoder versions without models, indexes built with them, and servers that only load."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sqlalchemy import select

from nvr_rag import registry
from nvr_rag.api.preparing import Preparer
from nvr_rag.db import tables as t
from nvr_rag.db.session import Database
from nvr_rag.deployments import Deployment
from nvr_rag.encoders.base import Encoder
from nvr_rag.running import processes
from nvr_rag.testing import HashEncoder
from nvr_rag.upkeep import indexing
from nvr_rag.upkeep.catching_up import lags
from nvr_rag.workspace import Workspace
from tests.support import paragraphs


class Doubles:
    """Encoder versions that every workspace of a test can load from their source, as it would a directory."""

    def __init__(self) -> None:
        self._known: dict[str, HashEncoder] = {}

    def load(self, _workspace: Workspace, source: str) -> Encoder:
        return self._known[source]

    def register(self, database: Database, seed: int) -> str:
        """Make the version with this seed known; its fingerprint."""
        return self.register_with(database, seed)

    def register_with(self, database: Database, seed: int, **options: Any) -> str:
        """The same for a version with options of HashEncoder."""
        encoder = HashEncoder(seed=seed, **options)
        self._known[f"double:{seed}"] = encoder
        with database.write() as connection:
            registry.register(connection, encoder, f"double:{seed}")
        return encoder.fingerprint

    def propose(self, workspace: Workspace, seed: int, collection: str = "default") -> Deployment:
        """A candidate with an index that nobody has built yet."""
        return workspace.propose(collection, self.register(workspace.database, seed))

    def candidate(self, workspace: Workspace, seed: int, collection: str = "default") -> Deployment:
        """A candidate whose index is built."""
        made = self.propose(workspace, seed, collection)
        catch_up(workspace)
        return made


def catch_up(workspace: Workspace) -> None:
    """Bring every live index up with the log, as an indexer does."""
    for lag in lags(workspace):
        indexing.catch_up(workspace.database, workspace.index(lag.index.id), paragraphs)


def states(database: Database) -> dict[int, str]:
    """The state of every deployment."""
    with database.read() as connection:
        rows = connection.execute(select(t.Deployment.id, t.Deployment.state).order_by(t.Deployment.id))
        return {row.id: row.state for row in rows}


@contextmanager
def loading(workspace: Workspace) -> Iterator[str]:
    """A server that loads what it should and says so in its row; its id."""
    preparer, server, stop = Preparer(workspace), processes.announce(workspace.database, "serve"), threading.Event()

    def beat() -> None:
        said: Mapping[int, str | None] = {}
        while not stop.wait(0.01):
            if preparer.prepared != said:
                said = preparer.prepared
                processes.beat(workspace.database, server, said)

    thread = threading.Thread(target=beat)
    preparer.start()
    thread.start()
    try:
        yield server
    finally:
        stop.set()
        thread.join()
        preparer.stop()
        processes.withdraw(workspace.database, server)
