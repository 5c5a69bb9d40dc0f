"""The loss against a sum worked out by hand, a reference in NumPy, and the gradient that the formula has."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from nvr_rag.encoders.spec import EncoderSpec
from training.losses import KNOWN, OTHER, OWN, InfoNCE, info_nce

Matrix = NDArray[np.float64]

B, P, D = 5, 9, 6


def reference(
    queries: Matrix, passages: Matrix, own: list[int], known: NDArray[np.bool_], temperature: float
) -> tuple[float, Matrix, Matrix]:
    """Loss and gradients for queries and passages; one query after the other, one term after the other."""
    loss, by_query, by_passage = 0.0, np.zeros_like(queries), np.zeros_like(passages)
    for row, positive in enumerate(own):
        counted = [column for column in range(len(passages)) if column == positive or not known[row, column]]
        terms = {column: math.exp(queries[row] @ passages[column] / temperature) for column in counted}
        total = sum(terms.values())
        loss -= math.log(terms[positive] / total)
        for column, term in terms.items():
            slope = (term / total - (column == positive)) / temperature
            by_query[row] += slope * passages[column]
            by_passage[column] += slope * queries[row]
    return loss / len(own), by_query / len(own), by_passage / len(own)


def drawn(seed: int) -> tuple[Matrix, Matrix, list[int], NDArray[np.bool_]]:
    random = np.random.default_rng(seed)
    own = random.permutation(P)[:B].tolist()
    return random.normal(size=(B, D)), random.normal(size=(P, D)), own, random.random((B, P)) < 0.3


class Fake(torch.nn.Module):
    """A model whose vectors are its input."""

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        return {"sentence_embedding": features["vectors"]}


def spec(*, dimension: int = D, normalize: bool) -> EncoderSpec:
    return EncoderSpec(dimension=dimension, max_tokens=16, pooling="mean", normalize=normalize)


def test_two_queries_and_three_passages_by_hand() -> None:
    queries = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    passages = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    known = torch.tensor([[False, True, False], [False, False, False]])
    loss = info_nce(queries, passages, torch.tensor([0, 1]), known, temperature=0.5)
    # scores over temperature: 2, masked, 1.2 and 0, 2, 1.6
    first = -math.log(math.exp(2) / (math.exp(2) + math.exp(1.2)))
    second = -math.log(math.exp(2) / (math.exp(0) + math.exp(2) + math.exp(1.6)))
    assert loss.item() == pytest.approx((first + second) / 2, abs=1e-6)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("temperature", [0.3, 1.0])
def test_loss_and_gradients_are_those_of_the_formula(seed: int, temperature: float) -> None:
    queries, passages, own, known = drawn(seed)
    loss, by_query, by_passage = reference(queries, passages, own, known, temperature)
    q, p = torch.from_numpy(queries).requires_grad_(), torch.from_numpy(passages).requires_grad_()
    measured = info_nce(q, p, torch.tensor(own), torch.from_numpy(known), temperature)
    measured.backward()  # type: ignore[no-untyped-call]
    assert q.grad is not None
    assert p.grad is not None
    assert measured.item() == pytest.approx(loss, rel=1e-12)
    np.testing.assert_allclose(q.grad.numpy(), by_query, atol=1e-12)
    np.testing.assert_allclose(p.grad.numpy(), by_passage, atol=1e-12)


def test_a_passage_known_to_every_query_moves_nothing() -> None:
    queries, passages, own, _ = drawn(1)
    spare = next(column for column in range(P) if column not in own)
    known = np.zeros((B, P), dtype=bool)
    known[:, spare] = True
    p = torch.from_numpy(passages).requires_grad_()
    loss = info_nce(torch.from_numpy(queries), p, torch.tensor(own), torch.from_numpy(known), 0.5)
    loss.backward()  # type: ignore[no-untyped-call]
    assert p.grad is not None
    assert p.grad[spare].abs().max() == 0
    rest = [column for column in range(P) if column != spare]
    alone = info_nce(
        torch.from_numpy(queries),
        torch.from_numpy(passages[rest]),
        torch.tensor([rest.index(column) for column in own]),
        torch.zeros(B, P - 1, dtype=torch.bool),
        0.5,
    )
    assert loss.item() == pytest.approx(alone.item(), rel=1e-12)


def test_the_own_positive_counts_though_it_is_among_the_known() -> None:
    queries, passages, own, known = drawn(2)
    columns = torch.tensor(own)
    without, among = torch.from_numpy(known.copy()), torch.from_numpy(known.copy())
    without[range(B), columns] = False
    among[range(B), columns] = True
    q, p = torch.from_numpy(queries), torch.from_numpy(passages)
    assert info_nce(q, p, columns, among, 0.5) == info_nce(q, p, columns, without, 0.5)


def test_a_query_with_nothing_to_tell_apart_costs_nothing() -> None:
    q = torch.ones(1, 2)
    loss = info_nce(q, torch.ones(2, 2), torch.tensor([1]), torch.tensor([[True, False]]), 0.05)
    assert loss.item() == 0


@pytest.mark.parametrize("normalize", [True, False])
def test_the_module_reads_the_relation_and_the_groups_in_order(normalize: bool) -> None:
    queries, passages, own, known = drawn(3)
    relation = torch.full((B, P), OTHER, dtype=torch.int8)
    relation[torch.from_numpy(known)] = KNOWN
    relation[range(B), own] = OWN
    features = [{"vectors": torch.from_numpy(one)} for one in (queries, passages[:4], passages[4:7], passages[7:])]
    loss = InfoNCE(Fake(), spec(normalize=normalize), 0.5)(features, relation)
    if normalize:
        queries, passages = (one / np.linalg.norm(one, axis=1, keepdims=True) for one in (queries, passages))
    assert loss.item() == pytest.approx(reference(queries, passages, own, known, 0.5)[0], rel=1e-5)


def test_the_module_cuts_vectors_before_it_normalises_them() -> None:
    queries, passages, own, _ = drawn(0)
    relation = torch.zeros(B, P, dtype=torch.int8)
    relation[range(B), own] = OWN
    features = [{"vectors": torch.from_numpy(one)} for one in (queries, passages)]
    loss = InfoNCE(Fake(), spec(dimension=3, normalize=True), 0.5)(features, relation)
    queries, passages = queries[:, :3], passages[:, :3]
    queries, passages = (one / np.linalg.norm(one, axis=1, keepdims=True) for one in (queries, passages))
    none = np.zeros((B, P), dtype=bool)
    assert loss.item() == pytest.approx(reference(queries, passages, own, none, 0.5)[0], rel=1e-5)
