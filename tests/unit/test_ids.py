"""Names made from content: the same everywhere, and different where the content is."""

from __future__ import annotations

import hashlib
import uuid

import pytest

from nvr_rag.ids import chunk_id, document_id, new_id, sha256_json, sha256_text

# Stored ids depend on these: they may never change (worked out once with hashlib and uuid, by the rules in ids.py).
HELLO = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
NAMESPACE = uuid.UUID("5b0c1f0e-7d0b-5b0a-9a6e-6e7672726167")


def test_sha256_of_a_text_is_that_of_its_utf8() -> None:
    assert sha256_text("hello") == HELLO
    assert sha256_text("grün") == hashlib.sha256(b"gr\xc3\xbcn").hexdigest()


def test_a_lone_surrogate_has_a_hash_of_its_own() -> None:
    assert len({sha256_text("\ud800"), sha256_text("\ud801"), sha256_text("\ufffd"), sha256_text("?")}) == 4


def test_sha256_of_json_does_not_depend_on_the_order_of_keys() -> None:
    expected = hashlib.sha256('{"a":"ü","b":[1,null]}'.encode()).hexdigest()
    assert sha256_json({"b": [1, None], "a": "ü"}) == expected
    assert sha256_json({"a": "ü", "b": [1, None]}) == expected


def test_json_without_a_meaning_is_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        sha256_json({"a": float("nan")})


def test_a_document_is_named_by_collection_and_uri() -> None:
    assert document_id("default", "file:///a.md") == str(uuid.uuid5(NAMESPACE, "default\nfile:///a.md"))
    assert len({document_id(c, u) for c in ("a", "b") for u in ("x", "y")}) == 4


def test_a_chunk_is_named_by_document_text_and_occurrence() -> None:
    document = document_id("default", "file:///a.md")
    assert chunk_id(document, HELLO, 0) == str(uuid.uuid5(uuid.UUID(document), f"{HELLO}:0"))
    others = {chunk_id(document, HELLO, 1), chunk_id(document, sha256_text("x"), 0), chunk_id(new_id(), HELLO, 0)}
    assert len(others | {chunk_id(document, HELLO, 0)}) == 4


def test_new_ids_differ_and_are_uuids() -> None:
    ids = {new_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(str(uuid.UUID(key)) == key for key in ids)
