"""The split of a query: the same for all ways to write it, never another, and in the right shares."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.splits import Split, normalise, query_key, split_of

# From `printf '%s' <normalised> | sha256sum` and bc: the last four digits of the number decide, below 2000 held out,
# below 2800 dev. Should one of these ever change, what was held out has been trained on.
GOLDEN = [
    ("What is tea?", "d2a2f754e671d0fee6784a7cbc6fd5965c4a7f6725e3366b82abf7b6d78a1d87", Split.TRAIN),  # 6311
    (".NET", "fb74851c8bc7bdddbae440847e819521ea7b33b775e939692d6b22852530892e", Split.HOLDOUT),  # 1598
    ("VPN?", "ebf20cefc9169e0b714703d63d480c3e63c64a8535a13acf5a62ea66c5f0ea8c", Split.HOLDOUT),  # 1996
    ("Parental leave", "af5df30d534c2a977355db1f63d06fe39c9a746c52667e28bc93268e3c920e49", Split.DEV),  # 2153
    ("¿Qué es?", "cc8e4e980b50edfd5e570f56b41a405793a23fa8e17fdf8ac9613971bbb7a923", Split.TRAIN),  # 8371
    ("Straße", "16d96952087774fee069b7585d3991b24d90c181c09b2129b4908c35baa7f0c0", Split.TRAIN),  # 4352
]


@pytest.mark.parametrize(("query", "key", "split"), GOLDEN)
def test_key_and_split_never_change(query: str, key: str, split: Split) -> None:
    assert query_key(query) == key
    assert split_of(key) is split


@pytest.mark.parametrize(
    ("bucket", "split"),
    [
        (0, Split.HOLDOUT),
        (1999, Split.HOLDOUT),
        (2000, Split.DEV),
        (2799, Split.DEV),
        (2800, Split.TRAIN),
        (9999, Split.TRAIN),
    ],
)
def test_a_fifth_is_held_out_and_a_tenth_of_the_rest_is_dev(bucket: int, split: Split) -> None:
    assert split_of(f"{bucket + 10_000 * 16**50:064x}") is split


def test_many_queries_fall_in_these_shares() -> None:
    count = 20_000
    found = Counter(split_of(query_key(f"how do I do thing number {i}?")) for i in range(count))
    for split, share in ((Split.HOLDOUT, 0.2), (Split.DEV, 0.08), (Split.TRAIN, 0.72)):
        deviation = math.sqrt(count * share * (1 - share))
        assert abs(found[split] - count * share) < 4 * deviation


@pytest.mark.parametrize(
    ("query", "same"),
    [
        ("what is tea", "what is tea"),
        ("  What\tIS\n tea ", "what is tea"),
        ("What is tea ?!", "what is tea"),
        ("“What is tea?”", "what is tea"),
        ("'what is tea'", "what is tea"),
        ("(what is tea...)", "what is tea"),
        ("what is tea…", "what is tea"),
        ("ｗｈａｔ　ｉｓ　ｔｅａ？", "what is tea"),
        ("茶是什么？", "茶是什么"),
        ("ما هو الشاي؟", "ما هو الشاي"),
        ("cafe\u0301", "caf\u00e9"),
        ("STRASSE", "strasse"),
        ("???", "???"),
        (" ¿? ", "¿?"),
        ("", ""),
    ],
)
def test_ways_to_write_a_query_are_one(query: str, same: str) -> None:
    assert normalise(query) == same


@pytest.mark.parametrize(
    ("one", "other"), [("C#", "C"), (".NET", "net"), ("100%", "100"), ("A-", "A"), ("C++", "C"), ("re-sign", "resign")]
)
def test_what_asks_something_else_stays_apart(one: str, other: str) -> None:
    assert query_key(one) != query_key(other)


@given(st.text())
def test_normalising_again_changes_nothing(query: str) -> None:
    once = normalise(query)
    assert normalise(once) == once
    assert split_of(query_key(query)) in Split


@settings(max_examples=200)
@given(
    st.lists(st.text("abcdefghij0123456789äßéж", min_size=1), min_size=1), st.sampled_from(["?", " ?", ".", "!", ""])
)
def test_case_spaces_and_a_trailing_mark_do_not_matter(words: list[str], mark: str) -> None:
    plain = " ".join(words)
    assert query_key(f"  {'   '.join(words).upper()}{mark}\n") == query_key(plain)
