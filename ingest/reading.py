"""From a file to what the log is to be told of it: nothing new, a new text, new words about an old one, or why not.

Files and what is stored of them enter; in the order given, a `Read` for each leaves. Files are hashed here and parsed
in child processes. Nothing is written, apart from the stamps of what was read.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from enum import Enum, auto
from pathlib import Path

from ingest.folders import sidecars
from ingest.folders.sidecars import Description
from ingest.folders.small_files import Unusable
from ingest.folders.stamps import FileState, Stamps
from ingest.parsers.file_bytes import open_regular
from ingest.parsers.limits import check_size, limits_of
from ingest.parsing import PARSER
from ingest.report import IngestOptions
from ingest.sandbox import Sandbox
from ingest.sources import SourceFile
from nvr_rag import documents
from nvr_rag.db.session import Database
from nvr_rag.documents import Known
from nvr_rag.errors import NotFound, NvrError, ParseFailed
from nvr_rag.settings import IngestSettings
from nvr_rag.types import DocumentState, NewDocument, ParsedText

_SAID = " said:"  # between a parser and a hash of what others say of a document, where somebody does
_TRIES = 3  # at a file that changes while it is read
_CHANGING = "changes while it is read; it is taken by the next run, once it is left alone"


log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Read:
    """One document read: a new text, or nothing new, or why it failed."""

    uri: str
    document: NewDocument | None = None
    failure: str | None = None
    source: str = ""  # to which it belongs
    acl: Sequence[str] | None = None  # of one that failed: principals who may know of it; None = everyone


class Need(Enum):
    """What has to be done about a file."""

    NOTHING = auto()
    RETELL = auto()  # its text is stored; what is said about it has changed
    PARSE = auto()


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What a file needs, found without parsing it."""

    need: Need
    said: Description  # about it, by sidecars
    known: Known | None


class Reader:
    """Reads files, several at a time. A context: leaving it ends the child processes."""

    def __init__(
        self,
        settings: IngestSettings,
        database: Database,
        stamps: Stamps,
        options: IngestOptions,
        stop: threading.Event,
        *,
        root: Path,
    ) -> None:
        self._limits = limits_of(settings)
        self._database, self._stamps, self._options, self._stop = database, stamps, options, stop
        self._inside, self._children = os.path.realpath(root), settings.parsers
        self._sandbox = Sandbox(self._limits, children=settings.parsers)
        self._threads = ThreadPoolExecutor(settings.parsers, thread_name_prefix="parse")
        self.busy_seconds = 0.0  # of the threads together, hashing and parsing

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._sandbox.close()
        self._threads.shutdown(cancel_futures=True)

    def read(self, files: Iterable[tuple[SourceFile, Known | None]], source: str) -> Iterator[Read]:
        """What becomes of each; a new document belongs to `source`, one that is known to the source that had it."""
        pending: deque[Future[Read]] = deque()
        for file, known in files:
            pending.append(self._threads.submit(self._timed, file, known, source))
            while len(pending) > 4 * self._children:
                yield pending.popleft().result()
            if self._stop.is_set():
                return
        while pending:
            yield pending.popleft().result()

    def judge(self, file: SourceFile, known: Known | None) -> Verdict:
        """What a file needs. Raises ParseFailed for what cannot be taken in whatever it holds."""
        said = _said(file)
        check_size(file.state.size, self._limits)
        if known is None or not self._is_current(file, known):
            return Verdict(need=Need.PARSE, said=said, known=known)
        if known.parser == maker(said) and _same(known.acl, said.acl):
            return Verdict(need=Need.NOTHING, said=said, known=known)
        return Verdict(need=Need.RETELL if _can_be_retold(known, said) else Need.PARSE, said=said, known=known)

    def _is_current(self, file: SourceFile, known: Known) -> bool:
        """Whether the text that is stored is what a parser would make of the file now."""
        parser = known.parser.partition(_SAID)[0]
        return parser == PARSER and known.state == DocumentState.READY and self._holds(file, known.sha256)

    def _timed(self, file: SourceFile, known: Known | None, source: str) -> Read:
        started = time.perf_counter()
        try:
            return self._one(file, known, known.source if known and known.source else source)
        finally:
            self.busy_seconds += time.perf_counter() - started

    def _one(self, file: SourceFile, known: Known | None, source: str) -> Read:
        acl = known.acl if known else ()  # until it is known who may read it: nobody
        try:
            acl = _said(file).acl
            verdict = self.judge(file, known)
            if verdict.need is Need.NOTHING:
                return Read(uri=file.uri, source=source)
            self._check_not_failed_before(file)
            sha256, parsed = self._retold(file, verdict) if verdict.need is Need.RETELL else self._parsed(file)
        except ParseFailed as error:
            return Read(uri=file.uri, failure=str(error), source=source, acl=acl)
        except NvrError:
            raise
        except Exception as error:  # what nobody has foreseen about one file must not keep the others out
            log.exception("%s could not be read", file.uri if acl is None else "a document with an acl")
            reason = f"could not be read: unexpected {type(error).__name__}: {error}"
            return Read(uri=file.uri, failure=reason, source=source, acl=acl)
        said = verdict.said
        document = NewDocument(
            uri=file.uri,
            sha256=sha256,
            parsed=replace(
                parsed,
                title=said.title or parsed.title or _stem(file.path),
                metadata={**parsed.metadata, **said.metadata},
            ),
            parser=maker(said),
            source=source,
            acl=None if said.acl is None else list(said.acl),
        )
        return Read(uri=file.uri, document=document, source=source)

    def _retold(self, file: SourceFile, verdict: Verdict) -> tuple[str, ParsedText]:
        assert verdict.known is not None
        try:
            with self._database.read() as connection:
                return verdict.known.sha256, documents.parsed(connection, verdict.known.document_id)
        except NotFound:  # it was erased meanwhile, and is there again
            return self._parsed(file)

    def _parsed(self, file: SourceFile) -> tuple[str, ParsedText]:
        """Of one state of the file: what was half written when it was read is read again."""
        for _ in range(_TRIES):
            now, before = time.time_ns(), _state(file)
            inside = self._is_inside(file.path)
            try:
                found = self._sandbox.parse(file.path, name=file.path.name)
            except ParseFailed as error:
                if _state(file) == before:
                    self._remember_failure(file, before, str(error))
                    raise
                continue
            if not (inside and self._is_inside(file.path)):
                raise ParseFailed("was replaced by something outside of the folder")
            if _state(file) == before:
                self._stamps.keep(file.path, before, found.sha256, now)
                return found.sha256, found.parsed
        raise ParseFailed(_CHANGING)

    def _is_inside(self, path: Path) -> bool:
        """Whether no link on the way to the file leads out: a folder may have been replaced since it was looked at."""
        return os.path.commonpath((self._inside, os.path.realpath(path))) == self._inside

    def _holds(self, file: SourceFile, sha256: str) -> bool:
        """Whether the file holds what has this hash."""
        if not self._options.reread and self._stamps.knows(file.path, file.state, sha256):
            return True
        try:
            now = time.time_ns()
            with open_regular(file.path) as opened:
                before = FileState.of(os.fstat(opened.fileno()))
                same = hashlib.file_digest(opened, "sha256").hexdigest() == sha256
                if same and FileState.of(os.fstat(opened.fileno())) == before:
                    self._stamps.keep(file.path, before, sha256, now)
            return same
        except (OSError, ParseFailed):
            return False  # the sandbox will say what is wrong with it

    def _check_not_failed_before(self, file: SourceFile) -> None:
        before = (self._options.failed_before or {}).get(file.uri)
        if before is not None and before[0] == file.state:
            raise ParseFailed(before[1])

    def _remember_failure(self, file: SourceFile, state: FileState, reason: str) -> None:
        if self._options.failed_before is not None:
            self._options.failed_before[file.uri] = (state, reason)


