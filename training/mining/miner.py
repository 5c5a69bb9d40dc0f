"""Judged queries and a corpus in, (query, positive) pairs with hard negatives out.

For each positive apart: chunks that were said to be irrelevant come first, then the best-scoring candidates that
neither the judgments nor the rule speak against. What is filtered out fills no quota: a pair may have fewer negatives,
or none.
Where vectors and judgments come from, and what a chunk's text is, is not known here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from nvr_rag.errors import InvalidInput
from training.data import JudgedQuery
from training.mining import rules
from training.mining.candidates import exact_scores, nearest
from training.mining.closure import Closure, Closures
from training.mining.records import Corpus, MinedPair, MiningSettings, Negative, RuleName, Vectors
from training.mining.report import MiningReport, Removal, Tally

BLOCK = 512  # queries that one pass over the vectors serves

Rule = Callable[[NDArray[np.float64], float], rules.Mask]
Progress = Callable[[int, int], None]  # queries done, queries in all


@dataclass(frozen=True, kw_only=True, slots=True)
class Mined:
    """What mining made."""

    pairs: Sequence[MinedPair]  # by query key, then positive id
    report: MiningReport


def mine(
    queries: Sequence[JudgedQuery],
    query_vectors: Vectors,
    corpus: Corpus,
    settings: MiningSettings,
    progress: Progress | None = None,
) -> Mined:
    """Mine each query of which the corpus holds a positive. `query_vectors` (Q, D) are in the queries' order.

    The same input gives the same output, to the bit. Raises InvalidInput when vectors and queries do not fit together.
    """
    _check(queries, query_vectors, corpus)
    miner = _Miner(corpus, settings)
    order = sorted(range(len(queries)), key=lambda at: queries[at].key)
    pairs: list[MinedPair] = []
    for start in range(0, len(order), BLOCK):
        block = order[start : start + BLOCK]
        pairs += miner.mine([queries[at] for at in block], query_vectors[block])
        if progress:
            progress(start + len(block), len(order))
    return Mined(pairs=tuple(pairs), report=miner.tally.report())


def _check(queries: Sequence[JudgedQuery], query_vectors: Vectors, corpus: Corpus) -> None:
    expected = (len(queries), corpus.vectors.shape[1])
    if query_vectors.shape != expected or query_vectors.dtype != np.float32:
        found = f"{query_vectors.shape} of {query_vectors.dtype}"
        raise InvalidInput(f"query vectors are {expected} of float32, not {found}; encode with the corpus's encoder")
    keys = {query.key for query in queries}
    if len(keys) != len(queries):
        raise InvalidInput("a query key occurs twice; merge the judgments of a query before mining")


def _rule(settings: MiningSettings) -> Rule:
    table: Mapping[RuleName, Rule] = {
        "naive": rules.naive,
        "margin-pos": partial(rules.margin_pos, margin=settings.margin),
        "perc-pos": partial(rules.perc_pos, ratio=settings.ratio),
    }
    return table[settings.rule]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Positive:
    row: int
    grade: int  # >= 1
    score: float


@dataclass(frozen=True, kw_only=True, slots=True)
class _Candidates:
    """The candidates (C,) of one query: rows said to be irrelevant, then the nearest others; each by (-score, row)."""

    rows: Sequence[int]
    texts: Sequence[int]  # codes
    scores: NDArray[np.float64]


class _Miner:
    """What stays the same from block to block."""

    def __init__(self, corpus: Corpus, settings: MiningSettings) -> None:
        self._corpus, self._settings = corpus, settings
        self._closures = Closures(corpus, neighbours=settings.neighbours)
        self._rule = _rule(settings)
        self.tally = Tally(settings)

    def mine(self, queries: Sequence[JudgedQuery], vectors: Vectors) -> Iterator[MinedPair]:
        """Pairs of a block of queries with their vectors (B, D)."""
        closures = [self._closures.of(query) for query in queries]
        for closure in closures:
            self.tally.query(answered=closure.answered)
        answered = [at for at, closure in enumerate(closures) if closure.answered]
        if not answered:
            return
        found = nearest(vectors[answered], self._corpus.vectors, self._settings.depth)
        for at, rows, scores in zip(answered, *found, strict=True):
            candidates = self._candidates(closures[at], vectors[at], rows, scores)
            yield from self._pairs(queries[at].key, closures[at], candidates, vectors[at])

    def _pairs(self, key: str, closure: Closure, candidates: _Candidates, vector: Vectors) -> Iterator[MinedPair]:
        ids, digests = self._corpus.ids, self._corpus.digests
        known = frozenset(digests[row] for row in closure.known_rows)
        for positive in self._positives(closure, vector):
            far = self._rule(candidates.scores, positive.score)
            reasons = list(_removals(closure, candidates, far.tolist()))
            pair = MinedPair(
                query_key=key,
                positive=ids[positive.row],
                grade=positive.grade,
                positive_score=positive.score,
                negatives=tuple(islice(self._kept(closure, candidates, reasons), self._settings.negatives)),
                known=known,
            )
            examined = zip((ids[row] for row in candidates.rows), candidates.scores.tolist(), reasons, strict=True)
            self.tally.pair(pair, examined)
            yield pair

    def _positives(self, closure: Closure, vector: Vectors) -> list[_Positive]:
        """By row; of the copies of one text the best graded, then the first."""
        graded = [*closure.positives.items(), *((self._best(vector, rows), grade) for rows, grade in closure.documents)]
        chosen: dict[int, tuple[int, int]] = {}
        for row, grade in sorted(graded, key=lambda one: (-one[1], one[0])):
            chosen.setdefault(int(self._closures.texts[row]), (row, grade))
        rows = sorted(chosen.values())
        scores = self._scores(vector, [row for row, _ in rows]).tolist()
        return [_Positive(row=row, grade=grade, score=score) for (row, grade), score in zip(rows, scores, strict=True)]

    def _best(self, vector: Vectors, rows: NDArray[np.int64]) -> int:
        """The chunk that stands for a document judged as a whole: the best-scoring one (MaxP), then the first."""
        return int(rows[np.lexsort((rows, -self._scores(vector, rows)))[0]])

    def _candidates(
        self, closure: Closure, vector: Vectors, rows: NDArray[np.int64], scores: NDArray[np.float64]
    ) -> _Candidates:
        judged = np.array(sorted(closure.judged), dtype=np.int64)
        judged_scores = self._scores(vector, judged)
        order = np.lexsort((judged, -judged_scores))
        other = [row not in closure.judged for row in rows.tolist()]
        rows = np.concatenate([judged[order], rows[other]])
        scores = np.concatenate([judged_scores[order], scores[other]])
        return _Candidates(rows=rows.tolist(), texts=self._closures.texts[rows].tolist(), scores=scores)

    def _kept(self, closure: Closure, candidates: _Candidates, reasons: Sequence[Removal | None]) -> Iterator[Negative]:
        for row, score, reason in zip(candidates.rows, candidates.scores.tolist(), reasons, strict=True):
            if reason is None:
                yield Negative(self._corpus.ids[row], score, "judged" if row in closure.judged else "mined")

    def _scores(self, vector: Vectors, rows: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float64]:
        """Equal to the bit to what `nearest` says of the same rows, so that a tie is a tie."""
        at = np.asarray(rows, dtype=np.int64)
        return exact_scores(vector[None, :], np.zeros(len(at), np.int64), self._corpus.vectors, at)


def _removals(closure: Closure, candidates: _Candidates, far: Sequence[bool]) -> Iterator[Removal | None]:
    """Why each candidate is no negative of a positive, None where it is one. `far` (C,) is what the rule keeps.

    The rule guards against unknown positives, so it has no say on texts that a person called irrelevant. A text of
    which it refused one copy is refused in every copy, however much lower another one scores under another heading.
    """
    refused: set[int] = set()
    taken: set[int] = set()
    for row, text, kept in zip(candidates.rows, candidates.texts, far, strict=True):
        reason: Removal | None = closure.rules_out(row, text)
        if reason is None and text not in closure.judged_texts and (not kept or text in refused):
            refused.add(text)
            reason = "rule"
        elif reason is None and text in taken:
            reason = "copy_of_negative"
        elif reason is None:
            taken.add(text)
        yield reason
