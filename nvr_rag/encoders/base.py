"""What an encoder can be asked. Queries and documents are different roles and never share a method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from nvr_rag.encoders.spec import EncoderSpec

Vectors = NDArray[np.float32]  # (N, D)


class Encoder(Protocol):
    """A loaded encoder version. Safe to call from several threads."""

    @property
    def spec(self) -> EncoderSpec: ...

    @property
    def fingerprint(self) -> str:
        """Hex sha256 over weights, tokenizer and spec: two encoders with equal fingerprints give equal vectors."""

    @property
    def tokenizer_hash(self) -> str:
        """Hex sha256 of the tokenizer alone: encoders that share it count tokens alike."""

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        """(N, D) float32, in the order given; of length 1 when the spec says so. Texts over the budget are cut."""

    def encode_documents(self, inputs: Sequence[str]) -> Vectors:
        """(N, D) float32, in the order given. `inputs` are rendered already (EncoderSpec.render)."""

    def count_tokens(self, inputs: Sequence[str]) -> list[int]:
        """Tokens of each document input, special tokens and the document prompt included, nothing cut."""

    def count_query_tokens(self, texts: Sequence[str]) -> list[int]:
        """The same of each query, with the query prompt."""
