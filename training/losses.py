"""The loss of the trainer: InfoNCE over the positive, its hard negatives and the negatives of the rest of the batch.

Vectors and what is known about them enter, one number leaves. Texts, tokens and ids stay outside: `batches` says which
passage is what to which query.

Letters: B queries in a batch, P distinct passages in it, D dimensions. A passage that several rows of a batch name is
encoded and scored once: counted twice, it would weigh twice in the denominator. So P <= B*(1+N) with N negatives a row,
and rows with fewer negatives than others need no filling.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nvr_rag.encoders.spec import EncoderSpec

# What a passage is to a query, as the cells of a batch's relation (B, P).
OTHER = 0  # a negative: mined for this query, or met in the batch
OWN = 1  # the positive of the row, once a row
KNOWN = -1  # another known positive of the query, or a copy of one: never scored


def info_nce(queries: Tensor, passages: Tensor, own: Tensor, known_mask: Tensor, temperature: float) -> Tensor:
    """Mean over the queries of -log of the share that the own positive has among all passages that count.

    `queries` (B, D) and `passages` (P, D) are compared by inner product; `own` (B,) is the column of each query's
    positive; cells where `known_mask` (B, P) is true do not count, unless they are the own positive.
    """
    scores = queries @ passages.T / temperature  # (B, P)
    is_own = nn.functional.one_hot(own, passages.shape[0]).bool()  # (B, P)
    scores = scores.masked_fill(known_mask & ~is_own, -torch.inf)  # (B, P)
    return nn.functional.cross_entropy(scores, own)


class InfoNCE(nn.Module):
    """`info_nce` on the vectors that the model gives, as sentence-transformers' trainer calls a loss."""

    def __init__(self, model: nn.Module, spec: EncoderSpec, temperature: float) -> None:
        """Vectors are cut to the dimension of `spec`, and normalised where it says so, as when they are served."""
        super().__init__()
        self.model = model  # the trainer puts its wrapped model under this name
        self._dimension = spec.dimension
        self._normalize = spec.normalize
        self._temperature = temperature

    def forward(self, features: Sequence[dict[str, Any]], labels: Tensor) -> Tensor:
        """`features` are the queries, then the passages in groups of about equal length; `labels` is the relation
        (B, P), its columns in the order of the passages."""
        queries, *groups = [self._vectors(group) for group in features]  # (B, D) and some (p, D), P in all
        is_own = labels == OWN  # (B, P)
        own = is_own.int().argmax(dim=1)  # (B,)
        return info_nce(queries, torch.cat(groups), own, labels == KNOWN, self._temperature)

    def _vectors(self, features: dict[str, Any]) -> Tensor:
        vectors: Tensor = self.model(features)["sentence_embedding"].float()[:, : self._dimension]  # (B, D)
        return nn.functional.normalize(vectors, dim=1) if self._normalize else vectors
