"""Requests that may be sent again: a key and what was asked enter, the answer that was given before leaves.

An answer is kept for a day, in the transaction that does the work, so that there is the one if and only if there is the
other. It knows no request.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, delete, select, update

from nvr_rag.db import clock
from nvr_rag.db import tables as t
from nvr_rag.db.session import insert_ignore
from nvr_rag.errors import InvalidInput
from nvr_rag.ids import sha256_json

MAX_KEY_CHARACTERS = 255
KEPT = timedelta(days=1)
FIELD = "Idempotency-Key"


def begin(connection: Connection, key: str, fingerprint: str, asker: str = "") -> Mapping[str, Any] | None:
    """The answer that was given to this key, or None for a new one: then do the work, and call `answered`.

    Every asker (see nvr_rag.access.callers) has keys of his own; "" is whoever asks where there are none. Of two that
    begin at once, one waits for the other. Raises InvalidInput for a key that stands for something else.
    """
    forget(connection)
    kept = _kept(key, asker)
    fresh = {"key": kept, "fingerprint": fingerprint, "answer": {}, "created_at": clock.now(connection)}
    insert_ignore(connection, t.Idempotency, [fresh])  # waits for whoever has just written the same key
    i = t.Idempotency
    row = connection.execute(select(i.fingerprint, i.answer).where(i.key == kept)).one()
    if row.fingerprint != fingerprint:
        raise InvalidInput(
            f"the {FIELD} {key[:80]!r} stands for another request of the last day; send a new key with a new request",
            field=FIELD,
        )
    answer: Mapping[str, Any] = row.answer
    return answer or None


def answered(connection: Connection, key: str, answer: Mapping[str, Any], asker: str = "") -> None:
    """Keep what the work came to. `answer` is not empty."""
    mine = t.Idempotency.key == _kept(key, asker)
    connection.execute(update(t.Idempotency).where(mine).values(answer=dict(answer)))


def _kept(key: str, asker: str) -> str:
    """What a key is kept as: what one asker takes neither collides with another's nor tells him anything."""
    return sha256_json([asker, key]) if asker else key


def forget(connection: Connection) -> None:
    """Forget answers that are too old."""
    before = clock.now(connection) - KEPT
    connection.execute(delete(t.Idempotency).where(t.Idempotency.created_at < before))
