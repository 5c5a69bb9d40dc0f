"""From paths to searchable documents: walk, skip what is known, parse, commit to the log, and have it indexed.

A folder is mirrored: new and edited files are stored, files that have gone are deleted. Reading and indexing run at the
same time; what is committed is durable, so stopping anywhere loses nothing and the next run goes on.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from ingest.chunking import chunk
from ingest.parsing import PARSER, ParseLimits
from ingest.sandbox import Sandbox
from ingest.sources import Skipped, SourceFile, TextRecord, path_to_uri, read_jsonl, walk
from nvr_rag import corpus
from nvr_rag.collections import find
from nvr_rag.corpus import Outcome
from nvr_rag.documents import Known
from nvr_rag.documents import known as mirrored
from nvr_rag.errors import Conflict, NotFound, ParseFailed
from nvr_rag.ids import sha256_text
from nvr_rag.settings import IngestSettings
from nvr_rag.types import DocumentState, NewDocument, ParsedText, text_format_of
from nvr_rag.upkeep.catching_up import Upkeep, settle
from nvr_rag.upkeep.indexing import Progress
from nvr_rag.upkeep.writing import Work
from nvr_rag.workspace import Workspace

READY_TEXT = "text"  # the parser of documents that come as text
_BATCH_DOCUMENTS = 64
_BATCH_CHARACTERS = 4_000_000
_BATCH_SECONDS = 1.0  # a slow source is committed, and so indexed, at least this often


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """A document that could not be read."""

    uri: str
    reason: str


@dataclass(kw_only=True, slots=True)
class IngestReport:
    """What a run did, counted in documents."""

    added: int = 0
    updated: int = 0
    unchanged: int = 0
    deleted: int = 0
    failed: list[Failure] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)  # by reason
    work: Work = field(default_factory=Work)  # in chunks; what another process indexed is not counted
    seconds: dict[str, float] = field(default_factory=dict)  # read: until all was committed; total

    @property
    def seen(self) -> int:
        return self.added + self.updated + self.unchanged + len(self.failed)


@dataclass(kw_only=True, slots=True)
class Watcher:
    """Whom to tell how far a run is; every call comes from a thread of the run."""

    documents: Callable[[int], None] = lambda _seen: None
    index: Callable[[Progress], None] = lambda _progress: None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Read:
    """One document read: a new text, or nothing new, or why it failed."""

    uri: str
    document: NewDocument | None = None
    failure: str | None = None


def ingest(
    workspace: Workspace,
    paths: Sequence[Path],
    *,
    collection: str = "default",
    allow_empty: bool = False,
    watcher: Watcher | None = None,
    stop: threading.Event | None = None,
) -> IngestReport:
    """Mirror folders and files, and the records of JSON Lines files, into a collection, made if it is new.

    Returns when everything is searchable; failed documents are in the report. Raises InvalidInput for a path that is
    not there, Conflict for a folder that has become empty (unless `allow_empty`), and what store and database raise.
    """
    check_paths(paths)
    collection_id = _collection(workspace, collection)
    run = _Run(workspace, collection, watcher or Watcher(), stop or threading.Event(), allow_empty=allow_empty)
    started = time.perf_counter()
    with _Indexing(run, collection_id):
        for path in paths:
            if not run.stop.is_set():
                run.take(path)
        run.report.seconds["read"] = time.perf_counter() - started
    run.report.seconds["total"] = time.perf_counter() - started
    return run.report


def check_paths(paths: Sequence[Path]) -> None:
    """Raise InvalidInput when one of them is not there, before anything is changed."""
    for path in paths:
        next(walk(path), None)


def _collection(workspace: Workspace, name: str) -> int:
    try:
        with workspace.database.read() as connection:
            return find(connection, name)
    except NotFound:
        return workspace.create_collection(name)


class _Indexing:
    """Runs the indexes' side of a run in a thread of its own; on leaving, waits until they have caught up."""

    def __init__(self, run: _Run, collection_id: int) -> None:
        self._run = run
        self._finished = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._settle, args=(collection_id,), name="indexing", daemon=True)

    def _settle(self, collection_id: int) -> None:
        run = self._run
        try:
            upkeep = Upkeep(
                workspace=run.workspace,
                collection_id=collection_id,
                chunker=chunk,
                stop=run.stop,
                report=run.watcher.index,
            )
            run.report.work = settle(upkeep, self._finished)
        except BaseException as error:  # raised again where the run ends
            self._error = error
            run.stop.set()

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self._run.stop.set()
        self._finished.set()
        while self._thread.is_alive():
            self._thread.join(0.2)  # in small steps, so that Ctrl-C is heard
        if self._error is not None and error is None:
            raise self._error


