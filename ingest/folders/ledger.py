"""What a run has to remember of every document at one source: what is stored of it, and whether it was seen.

Stored documents and URIs that were seen enter; those that were not seen leave. It is kept in a temporary file, so that
the memory of a run does not grow with the number of documents. It knows no files and no collection.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from typing import Any

from nvr_rag.documents import Known
from nvr_rag.types import DocumentState

_CACHE_KIB = 2048
_COLUMNS = "uri, document_id, sha256, parser, state, error, source, acl"


class Ledger:
    """Safe to share between threads; gone when it is closed."""

    def __init__(self, stored: Iterable[Known]) -> None:
        self._lock = threading.Lock()
        self._db = sqlite3.connect("", isolation_level=None, check_same_thread=False)  # "": a temporary file
        for pragma in ("journal_mode = OFF", "synchronous = OFF", f"cache_size = -{_CACHE_KIB}"):
            self._db.execute(f"PRAGMA {pragma}")
        self._db.execute(
            "CREATE TABLE stored (uri TEXT PRIMARY KEY, document_id TEXT, sha256 TEXT, parser TEXT, state TEXT, "
            "error TEXT, source TEXT, acl TEXT, seen INTEGER DEFAULT 0) WITHOUT ROWID"
        )
        self._db.execute("BEGIN")
        rows = (_row(known) for known in stored)
        self._db.executemany(f"INSERT OR IGNORE INTO stored ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)  # noqa: S608

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def see(self, uri: str) -> Known | None:
        """The document is at its source; what is stored of it."""
        with self._lock:
            self._db.execute("UPDATE stored SET seen = 1 WHERE uri = ?", (uri,))
            row = self._db.execute(f"SELECT {_COLUMNS} FROM stored WHERE uri = ?", (uri,)).fetchone()  # noqa: S608
        return _known(row) if row else None

    def unseen(self) -> Iterator[Known]:
        """What is stored and was not seen, by URI. Only once nothing is seen any more."""
        for row in self._db.execute(f"SELECT {_COLUMNS} FROM stored WHERE NOT seen ORDER BY uri"):  # noqa: S608
            yield _known(row)


def _row(known: Known) -> tuple[str | None, ...]:
    acl = None if known.acl is None else json.dumps(list(known.acl))
    who = (known.uri, known.document_id, known.sha256, known.parser)
    return (*who, str(known.state), known.error, known.source, acl)


def _known(row: tuple[Any, ...]) -> Known:
    uri, document_id, sha256, parser, state, error, source, acl = row
    return Known(
        uri=uri,
        document_id=document_id,
        sha256=sha256,
        parser=parser,
        state=DocumentState(state),
        error=error,
        source=source,
        acl=None if acl is None else tuple(json.loads(acl)),
    )
