"""Architectures other than BERT, against sentence-transformers itself as the independent peer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nvr_rag.encoders.torch import export, load_encoder

from .conftest import WIDTH, WORDS, Build

TEXTS = ["red fox.", "green " * 90, "", "blueish a b c"]
SIZES: dict[str, Any] = {
    "vocab_size": len(WORDS),
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}


def save(directory: Path, network: Any, padding_side: str = "right") -> Path:
    from transformers import BertTokenizer

    network.save_pretrained(directory)
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    BertTokenizer(vocab=vocabulary, padding_side=padding_side).save_pretrained(directory)
    return directory


def with_modules(source: Path, directory: Path, modules: Sequence[Any], **settings: Any) -> Path:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Transformer

    SentenceTransformer(modules=[Transformer(str(source)), *modules], device="cpu", **settings).save(str(directory))
    return directory


def peer_queries(directory: Path) -> Any:
    from sentence_transformers import SentenceTransformer

    vectors = SentenceTransformer(str(directory), device="cpu").encode_query(TEXTS)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_a_decoder_that_pads_on_the_left_and_pools_the_last_token(tmp_path: Path) -> None:
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
    from transformers import Qwen3Config, Qwen3Model

    network = Qwen3Model(Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=8, max_position_embeddings=64))
    source = save(tmp_path / "plain", network, "left")
    modules = [Pooling(WIDTH, "lasttoken"), Normalize()]
    directory = with_modules(source, tmp_path / "model", modules, prompts={"query": "query: "})
    encoder = load_encoder(str(directory), device="cpu")
    assert (encoder.spec.pooling, encoder.spec.query_prompt, encoder.spec.max_tokens) == ("lasttoken", "query: ", 64)
    np.testing.assert_allclose(encoder.encode_queries(TEXTS), peer_queries(directory), atol=1e-5)


def test_two_poolings_a_dense_layer_and_a_shorter_vector(tiny: Build, tmp_path: Path) -> None:
    from sentence_transformers.sentence_transformer.modules import Dense, Pooling

    modules = [Pooling(WIDTH, ("mean", "cls")), Dense(2 * WIDTH, 16)]
    directory = with_modules(tiny("plain", "plain"), tmp_path / "model", modules, truncate_dim=8)
    encoder = load_encoder(str(directory), device="cpu")
    assert (encoder.spec.pooling, encoder.spec.dimension, encoder.spec.normalize) == ("mean+cls", 8, True)
    np.testing.assert_allclose(encoder.encode_queries(TEXTS), peer_queries(directory), atol=1e-5)
    assert sorted(encoder.weights) == ["2_Dense/model.safetensors", "model.safetensors"]
    export(encoder, tmp_path / "copy")
    assert load_encoder(str(tmp_path / "copy")).fingerprint == encoder.fingerprint


@pytest.mark.parametrize("family", ["Roberta", "MPNet"])
def test_positions_that_count_from_behind_the_padding_bound_the_budget(tmp_path: Path, family: str) -> None:
    import transformers

    config = getattr(transformers, f"{family}Config")(**SIZES, max_position_embeddings=26, pad_token_id=1)
    directory = save(tmp_path / "model", getattr(transformers, f"{family}Model")(config))
    encoder = load_encoder(str(directory), device="cpu")
    assert encoder.spec.max_tokens == 24  # 26 rows, the first two are never used
    assert encoder.encode_documents(TEXTS).shape == (len(TEXTS), WIDTH)  # one of them is longer than that
