"""Tables as files and back, the same for SQLite and PostgreSQL: a line with the columns, then a line for each row.

Rows enter in one order and leave in the same one. Which values a restored row must not have any more is for `restoring`
to say. Knows no folder of a backup.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

from sqlalchemy import Connection, Integer, Select, Table, func, literal, select, text
from sqlalchemy.exc import DBAPIError

from nvr_rag.db.tables import Base, Idempotency, Process, SchemaInfo, Upload, UtcDateTime
from nvr_rag.errors import ConfigurationError, InvalidInput
from nvr_rag.storable import storable

# Who runs now, what the database is, what is answered to requests of today, and which uploads wait: their files are not
# in a backup.
_VOLATILE = tuple(table.__tablename__ for table in (Process, SchemaInfo, Idempotency, Upload))
_PAGE = 500
_LEVEL = 4  # of compression: half the time of the usual one, a tenth larger

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Dumped:
    """What was written of a table."""

    rows: int
    unpacked: int  # bytes before they were compressed


def kept_tables() -> list[Table]:
    """The tables of a backup, each after those that it refers to."""
    return [table for table in Base.metadata.sorted_tables if table.name not in _VOLATILE]


def dump(connection: Connection, table: Table, out: BinaryIO, report: Callable[[int], None]) -> Dumped:
    """Write a table, compressed, in bounded memory; `report` hears how many rows are written."""
    rows = unpacked = 0
    with gzip.GzipFile(fileobj=out, mode="wb", filename="", mtime=0, compresslevel=_LEVEL) as packed:
        unpacked += packed.write(_line([column.name for column in table.columns]))
        with connection.execute(select(table), execution_options={"yield_per": _PAGE}) as found:
            for row in found:
                unpacked += packed.write(_line([_plain(value) for value in row]))
                rows += 1
                if rows % _PAGE == 0:
                    report(rows)
    return Dumped(rows=rows, unpacked=unpacked)


def _line(values: list[Any]) -> bytes:
    return json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value


def rows_of(path: Path, table: Table) -> Iterator[Row]:
    """The rows of a table's file. Raises InvalidInput for columns that this release does not have."""
    with gzip.open(path, "rb") as file:
        columns = json.loads(file.readline())
        unknown = sorted(set(columns) - set(table.columns.keys()))
        if unknown:
            raise InvalidInput(
                f"the table {table.name} of the backup has columns that this release does not know "
                f"({', '.join(unknown)}); upgrade nvr-rag to restore it"
            )
        kinds = [table.columns[name] for name in columns]
        moments = [isinstance(column.type, UtcDateTime) for column in kinds]
        for line in file:
            values = json.loads(line)
            yield {
                name: _value(value, moment=moment) for name, value, moment in zip(columns, values, moments, strict=True)
            }


def _value(value: Any, *, moment: bool) -> Any:
    if moment and value is not None:
        return datetime.fromisoformat(value)
    return storable(value) if isinstance(value, str) else value  # PostgreSQL is stricter than SQLite


def fill(connection: Connection, table: Table, rows: Iterator[Row]) -> int:
    """Insert rows into a table, in bounded memory; returns how many. Raises ConfigurationError for what the database
    does not take."""
    count = 0
    batch: list[Row] = []
    for row in rows:
        batch.append(row)
        if len(batch) == _PAGE:
            count += _insert(connection, table, batch)
            batch = []
    return count + (_insert(connection, table, batch) if batch else 0)


def _insert(connection: Connection, table: Table, batch: Sequence[Row]) -> int:
    try:
        connection.execute(table.insert(), list(batch))
    except DBAPIError as error:
        if error.connection_invalidated:
            raise
        raise ConfigurationError(
            f"the database did not take the rows of the table {table.name} ({type(error.orig).__name__}: "
            f"{str(error.orig).splitlines()[0]}); nothing was restored"
        ) from error
    return len(batch)


def any_rows(connection: Connection, names: Sequence[str]) -> str | None:
    """The first of these tables, which are there, that is not empty."""
    for table in kept_tables():
        if table.name in names and connection.execute(_one_row(table)).first() is not None:
            return table.name
    return None


def _one_row(table: Table) -> Select[int]:
    return select(literal(1)).select_from(table).limit(1)  # an older release may not have all columns


def go_on_counting(connection: Connection) -> None:
    """Have the database give numbers after those that are there. SQLite does so by itself."""
    if connection.dialect.name != "postgresql":
        return
    for table in kept_tables():
        for column in table.primary_key.columns:
            sequence = _sequence(connection, table, column.name) if isinstance(column.type, Integer) else None
            highest = connection.scalar(select(func.max(column))) if sequence else None
            if highest is not None:
                values = {"sequence": sequence, "highest": highest}
                connection.execute(text("SELECT setval(:sequence, :highest)"), values)


def _sequence(connection: Connection, table: Table, column: str) -> str | None:
    named = {"table": f'"{table.name}"', "column": column}
    found: str | None = connection.scalar(text("SELECT pg_get_serial_sequence(:table, :column)"), named)
    return found


class Hashed:
    """A file that is written, and the hash of what was written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._digest, self.bytes = file, hashlib.sha256(), 0

    def write(self, content: bytes) -> int:
        self._digest.update(content)
        self.bytes += len(content)
        return self._file.write(content)

    def flush(self) -> None:
        self._file.flush()

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()
