"""What may be known by whom, and when: writes and answers enter, leaks leave. It knows no HTTP.

Every document carries marks that nobody else has: its URI, its id and, in each version, words, title, metadata and the
ids of its chunks. A document stands at each moment in some state, which says who may read it; while a write is under
way it stands in the state before and in the one after. A mark of a version may be known to those who may read that
version and, at some moment of the request, the document.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import inf

from nvr_rag.access.callers import Caller

MARK = re.compile(
    r"zq[a-z]{14}|[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"  # made words, and ids
)
Acl = Sequence[str] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """A request, from before it is sent to after its answer is read; monotonic seconds."""

    begin: float
    end: float


@dataclass(kw_only=True, slots=True)
class State:
    """Who may read a document, for a while."""

    acl: Acl
    begin: float
    end: float = inf


@dataclass(kw_only=True, slots=True)
class Known:
    """A document."""

    id: str
    collection: str
    uri: str
    lock: threading.Lock = field(default_factory=threading.Lock)  # held by who writes it
    states: list[State] = field(default_factory=list)

    def shown(self, caller: Caller, window: Window) -> bool:
        """Whether a caller may have seen it at some moment of a request."""
        if not caller.knows(self.collection):
            return False
        overlapping = (one for one in list(self.states) if one.begin <= window.end and one.end >= window.begin)
        return any(caller.reader.may_read(one.acl) for one in overlapping)


@dataclass(frozen=True, kw_only=True, slots=True)
class Version:
    """A version that has a mark."""

    document: Known
    acl: Acl
    begin: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A job that somebody has asked for."""

    collection: str
    asker: str
    sent: str = ""  # what he has named himself


class Oracle:
    """Remembers everything. Safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.documents: dict[str, Known] = {}  # by id
        self._marks: dict[str, list[Version]] = {}
        self._askers: dict[str, str] = {}  # query id -> who was answered
        self._shown: dict[str, list[str]] = {}  # query id -> the chunks
        self.jobs: dict[int, Asked] = {}

    def document(self, key: str, collection: str, uri: str) -> Known:
        """The document with this id; a new one is not there yet."""
        with self._lock:
            return self.documents.setdefault(key, Known(id=key, collection=collection, uri=uri))

    def begins(self, document: Known, marks: Iterable[str], acl: Acl, now: float) -> State:
        """A version with these marks may be there from now on."""
        state = State(acl=acl, begin=now)
        version = Version(document=document, acl=acl, begin=now)
        with self._lock:
            for mark in {*marks, document.id, *MARK.findall(document.uri)}:
                self._marks.setdefault(mark, []).append(version)
            document.states.append(state)
        return state

    def stands(self, document: Known, state: State, now: float) -> None:
        """It is there, and what was before is not."""
        with self._lock:
            for other in document.states:
                if other is not state:
                    other.end = min(other.end, now)

    def refused(self, state: State, now: float) -> None:
        """It has not come to be."""
        state.end = min(state.end, now)

    def answered(self, query_id: str, caller: Caller, chunk_ids: Sequence[str]) -> None:
        """A query has an answer."""
        with self._lock:
            self._askers[query_id] = caller.asker
            self._shown[query_id] = list(chunk_ids)

    def shown(self, query_id: str) -> Sequence[str]:
        """The chunks that a query was answered with."""
        return self._shown.get(query_id, ())

    def query_of(self, asker: str, *, mine: bool) -> list[str]:
        """Ids of queries that somebody was answered, or others were."""
        with self._lock:
            return [key for key, who in self._askers.items() if (who == asker) == mine]

    def home(self, mark: str) -> Known | None:
        """The document that has a mark."""
        with self._lock:
            versions = self._marks.get(mark)
        return versions[0].document if versions else None

    def leaks(self, text: str, sent: str, caller: Caller | None, window: Window) -> Iterator[str]:
        """The marks of an answer that this caller could not know, and did not send."""
        for mark in set(MARK.findall(text)) - set(MARK.findall(sent)):
            with self._lock:
                versions, asker = list(self._marks.get(mark, ())), self._askers.get(mark)
            if asker is not None and (caller is None or asker != caller.asker):
                yield f"the query {mark} of somebody else"
            if versions and not any(_known(one, caller, window) for one in versions):
                yield f"{mark} of {versions[0].document.uri}"

    def most_documents(self, caller: Caller, collection: str, window: Window) -> int:
        """How many documents of a collection a caller may have counted, at most."""
        with self._lock:
            documents = [one for one in self.documents.values() if one.collection == collection]
        return sum(one.shown(caller, window) for one in documents)


def _known(version: Version, caller: Caller | None, window: Window) -> bool:
    if caller is None or version.begin > window.end:
        return False
    return caller.reader.may_read(version.acl) and version.document.shown(caller, window)
