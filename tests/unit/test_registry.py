"""Encoder versions: who is called what, who descends from whom, and who may go."""

from __future__ import annotations

import pytest
from sqlalchemy import update

from nvr_rag import indexes, registry
from nvr_rag.chunkings import settings_for
from nvr_rag.db import tables as t
from nvr_rag.errors import Conflict, InvalidInput, NotFound
from nvr_rag.registry import EncoderVersion
from nvr_rag.stores.lexical import LexicalEncoder
from nvr_rag.testing import HashEncoder
from tests.support import House


class Named(HashEncoder):
    """An encoder with a fingerprint of the test's choice."""

    def __init__(self, fingerprint: str) -> None:
        super().__init__()
        self._named = fingerprint

    @property
    def fingerprint(self) -> str:
        return self._named


def register(house: House, name: str, source: str = "models/x", **options: object) -> str:
    """Register a version whose fingerprint begins with `name`; the whole of it."""
    fingerprint = name.ljust(64, "0")
    with house.database.write() as connection:
        registry.register(connection, Named(fingerprint), source, **options)  # type: ignore[arg-type]
    return fingerprint


def found(house: House, name: str) -> str:
    with house.database.read() as connection:
        return registry.find(connection, name).fingerprint


def version(house: House, fingerprint: str) -> EncoderVersion:
    with house.database.read() as connection:
        return registry.get(connection, fingerprint)


def remove(house: House, fingerprint: str) -> None:
    with house.database.write() as connection:
        registry.remove(connection, fingerprint)


def add_index(house: House, fingerprint: str) -> int:
    encoder = Named(fingerprint)
    with house.database.write() as connection:
        return indexes.create(connection, 1, settings_for(encoder), encoder, LexicalEncoder("english"))


def test_a_version_is_found_by_the_beginning_of_its_fingerprint(house: House) -> None:
    first, second = register(house, "abcd1"), register(house, "abcd2")
    assert found(house, first) == first
    assert found(house, "abcd1") == first
    assert found(house, "ABCD2") == second


def test_a_beginning_that_two_share_is_refused_and_names_both(house: House) -> None:
    register(house, "abcd1"), register(house, "abcd2")
    with pytest.raises(InvalidInput, match="abcd10000000, abcd20000000") as caught:
        found(house, "abcd")
    assert caught.value.field == "model"


@pytest.mark.parametrize("name", ["", "abc", "abce", "bcd1", "%", "abcd1" + "0" * 60])
def test_what_names_no_version(house: House, name: str) -> None:
    register(house, "abcd1")
    with pytest.raises(NotFound, match="nvr-rag models list"):
        found(house, name)


def test_a_version_is_found_by_what_it_was_added_from_and_a_bundled_one_by_its_name(house: House) -> None:
    added = register(house, "abcd1", training={"added_from": "owner/model"})
    assert found(house, "owner/model") == added
    assert found(house, "bundled:all-MiniLM-L6-v2") == house.encoder.fingerprint


def test_versions_are_listed_in_the_order_of_their_making(house: House) -> None:
    second, first = register(house, "ffff"), register(house, "aaaa")
    with house.database.read() as connection:
        listed = [one.fingerprint for one in registry.all_versions(connection)]
    assert listed == [house.encoder.fingerprint, second, first]


def test_what_was_said_first_of_a_version_stays(house: House) -> None:
    key = register(house, "abcd", "models/a", training={"run": "r1"})
    register(house, "abcd", "models/b", training={"run": "r2"}, parent=house.encoder.fingerprint)
    again = version(house, key)
    assert (again.source, again.training, again.parent) == ("models/a", {"run": "r1"}, None)


def test_the_root_of_a_line_is_the_oldest_whose_files_are_there(house: House) -> None:
    base = register(house, "aaaa")
    middle = register(house, "bbbb", parent=base)
    last = register(house, "cccc", parent=middle)

    def root(fingerprint: str) -> str:
        with house.database.read() as connection:
            return registry.root(connection, fingerprint).fingerprint

    assert [root(one) for one in (base, middle, last)] == [base, base, base]
    remove(house, base)
    assert [root(one) for one in (middle, last)] == [middle, middle]
    remove(house, middle)
    assert root(last) == last


def test_a_removed_version_is_neither_listed_nor_found_nor_usable(house: House) -> None:
    key = register(house, "abcd")
    remove(house, key)
    with house.database.read() as connection:
        assert [one.fingerprint for one in registry.all_versions(connection)] == [house.encoder.fingerprint]
        assert registry.get(connection, key).removed_at is not None
        with pytest.raises(NotFound, match="models add"):
            registry.usable(connection, key)
    with pytest.raises(NotFound):
        found(house, "abcd")


def test_a_version_that_comes_back_is_the_same_with_its_files_where_they_are_now(house: House) -> None:
    key = register(house, "abcd", "models/a", training={"run": "r1"})
    remove(house, key)
    register(house, "abcd", "models/b")
    again = version(house, key)
    assert (again.removed_at, again.source, again.training) == (None, "models/b", {"run": "r1"})
    assert found(house, "abcd") == key


def test_a_version_stays_until_no_index_of_it_is_in_the_store(house: House) -> None:
    key = register(house, "abcd")
    first, second = add_index(house, key), add_index(house, key)
    with pytest.raises(Conflict, match=f"needed by index {first}, {second}; .*nvr-rag index retire"):
        remove(house, key)
    i = t.SearchIndex
    with house.database.write() as connection:
        connection.execute(update(i).where(i.id == first).values(state="retired", dropped_at=t.now()))
        connection.execute(update(i).where(i.id == second).values(state="retired"))  # still open somewhere
    with pytest.raises(Conflict, match=f"needed by index {second};"):
        remove(house, key)
    with house.database.write() as connection:
        connection.execute(update(i).where(i.id == second).values(dropped_at=t.now()))
    remove(house, key)
    assert version(house, key).removed_at is not None


def test_measures_are_kept_in_the_order_they_were_taken(house: House) -> None:
    key, other = register(house, "aaaa"), register(house, "bbbb")
    with house.database.write() as connection:
        registry.record(connection, key, {"name": "dev", "queries": 3}, {"nDCG@10": 0.5})
        registry.record(connection, other, {"name": "dev"}, {"nDCG@10": 0.9})
        registry.record(connection, key, {"name": "holdout"}, {"nDCG@10": 0.25}, deployment_id=7)
        measured = registry.measured(connection, key)
    assert [(one.data["name"], one.measures["nDCG@10"], one.deployment_id) for one in measured] == [
        ("dev", 0.5, None),
        ("holdout", 0.25, 7),
    ]
