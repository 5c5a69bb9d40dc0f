"""Collections of a database enter, as they are at one moment; the lines of an export leave, in bounded memory.

The same contents give the same lines on every engine and in every installation: nothing in them depends on row ids or
on when something was imported. Deleted documents are left out, with the judgments about them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from sqlalchemy import Connection, func, select

from nvr_rag import __version__, collections, deployments
from nvr_rag.collections import CollectionInfo
from nvr_rag.db import tables as t
from nvr_rag.db.session import Database
from nvr_rag.deployments import Deployment
from nvr_rag.documents import newest_version
from nvr_rag.errors import InvalidInput
from nvr_rag.transfer import files
from nvr_rag.transfer.query_lines import query_lines
from nvr_rag.transfer.records import COUNTED, FORMAT, VERSION, Part
from nvr_rag.transfer.rows import DocumentRows
from nvr_rag.types import DocumentState

_PAGE = 200  # documents, or queries, whose keys are looked up at a time
_CHARACTERS = 4_000_000  # of texts in memory at a time, unless one document alone has more

Json = dict[str, Any]


def export(
    database: Database,
    out: BinaryIO,
    names: Sequence[str] = (),
    *,
    parts: Sequence[Part] = (),
    report: Callable[[int, int], None] = lambda _done, _total: None,
) -> dict[str, int]:
    """Write these collections, or all of them, as they are now; returns what was written, by the names in COUNTED.

    `report` hears how many documents are written, of how many. Raises NotFound, DatabaseUnavailable.
    """
    with database.read() as connection:
        infos = [info for info in collections.all_infos(connection) if not names or info.name in names]
        for name in names:
            collections.find(connection, name)
        total = sum(sum(info.documents.values()) - info.documents[DocumentState.DELETED] for info in infos)
        run = _Export(connection, out, frozenset(parts), lambda done: report(done, total))
        run.write(
            {
                "type": "header",
                "format": FORMAT,
                "version": VERSION,
                "release": __version__,
                "created_at": t.now().isoformat(timespec="seconds"),
                "with": [part.value for part in Part if part in parts],
            }
        )
        serving = deployments.all_serving(connection)
        for info in sorted(infos, key=lambda one: one.name):
            run.collection(info, serving.get(info.name))
        run.write({"type": "trailer", "counts": run.counts})
        return dict(run.counts)


@dataclass(slots=True)
class _Export:
    """One export at work."""

    connection: Connection
    out: BinaryIO
    parts: frozenset[Part]
    report: Callable[[int], None]
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTED, 0))
    _described: set[str] = field(default_factory=set)  # hashes of chunkings

    def write(self, line: Json, counted: str | None = None) -> None:
        content = json.dumps(line, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
        if len(content) > files.MAX_LINE_BYTES:
            raise InvalidInput(
                f"{line.get('uri') or line.get('id')} takes {len(content)} bytes as one line, and "
                f"{files.MAX_LINE_BYTES} are the most that can be read again; delete it, or put it in smaller pieces"
            )
        self.out.write(content + b"\n")
        if counted:
            self.counts[counted] += 1

    def collection(self, info: CollectionInfo, serving: Deployment | None) -> None:
        answers = {"mode": serving.mode, "fusion": serving.fusion.as_json()} if serving else None
        described = {"type": "collection", "name": info.name, "language": info.language, "serving": answers}
        self.write(described, "collections")
        for group in self._groups(info.id):
            rows = DocumentRows(self.connection, group, self.parts)
            for row in rows.documents:
                self._document(info.name, row, rows)
            self.report(self.counts["documents"])
        if Part.FEEDBACK in self.parts:
            for line in query_lines(self.connection, info.id):
                self.write({"type": "query", "collection": info.name, **line}, "queries")
                self.counts["feedback"] += len(line["feedback"])

    def _groups(self, collection_id: int) -> Iterator[list[str]]:
        """Ids of documents that are not deleted in ascending order of URI, as many as may be in memory at a time."""
        group: list[str] = []
        size = 0
        for key, characters in self._keys(collection_id):
            if group and (size + characters > _CHARACTERS or len(group) == _PAGE):
                yield group
                group, size = [], 0
            group.append(key)
            size += characters
        if group:
            yield group

    def _keys(self, collection_id: int) -> Iterator[tuple[str, int]]:
        d, after = t.Document, ""
        # By code point on every engine, and not by the rules of a language.
        uri = d.uri.collate("C") if self.connection.dialect.name == "postgresql" else d.uri
        statement = (
            select(d.id, d.uri, func.coalesce(func.length(t.DocumentVersion.text), 0).label("characters"))
            .join(t.DocumentVersion, newest_version(), isouter=True)
            .where(d.collection_id == collection_id, d.state != DocumentState.DELETED)
            .order_by(uri)
            .limit(_PAGE)
        )
        while True:
            rows = self.connection.execute(statement.where(uri > after)).all()
            yield from ((row.id, row.characters) for row in rows)
            if len(rows) < _PAGE:
                return
            after = rows[-1].uri

    def _document(self, collection: str, row: Any, rows: DocumentRows) -> None:
        self.write({"type": "document", "collection": collection, **rows.document_of(row)}, "documents")
        chunks = rows.chunks_of(row)
        for chunk in chunks:
            for place in chunk["places"]:
                self._describe(place["chunking"], rows)
            self.write({"type": "chunk", **chunk}, "chunks")
        known = {chunk["id"] for chunk in chunks}
        for judgment in rows.judgments_of(row, known):
            self.write({"type": "judgment", **judgment}, "judgments")

    def _describe(self, chunking: str, rows: DocumentRows) -> None:
        if chunking not in self._described:
            self._described.add(chunking)
            self.write({"type": "chunking", "hash": chunking, "settings": rows.settings[chunking]})
