"""In which precision a model computes on a GPU: in bfloat16, twice to ten times as fast, where that changes nothing.

The fingerprint of an encoder promises equal vectors wherever it runs: an index that a GPU has built is searched with
queries that a CPU has encoded. So bfloat16 is used only when its vectors of a few texts point where those in float32
do; what is left of a difference is far below what separates two hits. Knows no files.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from nvr_rag.encoders.base import Vectors

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

MIN_COSINE = 0.999  # between the two vectors of each probe; all-MiniLM-L6-v2 has 0.9998 and more
PROBES = (
    "A short question?",
    "The index stores the fingerprint of its encoder, and opening it with another one is refused.",
    "def mean(values: list[float]) -> float:\n    return sum(values) / len(values)\n",
    "| name | value |\n|---|---|\n| threshold | 0.05 |\n| depth | 1,000 |",
    "Größere Änderungen werden vorab angekündigt. 重要な変更は事前に告知されます。 Важные изменения объявляют.",
    "Patients with heart failure were followed for two years. " * 12,
)


def agree(exact: Vectors, fast: Vectors) -> bool:
    """Whether each of these vectors points where its counterpart does."""
    if not (np.isfinite(exact).all() and np.isfinite(fast).all()):
        return False
    lengths = np.linalg.norm(exact, axis=1) * np.linalg.norm(fast, axis=1)  # (N,)
    return bool(((exact * fast).sum(axis=1) >= MIN_COSINE * lengths).all())


def fastest(model: SentenceTransformer, encode: Callable[[SentenceTransformer], Vectors]) -> SentenceTransformer:
    """A copy of the model in bfloat16, or the model itself where the two do not agree; `encode` makes the vectors of
    the PROBES with a model. Both are on the device for a moment."""
    import torch

    half = copy.deepcopy(model).to(torch.bfloat16).eval()
    return half if agree(encode(model), encode(half)) else model
