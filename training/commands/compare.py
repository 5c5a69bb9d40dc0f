"""`nvr-rag compare`: two evaluations of the same questions; is the second better by more than chance?"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nvr_rag import output
from nvr_rag.commands import common
from nvr_rag.errors import InvalidInput

if TYPE_CHECKING:
    from training.evaluation import Dataset
    from training.significance import Comparison

_EXTREMES = 5  # queries shown at each end


def compare(
    base: Annotated[Path, typer.Argument(metavar="BASE.json", help="What nvr-rag evaluate --output wrote.")],
    other: Annotated[Path, typer.Argument(metavar="OTHER.json", help="The same of what may be better.")],
    measure: Annotated[str, typer.Option(help="The measure to compare by.")] = "nDCG@10",
    seed: Annotated[int, typer.Option(min=0, help="Of the random draws: the same seed gives the same numbers.")] = 0,
    as_json: common.AsJson = False,
) -> None:
    """Compare two evaluations query by query: the difference, its 95 % interval, and how often chance gives as much."""
    from training import significance
    from training.evaluation import Evaluation

    one, two = Evaluation.read(base), Evaluation.read(other)
    _check_same(one.data, two.data)
    _check_measure(measure, one.means)
    found = significance.compare(one.per_query, two.per_query, measure, seed=seed)
    moved = significance.differences_by_query(one.per_query, two.per_query, measure)
    order = sorted((query for query, by in moved.items() if by), key=lambda query: (-moved[query], query))
    rows = [_row(query, one.per_query[query][measure], two.per_query[query][measure]) for query in order]
    winners = [row for row in rows if row["difference"] > 0][:_EXTREMES]
    losers = [row for row in reversed(rows) if row["difference"] < 0][:_EXTREMES]
    if as_json:
        output.emit({**asdict(found), "seed": seed, "winners": winners, "losers": losers})
    else:
        _show(found, winners, losers)


def _row(query: str, base: float, other: float) -> dict[str, Any]:
    return {"query": query, "base": base, "other": other, "difference": other - base}


def _check_same(base: Dataset, other: Dataset) -> None:
    if base.sha256 != other.sha256:
        raise InvalidInput(
            f"the evaluations are of different data: {base.name} {base.split} ({base.sha256[:12]}) and "
            f"{other.name} {other.split} ({other.sha256[:12]}); evaluate both on the same"
        )


def _check_measure(measure: str, means: Any) -> None:
    if measure not in means:
        raise InvalidInput(f"no measure {measure!r}; there are: {', '.join(means)}", field="measure")


def _show(found: Comparison, winners: list[dict[str, Any]], losers: list[dict[str, Any]]) -> None:
    by = found.difference
    output.pairs(
        {
            found.measure: f"{found.base:.4f} -> {found.other:.4f} over {found.n:,} queries",
            "difference": f"{by.mean:+.4f}, 95 % interval [{by.low:+.4f}, {by.high:+.4f}]",
            "p": f"{found.p:.4f} (two-sided randomisation test)",
            "queries": f"{found.wins:,} better, {found.losses:,} worse, {found.ties:,} equal",
        }
    )
    if found.only_base or found.only_other:
        output.note(f"Left out: {found.only_base:,} queries only in the first, {found.only_other:,} only in the second")
    for title, rows in (("Most better", winners), ("Most worse", losers)):
        if rows:
            output.say()
            values = [(row["query"], *(f"{row[name]:.4f}" for name in ("base", "other", "difference"))) for row in rows]
            output.table((title, "base", "other", "difference"), values)
