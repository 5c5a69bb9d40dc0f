"""The keys as one process knows them: a secret enters, its caller leaves. Safe to share between threads.

What was found is remembered for a moment, so that a bot's searches do not ask the database each time; a key that is
revoked, or has expired, is refused within that moment everywhere. Refusals are remembered too: whoever sends the same
wrong key again and again, or none, asks the database no more often than that.
"""

from __future__ import annotations

import hashlib
import time
from contextlib import suppress

from nvr_rag.access import keys
from nvr_rag.access.callers import LOCAL, Caller
from nvr_rag.db.session import Database
from nvr_rag.errors import DatabaseUnavailable, Unauthenticated

MOMENT_SECONDS = 1.0
_MOST = 10_000  # callers remembered at a time, and as many refusals


class Keyring:
    """Tells who asks."""

    def __init__(self, database: Database, *, required: bool) -> None:
        """`required`: nobody is let in without a key, also while there are none."""
        self._database, self._required = database, required
        self._known: dict[bytes, tuple[float, Caller]] = {}
        self._refused: dict[bytes, tuple[float, str]] = {}  # why; apart, so that no flood of them drives callers out
        self._open_until = 0.0  # so long nobody needs to ask whether keys exist
        self._was_open = False  # the last time that the database was asked
        with suppress(DatabaseUnavailable), database.read() as connection:
            self._was_open = not required and not keys.exist(connection)

    def remembered(self, key: str | None) -> Caller | None:
        """The caller, where that was found out a moment ago; takes no time, and may be called on an event loop. Raises
        Unauthenticated where it was found out that there is none."""
        now = time.monotonic()
        self._check(key, now)
        if key is None:
            return LOCAL if now < self._open_until else None
        until, caller = self._known.get(_digest(key), (0.0, None))
        return caller if now < until else None

    @property
    def was_open(self) -> bool:
        """Whether one could come in without a key when the database was last asked."""
        return self._was_open

    def is_open(self) -> bool:
        """Whether one may come in without a key; while the database does not answer, whether one could before."""
        try:
            return self.identify(None) is LOCAL
        except Unauthenticated:
            return False
        except DatabaseUnavailable:
            return self._was_open

    def identify(self, key: str | None) -> Caller:
        """The caller. Raises Unauthenticated: no key where one is needed, or one that is unknown, revoked or expired;
        DatabaseUnavailable."""
        now = time.monotonic()
        self._check(key, now)
        until = now + MOMENT_SECONDS
        with self._database.read() as connection:
            if key is None:
                self._was_open = not self._required and not keys.exist(connection)
                if not self._was_open:
                    raise self._refuse(
                        key,
                        until,
                        "a key is needed: send it as Authorization: Bearer KEY or as X-API-Key; "
                        "nvr-rag keys create makes one",
                    )
                self._open_until = until
                return LOCAL
            found = keys.find(connection, key)
            none = found is None and not keys.exist(connection)
        if none:
            raise Unauthenticated("there are no keys here: send none, or make one (nvr-rag keys create)")
        if found is None:
            raise self._refuse(key, until, "this key is not known here; nvr-rag keys list shows those that are")
        if not found.usable:
            what = "was revoked" if found.revoked_at is not None else "has expired"
            raise self._refuse(key, until, f"this key {what}; ask for a new one (nvr-rag keys create)")
        if len(self._known) >= _MOST:
            self._known.clear()
        self._known[_digest(key)] = (until, found.caller)
        return found.caller

    def _check(self, key: str | None, now: float) -> None:
        """Raise Unauthenticated for what was refused a moment ago."""
        until, why = self._refused.get(_digest(key), (0.0, ""))
        if now < until:
            raise Unauthenticated(why)

    def _refuse(self, key: str | None, until: float, why: str) -> Unauthenticated:
        if len(self._refused) >= _MOST:
            self._refused.clear()
        self._refused[_digest(key)] = (until, why)
        return Unauthenticated(why)


def _digest(key: str | None) -> bytes:
    """What is remembered of a key: not the key."""
    if key is None:
        return b""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