def maker(said: Description) -> str:
    """What makes a version of a document: the parser, and which fields in which words others have added."""
    return f"{PARSER}{_SAID}{said.fields_hash()}{said.values_hash()}" if said.fields_hash() else PARSER


def _can_be_retold(known: Known, said: Description) -> bool:
    """Whether what the document says of itself is stored: not where others' words have taken its place, unless the
    same fields are put into other words now."""
    fields = known.parser.partition(_SAID)[2][: len(said.fields_hash()) or None]
    return fields in ("", said.fields_hash())


def _said(file: SourceFile) -> Description:
    """Raises ParseFailed where nobody can know it: then nobody knows who may read the document either."""
    try:
        if isinstance(file.around, Unusable):
            raise file.around
        return sidecars.described(file.path, file.beside).within(file.around)
    except Unusable as error:
        raise ParseFailed(str(error)) from error


def _state(file: SourceFile) -> FileState:
    """Of the file as it is now. Raises ParseFailed when it has gone, or something else is there now."""
    try:
        status = os.stat(file.path) if file.linked else os.lstat(file.path)
    except FileNotFoundError as error:
        raise ParseFailed("is gone") from error
    except OSError as error:
        raise ParseFailed(f"cannot be read: {error.strerror or error}") from error
    if not stat.S_ISREG(status.st_mode):
        raise ParseFailed("is not a regular file any more")
    return FileState.of(status)


def _same(stored: object, said: object) -> bool:
    """Of permissions, the order of which does not matter."""
    if stored is None or said is None:
        return stored is said
    assert isinstance(stored, (list, tuple))
    assert isinstance(said, (list, tuple))
    return sorted(stored) == sorted(said)


def _stem(path: Path) -> str:
    """The file's name without its ending: the title of a document that has none. A file that is renamed has another
    one, and as titles are a part of what is encoded, its chunks are encoded again; one that is moved has the same."""
    return path.stem.encode("utf-8", "replace").decode("utf-8")
