"""Keys as they are kept: made, found again, replaced, and good for nothing any more."""

from __future__ import annotations

import hashlib
import hmac
from contextlib import AbstractContextManager
from datetime import timedelta

import pytest
from sqlalchemy import Connection, select

from nvr_rag.access import keyring, keys
from nvr_rag.access.callers import LOCAL, Caller, Scope
from nvr_rag.access.keyring import Keyring
from nvr_rag.access.keys import ApiKey, NewKey
from nvr_rag.db import tables as t
from nvr_rag.errors import Conflict, Forbidden, InvalidInput, NoCollection, NotFound, Unauthenticated
from nvr_rag.types import Reader
from tests.support import House


def new(name: str = "bot", **options: object) -> NewKey:
    return NewKey(**{"name": name, "scopes": frozenset({Scope.SEARCH}), **options})  # type: ignore[arg-type]


def make(house: House, name: str = "bot", **options: object) -> tuple[ApiKey, str]:
    with house.database.write() as connection:
        return keys.create(connection, new(name, **options))


def found(house: House, secret: str) -> ApiKey | None:
    with house.database.read() as connection:
        return keys.find(connection, secret)


def test_a_key_is_found_by_its_secret_and_by_nothing_else(house: House) -> None:
    made, secret = make(house, collections=frozenset({"b", "a"}), reader=Reader(principals=frozenset({"group:sea"})))
    assert found(house, secret) == made
    assert made.caller.collections == frozenset({"a", "b"})
    assert made.caller.reader.principals == {"group:sea"}
    last = "a" if secret[-1] != "a" else "b"
    for wrong in (secret[:-1] + last, secret[:-1], secret + "a", secret.upper(), "", "nvr__", "é", f" {secret}"):
        assert found(house, wrong) is None


def test_only_a_hash_is_kept(house: House) -> None:
    _, secret = make(house)
    with house.database.read() as connection:
        row = connection.execute(select(*t.ApiKeyRow.__table__.c)).one()
    assert row.sha256 == hashlib.sha256(secret.encode()).hexdigest()
    assert secret.rpartition("_")[2] not in str(row)