class _Run:
    """One run over some paths."""

    def __init__(
        self, workspace: Workspace, collection: str, watcher: Watcher, stop: threading.Event, *, allow_empty: bool
    ) -> None:
        self.workspace = workspace
        self.collection = collection
        self.watcher = watcher
        self.stop = stop
        self.allow_empty = allow_empty
        self.report = IngestReport()

    def take(self, path: Path) -> None:
        """Everything at one path."""
        if path.is_file() and path.suffix.lower() in (".jsonl", ".ndjson"):
            self._store(self._records(path))
        else:
            self._mirror(path)

    def _mirror(self, root: Path) -> None:
        with self.workspace.database.read() as connection:
            known = mirrored(connection, self.collection, path_to_uri(root))
        seen: set[str] = set()
        blind: list[str] = []  # URIs of what could not be looked at: nothing below them may be taken for gone
        with _Reader(self.workspace.settings.ingest, path_to_uri(root), known, self.stop) as reader:
            self._store(reader.read(self._files(root, seen, blind)))
        if self.stop.is_set():
            return
        gone = [entry.document_id for uri, entry in known.items() if uri not in seen and not _below(uri, blind)]
        if gone and not seen and not blind and not self.allow_empty:
            raise Conflict(
                f"{root} holds no documents any more, but {len(gone)} of them are stored; if they are to be deleted, "
                "say --allow-empty; if the folder should not be empty, see whether it is mounted"
            )
        with self.workspace.database.write() as connection:
            self.report.deleted += len(corpus.delete_documents(connection, self.collection, gone))

    def _files(self, root: Path, seen: set[str], blind: list[str]) -> Iterator[SourceFile]:
        for entry in walk(root):
            if isinstance(entry, SourceFile):
                seen.add(entry.uri)
                yield entry
            elif entry.unreadable:
                blind.append(path_to_uri(entry.path))
                self._fail(path_to_uri(entry.path), entry.reason)
            else:
                self.report.skipped[entry.reason] = self.report.skipped.get(entry.reason, 0) + 1

    def _records(self, path: Path) -> Iterator[_Read]:
        source = path_to_uri(path)
        for record in read_jsonl(path):
            if isinstance(record, Skipped):
                self._fail(f"{source}#L{record.line}", record.reason)
            elif record.acl is not None:
                reason = "has an acl, but nobody could prove to be in it: this release has no API keys"
                self._fail(f"{source}#L{record.line}", reason)
            else:
                yield _Read(uri=record.uri, document=_ready_text(record, source))

    def _store(self, reads: Iterable[_Read]) -> None:
        """Commit what was read, in batches small in documents, characters and time."""
        batch: list[_Read] = []
        characters, begun = 0, time.monotonic()
        for read in reads:
            again = any(read.uri == other.uri for other in batch)
            late = time.monotonic() - begun > _BATCH_SECONDS
            if batch and (again or late or len(batch) >= _BATCH_DOCUMENTS or characters > _BATCH_CHARACTERS):
                self._commit(batch)
                batch, characters, begun = [], 0, time.monotonic()
            batch.append(read)
            characters += len(read.document.parsed.text) if read.document else 0
            if self.stop.is_set():
                break
        self._commit(batch)

    def _commit(self, batch: Sequence[_Read]) -> None:
        documents = [read.document for read in batch if read.document]
        failures = [Failure(uri=read.uri, reason=read.failure) for read in batch if read.failure]
        if documents or failures:
            with self.workspace.database.write() as connection:
                for put in corpus.put(connection, self.collection, documents):
                    self._count(put.outcome)
                for failure in failures:
                    corpus.fail(connection, self.collection, uri=failure.uri, source=failure.uri, error=failure.reason)
        self.report.failed += failures
        self.report.unchanged += len(batch) - len(documents) - len(failures)
        self.watcher.documents(self.report.seen)

    def _count(self, outcome: Outcome) -> None:
        setattr(self.report, outcome, getattr(self.report, outcome) + 1)

    def _fail(self, uri: str, reason: str) -> None:
        """Report what is not a document of the collection: a line, a folder, a file that may not be read."""
        self.report.failed.append(Failure(uri=uri, reason=reason))


