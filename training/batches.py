"""Batches for the trainer: examples enter, what a sentence-transformers model reads leaves, texts tokenised once.

Queries and passages become tokens as they do when they are served: the prompt of their role in front, the tokenizer of
the encoder, only the budget is smaller. Knows no loss and no optimiser.

Letters: B rows of a batch, P distinct passages in it, T tokens of the longest input of a group.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from nvr_rag.encoders.batching import batches, windows
from nvr_rag.encoders.tokens import Tokens
from training.data import Example, Passage
from training.losses import KNOWN, OTHER, OWN

Ids = NDArray[np.int64]  # (2, T): token ids, token type ids

_WINDOW_TEXTS = 1024  # tokenised together


class Inputs:
    """Distinct texts of one role, tokenised once, by a key."""

    def __init__(self, texts: Mapping[str, str], tokens: Tokens, prompt: str) -> None:
        """`tokens` cuts at the budget of the training, `prompt` is the one of the role."""
        self._traits = tokens.traits
        self._prompt_length = tokens.prompt_length(prompt) if prompt else None
        self._ids = dict(zip(texts, _tokenise(list(texts.values()), tokens, prompt), strict=True))

    def length(self, key: str) -> int:
        """Tokens of one text; at least one, because nothing is read as one token of padding."""
        return int(self._ids[key].shape[1])

    def features(self, keys: Sequence[str]) -> dict[str, Any]:
        """What a model reads: tensors (B, T), padded to the longest of these texts."""
        traits = self._traits
        width = max(self.length(key) for key in keys)
        ids = np.full((len(keys), width), traits.pad_id, dtype=np.int64)  # (B, T)
        types = np.full_like(ids, traits.pad_type_id)  # (B, T)
        mask = np.zeros_like(ids)  # (B, T)
        for row, key in enumerate(keys):
            length = self.length(key)
            span = slice(width - length, width) if traits.pad_left else slice(0, length)
            mask[row, span] = 1
            ids[row, span], types[row, span] = self._ids[key]
        arrays = {"input_ids": ids, "attention_mask": mask} | ({"token_type_ids": types} if traits.type_ids else {})
        features: dict[str, Any] = {name: torch.from_numpy(array) for name, array in arrays.items()}
        return features if self._prompt_length is None else {**features, "prompt_length": self._prompt_length}


class Collator:
    """Rows of a batch become features and the relation between their queries and passages."""

    valid_label_columns: ClassVar[Sequence[str]] = ()  # asked for by the trainer: no column of the rows is a label

    def __init__(self, examples: Sequence[Example], queries: Inputs, passages: Inputs, *, budget: int) -> None:
        """`budget` bounds the padded tokens of a group of passages that goes through the model at once."""
        self._examples = examples
        self._queries = queries
        self._passages = passages
        self._budget = budget

    def __call__(self, rows: Sequence[Mapping[str, int]]) -> dict[str, Any]:
        """The features under the prefixes by which the trainer tells them apart, queries first, and the relation
        (B, P) under "label". `rows` name examples by their position."""
        examples = [self._examples[row["row"]] for row in rows]
        ids = list(dict.fromkeys(passage.id for example in examples for passage in _passages(example)))
        groups = [
            [ids[i] for i in group] for group in batches([self._passages.length(i) for i in ids], budget=self._budget)
        ]
        batch = _prefixed("query_", self._queries.features([example.query for example in examples]))
        for number, group in enumerate(groups):
            batch |= _prefixed(f"passage{number}_", self._passages.features(group))
        batch["label"] = relation(examples, [i for group in groups for i in group])
        return batch


def query_texts(examples: Iterable[Example]) -> dict[str, str]:
    """The distinct query texts, each its own key."""
    return {example.query: example.query for example in examples}


def passage_texts(examples: Iterable[Example]) -> dict[str, str]:
    """The distinct passages, by id."""
    return {passage.id: passage.text for example in examples for passage in _passages(example)}


def relation(examples: Sequence[Example], ids: Sequence[str]) -> torch.Tensor:
    """What each passage is to each query: OWN, KNOWN or OTHER."""
    cells = torch.full((len(examples), len(ids)), OTHER, dtype=torch.int8)  # (B, P)
    for row, example in enumerate(examples):
        for column, passage in enumerate(ids):
            if passage == example.positive.id:
                cells[row, column] = OWN
            elif passage in example.known:
                cells[row, column] = KNOWN
    return cells


def _passages(example: Example) -> tuple[Passage, ...]:
    return (example.positive, *example.negatives)


def _tokenise(texts: Sequence[str], tokens: Tokens, prompt: str) -> list[Ids]:
    empty = [[tokens.traits.pad_id], [tokens.traits.pad_type_id]]  # only tokenizers without special tokens give nothing
    return [
        np.array([encoding.ids, encoding.type_ids] if len(encoding) else empty, dtype=np.int64)
        for window in windows([1] * len(texts), count=_WINDOW_TEXTS, total=_WINDOW_TEXTS)
        for encoding in tokens.encode([texts[i] for i in window], prompt)
    ]


def _prefixed(prefix: str, features: Mapping[str, Any]) -> dict[str, Any]:
    return {prefix + name: value for name, value in features.items()}
