"""From paths to searchable documents: walk, skip what is known, parse, commit to the log, and have it indexed.

A folder is mirrored: new and edited files are stored, files that have gone, and files that are not wanted any more, are
deleted. Reading and indexing run at the same time; what is committed is durable, so stopping anywhere loses nothing and
the next run goes on. The command line, the jobs and the Python interface all come here.

Whose a document is: it belongs to the path with which it was first taken in, its source. Sources may lie inside one
another. A file that two of them hold is one document. One that has gone from the disk is deleted by whichever source
looks there first; one that is merely not wanted, only by the source that it belongs to.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from functools import partial
from pathlib import Path
from typing import TypeVar

from sqlalchemy import Connection

from ingest.folders.counting import Counting
from ingest.folders.ledger import Ledger
from ingest.folders.records import TextRecord, read_jsonl
from ingest.folders.sidecars import SIDECAR_ENDINGS
from ingest.folders.sight import Sight, below, mirrored
from ingest.folders.stamps import Stamps
from ingest.reading import Read, Reader
from ingest.report import Failure, IngestOptions, IngestReport, Stand, Watcher
from ingest.settling import Settling
from ingest.sources import Skipped, path_to_uri, shown, status_of, walk
from ingest.stopping import Either
from nvr_rag import collections, corpus, documents
from nvr_rag.corpus import Outcome
from nvr_rag.documents import Known
from nvr_rag.errors import Conflict, InvalidInput, NotFound, NvrError
from nvr_rag.ids import sha256_text
from nvr_rag.running.patience import Patience
from nvr_rag.types import NewDocument, ParsedText, text_format_of
from nvr_rag.upkeep.progress import Progress
from nvr_rag.workspace import Workspace

__all__ = ["Failure", "IngestOptions", "IngestReport", "Stand", "Watcher", "check_paths", "ingest"]

READY_TEXT = "text"  # the parser of documents that come as text
_BATCH_DOCUMENTS = 64
_FIRST_DOCUMENTS = 32  # in the first batch, for which the encoder waits
_BATCH_CHARACTERS = 4_000_000
_BATCH_SECONDS = 1.0  # a slow source is committed, and so indexed, at least this often
_DELETED_AT_ONCE = 500
_FILE_OF_ANOTHER = "has the uri of a file that is a document of another source"
PATIENCE_SECONDS = 120.0  # for which a database that is away is waited for

Item = TypeVar("Item")


def ingest(
    workspace: Workspace,
    paths: Sequence[Path],
    *,
    collection: str = "default",
    allow_empty: bool = False,
    options: IngestOptions | None = None,
    watcher: Watcher | None = None,
    stop: threading.Event | None = None,
) -> IngestReport:
    """Mirror folders and files, and the records of JSON Lines files, into a collection, made if it is new.

    Returns when everything is searchable, or soon after `stop` is set; failed documents are in the report. Raises
    InvalidInput for a path that is not there, Conflict for a folder that has become empty (unless `allow_empty`),
    NotFound when the collection is deleted meanwhile, and what store and database raise.
    """
    options = options or IngestOptions()
    check_paths(paths)
    options.selection.rules()
    collection_id = _collection(workspace, collection, create=options.create)
    run = _Run(workspace, collection, options, watcher or Watcher(), Either(stop))
    run.allow_empty = allow_empty
    started = time.perf_counter()
    settling = Settling(workspace, collection_id, run.indexed, stop=run.stop, news=run.news)
    try:
        with settling, _counting(run, paths):
            for path in paths:
                if not run.stop.is_set():
                    run.take(path)
            run.forget()
            run.report.seconds["read"] = time.perf_counter() - started
    except NotFound as error:
        raise run.explained(error) from error
    if run.refusal is not None:
        raise run.refusal
    run.report.work, run.report.stopped = settling.work, run.stop.is_set()
    run.report.seconds["total"] = time.perf_counter() - started
    return run.report


def check_paths(paths: Sequence[Path]) -> None:
    """Raise InvalidInput when one of them is not there or cannot be taken, before anything is changed."""
    for path in paths:
        status_of(path)
        said = [path.name + ending for ending in SIDECAR_ENDINGS if os.path.lexists(f"{path}{ending}")]
        if said and is_feed(path):
            raise InvalidInput(
                f"{said[0]} lies beside {shown(path)}, whose lines are documents of their own; write their metadata "
                "and acl into the lines, and remove it",
                field="path",
            )


def is_feed(path: Path) -> bool:
    """Whether what is at a path of a run is taken line by line, as ready texts."""
    return path.suffix.lower() in (".jsonl", ".ndjson") and path.is_file()


def _collection(workspace: Workspace, name: str, *, create: bool) -> int:
    try:
        with workspace.database.read() as connection:
            return collections.find(connection, name)
    except NotFound:
        if not create:
            raise
        return workspace.create_collection(name)


def _counting(run: _Run, paths: Sequence[Path]) -> AbstractContextManager[None]:
    if run.watcher.stand is None:
        return nullcontext()
    feeds = [path for path in paths if is_feed(path)]
    return Counting([path for path in paths if path not in feeds], feeds, run.options, run.count)


class _Run:
    """One run over some paths."""

    def __init__(
        self,
        workspace: Workspace,
        collection: str,
        options: IngestOptions,
        watcher: Watcher,
        stop: threading.Event,
    ) -> None:
        self.workspace, self.options, self.watcher, self.stop = workspace, options, watcher, stop
        self.collection = collection
        self.news = threading.Event()  # set after each commit
        self.allow_empty = False
        self.refusal: Conflict | None = None  # to delete what a folder does not hold any more
        self.report = IngestReport()
        self._gone: list[str] = []  # ids of documents to be deleted once every path was taken: a file may have moved
        self._total: int | None = None
        self._progress: Progress | None = None
        with workspace.database.read() as connection:
            self._born = collections.identity(connection, collection)
            self._base = collections.head_seq(connection, self._born[0])

    def take(self, path: Path) -> None:
        """Everything at one path."""
        if not is_feed(path):
            self._mirror(path)
        elif not self.options.only or path in self.options.only:
            self._store(self._records(path))

    def forget(self) -> None:
        """Delete what has gone."""
        for start in range(0, len(self._gone), _DELETED_AT_ONCE):
            if self.stop.is_set():
                return
            part = self._gone[start : start + _DELETED_AT_ONCE]
            self.report.deleted += len(self._commit(partial(_delete, self.collection, part)))

    def explained(self, error: NotFound) -> NotFound:
        """The error, or what is behind it: that the collection was deleted under the run."""
        with self.workspace.database.write() as connection:
            there = collections.same(connection, self.collection, self._born)
        return error if there else _deleted(self.collection)

    def indexed(self, progress: Progress) -> None:
        """An index has got further."""
        self._progress = progress
        self.watcher.index(progress)
        self._tell()

    def count(self, total: int) -> None:
        """There are so many documents to be seen."""
        self._total = total
        self._tell()

    def _tell(self) -> None:
        if self.watcher.stand is None:
            return
        report, progress = self.report, self._progress
        changed = report.added + report.updated
        found = max(0, min(changed, progress.applied_seq - self._base)) if progress else 0
        total = None if self._total is None else max(self._total, report.seen)
        encoded = progress.work.encoded if progress else 0
        self.watcher.stand(Stand(seen=report.seen, done=report.seen - changed + found, total=total, encoded=encoded))

    def _mirror(self, root: Path) -> None:
        spots = [spot for spot in self.options.only if _at_or_below(spot, root)]
        if self.options.only and not spots:
            return
        stamps = Stamps(self.workspace.home / "stamps", path_to_uri(root))
        with closing(Ledger(self._stored(spots or [root]))) as ledger:
            sight = Sight(root, ledger, whole=not spots)
            self._take_files(root, sight, stamps)
            if not self.stop.is_set():
                self._gone += self._missing(sight)
        if not spots:
            stamps.save(complete=not self.stop.is_set())

    def _take_files(self, root: Path, sight: Sight, stamps: Stamps) -> None:
        settings, database = self.workspace.settings.ingest, self.workspace.database
        with Reader(settings, database, stamps, self.options, self.stop, root=root) as reader:
            try:
                walked = self._timed(walk(root, self.options.selection, only=self.options.only))
                self._store(reader.read(sight.files(walked, self.report), path_to_uri(root)))
            finally:
                self.report.spend("parse", reader.busy_seconds)

    def _stored(self, spots: Sequence[Path]) -> Iterator[Known]:
        with self.workspace.database.read() as connection:
            for spot in spots:
                yield from documents.known(connection, self.collection, path_to_uri(spot))

    def _timed(self, entries: Iterator[Item]) -> Iterator[Item]:
        while True:
            started = time.perf_counter()
            entry = next(entries, None)
            self.report.spend("walk", time.perf_counter() - started)
            if entry is None:
                return
            yield entry

    def _missing(self, sight: Sight) -> list[str]:
        """Ids of the documents to be deleted; what speaks against it is raised once the other paths were taken."""
        gone = [known.document_id for known in sight.missing()]
        refusal = None if self.allow_empty else sight.refusal(len(gone))
        if refusal is not None:
            self.refusal = self.refusal or refusal
            return []
        return gone

    def _records(self, path: Path) -> Iterator[Read]:
        source = path_to_uri(path)
        for record in read_jsonl(path):
            if isinstance(record, Skipped):
                self.report.fail(f"{source}#L{record.line}", record.reason)
            elif record.uri.startswith("file:") and self._is_file(record.uri):
                self.report.fail(f"{source}#L{record.line}", _FILE_OF_ANOTHER)
            else:
                yield Read(uri=record.uri, document=ready_text(record, source), source=source)

    def _is_file(self, uri: str) -> bool:
        with self.workspace.database.read() as connection:
            return any(mirrored(known) for known in documents.known(connection, self.collection, uri))

    def _store(self, reads: Iterable[Read]) -> None:
        """Commit what was read, in batches small in documents, characters and time."""
        batch: list[Read] = []
        uris: set[str] = set()
        characters, begun, most = 0, time.monotonic(), _FIRST_DOCUMENTS
        for read in reads:
            again = read.uri in uris
            late = time.monotonic() - begun > _BATCH_SECONDS
            if batch and (again or late or len(batch) >= most or characters > _BATCH_CHARACTERS):
                self._commit_batch(batch)
                batch, uris, characters, begun, most = [], set(), 0, time.monotonic(), _BATCH_DOCUMENTS
            batch.append(read)
            uris.add(read.uri)
            characters += len(read.document.parsed.text) if read.document else 0
            if self.stop.is_set():
                break
        self._commit_batch(batch)

    def _commit_batch(self, batch: Sequence[Read]) -> None:
        changes = [read for read in batch if read.document or read.failure]
        outcomes = self._commit(partial(_put, self.collection, changes)) if changes else []
        for outcome in outcomes:
            setattr(self.report, outcome, getattr(self.report, outcome) + 1)
        self.report.restricted += sum(1 for read in changes if read.document and read.document.acl is not None)
        for read in changes:
            if read.failure:
                self.report.fail(read.uri, read.failure)
        self.report.unchanged += len(batch) - len(changes)
        self.watcher.documents(self.report.seen)
        self._tell()

    def _commit(self, act: Callable[[Connection], list[Item]]) -> list[Item]:
        """Do something in a transaction; a database that is away is waited for."""
        patience, started = Patience("storing documents"), time.monotonic()
        while True:
            try:
                begun = time.perf_counter()
                with self.workspace.database.write() as connection:
                    if not collections.same(connection, self.collection, self._born):
                        raise _deleted(self.collection)
                    done = act(connection)
                self.report.spend("commit", time.perf_counter() - begun)
                self.news.set()
                return done
            except NvrError as error:
                if not error.retry or self.stop.is_set() or time.monotonic() - started > PATIENCE_SECONDS:
                    raise
                self.stop.wait(patience.failed(error))


def _deleted(name: str) -> NotFound:
    return NotFound(f"the collection {name!r} was deleted while documents came in; nothing of it is left")


def _put(collection: str, reads: Sequence[Read], connection: Connection) -> list[Outcome]:
    puts = corpus.put(connection, collection, [read.document for read in reads if read.document])
    for read in reads:
        if read.failure:
            corpus.fail(connection, collection, uri=read.uri, source=read.source, error=read.failure, acl=read.acl)
    return [put.outcome for put in puts]


def _delete(collection: str, ids: Sequence[str], connection: Connection) -> list[str]:
    return corpus.delete_documents(connection, collection, ids)


def ready_text(record: TextRecord, source: str) -> NewDocument:
    """The document that a record is."""
    parsed = ParsedText(
        text=record.text,
        format=text_format_of(record.media_type),
        media_type=record.media_type,
        title=record.title,
        metadata=record.metadata,
    )
    return NewDocument(
        uri=record.uri,
        sha256=sha256_text(record.text),
        parsed=parsed,
        parser=READY_TEXT,
        source=source,
        acl=None if record.acl is None else list(record.acl),
    )


def _at_or_below(path: Path, root: Path) -> bool:
    return below(path_to_uri(path), [path_to_uri(root)])
