"""How an index follows the log: changes in, points out, and never a step that a crash could make wrong.

One round: cut what is new, encode what is new, upsert, flush, *then* advance `applied_seq`, *then* delete what went
stale and advance `purged_seq`. Every step may be repeated: upserts are idempotent, and a point whose hashes match is
left alone, so a round that died half-way costs only what it had not finished.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from typing import Any, TypeVar

import numpy as np

from nvr_rag import chunks, corpus, indexes
from nvr_rag.chunkings import Chunker
from nvr_rag.chunks import PlacedChunk, Version
from nvr_rag.collections import head_seq
from nvr_rag.db.session import Database
from nvr_rag.errors import ChunkingMismatch, NotFound
from nvr_rag.ids import sha256_json, sha256_text
from nvr_rag.indexes import LiveIndex
from nvr_rag.storable import storable
from nvr_rag.stores.base import Point, StoredPoint, Vector
from nvr_rag.types import ChunkDraft

CHANGES_A_ROUND = 128
CHUNKS_A_GROUP = 256

Item = TypeVar("Item")


@dataclass(kw_only=True, slots=True)
class Work:
    """What was done to an index, counted in chunks."""

    encoded: int = 0  # vectors made
    reused: int = 0  # vectors taken over from an equal input
    repainted: int = 0  # payloads replaced, vectors kept
    kept: int = 0  # already as they should be
    deleted: int = 0

    @property
    def chunks(self) -> int:
        return self.encoded + self.reused + self.repainted + self.kept

    def add(self, other: Work) -> None:
        """Count another piece of work as well."""
        for name in ("encoded", "reused", "repainted", "kept", "deleted"):
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass(kw_only=True, slots=True)
class Progress:
    """Where an index stands, told after every group of chunks."""

    applied_seq: int
    head_seq: int
    work: Work = field(default_factory=Work)


Report = Callable[[Progress], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """A point as it should be, vectors not made yet."""

    chunk: PlacedChunk
    text: str  # the document input: rendered by the encoder's template
    input_hash: str
    payload: dict[str, Any]
    payload_hash: str

    @property
    def id(self) -> str:
        return self.chunk.chunk_id


def catch_up(
    database: Database,
    index: LiveIndex,
    chunker: Chunker,
    *,
    report: Report | None = None,
    stop: threading.Event | None = None,
    rounds: int | None = None,
) -> Work:
    """Apply and purge until the index has everything that the log has, or for so many rounds; `stop` ends it early
    between two groups."""
    work = Work()
    for _ in count() if rounds is None else range(rounds):
        if stop and stop.is_set():
            break
        with index.maintenance:
            moved = apply_round(database, index, chunker, work=work, report=report, stop=stop)
            purged = purge_round(database, index, work=work)
        if not moved and not purged:
            break
    return work


def apply_round(
    database: Database,
    index: LiveIndex,
    chunker: Chunker,
    *,
    work: Work,
    report: Report | None = None,
    stop: threading.Event | None = None,
) -> bool:
    """Bring the next changes of the log into the index; False when there are none or `stop` came first."""
    with database.read() as connection:
        info = indexes.get(connection, index.info.id)
        collection_id = collection_of(info)
        document_ids, upto = corpus.changed_since(connection, collection_id, info.applied_seq, CHANGES_A_ROUND)
        versions = chunks.versions_at(connection, document_ids, upto)
        head = head_seq(connection, collection_id)
    if upto == info.applied_seq:
        return False
    cut_new(database, index, versions, chunker)
    for group in grouped(_chunks(database, versions, info.chunking_id), CHUNKS_A_GROUP):
        write_group(database, index, group, work)
        if report:
            report(Progress(applied_seq=info.applied_seq, head_seq=head, work=work))
        if stop and stop.is_set():
            return False
    index.points.flush()
    with database.write() as connection:
        indexes.advance(connection, info.id, applied=(info.applied_seq, upto))
    if report:
        report(Progress(applied_seq=upto, head_seq=head, work=work))
    return True


def purge_round(database: Database, index: LiveIndex, *, work: Work) -> bool:
    """Delete what the next applied changes made stale; False when everything applied is purged."""
    with database.read() as connection:
        info = indexes.get(connection, index.info.id)
        if info.purged_seq >= info.applied_seq:
            return False
        document_ids, upto = corpus.changed_since(connection, collection_of(info), info.purged_seq, CHANGES_A_ROUND)
        upto = min(upto, info.applied_seq) if document_ids else info.applied_seq
        stale = chunks.stale_chunks(
            connection, document_ids, info.chunking_id, purged=info.purged_seq, applied=info.applied_seq
        )
    if stale:
        index.points.delete(stale)
        index.points.flush()
        work.deleted += len(stale)
    with database.write() as connection:
        indexes.set_purged(connection, info.id, upto)
    return True


def cut_new(database: Database, index: LiveIndex, versions: Sequence[Version], chunker: Chunker) -> None:
    """Cut the versions that this index's chunking has not cut yet, one transaction each.

    A document that cannot be cut for this encoder is marked as failed and has no chunks. The last transaction makes all
    of them durable: no point may reach the store whose chunk a power cut could take back.
    """
    with database.read() as connection:
        pending = chunks.unplaced(connection, versions, index.info.chunking_id)
    for version in pending:
        with database.read() as connection:
            parsed = chunks.parsed_text(connection, version.id)
        drafts: Sequence[ChunkDraft] = ()
        failure: str | None = None
        try:
            drafts = chunker(parsed, index.encoder)
        except ChunkingMismatch as error:  # one document that cannot be cut must not hold up the log behind it
            failure = storable(str(error))
        with database.write(durable=version is pending[-1]) as connection:
            chunks.place(connection, version, index.info.chunking_id, drafts, error=failure)
            if failure:
                corpus.mark_failed(connection, version.document_id, version.seq, failure)


def want(index: LiveIndex, chunk: PlacedChunk) -> Wanted:
    """The point that a chunk should have in an index."""
    text = index.encoder.spec.render(title=chunk.title, headings=chunk.headings, text=chunk.text)
    payload = {**chunk.fields(), "acl": list(chunk.acl) if chunk.acl is not None else None}
    return Wanted(
        chunk=chunk,
        text=text,
        input_hash=sha256_text(text),
        payload=payload,
        payload_hash=sha256_json(payload),
    )


def write_group(database: Database, index: LiveIndex, group: Sequence[PlacedChunk], work: Work) -> None:
    """Make the points of these chunks what they should be, encoding only inputs that the index has not seen."""
    wanted = [want(index, chunk) for chunk in group]
    stored = index.points.get([item.id for item in wanted])
    new = [item for item in wanted if _differs(stored.get(item.id), item.input_hash)]
    repaint = {
        item.id: _payload(item)
        for item in wanted
        if not _differs(stored.get(item.id), item.input_hash) and stored[item.id].payload_hash != item.payload_hash
    }
    if repaint:
        index.points.set_payload(repaint)
    vectors = _vectors(database, index, new, work)
    if new:
        index.points.upsert(
            [
                Point(
                    id=item.id,
                    dense=vectors[item.input_hash],
                    lexical=index.lexical.encode_document(item.text),
                    payload=_payload(item),
                )
                for item in new
            ]
        )
    work.repainted += len(repaint)
    work.kept += len(wanted) - len(new) - len(repaint)


def grouped(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of `size` items; the last may be shorter."""
    iterator = iter(items)
    while group := list(islice(iterator, size)):
        yield group


