"""The clock that all processes share: what one has written, another compares with the present moment.

On PostgreSQL that is the database's own, because machines disagree: with their own clocks, one that is a minute ahead
would take living leases away. On SQLite all processes are on one machine, and its clock is theirs.
"""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import Connection, func, select

from nvr_rag.db import tables as t


def now(connection: Connection) -> datetime:
    """The present moment, in UTC; not the moment at which the transaction began."""
    if connection.dialect.name != "postgresql":
        return t.now()
    moment: datetime = connection.execute(select(func.clock_timestamp())).scalar_one()
    return moment.astimezone(UTC)
