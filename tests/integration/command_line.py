"""A command line on a data folder of its own, with doubles for store and encoder, for the tests of the commands."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from typer.testing import CliRunner, Result

from nvr_rag.cli import app
from nvr_rag.settings import load_settings
from nvr_rag.testing import HashEncoder, MemoryStore
from nvr_rag.workspace import Workspace
from tests.support import House


class CommandLine:
    """Runs commands as a person would; `store` outlives each of them."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.store = MemoryStore()
        self.encoder = HashEncoder()

    def open_workspace(self) -> Workspace:
        """What stands in for the commands' own way to their data folder."""
        return Workspace(load_settings(), store=self.store, encoder=self.encoder)

    @contextmanager
    def house(self) -> Iterator[House]:
        """The same data folder, open in between; "default" is there."""
        opened = House(self.home, store=self.store, encoder=self.encoder)
        try:
            if not opened.index_id:
                opened.workspace.create_collection("default")
            yield opened
        finally:
            opened.close()

    def __call__(self, *arguments: str, stdin: str | bytes | None = None) -> Result:
        return CliRunner().invoke(app, list(arguments), input=stdin, prog_name="nvr-rag")

    def json(self, *arguments: str, code: int = 0) -> Any:
        """The one document on stdout of a command that ends with `code`."""
        result = self(*arguments, "--json")
        assert result.exit_code == code, result.output
        return json.loads(result.stdout)


def register(app: typer.Typer) -> None:
    """Commands as another package may contribute them; one of them has a name that is taken."""

    @app.command("extra")
    def extra() -> None:
        print("extra")

    @app.command("status")
    def status() -> None:
        print("not this one")
