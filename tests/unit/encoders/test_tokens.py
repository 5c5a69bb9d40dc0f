from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import BertProcessing

from nvr_rag.encoders.tokens import TokenizerTraits, Tokens, tokenizer_hash

from .conftest import WORDS

TRAITS = TokenizerTraits(pad_id=0, pad_type_id=0, pad_left=False, cut_left=False, type_ids=True, plain_special=False)


def word_piece(words: list[str] = WORDS) -> Tokenizer:
    tokenizer = Tokenizer(WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer()
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.add_special_tokens(words[:5])
    return tokenizer


def changed(**values: Any) -> str:
    return json.dumps({**json.loads(word_piece().to_str()), **values})


@pytest.fixture
def tokens() -> Tokens:
    return Tokens(word_piece().to_str(), TRAITS, max_tokens=6)


def test_counts_include_special_tokens_and_the_prompt_and_are_never_cut(tokens: Tokens) -> None:
    # [CLS] red ##ish fox . [SEP]; "reddish" is one unknown word; nothing at all is [CLS] [SEP].
    assert tokens.count(["redish fox.", "reddish", "", "fox " * 50]) == [6, 3, 2, 52]
    assert tokens.count(["fox"], "passage: ") == [5]


def test_encoding_cuts_at_the_budget_and_keeps_the_closing_token(tokens: Tokens) -> None:
    red, green, blue, fox = 8, 9, 10, 12
    assert tokens.encode(["red green blue fox fox fox"])[0].ids == [2, red, green, blue, fox, 3]
    assert tokens.encode(["red"], "query: ")[0].ids == [2, 5, 7, red, 3]


def test_lone_surrogates_and_odd_characters_are_tokens_like_any_other(tokens: Tokens) -> None:
    assert tokens.count(["red \ud83d fox", "\udfff", "\x00red"]) == tokens.count(["red \ufffd fox", "\ufffd", "red"])


def test_a_prompt_is_measured_without_the_closing_token(tokens: Tokens) -> None:
    assert tokens.prompt_length("query: ") == 3  # [CLS] query :


def test_eight_threads_count_and_encode_at_once(tokens: Tokens) -> None:
    def work(seed: int) -> bool:
        texts = [("red " * ((seed + i) % 9)).strip() for i in range(40)]
        wanted = [2 + (seed + i) % 9 for i in range(40)]
        return all(
            tokens.count(texts) == wanted and [len(e) for e in tokens.encode(texts)] == [min(6, n) for n in wanted]
            for _ in range(25)
        )

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


def test_the_hash_ignores_truncation_padding_and_what_only_some_releases_write() -> None:
    plain = word_piece()
    busy = word_piece()
    busy.enable_truncation(3)
    busy.enable_padding(length=9)
    assert tokenizer_hash(plain.to_str()) == tokenizer_hash(busy.to_str())
    assert tokenizer_hash(plain.to_str()) == tokenizer_hash(changed(version="9.9", decoder=None, new_field=False))


def test_the_hash_takes_both_spellings_of_merges() -> None:
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}}
    assert tokenizer_hash(changed(model={**model, "merges": ["a b"]})) == tokenizer_hash(
        changed(model={**model, "merges": [["a", "b"]]})
    )


@pytest.mark.parametrize(
    "other",
    [
        word_piece([*WORDS, "cat"]).to_str(),
        changed(normalizer=None),
        changed(post_processor=None),
        changed(pre_tokenizer={"type": "Whitespace"}),
    ],
)
def test_the_hash_sees_what_changes_tokens(other: str) -> None:
    assert tokenizer_hash(other) != tokenizer_hash(word_piece().to_str())
