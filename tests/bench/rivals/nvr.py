"""nvr-rag, through the function that `nvr-rag ingest` calls."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import select

from ingest.pipeline import ingest
from nvr_rag.db import tables as t
from nvr_rag.errors import StoreUnavailable
from nvr_rag.settings import Settings
from nvr_rag.workspace import Workspace
from tests.bench.rivals.drive import refuse_once


class Nvr:
    def __init__(self, state: Path) -> None:
        self._workspace = Workspace(Settings(home=state, threads=2))
        self._workspace.default_encoder()

    def sync(self, folder: Path) -> None:
        ingest(self._workspace, [folder])

    def dump(self) -> list[tuple[str, str]]:
        with self._workspace.database.read() as connection:
            (index_id,) = connection.execute(select(t.SearchIndex.id).where(t.SearchIndex.state == "live")).one()
            rows = connection.execute(
                select(t.Chunk.id, t.Document.uri, t.Chunk.text).join(t.Document, t.Document.id == t.Chunk.document_id)
            ).all()
        there = {point.id for point in self._workspace.index(index_id).points.scan()}
        return [(uri.removeprefix("file://"), text) for key, uri, text in rows if key in there]

    def fail_at(self, call: int) -> None:
        from nvr_rag.stores.edge import EdgeIndex

        refuse_once(EdgeIndex, "upsert", call, StoreUnavailable("refused for the benchmark"))


def open_tool(state: Path, _model: str) -> Nvr:
    return Nvr(state)
