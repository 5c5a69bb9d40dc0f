"""A folder and a workspace for the tests of syncing; documents are parsed in the process of the test, which takes
milliseconds where a child process takes a second."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ingest.folders.selection import Selection
from ingest.parsers.file_bytes import read_file
from ingest.parsers.limits import ParseLimits
from ingest.parsing import parse_bytes
from ingest.pipeline import IngestOptions, IngestReport, ingest
from ingest.sandbox import ParsedFile
from nvr_rag import documents
from nvr_rag.types import Document, Query
from nvr_rag.workspace import Workspace


class InProcess:
    """Stands in for the sandbox."""

    parsed: list[str] = []  # names, of all of them
    before: Callable[[Path], None] = staticmethod(lambda _path: None)  # called before a file is read
    after: Callable[[Path], None] = staticmethod(lambda _path: None)

    def __init__(self, limits: ParseLimits, *, children: int = 1) -> None:
        self._limits = limits

    def parse(self, source: Path | bytes, *, name: str, media_type: str | None = None) -> ParsedFile:
        assert isinstance(source, Path)
        type(self).before(source)
        data = read_file(source, self._limits)
        type(self).after(source)
        self.parsed.append(name)
        parsed = parse_bytes(data, name=name, media_type=media_type, limits=self._limits)
        return ParsedFile(parsed=parsed, sha256=hashlib.sha256(data).hexdigest())

    def close(self) -> None:
        pass


class Share:
    """A folder of documents that is synced into the collection "default"."""

    def __init__(self, root: Path, workspace: Workspace) -> None:
        self.root, self.workspace = root, workspace
        root.mkdir()

    def write(self, name: str, text: str | bytes = "words") -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    def sync(self, *paths: Path, allow_empty: bool = False, **options: Any) -> IngestReport:
        """Options of IngestOptions and of Selection may be mixed."""
        chosen = {name: options.pop(name) for name in ("include", "exclude") if name in options}
        every = IngestOptions(selection=Selection(**chosen), **options)
        return ingest(self.workspace, paths or [self.root], allow_empty=allow_empty, options=every)

    @property
    def stored(self) -> dict[str, Document]:
        """What is stored and not deleted, by path below the folder."""
        with self.workspace.database.read() as connection:
            found = documents.list_documents(connection, "default", limit=1000)
        return {document.uri.removeprefix(f"file://{self.root}/"): document for document in found}

    def texts(self, question: str, **options: Any) -> list[str]:
        return [hit.text for hit in self.workspace.retriever.search(Query(text=question, **options)).hits]


def counts(report: IngestReport) -> tuple[int, int, int, int, int]:
    """Added, updated, unchanged, deleted, failed."""
    return report.added, report.updated, report.unchanged, report.deleted, len(report.failed)
