"""What tests of the core are built from: documents, a chunker and a house with doubles for store and encoder."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from sqlalchemy import select

from nvr_rag import corpus, documents
from nvr_rag.chunkings import Chunker
from nvr_rag.corpus import Put
from nvr_rag.db import tables as t
from nvr_rag.db.session import Database
from nvr_rag.encoders.base import Encoder
from nvr_rag.errors import StoreUnavailable
from nvr_rag.ids import sha256_text
from nvr_rag.indexes import IndexInfo, LiveIndex
from nvr_rag.indexes import get as index_info
from nvr_rag.settings import Settings
from nvr_rag.stores.base import Store
from nvr_rag.testing import HashEncoder, MemoryStore
from nvr_rag.types import ChunkDraft, Hit, Mode, NewDocument, ParsedText, Query, TextFormat
from nvr_rag.upkeep import indexing, verification
from nvr_rag.upkeep.streaming import Job
from nvr_rag.upkeep.verification import Verification
from nvr_rag.upkeep.writing import Work
from nvr_rag.workspace import Workspace
from tests.engines import options_of


def document(uri: str, text: str, *, sha256: str | None = None, **options: Any) -> NewDocument:
    """A document of plain text; options of ParsedText and of NewDocument may be mixed."""
    own = {key: options.pop(key) for key in ("parser", "source", "acl") if key in options}
    parsed = ParsedText(text=text, format=TextFormat.PLAIN, media_type="text/plain", **options)
    return NewDocument(uri=uri, sha256=sha256 or sha256_text(text), parsed=parsed, **own)


def paragraphs(parsed: ParsedText, encoder: Encoder, *, overlap: int = 0) -> Sequence[ChunkDraft]:
    """A chunk for each paragraph that has words."""
    drafts, start = [], 0
    for part in parsed.text.split("\n\n"):
        if part.strip():
            drafts.append(ChunkDraft(text=part, start=start, end=start + len(part)))
        start += len(part) + 2
    return drafts


_COMPILED: dict[Any, Any] = {}  # statements, shared by all houses: compiling them takes longer than running them


def apply_round(
    database: Database,
    index: LiveIndex,
    chunker: Chunker,
    *,
    work: Work,
    stop: threading.Event | None = None,
    budget: int | None = None,
) -> bool:
    """One round of an index, or a turn of so many chunks, and no purge."""
    job = Job(database=database, index=index, chunker=chunker, work=work, stop=stop)
    return indexing.apply_round(job) if budget is None else indexing.apply_turn(job, budget)


def break_off_round(house: House) -> None:
    """A round whose points are stored, and which dies before it is flushed and advanced."""

    def broken() -> None:
        raise StoreUnavailable("the power went")

    points = house.index.points
    points.flush = broken  # type: ignore[method-assign]
    try:
        with suppress(StoreUnavailable):  # there may be nothing to do
            apply_round(house.database, house.index, paragraphs, work=Work())
    finally:
        del points.flush


class House:
    """A workspace with one collection, "default", whose store outlives it."""

    def __init__(self, home: Path, *, store: Store | None = None, encoder: HashEncoder | None = None) -> None:
        self.home = home
        self.store = store if store is not None else MemoryStore()
        self.encoder = encoder or HashEncoder()
        self.workspace = Workspace(Settings(**options_of(home)), store=self.store, encoder=self.encoder)
        self.database = self.workspace.database
        self.database.engine.update_execution_options(compiled_cache=_COMPILED)

    def close(self) -> None:
        self.workspace.close()

    def put(self, *documents: NewDocument) -> list[Put]:
        with self.database.write() as connection:
            return corpus.put(connection, "default", documents)

    def delete(self, *uris: str) -> list[str]:
        with self.database.write() as connection:
            ids = [documents.get(connection, "default", uri).id for uri in uris]
            return corpus.delete_documents(connection, "default", ids)

    def fail(self, uri: str, error: str = "cannot be read", source: str = "") -> None:
        with self.database.write() as connection:
            corpus.fail(connection, "default", uri=uri, source=source, error=error)

    @property
    def index_id(self) -> int:
        with self.database.read() as connection:
            return int(connection.scalars(select(t.SearchIndex.id).order_by(t.SearchIndex.id)).first() or 0)

    @property
    def index(self) -> LiveIndex:
        return self.workspace.index(self.index_id)

    @property
    def row(self) -> IndexInfo:
        with self.database.read() as connection:
            return index_info(connection, self.index_id)

    def catch_up(self) -> Work:
        return indexing.catch_up(self.database, self.index, paragraphs)

    def verify(self, *, repair: bool = False) -> Verification:
        return verification.verify(self.database, self.index, repair=repair)

    def hits(
        self, text: str, *, k: int = 10, mode: Mode | None = None, where: dict[str, Any] | None = None
    ) -> Sequence[Hit]:
        return self.workspace.retriever.search(Query(text=text, k=k, mode=mode, filter=where)).hits

    def texts(self, text: str, **options: Any) -> list[str]:
        return [hit.text for hit in self.hits(text, **options)]

    def points(self) -> set[str]:
        """Ids of all points that the store holds."""
        return {point.id for point in self.index.points.scan()}
