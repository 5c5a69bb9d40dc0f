"""BM25 vectors: a text goes in, term ids and weights come out; every store gets its lexical vectors from here.

The weight of a term in a document is BM25's without the IDF factor, which the store multiplies in at query time from
its own counts. A query's terms weigh 1 each. Tokens, stop words and stemming come from qdrant_edge. Scripts written
without spaces (Chinese, Japanese, Thai ...) and Korean, whose particles stick to words, are cut into overlapping pairs
of characters first, under every language: a dictionary would cut the same word differently in different sentences.

It knows no collection and no index. The average length is a constant, not a count, so that a document's vector
depends on nothing but its text. Between 64 and 256 it moves nDCG@10 by 0.01 on scifact and squad2, and pulls the
others apart: long passages want it high (medquad 0.63 to 0.68), short ones low (cranfield 0.39 to 0.37).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any

from qdrant_edge import Bm25, Bm25Config, DisabledStemmer, Language, StopwordsSet, TokenizerType

from nvr_rag.errors import InvalidInput
from nvr_rag.stores.base import SparseVector

METHOD = "bm25-1"  # changes whenever the same text and settings would get another vector
AVERAGE_LENGTH = 128  # in tokens: about what a chunk of 256 word pieces has without stop words
SATURATION = 1.2  # BM25's k1
LENGTH_NORMALISATION = 0.75  # BM25's b

NO_LANGUAGE = "none"  # no stemming, no stop words
LANGUAGES = (*sorted(name.lower() for name in vars(Language) if not name.startswith("_")), NO_LANGUAGE)

_UNSPACED = re.compile(
    "["
    "\u0e01-\u0e4e\u0e81-\u0ece"  # Thai, Lao
    "\u1000-\u103f\u1780-\u17d3"  # Myanmar, Khmer
    "\u3005-\u3007\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff"  # kana and iteration marks
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"  # Han
    "\uac00-\ud7a3"  # Hangul
    "]+"
)


class LexicalEncoder:
    """Texts of one language to BM25 vectors. Safe to call from several threads.

    Raises InvalidInput for a language that is not in LANGUAGES. Any text is fine, broken Unicode included; one
    without words, or a query of stop words only, gets an empty vector.
    """

    def __init__(self, language: str) -> None:
        if language not in LANGUAGES:
            raise InvalidInput(f"unknown language {language!r}; one of {', '.join(LANGUAGES)}", field="language")
        self._language = language
        self._bm25 = Bm25(_config(language))

    @property
    def settings(self) -> Mapping[str, Any]:
        """Everything that decides the vectors, as JSON values: indexes with equal settings hold equal vectors."""
        return {
            "method": METHOD,
            "language": self._language,
            "average_length": AVERAGE_LENGTH,
            "saturation": SATURATION,
            "length_normalisation": LENGTH_NORMALISATION,
        }

    def encode_document(self, text: str) -> SparseVector:
        """Term ids, ascending, with their saturated and length-normalised frequencies, IDF not included."""
        return _sparse(self._bm25.embed_document(_prepare(text, _document_pieces)))

    def encode_query(self, text: str) -> SparseVector:
        """Term ids, ascending, each with weight 1 however often it is repeated."""
        return _sparse(self._bm25.embed_query(_prepare(text, _query_pieces)))


def _config(language: str) -> Bm25Config:
    """The `Code` tokenizer is the word tokenizer that also finds `server` in `HTTPServer`; on English prose the two
    measure equal (scifact nDCG@10 0.70 each). qdrant_edge's own tokenizer for Chinese and Japanese drops numbers."""
    neutral = language == NO_LANGUAGE
    return Bm25Config(
        k=SATURATION,
        b=LENGTH_NORMALISATION,
        avg_len=AVERAGE_LENGTH,
        tokenizer=TokenizerType.Code,
        language=None if neutral else language,
        stemmer=DisabledStemmer() if neutral else None,
        stopwords=StopwordsSet() if neutral else None,
        ascii_folding=neutral or language == "english",  # stemmers of other languages read the accents
    )


def _prepare(text: str, pieces: Callable[[re.Match[str]], str]) -> str:
    """The text as the tokenizer should see it: one spelling a character (composed accents, no ligatures, no soft
    hyphens), lone surrogates gone, unspaced scripts cut into pieces."""
    if text.isascii():
        return text
    text = text.encode("utf-8", "replace").decode("utf-8").replace("\u00ad", "")
    return _UNSPACED.sub(pieces, unicodedata.normalize("NFKC", text))


def _document_pieces(run: re.Match[str]) -> str:
    """Pairs for the words, single characters for queries of one character."""
    return f"{_query_pieces(run)}{' '.join(run[0])} " if len(run[0]) > 1 else _query_pieces(run)


def _query_pieces(run: re.Match[str]) -> str:
    text = run[0]
    return f" {' '.join(text[i : i + 2] for i in range(max(1, len(text) - 1)))} "


def _sparse(vector: Any) -> SparseVector:
    return SparseVector(indices=tuple(vector.indices), values=tuple(vector.values))
