"""What comes next for an index: changes of the log, a round of them at a time, and the chunks of their versions.

A round ends at a change, after so many changes or so much text, whichever comes first, so that what waits behind it
need not wait long. Knows no points.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice

from nvr_rag import chunks, corpus, indexes
from nvr_rag.chunkings import Chunker
from nvr_rag.chunks import PlacedChunk, Version
from nvr_rag.collections import head_seq
from nvr_rag.db.session import Database
from nvr_rag.indexes import LiveIndex
from nvr_rag.upkeep.cutting import cut_new
from nvr_rag.upkeep.writing import Work, collection_of

CHANGES_A_ROUND = 256
CHARACTERS_A_ROUND = 1_000_000  # about 1,000 chunks; a single longer document is a round
CHARACTERS_A_CUT = 100_000  # cut and in the log for good before any of it is written
CHUNKS_A_GROUP = 256
FIRST_GROUP = 64  # of a job, for which the encoder has to wait
MEASURED_CHUNKS = 1000  # encoded, after which an encoder's speed is known
FASTER = 2  # at most so many times as much in a round and in a group, for a fast encoder


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """The changes that come next, and what an index that has them shows of the documents that they touch."""

    info: indexes.IndexInfo
    since: int  # number of the last change before them
    upto: int  # number of the last of them
    head: int  # of the log
    document_ids: frozenset[str]
    versions: Sequence[Version]
    lengths: Mapping[int, int]  # characters, by version id
    size: int  # of a group, in chunks


def next_round(database: Database, index: LiveIndex, work: Work | None, *, since: int | None = None) -> Round | None:
    """What is to be applied next, or after the change `since`, in one state of the log; None when there is nothing.

    What `work` says of the rounds before decides how much one holds; without, it is the usual.
    """
    times = 1 if work is None else _times(work)
    with database.read() as connection:
        info = indexes.get(connection, index.info.id)
        start = info.applied_seq if since is None else since
        collection_id, most = collection_of(info), CHANGES_A_ROUND * times
        document_ids, upto = corpus.changed_since(connection, collection_id, start, most)
        versions = chunks.versions_at(connection, document_ids, upto)
        lengths = chunks.characters(connection, versions)
        end = _end(lengths, versions, upto, CHARACTERS_A_ROUND * times)
        if end < upto:
            document_ids, upto = corpus.changed_since(connection, collection_id, start, most, until=end)
            versions = chunks.versions_at(connection, document_ids, upto)
            lengths = chunks.characters(connection, versions)
        head = head_seq(connection, collection_id)
    if upto <= start:
        return None
    return Round(
        info=info,
        since=start,
        upto=upto,
        head=head,
        document_ids=frozenset(document_ids),
        versions=versions,
        lengths=lengths,
        size=CHUNKS_A_GROUP * times,
    )


def groups(
    database: Database, index: LiveIndex, of: Round, chunker: Chunker, work: Work
) -> Generator[list[PlacedChunk]]:
    """The chunks of a round, cut where they were not; in order, so many at a time."""
    with closing(_chunks(database, index, of, chunker, work)) as found:
        while True:
            begun, cut = time.perf_counter(), work.seconds["cut"]
            group = list(islice(found, of.size if work.chunks else min(of.size, FIRST_GROUP)))
            cut = work.seconds["cut"] - cut  # a part of the group may have had to be cut first
            work.spend("database", time.perf_counter() - begun - cut)
            if not group:
                return
            yield group


def _times(work: Work) -> int:
    """How many times the usual a round holds, so that a group takes a fast encoder about a second, too: only many texts
    at once keep a GPU busy, and every round waits for a disk."""
    if work.encoded < MEASURED_CHUNKS or not work.seconds["encode"]:
        return 1
    return max(1, min(FASTER, int(work.encoded / work.seconds["encode"]) // CHUNKS_A_GROUP))


def _end(lengths: Mapping[int, int], versions: Sequence[Version], upto: int, enough: int) -> int:
    """The number of the change with which there is text enough for a round."""
    total = 0
    for version in versions:
        total += lengths[version.id]
        if total >= enough:
            return version.seq
    return upto


def _chunks(database: Database, index: LiveIndex, of: Round, chunker: Chunker, work: Work) -> Generator[PlacedChunk]:
    for versions in _portions(of.versions, of.lengths):
        with work.timed("cut"):
            cut_new(database, index, versions, chunker)
        with database.read() as connection:
            yield from chunks.chunks_of(connection, versions, of.info.chunking_id)


def _portions(versions: Sequence[Version], lengths: Mapping[int, int]) -> Iterator[list[Version]]:
    """The versions in order, so many at a time that a portion has text enough to be worth a durable transaction."""
    portion: list[Version] = []
    held = 0
    for version in versions:
        portion.append(version)
        held += lengths[version.id]
        if held >= CHARACTERS_A_CUT:
            yield portion
            portion, held = [], 0
    if portion:
        yield portion
