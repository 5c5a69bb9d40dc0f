"""Which queries train, which choose, and which only the gate may see: decided by the query's own words, for good.

A query's text enters, its key and its split leave. The choice depends on nothing else: not on the collection, the day,
the machine or the other queries, so a query that was held out once is held out for ever. Pure.
"""

from __future__ import annotations

import unicodedata
from enum import StrEnum

from nvr_rag.ids import sha256_text

# Never change these, nor `normalise`: queries would move between the splits, and what was held out has been trained on.
HOLDOUT_SHARE = 0.2  # of all queries
DEV_SHARE = 0.1  # of the rest
_BUCKETS = 10_000
_HOLDOUT_BUCKETS = round(_BUCKETS * HOLDOUT_SHARE)
_DEV_BUCKETS = round((_BUCKETS - _HOLDOUT_BUCKETS) * DEV_SHARE)

_OPENING = frozenset("'\"`¿¡")  # with brackets and quotation marks of every script; a dot stays: .NET
_MEANT = frozenset("#%&*@/\\§¶†‡‰‱")  # punctuation by its category, but part of a word: C#, 100%, f*


class Split(StrEnum):
    """What a judged query is for."""

    TRAIN = "train"  # fits the weights
    DEV = "dev"  # chooses settings: never trained on
    HOLDOUT = "holdout"  # read by the gate and by nothing else


def normalise(query: str) -> str:
    """What queries that ask the same in the same words have in common.

    NFKC and casefold, white space collapsed, quotes and brackets around it and punctuation at its end left out. A query
    of nothing but punctuation keeps it.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", query).casefold())
    words = " ".join(folded.split())
    start, end = 0, len(words)
    while end > start and (words[end - 1] == " " or _closes(words[end - 1])):
        end -= 1
    while start < end and (words[start] == " " or _opens(words[start])):
        start += 1
    return words[start:end] or words


def query_key(query: str) -> str:
    """Hex sha256 of the normalised query."""
    return sha256_text(normalise(query))


def split_of(key: str) -> Split:
    """The split of the query with this key."""
    bucket = int(key, 16) % _BUCKETS
    if bucket < _HOLDOUT_BUCKETS:
        return Split.HOLDOUT
    return Split.DEV if bucket < _HOLDOUT_BUCKETS + _DEV_BUCKETS else Split.TRAIN


def _opens(character: str) -> bool:
    return character in _OPENING or unicodedata.category(character) in ("Ps", "Pi", "Pf")


def _closes(character: str) -> bool:
    category = unicodedata.category(character)
    return character == "`" or (category in ("Po", "Pe", "Pf", "Pi", "Ps") and character not in _MEANT)
