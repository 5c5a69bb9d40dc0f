"""Which chunks a query's judgments rule out as its negatives, and which they offer.

What is ruled out is a *text*: a digest decides, not an id, so that an exact copy shares the fate of what it copies.
Judgments of a chunk are more precise than those of its document: a chunk that was said to be irrelevant is no answer
although its document is one. No scores here: which of the remaining candidates are too close is the rule's question.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from training.data import JudgedQuery
from training.mining.records import Corpus

Rows = NDArray[np.int64]

RuledOut = Literal["known_positive", "copy_of_positive", "neighbour"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Closure:
    """The judgments of one query, in rows of the corpus, and what follows from them. A text is named by its code."""

    positives: Mapping[int, int]  # row -> grade >= 1, judged chunk by chunk
    documents: Sequence[tuple[Rows, int]]  # of a document that answers: its rows, ascending by ordinal; grade >= 1
    judged: frozenset[int]  # rows said to be irrelevant; some may be copies of a positive
    known_rows: frozenset[int]  # all rows of the two first
    known_texts: frozenset[int]  # theirs
    near_texts: frozenset[int]  # of the passages around a positive, which nobody judged
    judged_texts: frozenset[int]  # of `judged`

    @property
    def answered(self) -> bool:
        """Whether the corpus holds a positive."""
        return bool(self.known_rows)

    def rules_out(self, row: int, text: int) -> RuledOut | None:
        """Why this row can be no negative of the query, or None when it may be one."""
        if row in self.known_rows:
            return "known_positive"
        if text in self.known_texts:
            return "copy_of_positive"
        return "neighbour" if text in self.near_texts else None


class Closures:
    """The closures of queries over one corpus. Built once, in time and memory linear in its rows."""

    def __init__(self, corpus: Corpus, *, neighbours: int) -> None:
        self.texts, _ = _coded(corpus.digests)  # (N,): rows of one text have one code
        self._ids, self._reach = corpus.ids, neighbours
        self._document_of, self._documents = _coded(corpus.documents)
        ordinals = np.asarray(corpus.ordinals, dtype=np.int64)
        self._ordinal_of = ordinals
        self._reading_order = np.lexsort((ordinals, self._document_of))  # rows, document by document
        self._ordinals = ordinals[self._reading_order]
        self._starts = np.searchsorted(
            self._document_of[self._reading_order], np.arange(len(self._documents) + 1)
        )  # of each document in the reading order

    def of(self, query: JudgedQuery) -> Closure:
        """The closure of one query. What the corpus does not hold is passed over."""
        judged = frozenset(row for row, grade in self._judged(query) if grade == 0)
        positives = {row: grade for row, grade in self._judged(query) if grade > 0}
        judged_texts = self._texts_of(judged)
        documents = list(self._answering(query, judged_texts))
        known = frozenset(positives).union(*(rows.tolist() for rows, _ in documents))
        known_texts = self._texts_of(known)
        near = self._texts_of(row for positive in positives for row in self._around(positive))
        return Closure(
            positives=positives,
            documents=documents,
            judged=judged,
            known_rows=known,
            known_texts=known_texts,
            near_texts=near - known_texts - judged_texts,
            judged_texts=judged_texts,
        )

    def _judged(self, query: JudgedQuery) -> Iterable[tuple[int, int]]:
        """(row, grade) of the judged chunks that the corpus holds."""
        for chunk, grade in query.chunks.items():
            row = bisect_left(self._ids, chunk)
            if row < len(self._ids) and self._ids[row] == chunk:
                yield row, grade

    def _answering(self, query: JudgedQuery, irrelevant: frozenset[int]) -> Iterable[tuple[Rows, int]]:
        """Rows and grade of each document that answers, without the texts that somebody called irrelevant."""
        for document, grade in query.documents.items():
            code = self._documents.get(document)
            if grade > 0 and code is not None:
                rows = self._reading_order[self._starts[code] : self._starts[code + 1]]
                rows = rows[[text not in irrelevant for text in self.texts[rows].tolist()]]
                if len(rows):
                    yield rows, grade

    def _around(self, row: int) -> list[int]:
        """Rows of the same document within reach, the row itself included."""
        code, ordinal = self._document_of[row], self._ordinal_of[row]
        start, stop = self._starts[code], self._starts[code + 1]
        first, last = np.searchsorted(self._ordinals[start:stop], (ordinal - self._reach, ordinal + self._reach + 1))
        near: list[int] = self._reading_order[start + first : start + last].tolist()
        return near

    def _texts_of(self, rows: Iterable[int]) -> frozenset[int]:
        return frozenset(self.texts[list(rows)].tolist())


def _coded(names: Sequence[str]) -> tuple[NDArray[np.int64], dict[str, int]]:
    """A number for each distinct name, in order of appearance: (N,), and the number of each name."""
    codes: dict[str, int] = {}
    numbers = np.fromiter((codes.setdefault(name, len(codes)) for name in names), np.int64, len(names))
    return numbers, codes
