"""Where a life keeps its data: a configuration's name enters, the settings of its processes and a look into its
database leave. The look is plain SQL, so that it owes nothing to the product's code, and leaves no trace.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg

from tests import engines
from tests.killing.program import save_model

MODELS = 4  # model directories, told apart by their seed
CONFIGURATIONS = ("sqlite+edge", "postgresql+edge", "postgresql+qdrant")

Look = Callable[[str], list[tuple[Any, ...]]]


class Place:
    """A folder with a data folder, the documents to mirror, models, and what the processes said."""

    def __init__(self, folder: Path, configuration: str, qdrant: str | None = None) -> None:
        """Make the folder, and a database where the configuration wants one; `qdrant` is the URL of a server."""
        self.folder, self.configuration = folder, configuration
        self.home, self.documents, self.more = folder / "home", folder / "documents", folder / "more"
        self.logs = folder / "logs"
        self.keep = False  # for somebody to look at
        for made in (self.documents, self.more, self.logs):
            made.mkdir(parents=True)
        for seed in range(MODELS):
            save_model(seed, self.model(seed))
        if configuration.startswith("postgresql"):
            engines.new_home(self.home)
        self._url, self._qdrant = engines.url_of(self.home), qdrant

    def model(self, seed: int) -> Path:
        """A model directory."""
        return self.folder / f"model-{seed}"

    @property
    def settings(self) -> Mapping[str, str]:
        """The environment of the processes."""
        given = {"NVR_DATABASE_URL": self._url, "NVR_QDRANT__URL": self._qdrant}
        if self._qdrant:  # a lease is three times as long, and an index of a killed process waits for its end
            given["NVR_QDRANT__TIMEOUT_SECONDS"] = "4"
        return {
            "NVR_HOME": str(self.home),
            "NVR_ENCODER": str(self.model(0)),
            "NVR_API__PORT": "0",
            "NVR_DEBUG": "1",
            **{name: value for name, value in given.items() if value},
        }

    @contextmanager
    def look(self) -> Iterator[Look]:
        """A function that asks the database; what it is asked sees what is committed."""
        if self._url:
            url = self._url.replace("+psycopg", "", 1)
            with psycopg.connect(url, autocommit=True) as opened:
                yield lambda statement: opened.execute(statement.encode()).fetchall()
        else:
            # Read only: whoever opens the file after a crash mends it, and that is to be the product.
            path = f"file:{self.home / 'corpus.sqlite3'}?mode=ro"
            with closing(sqlite3.connect(path, uri=True, timeout=30)) as file:
                yield lambda statement: file.execute(statement).fetchall()

    def remove(self) -> None:
        """Delete all of it."""
        engines.forget(self.folder)
        shutil.rmtree(self.folder, ignore_errors=True)
