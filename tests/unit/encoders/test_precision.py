"""bfloat16 only where it changes nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nvr_rag.encoders.base import Vectors
from nvr_rag.encoders.bundled import BUNDLED
from nvr_rag.encoders.precision import PROBES, agree, fastest
from nvr_rag.encoders.torch import _passes, load_encoder


def turned(angle: float) -> Vectors:
    """Two vectors of lengths 1 and 5, the second one turned by so many degrees."""
    radians = np.radians(angle)
    return np.array([[1.0, 0.0], [5 * np.cos(radians), 5 * np.sin(radians)]], dtype=np.float32)


@pytest.mark.parametrize(("angle", "same"), [(0, True), (2.5, True), (2.6, False), (180, False)])
def test_vectors_agree_up_to_a_cosine_of_0_999(angle: float, same: bool) -> None:
    """cos 2.5 degrees is 0.99905, cos 2.6 degrees 0.99897."""
    assert agree(turned(0), turned(angle)) is same


def test_what_is_no_number_never_agrees() -> None:
    assert not agree(turned(0), turned(0) * np.nan)
    assert not agree(turned(0), np.full_like(turned(0), np.inf))


@pytest.mark.parametrize("same", [True, False])
def test_a_model_stays_as_it_is_where_bfloat16_changes_its_vectors(same: bool) -> None:
    import torch

    model: Any = torch.nn.Linear(4, 4)
    before = model.weight.detach().clone()

    def encode(one: Any) -> Vectors:
        return turned(0) if one.weight.dtype == torch.float32 or same else turned(30)

    chosen: Any = fastest(model, encode)
    assert chosen.weight.dtype == (torch.bfloat16 if same else torch.float32)
    assert (chosen is model) is not same
    assert torch.equal(model.weight, before)


def test_the_bundled_model_may_compute_in_bfloat16() -> None:
    encoder = load_encoder(BUNDLED, device="cpu", threads=1)

    def encode(one: Any) -> Vectors:
        return _passes(one, encoder._tokens, encoder.spec).encode(PROBES)

    half: Any = fastest(encoder._passes._model, encode)
    assert half is not encoder._passes._model
    vectors = encode(half)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
