"""A dry run: what a run over some paths would do, found by looking alone.

Paths enter, a Plan leaves. Files are hashed where their state on the disk does not settle it, and never parsed; nothing
is written, and no collection is made.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path

from ingest.folders.ledger import Ledger
from ingest.folders.records import TextRecord, read_jsonl
from ingest.folders.sight import Sight
from ingest.folders.stamps import Stamps
from ingest.pipeline import check_paths, is_feed, ready_text
from ingest.reading import Need, Reader
from ingest.report import IngestOptions, Plan
from ingest.sources import Skipped, SourceFile, path_to_uri, walk
from nvr_rag import collections, corpus, documents
from nvr_rag.corpus import Outcome
from nvr_rag.documents import Known
from nvr_rag.errors import NotFound, ParseFailed
from nvr_rag.workspace import Workspace

_RECORDS_AT_ONCE = 64


def plan(
    workspace: Workspace,
    paths: Sequence[Path],
    *,
    collection: str = "default",
    allow_empty: bool = False,
    options: IngestOptions | None = None,
) -> Plan:
    """What `ingest` would do with the same words. Raises InvalidInput as that does."""
    options = options or IngestOptions()
    check_paths(paths)
    options.selection.rules()
    collections.check_name(collection)
    planning = _Planning(workspace, collection, options, allow_empty=allow_empty)
    for path in paths:
        planning.take(path)
    return planning.plan


class _Rollback(Exception):
    """Ends a transaction without its changes."""


class _Planning:
    """One dry run over some paths."""

    def __init__(self, workspace: Workspace, collection: str, options: IngestOptions, *, allow_empty: bool) -> None:
        self._workspace, self._collection, self._options = workspace, collection, options
        self._allow_empty = allow_empty
        self._exists = self._find()
        self.plan = Plan()

    def take(self, path: Path) -> None:
        """Everything at one path."""
        if is_feed(path):
            self._feed(path)
        else:
            self._folder(path)

    def _find(self) -> bool:
        try:
            with self._workspace.database.read() as connection:
                collections.find(connection, self._collection)
            return True
        except NotFound:
            return False

    def _folder(self, root: Path) -> None:
        workspace = self._workspace
        stamps = Stamps(workspace.home / "stamps", path_to_uri(root))
        reader = Reader(
            workspace.settings.ingest, workspace.database, stamps, self._options, threading.Event(), root=root
        )
        with closing(Ledger(self._stored(root))) as ledger, reader:
            sight = Sight(root, ledger, whole=True)
            for file, known in sight.files(walk(root, self._options.selection), self.plan):
                self._judge(reader, file, known)
            gone = [known.uri for known in sight.missing()]
            refusal = None if self._allow_empty else sight.refusal(len(gone))
        if refusal is None:
            self.plan.delete += gone
        else:
            self.plan.refused.append(str(refusal))

    def _stored(self, root: Path) -> Iterator[Known]:
        if self._exists:
            with self._workspace.database.read() as connection:
                yield from documents.known(connection, self._collection, path_to_uri(root))

    def _judge(self, reader: Reader, file: SourceFile, known: Known | None) -> None:
        try:
            verdict = reader.judge(file, known)
        except ParseFailed as error:
            self.plan.fail(file.uri, str(error))
            return
        if verdict.need is Need.NOTHING:
            self.plan.unchanged += 1
        elif known is not None and known.sha256:
            self.plan.update.append(file.uri)
        else:
            self.plan.add.append(file.uri)

    def _feed(self, path: Path) -> None:
        source, entries = path_to_uri(path), read_jsonl(path)
        while some := list(islice(entries, _RECORDS_AT_ONCE)):
            for entry in some:
                if isinstance(entry, Skipped):
                    self.plan.fail(f"{source}#L{entry.line}", entry.reason)
            self._records([entry for entry in some if isinstance(entry, TextRecord)], source)

    def _records(self, records: Sequence[TextRecord], source: str) -> None:
        for record, outcome in zip(records, self._outcomes(records, source), strict=True):
            if outcome is Outcome.UNCHANGED:
                self.plan.unchanged += 1
            else:
                (self.plan.update if outcome is Outcome.UPDATED else self.plan.add).append(record.uri)

    def _outcomes(self, records: Sequence[TextRecord], source: str) -> list[Outcome]:
        """What the log itself makes of them, in a transaction that leaves nothing behind."""
        if not self._exists:
            return [Outcome.ADDED] * len(records)
        outcomes: list[Outcome] = []
        try:
            with self._workspace.database.write() as connection:
                for record in records:
                    outcomes += [
                        put.outcome for put in corpus.put(connection, self._collection, [ready_text(record, source)])
                    ]
                raise _Rollback
        except _Rollback:
            return outcomes
