"""Points as they should be: chunks enter, and the index has exactly their points when it is over.

What is there and right is left alone; a vector that is known for an equal input, here or in another index of the same
encoder, is taken over, and only what is left is encoded. Knows no log and no rounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from nvr_rag import chunks, indexes
from nvr_rag.chunks import PlacedChunk
from nvr_rag.db.session import Database
from nvr_rag.errors import NotFound, StoreError
from nvr_rag.ids import sha256_json, sha256_text
from nvr_rag.indexes import LiveIndex
from nvr_rag.stores.base import Point, StoredPoint, Vector


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
        return self.written + self.kept

    @property
    def written(self) -> int:
        return self.encoded + self.reused + self.repainted

    def add(self, other: Work) -> None:
        """Count another piece of work as well."""
        for name in ("encoded", "reused", "repainted", "kept", "deleted"):
            setattr(self, name, getattr(self, name) + getattr(other, name))


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
        index.hold()
        index.points.set_payload(repaint)
    vectors = _vectors(database, index, new, work)
    if new:
        index.hold()
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


def collection_of(info: indexes.IndexInfo) -> int:
    """The id of an index's collection. Raises NotFound when that was deleted."""
    if info.collection_id is None:
        raise NotFound("the index's collection was deleted")
    return info.collection_id


def _differs(point: StoredPoint | None, input_hash: str) -> bool:
    return point is None or point.input_hash != input_hash


def _payload(item: Wanted) -> dict[str, Any]:
    return {**item.payload, "input_hash": item.input_hash, "payload_hash": item.payload_hash}


def _vectors(database: Database, index: LiveIndex, new: Sequence[Wanted], work: Work) -> dict[str, Vector]:
    """A dense vector for every input hash: found under an equal text elsewhere in the index, or encoded, once each."""
    found = _copied(index, new)
    rest = [item for item in new if item.input_hash not in found]
    found |= _known_vectors(database, index, rest) if rest else {}
    texts = {item.input_hash: item.text for item in new if item.input_hash not in found}
    if texts:
        encoded = index.encoder.encode_documents(list(texts.values()))
        found.update(zip(texts, encoded, strict=True))
    work.encoded += len(texts)
    work.reused += len(new) - len(texts)
    return found


def _copied(index: LiveIndex, new: Sequence[Wanted]) -> dict[str, Vector]:
    """Vectors that another index here has for the same chunks. One that has gone meanwhile is none to be taken from."""
    needed = {item.id: item.input_hash for item in new}
    found: dict[str, Vector] = {}
    for points in index.others() if new else ():
        missing = [key for key, digest in needed.items() if digest not in found]
        with suppress(StoreError):
            stored = points.get(missing, with_vectors=True).values()
            found.update(
                {p.input_hash: p.dense for p in stored if p.dense is not None and p.input_hash == needed[p.id]}
            )
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
