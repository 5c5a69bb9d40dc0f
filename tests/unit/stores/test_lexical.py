"""BM25 vectors: weights by hand, scripts without spaces, hostile texts, and vectors that must never change."""

from __future__ import annotations

import json

import pytest

from nvr_rag.errors import InvalidInput
from nvr_rag.stores.lexical import LANGUAGES, LexicalEncoder


@pytest.fixture(scope="module")
def english() -> LexicalEncoder:
    return LexicalEncoder("english")


def shared(encoder: LexicalEncoder, query: str, document: str) -> tuple[int, int]:
    """(terms of the query, how many of them the document has)"""
    wanted = set(encoder.encode_query(query).indices)
    return len(wanted), len(wanted & set(encoder.encode_document(document).indices))


def weight(frequency: int, length: int) -> float:
    """BM25's term weight with k1 = 1.2, b = 0.75 and an average length of 128 tokens, IDF left out."""
    return frequency * 2.2 / (frequency + 1.2 * (1 - 0.75 + 0.75 * length / 128))


def test_document_weights_follow_the_formula(english: LexicalEncoder) -> None:
    vector = english.encode_document("fox fox hound")
    assert sorted(vector.values) == pytest.approx(sorted([weight(2, 3), weight(1, 3)]), rel=1e-5)


def test_a_query_weighs_each_word_once(english: LexicalEncoder) -> None:
    assert list(english.encode_query("fox fox FOXES hound").values) == [1.0, 1.0]


def test_terms_are_ascending_and_unique(english: LexicalEncoder) -> None:
    text = " ".join(f"word{n}" for n in range(500)) + " 数据库 the words word1"
    for vector in (english.encode_document(text), english.encode_query(text)):
        assert list(vector.indices) == sorted(set(vector.indices))
        assert len(vector.indices) == len(vector.values) > 500


def test_vectors_of_stored_indexes_stay_valid(english: LexicalEncoder) -> None:
    """Golden term ids: stored vectors carry them, so a change here means a new METHOD and rebuilt indexes."""
    assert list(english.encode_query("rolling back deployments").indices) == [823588779, 1055508231, 1419923336]
    assert list(LexicalEncoder("none").encode_query("数据库 running").indices) == [494213075, 638560728, 858463077]


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize(
    ("query", "document"),
    [
        ("数据库 备份", "我们每天晚上都会对数据库进行备份,并保留三十天。"),
        ("猫", "我的猫和狗都很可爱"),
        ("検索エンジン", "全文検索エンジンは便利です。"),
        ("데이터베이스", "데이터베이스를 매일 백업합니다"),
        ("물", "물 한 잔"),
        ("ฐานข้อมูล", "เราสำรองฐานข้อมูลทุกคืน"),
        ("数据库 PostgreSQL 16", "The 数据库 runs PostgreSQL 16 (日本語 too)"),
    ],
)
def test_unspaced_scripts_are_found_under_every_language(language: str, query: str, document: str) -> None:
    wanted, found = shared(LexicalEncoder(language), query, document)
    assert wanted == found > 0


def test_other_chinese_words_are_not_found(english: LexicalEncoder) -> None:
    assert shared(english, "苹果", "我们每天晚上都会对数据库进行备份")[1] == 0
    assert shared(english, "据数", "数据库")[1] == 0  # order counts


@pytest.mark.parametrize(
    ("query", "document"),
    [
        ("deployments rolled back", "How to roll back a deployment"),
        ("finance", "the \ufb01nance team"),  # a ligature, as PDFs have it
        ("retrieval", "re\u00adtrieval"),  # a soft hyphen
        ("caf\u00e9 na\u00efve", "cafe\u0301 nai\u0308ve"),  # composed and decomposed accents
        ("cafe", "caf\u00e9"),
        ("full width", "\uff46\uff55\uff4c\uff4c \uff57\uff49\uff44\uff54\uff48"),
        ("COVID-19 IL-2", "covid 19, il 2"),
        ("http server", "class HTTPServer:"),
        ("snake case", "snake_case"),
        ("Straße", "STRASSE straße"),
    ],
)
def test_spellings_that_mean_the_same_meet(english: LexicalEncoder, query: str, document: str) -> None:
    wanted, found = shared(english, query, document)
    assert wanted == found > 0


def test_stop_words_and_stemming_follow_the_language() -> None:
    assert shared(LexicalEncoder("german"), "Häuser", "das Haus") == (1, 1)
    assert shared(LexicalEncoder("none"), "Häuser", "das Haus") == (1, 0)
    assert LexicalEncoder("german").encode_query("der die das").indices == ()
    assert len(LexicalEncoder("none").encode_query("der die das").indices) == 3


@pytest.mark.parametrize("text", ["", " \n\t", "the of and", "\0", "\ud800", "?!… — 🙂", "\u200b"])
def test_texts_without_words_have_empty_vectors(english: LexicalEncoder, text: str) -> None:
    for vector in (english.encode_query(text), english.encode_document(text)):
        assert (list(vector.indices), list(vector.values)) == ([], [])


@pytest.mark.parametrize(
    "text", ["x" * 100_000, "word " * 20_000, "中" * 100_000, "a\0b \ud83d fox", "\ud800数据\udfff", "é" * 100_000]
)
def test_hostile_texts_do_no_harm(english: LexicalEncoder, text: str) -> None:
    assert english.encode_query(text).indices
    assert english.encode_document(text).indices


def test_unknown_languages_are_refused_with_the_list() -> None:
    for language in ("klingon", "English", ""):
        with pytest.raises(InvalidInput, match=r"danish.*english.*none") as raised:
            LexicalEncoder(language)
        assert raised.value.field == "language"


def test_the_settings_name_what_decides_the_vectors(english: LexicalEncoder) -> None:
    assert json.loads(json.dumps(dict(english.settings))) == english.settings
    assert english.settings == LexicalEncoder("english").settings
    assert english.settings != LexicalEncoder("none").settings
