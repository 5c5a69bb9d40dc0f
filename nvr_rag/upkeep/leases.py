"""One maintainer for an index that several processes share: a lease in its row.

A store whose indexes have an owner (Edge) needs none of this. On a server anybody can write, and two who bring the same
index up would undo each other's deletions. So whoever writes holds the index's lease, looks at it before every write,
and writes nothing in its last seconds: a request that is under way when another process takes over has ended by then.

A lease is kept for as long as there is something to do, and runs out by itself.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import timedelta

from sqlalchemy import or_, update

from nvr_rag.db import clock
from nvr_rag.db import tables as t
from nvr_rag.db.session import Database
from nvr_rag.errors import Maintained

LEASE_SECONDS = 30.0  # at least; how long an index waits after its maintainer has died
REQUESTS_A_LEASE = 3  # how many times the longest request fits into a lease


class Lease:
    """The lease of one index, as one process holds it or does not. Threads may share it."""

    def __init__(
        self,
        database: Database,
        index_id: int,
        holder: str,
        *,
        request_seconds: float,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """`holder` names the process; `request_seconds` is how long one write to the store may take."""
        self._database, self._index_id, self._holder, self._now = database, index_id, holder, now
        self._margin = request_seconds
        self._seconds = max(LEASE_SECONDS, REQUESTS_A_LEASE * request_seconds)
        self._until = float("-inf")  # by our own clock, and earlier than by the database's
        self._lock = threading.Lock()

    def hold(self) -> None:
        """Have the lease for at least one more write. Raises Maintained while another process has it."""
        with self._lock:
            if self._now() + self._seconds / 2 < self._until:
                return
            begun = self._now()
            if self._take():
                self._until = begun + self._seconds
            elif begun + self._margin >= self._until:
                raise Maintained("another process brings this index up with the documents at the moment")

    def release(self) -> None:
        """Let somebody else have it at once."""
        i = t.SearchIndex
        with self._lock:
            if self._until == float("-inf"):
                return
            self._until = float("-inf")
            with self._database.write() as connection:
                connection.execute(
                    update(i)
                    .where(i.id == self._index_id, i.maintainer == self._holder)
                    .values(maintainer=None, maintained_until=None)
                )

    def _take(self) -> bool:
        i = t.SearchIndex
        with self._database.write(durable=False) as connection:
            now = clock.now(connection)
            free = or_(i.maintainer.is_(None), i.maintainer == self._holder, i.maintained_until < now)
            done = connection.execute(
                update(i)
                .where(i.id == self._index_id, free)
                .values(maintainer=self._holder, maintained_until=now + timedelta(seconds=self._seconds))
            )
            return done.rowcount == 1
