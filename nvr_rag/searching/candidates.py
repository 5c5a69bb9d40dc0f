"""What an index proposes: a query made ready goes in, ids with their ranks and scores come out. Knows no database."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass

from nvr_rag.access import reading
from nvr_rag.filters import And, Filter
from nvr_rag.fusion import FusionSettings, fuse
from nvr_rag.indexes import LiveIndex
from nvr_rag.stores.base import Scored, SparseVector, Vector
from nvr_rag.types import Mode, Reader


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A query made ready for an index."""

    dense: Vector | None  # None = this side is not asked
    lexical: SparseVector | None

    @property
    def fused(self) -> bool:
        """Both sides are asked."""
        return self.dense is not None and self.lexical is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class Sides:
    """What both sides of an index proposed, each to the same depth."""

    dense: Sequence[Scored]  # best first
    lexical: Sequence[Scored]
    exhausted: bool  # no side has more

    def only(self, ids: Container[str]) -> Sides:
        """The same as if the index had nothing else: whoever may not see the rest cannot tell from the ranks."""
        dense = [item for item in self.dense if item.id in ids]
        return Sides(dense=dense, lexical=[item for item in self.lexical if item.id in ids], exhausted=self.exhausted)

    def ids(self) -> list[str]:
        """Of either side, each once."""
        return list(dict.fromkeys(item.id for side in (self.dense, self.lexical) for item in side))


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidates:
    """The fused order, and where each side had them."""

    ranked: Sequence[tuple[str, float]]  # (id, score), best first
    dense: Mapping[str, tuple[int, float]]  # id -> (rank, score)
    lexical: Mapping[str, tuple[int, float]]
    exhausted: bool  # there are no more


def encode(index: LiveIndex, text: str, mode: Mode, known: Vector | None = None) -> Asked:
    """Make a query ready for an index; `known` is its dense vector where somebody has made it already."""
    dense = known if mode != Mode.LEXICAL else None
    if dense is None and mode != Mode.LEXICAL:
        dense = index.encoder.encode_queries([text])[0]
    return Asked(dense=dense, lexical=index.lexical.encode_query(text) if mode != Mode.DENSE else None)


def permitted(where: Filter | None, reader: Reader, restricted: bool) -> Filter | None:
    """What the store is asked: the query's own filter, and what the reader may see. Where nothing is restricted the
    store need not look: what it proposes is looked at again in any case."""
    allowed = reading.restriction(reader) if restricted else None
    if where is None or allowed is None:
        return allowed if where is None else where
    return And(parts=(where, allowed))


def ask(index: LiveIndex, asked: Asked, where: Filter | None, depth: int) -> Sides:
    """The first `depth` of each side that is asked."""
    dense = index.points.search_dense(asked.dense, depth, where) if asked.dense is not None else []
    lexical = index.points.search_lexical(asked.lexical, depth, where) if asked.lexical is not None else []
    return Sides(dense=dense, lexical=lexical, exhausted=len(dense) < depth and len(lexical) < depth)


def rank(sides: Sides, asked: Asked, fusion: FusionSettings) -> Candidates:
    """How both sides rank together; one side alone as it is."""
    if asked.fused:
        ranked = fuse(sides.dense, sides.lexical, fusion)
    else:
        ranked = [(item.id, item.score) for item in (sides.dense or sides.lexical)]
    return Candidates(
        ranked=ranked, dense=_ranks(sides.dense), lexical=_ranks(sides.lexical), exhausted=sides.exhausted
    )


def _ranks(side: Iterable[Scored]) -> dict[str, tuple[int, float]]:
    return {item.id: (rank, item.score) for rank, item in enumerate(side, start=1)}
