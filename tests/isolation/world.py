"""A world to look for leaks in: collections, keys and documents at random, writers that change them, and an index that
is held back at times. Writes enter the oracle before and after they are made."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import PurePath
from random import Random
from string import ascii_lowercase
from typing import Any

from ingest.uploading import Uploads
from nvr_rag import corpus, documents, ids, jobs
from nvr_rag.access import keys
from nvr_rag.access.callers import Caller, Scope
from nvr_rag.access.keys import NewKey
from nvr_rag.errors import NvrError
from nvr_rag.jobs import Job
from nvr_rag.running.working import JobLoop
from nvr_rag.types import NewDocument, ParsedText, Reader, TextFormat
from nvr_rag.uploads import Folder, Upload
from nvr_rag.workspace import Workspace
from tests.integration.api_support import SmallIndexer
from tests.isolation.oracle import Acl, Known, Oracle

COLLECTIONS = ("default", "north", "south")
PRINCIPALS = tuple(f"group:{name}" for name in ("ash", "birch", "cedar", "elm", "fir"))
SHARED = ("harbour", "river", "lantern", "meadow", "granite", "copper")  # words that all documents draw from
_PARAGRAPHS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Holder:
    """A key as somebody has it."""

    secret: str | None
    caller: Caller | None  # None = it is good for nothing, or there is none
    impersonates: bool = False


class World:
    """Everything that probes are made from."""

    def __init__(self, workspace: Workspace, seed: int, *, size: int = 60, holders: int = 24) -> None:
        self.workspace, self.oracle, self._seed = workspace, Oracle(), seed
        self.roots = workspace.settings.ingest.roots[0]  # folders in it may be mirrored
        draw = Random(seed)
        for name in COLLECTIONS:
            workspace.create_collection(name)
        self.holders = [*_holders(workspace, draw, holders)]
        for _ in range(size):
            self.write(draw)

    def word(self, draw: Random) -> str:
        """A mark that nobody else has."""
        return "zq" + "".join(draw.choices(ascii_lowercase, k=14))

    def acl(self, draw: Random) -> Acl:
        """Everybody, nobody, or some."""
        chance = draw.random()
        return None if chance < 0.3 else [] if chance < 0.4 else sorted(draw.sample(PRINCIPALS, draw.randint(1, 2)))

    def text(self, draw: Random) -> str:
        """Paragraphs with marks in them, each a chunk."""
        return "\n\n".join(
            f"{self.word(draw)} {' '.join(draw.choices(SHARED, k=5))} {self.word(draw)}" for _ in range(_PARAGRAPHS)
        )

    def marks(self, key: str, text: str, *others: str) -> list[str]:
        """What a version of a document is known by: its words and the ids of its chunks."""
        parts = [part for part in text.split("\n\n") if part.strip()]
        chunks = [ids.chunk_id(key, ids.sha256_text(part), 0) for part in parts]
        return [*(word for part in (text, *others) for word in part.split() if word.startswith("zq")), *chunks]

    def some(self, draw: Random) -> Known:
        """One of the documents."""
        return draw.choice(list(self.oracle.documents.values()))

    def job(self, number: int) -> Job:
        """A job as it stands."""
        return jobs.get(self.workspace.database, number)

    def write(self, draw: Random) -> None:
        """Store a new document, change one, let others read it, or delete it, as its owner."""
        new = len(self.oracle.documents) < 20 or draw.random() < 0.15
        collection, uri = draw.choice(COLLECTIONS), f"doc:{self.word(draw)}"
        known = self.oracle.document(ids.document_id(collection, uri), collection, uri) if new else self.some(draw)
        with known.lock, suppress(NvrError):
            if not new and draw.random() < 0.15:
                with self.workspace.database.write() as connection:
                    corpus.delete_documents(connection, known.collection, [known.id])
            else:
                self._put(draw, known)

    def _put(self, draw: Random, known: Known) -> None:
        document = _document(known.uri, self.text(draw), self.word(draw), self.word(draw), self.acl(draw))
        if draw.random() < 0.5:
            document = self._again(known, document)
        marks = self.marks(known.id, document.parsed.text, document.parsed.title, document.parsed.metadata["mark"])
        state = self.oracle.begins(known, marks, document.acl, time.monotonic())
        with self.workspace.database.write() as connection:
            corpus.put(connection, known.collection, [document])
        self.oracle.stands(known, state, time.monotonic())

    def _again(self, known: Known, document: NewDocument) -> NewDocument:
        """What is stored already, but for who may read it and one paragraph."""
        with self.workspace.database.read() as connection:
            try:
                stored = documents.parsed(connection, known.id)
            except NvrError:
                return document
        kept = stored.text.split("\n\n")[:-1] + document.parsed.text.split("\n\n")[-1:]
        text = "\n\n".join(kept)
        return replace(document, parsed=replace(document.parsed, text=text), sha256=ids.sha256_text(text))

    @contextmanager
    def busy(self, indexer: SmallIndexer, writers: int = 2) -> Iterator[None]:
        """Writers write, uploads are parsed, and the index is held back at times, while the block runs."""
        stop = threading.Event()

        def write(number: int) -> None:
            draw = Random(f"{self._seed}/writer/{number}")
            while not stop.wait(0.01):
                self.write(draw)

        def hold() -> None:
            while not stop.wait(0.15):
                with indexer.paused():
                    stop.wait(0.35)

        threads = [threading.Thread(target=write, args=(number,)) for number in range(writers)]
        threads.append(threading.Thread(target=hold))
        with ExitStack() as running:
            loop = JobLoop("uploads", {"upload": PlainUploads(self.workspace.settings.ingest)})
            loop.start(self.workspace)
            running.callback(loop.stop)
            for thread in threads:
                thread.start()
            try:
                yield
            finally:
                stop.set()
                for thread in threads:
                    thread.join()


class Idle:
    """Takes jobs of some kinds, and never does one."""

    name = "idle"
    work = "idle"
    job_kinds: Sequence[str] = ("ingest", "retrain")

    def start(self, workspace: Workspace) -> None:
        pass

    def stop(self) -> None:
        pass

    def problem(self) -> str | None:
        return None

    def check(self, workspace: Workspace, kind: str, payload: Mapping[str, Any]) -> None:
        pass


class PlainUploads(Uploads):
    """Takes every file for plain text; some cannot be read."""

    def _parsed(self, folder: Folder, upload: Upload) -> NewDocument | str:
        text = (folder.path / upload.file).read_text(encoding="utf-8")
        if "unreadable" in text:
            return f"{upload.name} cannot be read"
        document = _document(upload.uri, text, upload.title or PurePath(upload.name).stem, "", upload.acl)
        return replace(document, parsed=replace(document.parsed, metadata=dict(upload.metadata)))


def _document(uri: str, text: str, title: str, mark: str, acl: Acl) -> NewDocument:
    parsed = ParsedText(
        text=text, format=TextFormat.PLAIN, media_type="text/plain", title=title, metadata={"mark": mark}
    )
    return NewDocument(uri=uri, sha256=ids.sha256_text(text), parsed=parsed, parser="p", acl=acl)


def _holders(workspace: Workspace, draw: Random, count: int) -> Iterator[Holder]:
    """Keys at random, some of them revoked or expired; and nobody's."""
    yield Holder(secret=None, caller=None)
    yield Holder(secret="nvr_" + "a" * 12 + "_" + "b" * 43, caller=None)
    for number in range(count):
        scopes = frozenset(scope for scope in Scope if scope == Scope.SEARCH or draw.random() < 0.6)
        collections = None if draw.random() < 0.6 else frozenset(draw.sample(COLLECTIONS, draw.randint(1, 2)))
        reader = Reader(principals=_principals(draw), everything=draw.random() < 0.15)
        dead = draw.random()
        new = NewKey(
            name=f"key {number}",
            scopes=scopes,
            collections=collections,
            reader=reader,
            lifetime=timedelta(microseconds=1) if dead < 0.08 else None,
        )
        with workspace.database.write() as connection:
            made, secret = keys.create(connection, new)
            if 0.08 <= dead < 0.16:
                keys.revoke(connection, made.id)
        good = dead >= 0.16
        yield Holder(
            secret=secret, caller=made.caller if good else None, impersonates=good and Scope.IMPERSONATE in scopes
        )


def _principals(draw: Random) -> frozenset[str]:
    return frozenset(draw.sample(PRINCIPALS, draw.choice((0, 1, 1, 2))))


def impersonated(draw: Random, holder: Holder) -> tuple[Caller | None, Sequence[str]]:
    """Whom a request is made for, and the principals that it names; none named where the key speaks for itself."""
    if holder.caller is None or not holder.impersonates or draw.random() < 0.5:
        return holder.caller, ()
    named = sorted(_principals(draw)) or [PRINCIPALS[0]]
    return holder.caller.on_behalf_of(frozenset(named)), named
