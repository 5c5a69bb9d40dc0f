"""Corpora for the tests of mining, written as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from training.data import JudgedQuery
from training.mining.records import Corpus, Vectors


def vectors(*rows: Sequence[float] | float) -> Vectors:
    """A line a row. A number is a vector of one dimension: with the query 1 it is the chunk's score."""
    lines = [row if isinstance(row, Sequence) else (row,) for row in rows]
    return np.array(lines, dtype=np.float32).reshape(len(lines), -1 if lines else 1)


def corpus(table: Mapping[str, tuple[str, int, str, Sequence[float] | float]]) -> Corpus:
    """Chunk id -> (document, ordinal, text, vector); the text stands for its digest."""
    rows = [table[id_] for id_ in sorted(table)]
    return Corpus(
        ids=sorted(table),
        documents=[document for document, _, _, _ in rows],
        ordinals=np.array([ordinal for _, ordinal, _, _ in rows], dtype=np.int64),
        digests=[text for _, _, text, _ in rows],
        vectors=vectors(*(vector for _, _, _, vector in rows)),
    )


def judged(
    key: str = "q", chunks: Mapping[str, int] | None = None, documents: Mapping[str, int] | None = None
) -> JudgedQuery:
    return JudgedQuery(key=key, id=key, text=key, chunks=chunks or {}, documents=documents or {})
