"""Versions that an index has not cut yet: their texts go to the chunker, and what it makes of them into the log.

What it has returned from is there for good. Knows no rounds and no points.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from sqlalchemy import Connection, select

from nvr_rag import corpus, indexes, placing
from nvr_rag.chunkings import Chunker
from nvr_rag.chunks import Version
from nvr_rag.db.session import Database
from nvr_rag.documents import serving_chunking
from nvr_rag.errors import ChunkingMismatch
from nvr_rag.indexes import LiveIndex
from nvr_rag.placing import Cutting
from nvr_rag.storable import storable
from nvr_rag.types import ChunkDraft, ParsedText
from nvr_rag.upkeep.writing import collection_of


def cut_new(database: Database, index: LiveIndex, versions: Sequence[Version], chunker: Chunker) -> None:
    """Cut the versions that this index's chunking has not cut yet, and make that durable: no point may reach the store
    whose chunk a power cut could take back.

    A document that cannot be cut for this encoder has no chunks; where this chunking is the one that serves, it is
    marked as failed.
    """
    chunking_id = index.info.chunking_id
    with database.read() as connection:
        pending = placing.unplaced(connection, versions, chunking_id)
        if not pending:
            return
        texts = placing.parsed_texts(connection, pending)
        overlap = indexes.overlap(connection, chunking_id)
    cut = partial(chunker, encoder=index.encoder, overlap=overlap)
    cuttings = [_cutting(version, text, cut) for version, text in zip(pending, texts, strict=True)]
    with database.write() as connection:
        busy = placing.place_free(connection, chunking_id, cuttings)
        _mark_failed(connection, index, [one for one in cuttings if one not in busy])
    for cutting in busy:
        with database.write() as connection:
            placing.place(connection, chunking_id, cutting)
            _mark_failed(connection, index, [cutting])


def _cutting(version: Version, parsed: ParsedText, cut: Callable[[ParsedText], Sequence[ChunkDraft]]) -> Cutting:
    try:
        return Cutting(version=version, drafts=cut(parsed))
    except ChunkingMismatch as error:  # one document that cannot be cut must not hold up the log behind it
        return Cutting(version=version, drafts=(), error=storable(str(error)))


def _mark_failed(connection: Connection, index: LiveIndex, cuttings: Sequence[Cutting]) -> None:
    failed = [one for one in cuttings if one.error]
    if failed and _serves(connection, index):
        for one in failed:
            corpus.mark_failed(connection, one.version.document_id, one.version.seq, one.error or "")


def _serves(connection: Connection, index: LiveIndex) -> bool:
    """Whether searches are answered from what this index's chunking cuts."""
    collection_id = collection_of(indexes.get(connection, index.info.id))
    return bool(connection.scalar(select(serving_chunking(collection_id))) == index.info.chunking_id)
