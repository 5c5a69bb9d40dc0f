"""Points as they should be: chunks enter, and the index has exactly their points when it is over.

What is there and right is left alone; a vector that is known for an equal input, here or in another index of the same
encoder, is taken over, and only what is left is encoded. Three steps for each group of chunks, so that one group can be
looked up and another one stored while others are encoded. Knows no log and no rounds.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nvr_rag import chunks, indexes
from nvr_rag.access import reading
from nvr_rag.chunks import PlacedChunk
from nvr_rag.db.session import Database
from nvr_rag.errors import NotFound, StoreError
from nvr_rag.ids import sha256_json, sha256_text
from nvr_rag.indexes import LiveIndex
from nvr_rag.stores.base import Point, StoredPoint, Vector

STAGES = ("database", "cut", "compare", "encode", "lexical", "upsert", "flush")  # they overlap: their sum is no time
COUNTED = ("encoded", "reused", "repainted", "kept", "deleted")  # what can be done to a chunk


@dataclass(kw_only=True, slots=True)
class Work:
    """What was done to an index, counted in chunks."""

    encoded: int = 0  # vectors made
    reused: int = 0  # vectors taken over from an equal input
    repainted: int = 0  # payloads replaced, vectors kept
    kept: int = 0  # already as they should be
    deleted: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0), compare=False)  # by stage

    @property
    def chunks(self) -> int:
        return self.written + self.kept

    @property
    def written(self) -> int:
        return self.encoded + self.reused + self.repainted

    def add(self, other: Work) -> None:
        """Count another piece of work as well."""
        for name in COUNTED:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for stage, seconds in other.seconds.items():
            self.spend(stage, seconds)

    def spend(self, stage: str, seconds: float) -> None:
        """Count seconds to a stage."""
        self.seconds[stage] += seconds

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Count the time that the block takes, also when it fails."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.spend(stage, time.perf_counter() - begun)


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
    payload = {**chunk.fields(), reading.FIELD: reading.kept(chunk.acl)}
    return Wanted(
        chunk=chunk,
        text=text,
        input_hash=sha256_text(text),
        payload=payload,
        payload_hash=sha256_json(payload),
    )


@dataclass(kw_only=True, slots=True)
class Group:
    """Points on their way into an index."""

    wanted: Sequence[Wanted]
    new: Sequence[Wanted]  # those that the index has not, or with another vector
    repaint: Mapping[str, dict[str, Any]]  # payloads by id of those that it has with another payload
    vectors: dict[str, Vector]  # by input hash, as far as they are known
    encoded: int = 0  # of these vectors, made for this group

    def missing(self) -> dict[str, str]:
        """Inputs by hash for which there is no vector yet."""
        return {item.input_hash: item.text for item in self.new if item.input_hash not in self.vectors}


def write_group(database: Database, index: LiveIndex, group: Sequence[PlacedChunk], work: Work) -> None:
    """Make the points of these chunks what they should be, encoding only inputs that the index has not seen."""
    found = look_up(database, index, group, work)
    encode(index, found, work)
    store(index, found, work)


def look_up(database: Database, index: LiveIndex, group: Sequence[PlacedChunk], work: Work) -> Group:
    """What the points of these chunks should be, and which vectors there are for them already; writes nothing."""
    with work.timed("compare"):
        wanted = [want(index, chunk) for chunk in group]
        stored = index.points.get([item.id for item in wanted])
        new = [item for item in wanted if _differs(stored.get(item.id), item.input_hash)]
        repaint = {
            item.id: _payload(item)
            for item in wanted
            if not _differs(stored.get(item.id), item.input_hash) and stored[item.id].payload_hash != item.payload_hash
        }
        return Group(wanted=wanted, new=new, repaint=repaint, vectors=_vectors(database, index, new))


def encode(index: LiveIndex, group: Group, work: Work) -> None:
    """Make the vectors that a group lacks, once for equal inputs."""
    with work.timed("encode"):
        make_vectors(index, group)


def make_vectors(index: LiveIndex, group: Group, *, but: Set[str] = frozenset()) -> None:
    """The same, and count nothing; without those whose input hashes are in `but`."""
    missing = {key: text for key, text in group.missing().items() if key not in but}
    if missing:
        vectors = index.encoder.encode_documents(list(missing.values()))
        group.vectors.update(zip(missing, vectors, strict=True))
    group.encoded = len(missing)


def store(index: LiveIndex, group: Group, work: Work) -> None:
    """Write what differs into the index. Doing it again is fine."""
    if group.repaint:
        index.hold()
        with work.timed("upsert"):
            index.points.set_payload(group.repaint)
    if group.new:
        with work.timed("lexical"):
            points = [_point(index, item, group.vectors[item.input_hash]) for item in group.new]
        index.hold()
        with work.timed("upsert"):
            index.points.upsert(points)
    work.encoded += group.encoded
    work.reused += len(group.new) - group.encoded
    work.repainted += len(group.repaint)
    work.kept += len(group.wanted) - len(group.new) - len(group.repaint)


def _point(index: LiveIndex, item: Wanted, dense: Vector) -> Point:
    return Point(id=item.id, dense=dense, lexical=index.lexical.encode_document(item.text), payload=_payload(item))


def collection_of(info: indexes.IndexInfo) -> int:
    """The id of an index's collection. Raises NotFound when that was deleted."""
    if info.collection_id is None:
        raise NotFound("the index's collection was deleted")
    return info.collection_id


def _differs(point: StoredPoint | None, input_hash: str) -> bool:
    return point is None or point.input_hash != input_hash


def _payload(item: Wanted) -> dict[str, Any]:
    return {**item.payload, "input_hash": item.input_hash, "payload_hash": item.payload_hash}


def _vectors(database: Database, index: LiveIndex, new: Sequence[Wanted]) -> dict[str, Vector]:
    """Vectors by input hash that need not be made: under an equal text elsewhere, in this index or in another one."""
    found = _copied(index, new)
    rest = [item for item in new if item.input_hash not in found]
    return found | (_known_vectors(database, index, rest) if rest else {})


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
