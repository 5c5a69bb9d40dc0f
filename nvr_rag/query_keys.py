"""What makes two queries the same: a query's text enters, its key leaves. Judgments and splits go by it. Pure."""

from __future__ import annotations

import unicodedata

from nvr_rag.ids import sha256_text

# Never change these, nor `normalise`: judgments would lose their queries, and queries move between the splits.
_OPENING = frozenset("'\"`¿¡")  # with brackets and quotation marks of every script; a dot stays: .NET
_MEANT = frozenset("#%&*@/\\§¶†‡‰‱")  # punctuation by its category, but part of a word: C#, 100%, f*


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


def _opens(character: str) -> bool:
    return character in _OPENING or unicodedata.category(character) in ("Ps", "Pi", "Pf")


def _closes(character: str) -> bool:
    category = unicodedata.category(character)
    return character == "`" or (category in ("Po", "Pe", "Pf", "Pi", "Ps") and character not in _MEANT)
