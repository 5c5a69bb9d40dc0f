"""What mining reads, taken out of the database and the serving index by the process that owns them.

A collection enters; files in the lap's folder leave: judged queries, and the chunks of the index with the vectors that
it was built with, row by row in ascending chunk id. Nothing is encoded here.

    corpus/rows.jsonl    {"id", "sha256", "document_id", "ordinal"} of each row
    corpus/vectors.f32   (N, D) float32, little-endian, row-major
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

import numpy as np

from nvr_rag import chunks, indexes
from nvr_rag.chunks import PlacedChunk, View
from nvr_rag.db.session import Database
from nvr_rag.encoders.spec import EncoderSpec
from nvr_rag.indexes import LiveIndex
from nvr_rag.stores.base import StoredPoint, Vector
from nvr_rag.types import ANYBODY
from nvr_rag.upkeep.writing import collection_of
from training.data import Example, JudgedQuery, Passage, read_lines, write_lines
from training.mining.records import Corpus, MinedPair, Negative

_LOOKUP = 1000  # chunks looked up at a time
_REPORT_EVERY = 1000  # rows

Report = Callable[[int], None]  # rows so far


def export_index(database: Database, index: LiveIndex, folder: Path, report: Report) -> int:
    """Write rows and vectors of everything that everybody may find in the index; how many rows.

    The index stands still meanwhile: searches go on, changes wait.
    """
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    with index.maintenance, _whole(folder / "rows.jsonl") as rows, _whole(folder / "vectors.f32") as vectors:
        for chunk, vector in _joined(database, index):
            row = {
                "id": chunk.chunk_id,
                "sha256": chunk.sha256,
                "document_id": chunk.document_id,
                "ordinal": chunk.ordinal,
            }
            rows.write(json.dumps(row).encode() + b"\n")
            vectors.write(np.asarray(vector, "<f4").tobytes())
            count += 1
            if count % _REPORT_EVERY == 0:
                report(count)
    return count


def read_corpus(folder: Path, dimension: int) -> Corpus:
    """What `export_index` wrote; the vectors stay on the disk until they are read."""
    rows = list(read_lines(folder / "rows.jsonl"))
    shape = (len(rows), dimension)
    vectors = np.memmap(folder / "vectors.f32", "<f4", "r", shape=shape) if rows else np.empty(shape, np.float32)
    return Corpus(
        ids=[row["id"] for row in rows],
        digests=[row["sha256"] for row in rows],
        documents=[row["document_id"] for row in rows],
        ordinals=np.array([row["ordinal"] for row in rows], dtype=np.int64),
        vectors=vectors,
    )


def write_queries(path: Path, queries: Sequence[JudgedQuery]) -> None:
    write_lines(path, (asdict(query) for query in queries))


def read_queries(path: Path) -> list[JudgedQuery]:
    return [JudgedQuery(**row) for row in read_lines(path)]


def write_pairs(path: Path, pairs: Sequence[MinedPair]) -> None:
    write_lines(path, ({**asdict(pair), "known": sorted(pair.known)} for pair in pairs))


def read_pairs(path: Path) -> Iterator[MinedPair]:
    for row in read_lines(path):
        negatives = tuple(Negative(*one) for one in row["negatives"])
        yield MinedPair(**{**row, "negatives": negatives, "known": frozenset(row["known"])})


def with_texts(
    database: Database,
    index: LiveIndex,
    pairs: Sequence[MinedPair],
    queries: Mapping[str, JudgedQuery],
    spec: EncoderSpec,
) -> list[Example]:
    """The pairs as examples: document inputs as `spec` renders them. What was deleted or changed since it was mined is
    left out, and so is what was closed; a pair whose positive is gone is left out altogether."""
    wanted = {pair.positive for pair in pairs} | {one.id for pair in pairs for one in pair.negatives}
    passages = {
        chunk.chunk_id: Passage(
            id=chunk.sha256, text=spec.render(title=chunk.title, headings=chunk.headings, text=chunk.text)
        )
        for chunk in _visible(database, index, sorted(wanted))
    }
    return [
        Example(
            query_key=pair.query_key,
            query=queries[pair.query_key].text,
            positive=passages[pair.positive],
            negatives=tuple(passages[one.id] for one in pair.negatives if one.id in passages),
            known=pair.known,
        )
        for pair in pairs
        if pair.positive in passages
    ]


def _visible(database: Database, index: LiveIndex, ids: Sequence[str]) -> Iterator[PlacedChunk]:
    for start in range(0, len(ids), _LOOKUP):
        with database.read() as connection:
            seq = indexes.applied_seq(connection, index.info.id)
            part = ids[start : start + _LOOKUP]
            view = View(chunking_id=index.info.chunking_id, since=seq, until=seq, reader=ANYBODY)
            yield from chunks.visible(connection, part, view)


def _joined(database: Database, index: LiveIndex) -> Iterator[tuple[PlacedChunk, Vector]]:
    """Chunks that everybody may see, with their vectors; both sides come in ascending order of id."""
    with database.read() as connection:
        info = indexes.get(connection, index.info.id)
        points: Iterator[StoredPoint] = index.points.scan(with_vectors=True)
        point = next(points, None)
        for chunk in chunks.all_chunks(connection, collection_of(info), info.chunking_id, info.applied_seq):
            while point is not None and point.id < chunk.chunk_id:
                point = next(points, None)
            if point is not None and point.id == chunk.chunk_id and point.dense is not None and chunk.acl is None:
                yield chunk, point.dense


@contextmanager
def _whole(path: Path) -> Iterator[BinaryIO]:
    """A file that gets its name when the block ends well."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
