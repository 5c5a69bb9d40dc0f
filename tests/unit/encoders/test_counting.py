"""Counting by words gives what encoding the text gives, and is only used where that is certain."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from nvr_rag.encoders import counting
from nvr_rag.encoders.bundled import bundled_directory
from nvr_rag.encoders.counting import WordCounter, adds_up


@lru_cache
def serialised() -> str:
    return (bundled_directory() / "tokenizer.json").read_text("utf-8")


@lru_cache
def tokenizer() -> Tokenizer:
    made = Tokenizer.from_str(serialised())
    made.no_truncation()
    made.no_padding()
    return made


@lru_cache
def counter() -> WordCounter:
    """One for all examples, so that later ones find words that earlier ones have left."""
    return WordCounter(tokenizer())


PIECES = st.sampled_from(
    [
        " ", "  ", "\n", "\r\n", "\t", "\x0b", "\x0c", "\x1c", "\x1f", "\x85", "\xa0", "\u2028", "\u2003", "\u200b",
        "\x00", "\ufffd", "\ufeff", "\u0301", "e\u0301", "É", "ß", "İ", "Σ", "[SEP]", "[MASK]", "[sep]", "##ing",
        "unaffable", "漢字", "かな", "한국어", "नमस्ते", "👩\u200d👩\u200d👧", "x" * 39, "y" * 120, "1,234.5",
        "word", "don't", "https://a.b/c?d=e", "—", "\u202e",
    ]
)  # fmt: skip
TEXTS = st.one_of(st.text(max_size=60), st.lists(st.one_of(PIECES, st.text(max_size=3)), max_size=40).map("".join))


@settings(max_examples=400, deadline=None)
@given(texts=st.lists(TEXTS, max_size=4))
def test_counts_are_those_of_the_tokenizer(texts: list[str]) -> None:
    clean = [text.encode("utf-8", "replace").decode() for text in texts]
    assert counter().count(clean) == [len(encoding) for encoding in tokenizer().encode_batch(clean)]


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "_MAX_KNOWN", 50)
    own = WordCounter(tokenizer())
    for start in range(0, 1000, 20):
        own.count([" ".join(f"word{number}" for number in range(start, start + 20)), "z" * 5000])
        assert len(own._known) <= 50 + 20
        assert not any(len(word) > 40 for word in own._known)


def test_no_call_that_holds_the_interpreter_is_for_much_text() -> None:
    """A text without blanks is one word."""
    lengths: list[int] = []

    class Listening:
        def encode(self, text: str, **options: Any) -> Any:
            lengths.append(len(text))
            return tokenizer().encode(text, **options)

        def encode_batch_fast(self, texts: list[str]) -> Any:
            return tokenizer().encode_batch_fast(texts)

    own = WordCounter(Listening())  # type: ignore[arg-type]
    texts = ["\u6f22" * 100_000, " ".join(f"w{number}" + "x" * 30 for number in range(3000))]
    assert own.count(texts) == [len(encoding) for encoding in tokenizer().encode_batch(texts)]
    assert max(lengths) <= 500 * 41


def test_the_bundled_tokenizer_adds_up() -> None:
    assert adds_up(serialised())


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}},
        {"pre_tokenizer": {"type": "ByteLevel"}},
        {"normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "_"}},
        {"added_tokens": [{"id": 1, "content": "New York", "special": False}]},
        {"added_tokens": [{"id": 1, "content": "<mask>", "special": True, "lstrip": True}]},
        {"post_processor": {"type": "TemplateProcessing", "single": [{"Sequence": {}}, {"Sequence": {}}]}},
        {"post_processor": {"type": "ByteLevel"}},
    ],
)
def test_other_tokenizers_are_not_taken_for_one_that_does(change: dict[str, Any]) -> None:
    assert not adds_up(json.dumps({**json.loads(serialised()), **change}))


def test_a_tokenizer_that_reads_blanks_does_not_add_up() -> None:
    """As byte-level ones do: the same words with one blank more are another number of tokens."""
    other = Tokenizer(models.BPE({"a": 0, "Ġ": 1, "Ġa": 2}, [("Ġ", "a")]))
    other.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    other.normalizer, other.post_processor = normalizers.NFC(), processors.ByteLevel()
    assert [len(e) for e in other.encode_batch(["a a", "a  a"])] == [2, 3]
    assert not adds_up(other.to_str())