def collection_of(info: indexes.IndexInfo) -> int:
    """The id of an index's collection. Raises NotFound when that was deleted."""
    if info.collection_id is None:
        raise NotFound("the index's collection was deleted")
    return info.collection_id


def _chunks(database: Database, versions: Sequence[Version], chunking_id: int) -> Iterator[PlacedChunk]:
    for version in versions:
        with database.read() as connection:
            yield from chunks.chunks_of(connection, version, chunking_id)


def _differs(point: StoredPoint | None, input_hash: str) -> bool:
    return point is None or point.input_hash != input_hash


def _payload(item: Wanted) -> dict[str, Any]:
    return {**item.payload, "input_hash": item.input_hash, "payload_hash": item.payload_hash}


def _vectors(database: Database, index: LiveIndex, new: Sequence[Wanted], work: Work) -> dict[str, Vector]:
    """A dense vector for every input hash: found under an equal text elsewhere in the index, or encoded, once each."""
    found = _known_vectors(database, index, new) if new else {}
    texts = {item.input_hash: item.text for item in new if item.input_hash not in found}
    if texts:
        encoded = index.encoder.encode_documents(list(texts.values()))
        found.update(zip(texts, encoded, strict=True))
    work.encoded += len(texts)
    work.reused += len(new) - len(texts)
    return found


def _known_vectors(database: Database, index: LiveIndex, new: Sequence[Wanted]) -> dict[str, Vector]:
    with database.read() as connection:
        collection_id = collection_of(indexes.get(connection, index.info.id))
        digests = sorted({item.chunk.sha256 for item in new})
        same = chunks.same_text(connection, collection_id, digests, but=[item.id for item in new])
    elsewhere = [key for keys in same.values() for key in keys]
    needed = {item.input_hash for item in new}
    hashes = index.points.get(elsewhere) if elsewhere else {}
    useful = [key for key, point in hashes.items() if point.input_hash in needed]
    points = index.points.get(useful, with_vectors=True) if useful else {}
    return {point.input_hash: np.asarray(point.dense) for point in points.values() if point.dense is not None}
