"""A Qdrant collection that another program has filled enters; its texts are documents of a collection of ours.

Only texts and metadata move: vectors are made by our own encoder. Everything is read before anything is stored, and
doing it again changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field

from nvr_rag import collections, corpus
from nvr_rag.corpus import Outcome
from nvr_rag.errors import NotFound
from nvr_rag.stores.foreign import ForeignCollection
from nvr_rag.transfer.points import Keys, Spool
from nvr_rag.types import NewDocument
from nvr_rag.workspace import Workspace

_BATCH_DOCUMENTS = 64
_BATCH_CHARACTERS = 4_000_000


@dataclass(kw_only=True, slots=True)
class QdrantReport:
    """What was moved, or would be."""

    points: int
    without_text: int  # points
    dropped: dict[str, int]  # metadata that cannot be stored, by key: of how many points
    collection: str
    created: bool = False
    documents: int = 0
    outcomes: dict[Outcome, int] = field(default_factory=lambda: dict.fromkeys(Outcome, 0))


@dataclass(kw_only=True, slots=True)
class QdrantWatcher:
    """Whom to tell how far it is."""

    read: Callable[[int, int], None] = lambda _points, _total: None
    stored: Callable[[int, int], None] = lambda _documents, _total: None


def import_points(
    workspace: Workspace,
    source: ForeignCollection,
    collection: str,
    *,
    keys: Keys,
    dry_run: bool = False,
    watcher: QdrantWatcher | None = None,
) -> QdrantReport:
    """Store the texts of a foreign collection as documents of `collection`, made if it is new.

    Raises NotFound (no such collection there), InvalidInput (no texts under this key), StoreError, StoreUnavailable:
    nothing is changed then.
    """
    watcher = watcher or QdrantWatcher()
    collections.check_name(collection)
    total = source.count()
    with closing(Spool(source.name, keys)) as spool:
        spool.take(source.points(), lambda done: watcher.read(done, max(total, done)))
        seen = spool.seen
        report = QdrantReport(
            points=seen.points, without_text=seen.without_text, dropped=dict(seen.dropped), collection=collection
        )
        report.created = _make(workspace, collection, dry_run)
        total = spool.count()
        for batch in _batches(spool.documents()):
            if report.created and dry_run:
                report.outcomes[Outcome.ADDED] += len(batch)
            else:
                _store(workspace, collection, batch, report, dry_run)
            report.documents += len(batch)
            watcher.stored(report.documents, total)
    return report


def _make(workspace: Workspace, collection: str, dry_run: bool) -> bool:
    """Whether the collection is new; it is made then."""
    try:
        with workspace.database.read() as connection:
            collections.find(connection, collection)
    except NotFound:
        if not dry_run:
            workspace.create_collection(collection)
        return True
    return False


def _store(
    workspace: Workspace, collection: str, batch: Sequence[NewDocument], report: QdrantReport, dry_run: bool
) -> None:
    with workspace.database.write() as connection:
        puts = corpus.put(connection, collection, batch)
        if dry_run:
            connection.rollback()
    for put in puts:
        report.outcomes[put.outcome] += 1


def _batches(found: Iterator[NewDocument]) -> Iterator[list[NewDocument]]:
    batch: list[NewDocument] = []
    size = 0
    for document in found:
        batch.append(document)
        size += len(document.parsed.text)
        if len(batch) == _BATCH_DOCUMENTS or size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
