"""Tokenizing for encoders: texts in, token ids or counts out, from many threads at once.

The tokenizer that a model library loads carries its truncation as mutable state, which two threads cannot share. Here
are two copies of it, each configured once: one cuts at the budget, one never cuts. Knows no model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Encoding, Tokenizer

from nvr_rag.encoders.counting import WordCounter, adds_up
from nvr_rag.ids import sha256_json

_SURROGATE = re.compile("[\ud800-\udfff]")
_NO_IDENTITY = ("version", "truncation", "padding", "decoder")  # of a serialised tokenizer: change no token


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerTraits:
    """What a model needs to know beside the token ids."""

    pad_id: int
    pad_type_id: int
    pad_left: bool
    cut_left: bool
    type_ids: bool  # the model reads token type ids
    plain_special: bool  # "[SEP]" written in a text is text, not a special token


class Tokens:
    """One tokenizer and one budget."""

    def __init__(self, serialised: str, traits: TokenizerTraits, *, max_tokens: int) -> None:
        """`serialised` is the JSON of a tokenizer; whatever truncation and padding it holds is ignored."""
        self.traits = traits
        self.hash = tokenizer_hash(serialised)
        self._counting = _bare(serialised, traits)
        self._words = WordCounter(self._counting) if adds_up(serialised) else None
        self._cutting = _bare(serialised, traits)
        self._cutting.enable_truncation(max_tokens, direction="left" if traits.cut_left else "right")

    def encode(self, texts: Sequence[str], prompt: str = "") -> list[Encoding]:
        """Ids of prompt + text with special tokens, cut at the budget, not padded."""
        return self._cutting.encode_batch_fast([_clean(prompt + text) for text in texts])

    def count(self, texts: Sequence[str], prompt: str = "") -> list[int]:
        """Tokens of prompt + text with special tokens, nothing cut."""
        inputs = [_clean(prompt + text) for text in texts]
        if self._words is not None:
            return self._words.count(inputs)
        return [len(encoding) for encoding in self._counting.encode_batch_fast(inputs)]

    def prompt_length(self, prompt: str) -> int:
        """Tokens that a prompt takes at the beginning of an input: a closing special token is not among them."""
        encoding = self._cutting.encode(_clean(prompt))
        closing = encoding.special_tokens_mask[-1:] == [1]
        return len(encoding) - closing


def tokenizer_hash(serialised: str) -> str:
    """Hex sha256 of what decides which tokens a text becomes.

    Left out: truncation and padding (a state, not an identity), decoding, and values that only newer or older releases
    of the library write down (null, false), so that saving a tokenizer again does not rename it.
    """
    content = json.loads(serialised)
    for key in _NO_IDENTITY:
        content.pop(key, None)
    merges = content["model"].get("merges")
    if merges:
        content["model"]["merges"] = [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]
    return sha256_json(_without_defaults(content))


def _without_defaults(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_defaults(item) for key, item in value.items() if item is not None and item is not False}
    if isinstance(value, list):
        return [_without_defaults(item) for item in value]
    return value


def _bare(serialised: str, traits: TokenizerTraits) -> Tokenizer:
    tokenizer = Tokenizer.from_str(serialised)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = traits.plain_special
    return tokenizer


def _clean(text: str) -> str:
    """Lone surrogates, which no tokenizer takes, become the replacement character."""
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)
