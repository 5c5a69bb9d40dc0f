"""Counting tokens without encoding: a text's words, each counted once and remembered, added up.

Exact, and therefore only for tokenizers of which it is known that no token reaches over a blank and that what one word
becomes does not depend on its neighbours: WordPiece behind BERT's rules. For all others the text itself is encoded.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, repeat
from typing import Any

from tokenizers import Tokenizer

_MAX_KNOWN = 50_000  # words: about 7 MB
_AT_ONCE = 500  # short words
_LONG = 40  # characters; longer words hardly come twice


def adds_up(serialised: str) -> bool:
    """Whether the tokens of a text are those of its words, for a tokenizer given as JSON."""
    content = json.loads(serialised)
    kinds = [(content.get(part) or {}).get("type") for part in ("model", "pre_tokenizer", "normalizer")]
    if kinds[:2] != ["WordPiece", "BertPreTokenizer"] or kinds[2] not in ("BertNormalizer", None):
        return False
    return _frames(content.get("post_processor")) and not any(map(_reaches, content.get("added_tokens") or ()))


def _reaches(added: dict[str, Any]) -> bool:
    """Whether an added token may reach over a blank."""
    return bool(added.get("lstrip") or set(added["content"]) & set(" \t\r\n"))


def _frames(post_processor: dict[str, Any] | None) -> bool:
    """Whether a post-processor puts the same special tokens around every text, and does nothing else."""
    if post_processor is None or post_processor["type"] == "BertProcessing":
        return True
    template = post_processor.get("single") or ()
    return post_processor["type"] == "TemplateProcessing" and sum("Sequence" in part for part in template) == 1


class WordCounter:
    """Counts texts for one such tokenizer. Any number of threads may use it at once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """`tokenizer` neither cuts nor pads."""
        self._tokenizer = tokenizer
        self._frame = len(tokenizer.encode(""))  # special tokens
        self._known: dict[str, int] = {}

    def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, special tokens included."""
        rows = [_words(text) for text in texts]
        if len(self._known) > _MAX_KNOWN:
            self._known = {}  # a new one: another thread may be reading the old one
        known = self._known
        new = set().union(*rows).difference(known)
        counts = self._count(sorted(new))
        long = {word: count for word, count in counts.items() if len(word) > _LONG}
        known.update((word, count) for word, count in counts.items() if word not in long)
        nothing = repeat(0)
        found = [self._frame + sum(map(known.get, row, nothing)) for row in rows]
        if long:
            found = [n + sum(map(long.get, row, nothing)) for n, row in zip(found, rows, strict=True)]
        return found

    def _count(self, words: Sequence[str]) -> dict[str, int]:
        """Short ones as texts of many words, each encoded in this thread: the library's own threads would have to be
        woken for some thirty words, and wait for cores on which an encoder runs. A call holds the interpreter, so none
        is for much text; with long words, which may be whole texts, the library's threads do not."""
        short = [word for word in words if len(word) <= _LONG]
        counts = dict.fromkeys(short, 0)
        for first in range(0, len(short), _AT_ONCE):
            some = short[first : first + _AT_ONCE]
            ends = list(accumulate(len(word) + 1 for word in some))
            encoding = self._tokenizer.encode(" ".join(some), add_special_tokens=False)
            for start, _ in encoding.offsets:
                counts[some[bisect_right(ends, start)]] += 1
        long = [word for word in words if len(word) > _LONG]
        encodings = self._tokenizer.encode_batch_fast(long) if long else []
        return counts | {word: len(encoding) - self._frame for word, encoding in zip(long, encodings, strict=True)}


def _words(text: str) -> list[str]:
    """The text between blanks. Only those four characters: others that Python takes for blanks are dropped by BERT's
    rules, and what is on both sides of them becomes one word."""
    for blank in "\n\t\r":
        if blank in text:
            text = text.replace(blank, " ")
    return text.split(" ")
