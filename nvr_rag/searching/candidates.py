"""What an index proposes: a query made ready goes in, ids with their ranks and scores come out. Knows no database."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from nvr_rag.filters import Filter
from nvr_rag.fusion import FusionSettings, fuse
from nvr_rag.indexes import LiveIndex
from nvr_rag.stores.base import Scored, SparseVector, Vector
from nvr_rag.types import Mode


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A query made ready for an index."""

    dense: Vector | None  # None = this side is not asked
    lexical: SparseVector | None
    where: Filter | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidates:
    """What both sides proposed to some depth, and the fused order."""

    ranked: Sequence[tuple[str, float]]  # (id, score), best first
    dense: Mapping[str, tuple[int, float]]  # id -> (rank, score)
    lexical: Mapping[str, tuple[int, float]]
    exhausted: bool  # no side has more


def encode(index: LiveIndex, text: str, mode: Mode, where: Filter | None) -> Asked:
    """Make a query ready for an index."""
    return Asked(
        dense=index.encoder.encode_queries([text])[0] if mode != Mode.LEXICAL else None,
        lexical=index.lexical.encode_query(text) if mode != Mode.DENSE else None,
        where=where,
    )


def propose(index: LiveIndex, fusion: FusionSettings, asked: Asked, depth: int) -> Candidates:
    """The first `depth` of each side that is asked, and how they rank together."""
    dense = index.points.search_dense(asked.dense, depth, asked.where) if asked.dense is not None else []
    lexical = index.points.search_lexical(asked.lexical, depth, asked.where) if asked.lexical is not None else []
    if asked.dense is None or asked.lexical is None:
        ranked = [(item.id, item.score) for item in (dense or lexical)]
    else:
        ranked = fuse(dense, lexical, fusion)
    return Candidates(
        ranked=ranked,
        dense=_ranks(dense),
        lexical=_ranks(lexical),
        exhausted=len(dense) < depth and len(lexical) < depth,
    )


def _ranks(side: Iterable[Scored]) -> dict[str, tuple[int, float]]:
    return {item.id: (rank, item.score) for rank, item in enumerate(side, start=1)}