def test_hashes_are_compared_in_constant_time_also_where_there_is_none(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, secret = make(house)
    compared: list[tuple[str, str]] = []

    def compare(one: str, other: str) -> bool:
        compared.append((one, other))
        return one == other

    monkeypatch.setattr(hmac, "compare_digest", compare)
    for key in (secret, "nvr_" + "a" * 12 + "_" + "b" * 43, "nothing"):
        found(house, key)
    assert [(len(one), len(other)) for one, other in compared] == [(64, 64)] * 3
    assert [one == other for one, other in compared] == [True, False, False]


def test_rotating_keeps_everything_but_the_secret(house: House) -> None:
    made, first = make(house, per_minute=7)
    with house.database.write() as connection:
        rotated, second = keys.rotate(connection, "bot")
    assert found(house, first) is None
    assert found(house, second) == rotated == made
    assert made.caller.asker == rotated.caller.asker  # what it was answered is still its own


def test_a_revoked_key_stays_revoked_and_gives_its_name_free(house: House) -> None:
    made, secret = make(house)
    with house.database.write() as connection:
        with pytest.raises(Conflict, match="rotate"):
            keys.create(connection, new())
        revoked = keys.revoke(connection, made.id)
        assert keys.revoke(connection, "bot").revoked_at == revoked.revoked_at
        with pytest.raises(Conflict, match="not usable"):
            keys.rotate(connection, "bot")
        again, _ = keys.create(connection, new())
        assert keys.get(connection, "bot") == again
        with pytest.raises(NotFound, match="nvr-rag keys list"):
            keys.revoke(connection, "bat")
    assert found(house, secret) == revoked
    assert not revoked.usable


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"name": " "}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"name": "x" * 101}, "name"),
        ({"scopes": frozenset()}, "scope"),
        ({"collections": frozenset()}, "collection"),
        ({"collections": frozenset({"../x"})}, "collection"),
        ({"reader": Reader(principals=frozenset({""}))}, "principal"),
        ({"reader": Reader(principals=frozenset({"a\x00"}))}, "principal"),
        ({"reader": Reader(principals=frozenset({"x" * 257}))}, "principal"),
        ({"reader": Reader(principals=frozenset(str(n) for n in range(257)))}, "principal"),
        ({"per_minute": 0}, "per-minute"),
        ({"lifetime": timedelta()}, "expires"),
    ],
)
def test_what_no_key_can_be(house: House, options: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        make(house, **options)  # type: ignore[arg-type]
    assert caught.value.field == field


def test_a_keyring_lets_in_who_may_come_in(house: House) -> None:
    ring = Keyring(house.database, required=False)
    assert ring.identify(None) is LOCAL
    assert ring.is_open()
    with pytest.raises(Unauthenticated, match="a key is needed"):
        Keyring(house.database, required=True).identify(None)
    with pytest.raises(Unauthenticated, match="no keys here"):
        ring.identify("nvr_" + "a" * 12 + "_" + "b" * 43)
    made, secret = make(house)
    assert ring.identify(secret) == made.caller == ring.remembered(secret)
    with pytest.raises(Unauthenticated, match="a key is needed"):
        ring.identify(None)
    with pytest.raises(Unauthenticated, match="not known"):
        ring.identify("nvr_" + "a" * 12 + "_" + "b" * 43)
    assert not ring.is_open()
    _, brief = make(house, "brief", lifetime=timedelta(microseconds=1))
    with pytest.raises(Unauthenticated, match="has expired"):
        ring.identify(brief)
    with house.database.write() as connection:
        keys.revoke(connection, "bot")
    with pytest.raises(Unauthenticated, match="was revoked"):
        ring.identify(secret)
    with pytest.raises(Unauthenticated):  # as long as a key was ever made, nobody comes in without one
        ring.identify(None)


def test_a_key_expires_for_those_who_have_it_remembered(house: House) -> None:
    ring = Keyring(house.database, required=False)
    _, secret = make(house)
    ring.identify(secret)
    with house.database.write() as connection:
        keys.revoke(connection, "bot")
    assert ring.remembered(secret) is not None  # for a moment
    ring._known = {key: (until - 1.0, caller) for key, (until, caller) in ring._known.items()}  # a second later
    assert ring.remembered(secret) is None


class _Counted:
    """A database whose transactions are counted."""

    def __init__(self, house: House) -> None:
        self._database, self.reads = house.database, 0

    def read(self) -> AbstractContextManager[Connection]:
        self.reads += 1
        return self._database.read()


def test_the_same_wrong_key_asks_the_database_once_a_moment(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    database = _Counted(house)
    ring = Keyring(database, required=False)  # type: ignore[arg-type]
    made, good = make(house)
    _, brief = make(house, "brief", lifetime=timedelta(microseconds=1))
    ring.identify(good)
    for key, why in (("nvr_" + "a" * 12 + "_" + "b" * 43, "not known"), (brief, "has expired"), (None, "is needed")):
        reads = database.reads
        with pytest.raises(Unauthenticated, match=why):
            ring.identify(key)
        for ask in (ring.identify, ring.remembered) * 5:
            with pytest.raises(Unauthenticated, match=why):
                ask(key)
        assert database.reads == reads + 1
        ring._refused = {key: (until - 1.0, why) for key, (until, why) in ring._refused.items()}  # a second later
        assert ring.remembered(key) is None
        with pytest.raises(Unauthenticated, match=why):
            ring.identify(key)
        assert database.reads == reads + 2
    monkeypatch.setattr(keyring, "_MOST", 10)
    for number in range(40):
        with pytest.raises(Unauthenticated):
            ring.identify(f"wrong{number}")
        assert len(ring._refused) <= 10
    assert ring.remembered(good) == made.caller  # wrong ones drive no good one out


def test_that_there_are_no_keys_yet_is_not_remembered(house: House) -> None:
    ring = Keyring(house.database, required=False)
    for _ in range(2):
        with pytest.raises(Unauthenticated, match="no keys here"):
            ring.identify("nothing")
    make(house)
    with pytest.raises(Unauthenticated, match="not known"):
        ring.identify("nothing")


def test_callers() -> None:
    caller = Caller(key_id="k", scopes=frozenset({Scope.SEARCH}), collections=frozenset({"a"}))
    caller.check(Scope.SEARCH)
    with pytest.raises(Forbidden, match="--scope ingest"):
        caller.check(Scope.INGEST)
    with pytest.raises(NoCollection):
        caller.check_collection("b")
    with pytest.raises(Forbidden, match="impersonate"):
        caller.on_behalf_of(frozenset({"user:ann"}))
    everything = Caller(
        key_id="k", scopes=frozenset({Scope.IMPERSONATE}), reader=Reader(principals=frozenset(), everything=True)
    )
    ann = everything.on_behalf_of(frozenset({"user:ann"}))
    assert not ann.reader.everything  # the header replaces what the key reads
    assert ann.asker not in ("", everything.asker, everything.on_behalf_of(frozenset({"user:bob"})).asker)