class _Reader:
    """Reads files in child processes, several at a time, and yields them in the order given."""

    def __init__(
        self, settings: IngestSettings, source: str, known: Mapping[str, Known], stop: threading.Event
    ) -> None:
        limits = ParseLimits(
            input_bytes=settings.max_file_bytes,
            seconds=settings.parse_timeout_seconds,
            memory_bytes=settings.parse_memory_bytes,
        )
        self._limits, self._children = limits, settings.parsers
        self._sandbox = Sandbox(limits, children=settings.parsers)
        self._threads = ThreadPoolExecutor(settings.parsers, thread_name_prefix="parse")
        self._source, self._known, self._stop = source, known, stop

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._sandbox.close()
        self._threads.shutdown(cancel_futures=True)

    def read(self, files: Iterable[SourceFile]) -> Iterator[_Read]:
        pending: deque[Future[_Read]] = deque()
        for file in files:
            pending.append(self._threads.submit(self._one, file))
            while len(pending) > 4 * self._children:
                yield pending.popleft().result()
            if self._stop.is_set():
                return
        while pending:
            yield pending.popleft().result()

    def _one(self, file: SourceFile) -> _Read:
        if self._is_known(file):
            return _Read(uri=file.uri)
        try:
            parsed_file = self._sandbox.parse(file.path, name=file.path.name)
        except ParseFailed as error:
            return _Read(uri=file.uri, failure=str(error))
        parsed = parsed_file.parsed
        document = NewDocument(
            uri=file.uri,
            sha256=parsed_file.sha256,
            parsed=parsed if parsed.title else replace(parsed, title=_stem(file.path)),
            parser=PARSER,
            source=self._source,
        )
        return _Read(uri=file.uri, document=document)

    def _is_known(self, file: SourceFile) -> bool:
        """Whether the file holds what its newest version was made from."""
        known = self._known.get(file.uri)
        if known is None or known.state != DocumentState.READY or known.parser != PARSER:
            return False
        if file.size > self._limits.input_bytes:
            return False
        try:
            with file.path.open("rb") as opened:
                return hashlib.file_digest(opened, "sha256").hexdigest() == known.sha256
        except OSError:
            return False  # the sandbox will say what is wrong with it


def _ready_text(record: TextRecord, source: str) -> NewDocument:
    parsed = ParsedText(
        text=record.text,
        format=text_format_of(record.media_type),
        media_type=record.media_type,
        title=record.title,
        metadata=record.metadata,
    )
    return NewDocument(uri=record.uri, sha256=sha256_text(record.text), parsed=parsed, parser=READY_TEXT, source=source)


def _stem(path: Path) -> str:
    """The file's name without its ending: the title of a document that has none."""
    return path.stem.encode("utf-8", "replace").decode("utf-8")


def _below(uri: str, roots: Iterable[str]) -> bool:
    return any(uri == root or uri.startswith(root.rstrip("/") + "/") for root in roots)
