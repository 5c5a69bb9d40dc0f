"""What mining takes and gives: settings, the corpus as arrays, pairs with hard negatives. Nothing here computes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from nvr_rag.errors import InvalidInput

RuleName = Literal["naive", "margin-pos", "perc-pos"]
Kind = Literal["judged", "mined"]  # said to be irrelevant by a person; found and kept by the rule

Vectors = NDArray[np.float32]  # (N, D), in memory or memory-mapped


@dataclass(frozen=True, kw_only=True, slots=True)
class MiningSettings:
    """Which candidates are looked at, which of them may be negatives, and how many become one."""

    rule: RuleName = "perc-pos"
    margin: float = 0.05  # of margin-pos, in units of the teacher's score; >= 0
    ratio: float = 0.95  # of perc-pos, of the positive's score; in (0, 1]
    depth: int = 100  # best chunks examined for each query; >= 1
    negatives: int = 4  # at most, for each pair; 0 leaves those of the batch
    neighbours: int = 4  # chunks before and after a positive that are never its negatives; >= 0

    def __post_init__(self) -> None:
        if self.rule not in get_args(RuleName):
            raise InvalidInput(f"the rule is one of {', '.join(get_args(RuleName))}, not {self.rule!r}", field="rule")
        if not 0 <= self.margin < math.inf:
            raise InvalidInput(f"the margin is finite and at least 0, not {self.margin}", field="margin")
        if not 0 < self.ratio <= 1:
            raise InvalidInput(f"the ratio is above 0 and at most 1, not {self.ratio}", field="ratio")
        for name, least in (("depth", 1), ("negatives", 0), ("neighbours", 0)):
            if getattr(self, name) < least:
                raise InvalidInput(f"{name} is at least {least}, not {getattr(self, name)}", field=name)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Corpus:
    """An exported index, a row for each chunk. Raises InvalidInput when the columns do not fit together."""

    ids: Sequence[str]  # (N,) chunk ids, strictly ascending: the smaller row is the smaller id
    digests: Sequence[str]  # (N,) sha256 of the chunk's text: exact copies share it
    documents: Sequence[str]  # (N,) document ids
    ordinals: NDArray[np.int64]  # (N,) place of the chunk in its document
    vectors: Vectors  # (N, D), the teacher's

    def __post_init__(self) -> None:
        lengths = {len(self.ids), len(self.digests), len(self.documents), len(self.ordinals), len(self.vectors)}
        if len(lengths) != 1:
            raise InvalidInput(f"the corpus has columns of {sorted(lengths)} rows; export the index again")
        if self.vectors.ndim != 2 or self.vectors.dtype != np.float32:
            raise InvalidInput("the corpus needs vectors (N, D) of float32; export the index again")
        for one, other in pairwise(self.ids):
            if one >= other:
                raise InvalidInput(f"chunk id {other!r} follows {one!r}; export the index in ascending chunk id")


class Negative(NamedTuple):
    """A hard negative of a pair."""

    id: str  # chunk id
    score: float  # the teacher's
    why: Kind


@dataclass(frozen=True, kw_only=True, slots=True)
class MinedPair:
    """A query, one of its positives, and the hard negatives of the two."""

    query_key: str
    positive: str  # chunk id
    grade: int  # of the positive, >= 1
    positive_score: float  # the teacher's
    negatives: tuple[Negative, ...]  # judged ones first, then mined ones, each by score; no two share a text
    known: frozenset[str]  # digests of all texts that are known to answer the query: never its negatives
