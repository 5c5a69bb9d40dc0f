"""API keys: made, listed, revoked, replaced. A key is shown once, when it is made; the database has its hash.

    nvr_K3sN9pQ2xT7b_2hVn...            the id, by which it is found, and 256 random bits

A hash of so many random bits needs no salt and no slow function: there is nothing to guess.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import string
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, func, insert, select, update

from nvr_rag import collections
from nvr_rag.access.callers import MAX_PRINCIPAL_CHARACTERS, MAX_PRINCIPALS, Caller, Scope
from nvr_rag.db import clock
from nvr_rag.db import tables as t
from nvr_rag.errors import Conflict, InvalidInput, NotFound
from nvr_rag.storable import storable
from nvr_rag.types import ANYBODY, Reader

_ID_CHARACTERS, _SECRET_CHARACTERS = 12, 43  # of 62: the secret has 256 bits
_LETTERS = string.ascii_letters + string.digits
_KEY = re.compile(rf"nvr_([A-Za-z0-9]{{{_ID_CHARACTERS}}})_[A-Za-z0-9]{{{_SECRET_CHARACTERS}}}")
MAX_NAME_CHARACTERS = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class NewKey:
    """What a key is to be for."""

    name: str  # for people; of the usable keys each has another
    scopes: frozenset[Scope]
    collections: frozenset[str] | None = None  # None = all, also those that are made later
    reader: Reader = ANYBODY
    per_minute: int | None = None  # requests; None = what the settings say
    lifetime: timedelta | None = None  # None = until `expires_at`
    expires_at: datetime | None = None  # None = until it is revoked


@dataclass(frozen=True, kw_only=True, slots=True)
class ApiKey:
    """A key as it is kept."""

    id: str
    name: str
    caller: Caller
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    usable: bool  # neither revoked nor expired


def create(connection: Connection, new: NewKey) -> tuple[ApiKey, str]:
    """Keep a new key; it, and what its owner has to send. Raises InvalidInput, Conflict for a name that is in use."""
    _check(new)
    now = clock.now(connection)
    name = storable(new.name.strip())
    if any(key.name == name and key.usable for key in all_keys(connection)):
        raise Conflict(f"there is a key {name!r} already; revoke or rotate it, or take another name")
    id_, secret = _random(_ID_CHARACTERS), _random(_SECRET_CHARACTERS)
    key = f"nvr_{id_}_{secret}"
    values = {
        "id": id_,
        "name": name,
        "sha256": _hash(key),
        "scopes": sorted(new.scopes),
        "collections": None if new.collections is None else sorted(new.collections),
        "principals": sorted(storable(principal) for principal in new.reader.principals),
        "everything": new.reader.everything,
        "per_minute": new.per_minute,
        "created_at": now,
        "expires_at": new.expires_at if new.lifetime is None else now + new.lifetime,
    }
    connection.execute(insert(t.ApiKeyRow).values(**values))
    return get(connection, id_), key


def rotate(connection: Connection, name: str) -> tuple[ApiKey, str]:
    """Give a key another secret; the old one is good for nothing from now on. Raises NotFound, Conflict."""
    known = get(connection, name)
    if not known.usable:
        raise Conflict(f"the key {known.name!r} is not usable any more; make a new one with nvr-rag keys create")
    key = f"nvr_{known.id}_{_random(_SECRET_CHARACTERS)}"
    connection.execute(update(t.ApiKeyRow).where(t.ApiKeyRow.id == known.id).values(sha256=_hash(key)))
    return known, key


def revoke(connection: Connection, name: str) -> ApiKey:
    """Let a key be good for nothing any more; one that is revoked already stays so. Raises NotFound."""
    known = get(connection, name)
    if known.revoked_at is None:
        now = clock.now(connection)
        connection.execute(update(t.ApiKeyRow).where(t.ApiKeyRow.id == known.id).values(revoked_at=now))
    return get(connection, known.id)


def get(connection: Connection, name: str) -> ApiKey:
    """A key by its id, or by its name: a usable one before those that are not. Raises NotFound."""
    found = [key for key in all_keys(connection) if name in (key.id, key.name)]
    if not found:
        raise NotFound(f"no key {name[:MAX_NAME_CHARACTERS]!r}; nvr-rag keys list shows those that exist")
    return max(found, key=lambda key: (key.id == name, key.usable, key.created_at))


def all_keys(connection: Connection) -> list[ApiKey]:
    """Every key, the oldest first."""
    k = t.ApiKeyRow
    now = clock.now(connection)
    return [_key(row, now) for row in connection.execute(select(*k.__table__.c).order_by(k.created_at, k.id))]


def exist(connection: Connection) -> bool:
    """Whether a key was ever made: from then on nobody is let in without one."""
    return connection.scalar(select(func.count()).select_from(t.ApiKeyRow)) != 0


def id_of(key: str) -> str | None:
    """The id that is written in a key; None for what cannot be one."""
    match = _KEY.fullmatch(key)
    return match[1] if match else None


def find(connection: Connection, key: str) -> ApiKey | None:
    """The key that this is the secret of, usable or not; None when there is none."""
    row = connection.execute(select(*t.ApiKeyRow.__table__.c).where(t.ApiKeyRow.id == (id_of(key) or ""))).first()
    # Compared in constant time, and also where there is nothing to compare with.
    same = hmac.compare_digest(_hash(key), row.sha256 if row else _hash(""))
    return _key(row, clock.now(connection)) if row and same else None


def _key(row: Any, now: datetime) -> ApiKey:
    known = frozenset(Scope)
    caller = Caller(
        key_id=row.id,
        scopes=frozenset(Scope(scope) for scope in row.scopes if scope in known),
        collections=None if row.collections is None else frozenset(row.collections),
        reader=Reader(principals=frozenset(row.principals), everything=row.everything),
        per_minute=row.per_minute,
    )
    return ApiKey(
        id=row.id,
        name=row.name,
        caller=caller,
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        usable=row.revoked_at is None and (row.expires_at is None or now < row.expires_at),
    )


def _check(new: NewKey) -> None:
    """Raise InvalidInput for what no key can be."""
    if not 0 < len(new.name.strip()) <= MAX_NAME_CHARACTERS or not new.name.isprintable():
        raise InvalidInput(
            f"a key's name has 1 to {MAX_NAME_CHARACTERS} printable characters, not {new.name[:80]!r}", field="name"
        )
    if not new.scopes:
        raise InvalidInput(f"a key has at least one scope: {', '.join(Scope)}", field="scope")
    if new.collections is not None and not new.collections:
        raise InvalidInput("a key that is limited to collections names at least one", field="collection")
    for name in sorted(new.collections or ()):
        collections.check_name(name)
    check_principals(sorted(new.reader.principals))
    if new.per_minute is not None and new.per_minute < 1:
        raise InvalidInput("a key may send at least 1 request a minute", field="per-minute")
    if new.lifetime is not None and new.lifetime <= timedelta():
        raise InvalidInput("a key lives longer than no time at all", field="expires")


def check_principals(principals: Sequence[str]) -> None:
    """Raise InvalidInput for names that no document can be restricted to."""
    if len(principals) > MAX_PRINCIPALS:
        raise InvalidInput(f"at most {MAX_PRINCIPALS} principals, not {len(principals)}", field="principal")
    for principal in principals:
        if not 0 < len(principal) <= MAX_PRINCIPAL_CHARACTERS or not principal.isprintable():
            raise InvalidInput(
                f"a principal has 1 to {MAX_PRINCIPAL_CHARACTERS} printable characters, not {principal[:80]!r}",
                field="principal",
            )


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def _random(length: int) -> str:
    return "".join(secrets.choice(_LETTERS) for _ in range(length))
