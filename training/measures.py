"""Retrieval measures by query: judgments and ranked ids enter, numbers leave.

The measures are those of trec_eval, through ir-measures, which only the extra `training` installs. Knows no text, no
index and no model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import fsum
from typing import Any

from nvr_rag.errors import ConfigurationError, InvalidInput

Qrels = Mapping[str, Mapping[str, int]]  # query -> id -> grade; above 0 = relevant
Run = Mapping[str, Sequence[str]]  # query -> ids, best first, each once

MEASURES = ("nDCG@10", "MRR@10", "R@10", "R@100", "Judged@10")


def measure(qrels: Qrels, run: Run) -> dict[str, dict[str, float]]:
    """Every measure of MEASURES for each judged query, by query in ascending order.

    A query without results scores 0. Queries that are not judged are ignored, and so are judged queries without any
    grade above 0: nothing could be found for them. Judged@10 is a share of the results there are, when they are fewer
    than 10. Raises InvalidInput for an id that is ranked twice, ConfigurationError without ir-measures.
    """
    ir = library()
    measured = {query: dict(qrels[query]) for query in answerable(qrels)}
    scored = [
        # Strictly falling scores: equal ones would be ordered by id.
        ir.ScoredDoc(query, id_, -float(rank))
        for query in measured
        for rank, id_ in enumerate(_distinct(query, run.get(query, ())))
    ]
    names = dict(zip((ir.nDCG @ 10, ir.RR @ 10, ir.R @ 10, ir.R @ 100, ir.Judged @ 10), MEASURES, strict=True))
    values: dict[str, dict[str, float]] = {query: dict.fromkeys(MEASURES, 0.0) for query in measured}
    for metric in ir.iter_calc(list(names), measured, scored) if scored else ():
        values[metric.query_id][names[metric.measure]] = float(metric.value)
    return values


def answerable(qrels: Qrels) -> list[str]:
    """The judged queries with at least one grade above 0, ascending."""
    return sorted(query for query, grades in qrels.items() if any(grade > 0 for grade in grades.values()))


def means(per_query: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The mean of each measure over the queries; nothing when there are none."""
    names = next(iter(per_query.values()), {})
    return {name: fsum(values[name] for values in per_query.values()) / len(per_query) for name in names}


def library() -> Any:
    """The module ir_measures. Raises ConfigurationError when it is not installed."""
    try:
        import ir_measures
    except ImportError as error:
        raise ConfigurationError("measuring needs ir-measures; run: pip install 'nvr-rag[training]'") from error
    return ir_measures


def _distinct(query: str, ids: Sequence[str]) -> Sequence[str]:
    if len(set(ids)) < len(ids):
        raise InvalidInput(f"query {query!r} has an id twice in its ranking; rank each once")
    return ids
