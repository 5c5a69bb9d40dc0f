"""A sentence-transformers CrossEncoder as a `Reranker`: a model directory or a hub id in, scores of pairs out.

The directory is checked as an encoder's is: complete, safetensors only, code that comes with a model is never run.
torch takes seconds to import and is therefore imported when the model is loaded. Knows no index and no chunk.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nvr_rag.encoders.fetching import model_directory
from nvr_rag.encoders.model_files import ModelFiles, inspect_model, weight_hashes
from nvr_rag.encoders.sentence_model import UNLIMITED_TOKENS, made_up, positions, quiet
from nvr_rag.errors import EncoderError
from nvr_rag.ids import sha256_json, sha256_text

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder

_BATCH = 16  # pairs of about one length
_ACTIVATION = re.compile(r"torch\.nn\.(modules\.(activation|linear)\.)?[A-Za-z]+")
_OTHERWISE = "leave NVR_RERANKER unset, and nothing is reranked"


def load_cross_encoder(source: str, *, device: str | None = None, threads: int | None = None) -> TorchReranker:
    """Load a model directory, or a model of the Hugging Face hub ("owner/name").

    `device` is a torch device, by default the fastest there is; `threads` sets torch's CPU threads for the process.
    Raises EncoderError: what is wrong with which file, and what to do.
    """
    files = inspect_model(model_directory(source, otherwise=_OTHERWISE), kind="CrossEncoder")
    for path, config in files.configs.items():
        _check_activation(files.directory / path, config)
    weights = weight_hashes(files)
    return TorchReranker(_load(files, device, threads), files=files, weights=weights)


class TorchReranker:
    """One model on one device. Threads may share it: they take turns, batch by batch of their own calls."""

    def __init__(self, model: CrossEncoder, *, files: ModelFiles, weights: Mapping[str, str]) -> None:
        """`weights` are the hashes of the weight files. Use `load_cross_encoder`."""
        self._model, self._directory = model, files.directory
        self._turn = threading.Lock()  # the tokenizer cannot be shared while it cuts
        self.fingerprint = sha256_json(
            {
                "weights": dict(weights),
                "modules": list(files.modules),
                "configs": dict(files.configs),
                "tokenizer": sha256_text(model.tokenizer.backend_tokenizer.to_str()),
                "max_tokens": model.max_seq_length,
                "activation": type(model.activation_fn).__name__,
            }
        )

    def score(self, query: str, texts: Sequence[str]) -> list[float]:
        """One score a text, in the order given; what is too long is cut, the longer of query and text first."""
        if not texts:
            return []
        pairs: Any = [(query, text) for text in texts]
        try:
            with self._turn:
                scores = self._model.predict(pairs, batch_size=_BATCH, show_progress_bar=False)
        except Exception as error:  # whatever the libraries raise, out of memory above all
            raise EncoderError(
                f"the reranker in {self._directory} failed ({error}); rerank fewer candidates (NVR_RERANK_DEPTH), or "
                "use a smaller model"
            ) from error
        if not np.isfinite(scores).all():
            raise EncoderError(
                f"the reranker in {self._directory} gives scores that are not numbers; use another model"
            )
        return [float(score) for score in scores]


def _load(files: ModelFiles, device: str | None, threads: int | None) -> CrossEncoder:
    import torch
    from sentence_transformers import CrossEncoder
    from sentence_transformers.util import get_device_name

    if threads is not None:
        torch.set_num_threads(threads)
    try:
        with quiet():
            model: CrossEncoder = CrossEncoder(
                str(files.directory),
                device="cpu",
                trust_remote_code=False,
                local_files_only=True,
                model_kwargs={"use_safetensors": True, "dtype": torch.float32},
            )
        _check_model(model, files.directory)
        _bound(model)
        model.to(device or get_device_name()).eval()
        return model
    except EncoderError:
        raise
    except Exception as error:  # whatever the libraries raise about a model: it cannot be used
        raise EncoderError(f"the reranker in {files.directory} cannot be loaded: {error}") from error


def _check_model(model: CrossEncoder, where: Path) -> None:
    """Raise EncoderError for what the libraries let pass: above all an encoder of single texts, whose head they would
    fill with random numbers."""
    transformer: Any = model[0]
    missing = made_up(transformer.model)
    if missing:
        raise EncoderError(
            f"the weights in {where} lack {missing[0]} ({len(missing)} missing): it is no cross-encoder, or not whole; "
            "use one that was trained to score pairs, such as cross-encoder/ms-marco-MiniLM-L6-v2"
        )
    if model.num_labels != 1:
        raise EncoderError(f"the model in {where} gives {model.num_labels} scores for a pair; use one that gives one")
    if not getattr(model.tokenizer, "is_fast", False):
        raise EncoderError(f"the tokenizer in {where} has no fast form; save it as tokenizer.json")


def _bound(model: CrossEncoder) -> None:
    """See to it that nothing longer than the table of positions is read."""
    limit, said = positions(model), model.max_seq_length
    if limit is not None:
        model.max_seq_length = min(said or limit, limit)
    elif not said or said > 1_000_000:  # how tokenizers write "no limit"
        model.max_seq_length = UNLIMITED_TOKENS


def _check_activation(path: Path, config: Mapping[str, Any]) -> None:
    """The libraries call whatever a model names here."""
    own = config.get("sentence_transformers")
    named = [config.get("sbert_ce_default_activation_function"), config.get("activation_fn")]
    named.append(own.get("activation_fn") if isinstance(own, Mapping) else None)
    for name in named:
        if name is not None and not (isinstance(name, str) and _ACTIVATION.fullmatch(name)):
            raise EncoderError(
                f"{path} names the activation {name!r}, which is none of torch.nn; do not use this model"
            )
