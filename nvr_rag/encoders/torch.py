"""Encoders on torch: a model directory, a hub id or the bundled model in; vectors out.

Checking the directory is the work of `model_files`, loading it that of `sentence_model`, tokens that of `tokens`, and
in `passes` texts go through the model. torch takes seconds to import and is therefore imported when the first encoder
is loaded. Knows no index, no chunk and no database.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nvr_rag.encoders.base import Encoder, Vectors
from nvr_rag.encoders.bundled import BUNDLED, bundled_directory, check_bundled
from nvr_rag.encoders.fetching import model_directory
from nvr_rag.encoders.model_files import ModelFiles, copy_model, fingerprint, inspect_model, weight_hashes
from nvr_rag.encoders.passes import Passes
from nvr_rag.encoders.precision import PROBES, fastest
from nvr_rag.encoders.sentence_model import load_model, spec_of, traits_of
from nvr_rag.encoders.spec import EncoderSpec
from nvr_rag.encoders.tokens import Tokens
from nvr_rag.errors import EncoderError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


def load_encoder(source: str = BUNDLED, *, device: str | None = None, threads: int | None = None) -> TorchEncoder:
    """Load the bundled model, a model directory, or a model of the Hugging Face hub ("owner/name").

    `device` is a torch device, by default the fastest there is. `threads` sets torch's CPU threads for the whole
    process. The spec is read from nvr_encoder.json, or else derived from the model's own configuration. Raises
    EncoderError: what is wrong with which file, and what to do.
    """
    files = inspect_model(_resolve(source))
    weights = weight_hashes(files)
    if source == BUNDLED:
        check_bundled(weights)
    model = load_model(files, device, threads)
    spec = spec_of(model, files)
    tokens = Tokens(model.tokenizer.backend_tokenizer.to_str(), traits_of(model), max_tokens=spec.max_tokens)
    _check_prompts(tokens, spec, files)
    return TorchEncoder(model, tokens=tokens, spec=spec, files=files, weights=weights)


def export(encoder: Encoder, directory: Path) -> None:
    """Write a loaded encoder and its spec to a new `directory`, whole or not at all.

    Loading `directory` gives an encoder with the same fingerprint. Raises EncoderError, also when it exists.
    """
    if not isinstance(encoder, TorchEncoder):
        raise EncoderError(f"an encoder of the kind {type(encoder).__name__} has no files to copy")
    copy_model(encoder.files, encoder.weights, encoder.spec, directory)


class TorchEncoder:
    """A sentence-transformers model as an `Encoder`. Any number of threads may use it at once: nothing is locked, so a
    long list in one thread never holds up a query in another."""

    def __init__(
        self,
        model: SentenceTransformer,
        *,
        tokens: Tokens,
        spec: EncoderSpec,
        files: ModelFiles,
        weights: dict[str, str],
    ) -> None:
        """`weights` are the hashes of the weight files. Use `load_encoder`."""
        self._tokens = tokens
        self._passes = _passes(model, tokens, spec)
        self.spec = spec
        self.files = files
        self.weights = weights
        self.tokenizer_hash = tokens.hash
        self.fingerprint = fingerprint(files, weights, {"hash": tokens.hash, **asdict(tokens.traits)}, spec)

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        """(N, D) float32, in the order given; of length 1 when the spec says so. Texts over the budget are cut."""
        return self._encode(texts, self.spec.query_prompt)

    def encode_documents(self, inputs: Sequence[str]) -> Vectors:
        """(N, D) float32, in the order given. `inputs` are rendered already (EncoderSpec.render)."""
        return self._encode(inputs, self.spec.document_prompt)

    def count_tokens(self, inputs: Sequence[str]) -> list[int]:
        """Tokens of each document input, special tokens and the document prompt included, nothing cut."""
        return self._tokens.count(inputs, self.spec.document_prompt)

    def count_query_tokens(self, texts: Sequence[str]) -> list[int]:
        """The same of each query, with the query prompt."""
        return self._tokens.count(texts, self.spec.query_prompt)

    def _encode(self, texts: Sequence[str], prompt: str) -> Vectors:
        vectors = self._passes.encode(texts, prompt)
        if not np.isfinite(vectors).all():
            raise EncoderError(
                f"the model in {self.files.directory} gives vectors that are not numbers; train it again"
            )
        return vectors


def _passes(model: SentenceTransformer, tokens: Tokens, spec: EncoderSpec) -> Passes:
    """The way through the model on its device, in the precision that suits both."""

    def through(one: SentenceTransformer) -> Passes:
        return Passes(one, tokens, dimension=spec.dimension, normalize=spec.normalize)

    if model.device.type != "cuda":
        return through(model)
    return through(fastest(model, lambda one: through(one).encode(PROBES, spec.document_prompt)))


def _resolve(source: str) -> Path:
    """The directory that holds a model."""
    if source == BUNDLED:
        return bundled_directory()
    return model_directory(source, otherwise=BUNDLED)


def _check_prompts(tokens: Tokens, spec: EncoderSpec, files: ModelFiles) -> None:
    longest = max(tokens.count([""], spec.query_prompt)[0], tokens.count([""], spec.document_prompt)[0])
    if longest >= spec.max_tokens:
        raise EncoderError(
            f"a prompt of {longest} tokens leaves no room in the {spec.max_tokens} that {files.directory} reads"
        )
