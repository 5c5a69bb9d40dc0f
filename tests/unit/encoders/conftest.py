"""Tiny models made from configurations: random weights, real directories, milliseconds to load."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "query",
    "passage",
    ":",
    "red",
    "green",
    "blue",
    "##ish",
    "fox",
    ".",
]
WIDTH = 32
POSITIONS = 24

Build = Callable[..., Path]


def _plain(directory: Path, *, labels: int | None = None) -> None:
    """A directory as transformers saves it: config.json, model.safetensors, tokenizer.json. With `labels` it is one
    that scores pairs."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertModel, BertTokenizer

    torch.manual_seed(7)
    config = BertConfig(
        **({} if labels is None else {"num_labels": labels, "initializer_range": 0.3}),
        vocab_size=len(WORDS),
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=POSITIONS,
    )
    network = BertModel(config) if labels is None else BertForSequenceClassification(config)  # type: ignore[no-untyped-call]
    network.save_pretrained(directory)
    BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}).save_pretrained(directory)


def _sentence(source: Path, directory: Path, *, pooling: str, normalize: bool, **settings: Any) -> None:
    """The same as sentence-transformers saves it, with its own modules and settings."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    modules = [Transformer(str(source)), Pooling(WIDTH, pooling)]
    modules += [Normalize()] if normalize else []
    SentenceTransformer(modules=modules, device="cpu", **settings).save(str(directory))


def _cross_encoder(source: Path, directory: Path) -> None:
    """The same as sentence-transformers saves it."""
    from sentence_transformers import CrossEncoder

    CrossEncoder(str(source), device="cpu").save_pretrained(str(directory))


@pytest.fixture(scope="session")
def saved_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    made = {name: root / name for name in ("plain", "prompts", "cls", "dot", "pairs", "saved-pairs", "classes")}
    _plain(made["plain"])
    _plain(made["pairs"], labels=1)
    _plain(made["classes"], labels=3)
    _cross_encoder(made["pairs"], made["saved-pairs"])
    prompts = {"query": "query: ", "passage": "passage: "}
    _sentence(made["plain"], made["prompts"], pooling="mean", normalize=True, prompts=prompts)
    _sentence(made["plain"], made["cls"], pooling="cls", normalize=True)
    _sentence(made["plain"], made["dot"], pooling="mean", normalize=False, similarity_fn_name="dot")
    return made


@pytest.fixture
def tiny(saved_models: dict[str, Path], tmp_path: Path) -> Build:
    """A fresh copy of one of the tiny models: plain, prompts, cls (pooling), dot (not normalised); pairs, saved-pairs
    (a cross-encoder as transformers and as sentence-transformers save it) and classes (one with three scores)."""

    def build(name: str = "prompts", copy: str = "model") -> Path:
        return Path(shutil.copytree(saved_models[name], tmp_path / copy))

    return build
