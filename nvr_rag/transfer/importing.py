"""An export file enters; its collections are in the database when it is done. Doing it again changes nothing.

The whole file is checked before anything is written. What it says of a document replaces what is stored, as putting it
would; nothing is deleted. Chunks are stored as the file has them, so that they need not be cut again and what was said
about them keeps its subject; only documents that are new here take them over, as others may have been cut meanwhile.
Of judgments and feedback the later word counts. Indexes follow the log, as always.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nvr_rag import collections, deployments
from nvr_rag.corpus import Outcome
from nvr_rag.errors import InvalidInput, NotFound
from nvr_rag.transfer import query_storing, storing
from nvr_rag.transfer.reading import Bundle, Contents, Item, Reader, check
from nvr_rag.transfer.records import CollectionLine, QueryLine
from nvr_rag.transfer.storing import Target
from nvr_rag.workspace import Workspace

_BATCH_ITEMS = 64  # documents, or queries, in one transaction
_BATCH_CHARACTERS = 4_000_000  # of texts, unless one document alone has more


@dataclass(kw_only=True, slots=True)
class ImportReport:
    """What an import did, or would do."""

    collections: list[str] = field(default_factory=list)  # by the names they have here
    created: list[str] = field(default_factory=list)  # of those, the new ones
    added: int = 0  # documents
    updated: int = 0
    unchanged: int = 0
    failed: int = 0  # documents that could not be read where the file comes from
    judgments: int = 0  # new, or changed
    queries: int = 0  # new
    feedback: int = 0  # new, or changed

    @property
    def documents(self) -> int:
        return self.added + self.updated + self.unchanged + self.failed


@dataclass(kw_only=True, slots=True)
class Watcher:
    """Whom to tell how far an import is."""

    checked: Callable[[int], None] = lambda _documents: None
    stored: Callable[[int, int], None] = lambda _documents, _total: None


def import_file(
    workspace: Workspace,
    path: Path,
    *,
    collection: str | None = None,
    dry_run: bool = False,
    watcher: Watcher | None = None,
) -> ImportReport:
    """Import a file; the collection gets another name if one is given. With `dry_run` only say what would be done.

    Raises InvalidInput (what is wrong with which line: nothing is changed), Conflict, and what the database raises:
    what was imported by then stays, and doing it again goes on.
    """
    watcher = watcher or Watcher()
    contents = check(path, watcher.checked)
    names = _names(contents, path, collection)
    run = _Import(workspace, names, dry_run, contents.counts["documents"], watcher.stored)
    run.take(Reader(path))
    return run.report


def _names(contents: Contents, path: Path, collection: str | None) -> dict[str, str]:
    """The names that the collections of a file get here, by those they have there."""
    from nvr_rag.stores.lexical import LexicalEncoder

    for line in contents.collections:
        LexicalEncoder(line.language)  # raises InvalidInput for a language that this release does not know
    if collection is None:
        return {line.name: line.name for line in contents.collections}
    collections.check_name(collection)
    if len(contents.collections) != 1:
        raise InvalidInput(
            f"{path} holds {len(contents.collections)} collections, and only one can be given another name; leave out "
            "--collection",
            field="collection",
        )
    return {contents.collections[0].name: collection}


class _Import:
    """One import at work."""

    def __init__(
        self, workspace: Workspace, names: dict[str, str], dry_run: bool, total: int, stored: Callable[[int, int], None]
    ) -> None:
        self.report = ImportReport(collections=sorted(names.values()))
        self._workspace, self._database = workspace, workspace.database
        self._names, self._dry_run, self._total, self._stored = names, dry_run, total, stored

    def take(self, reader: Reader) -> None:
        target: Target | None = None
        for batch in _batches(reader):
            if isinstance(batch, CollectionLine):
                target = self._target(batch)
                continue
            assert target is not None  # the reader gives a collection first
            if isinstance(batch[0], Bundle):
                self._store(target, [one for one in batch if isinstance(one, Bundle)])
                self._stored(self.report.documents, self._total)
            elif not self._dry_run:
                self._log(target, [one for one in batch if isinstance(one, QueryLine)])

    def _target(self, line: CollectionLine) -> Target:
        """The collection, made if it is new; one that has documents already stays as it is."""
        name = self._names[line.name]
        try:
            with self._database.read() as connection:
                found: int | None = collections.find(connection, name)
        except NotFound:
            self.report.created.append(name)
            found = None if self._dry_run else self._workspace.create_collection(name, language=line.language)
        if found is not None and not self._dry_run:
            self._set_up(found, name, line)
        return Target(name=name, there=line.name, id=found)

    def _set_up(self, collection_id: int, name: str, line: CollectionLine) -> None:
        """Have an empty collection answer as it did where the file comes from."""
        if line.mode is None or line.fusion is None:
            return
        with self._database.write() as connection:
            collections.find(connection, name, lock=True)
            now = deployments.serving(connection, name)
            empty = collections.head_seq(connection, collection_id) == 0
            if empty and (now.mode, now.fusion) != (line.mode, line.fusion):
                deployments.serve(connection, collection_id, now.index_id, line.mode, line.fusion)

    def _store(self, target: Target, bundles: Sequence[Bundle]) -> None:
        """Documents with their chunks and judgments, in one transaction."""
        if target.id is None:  # a dry run has not made it
            self._count([Outcome.ADDED if one.line.error is None else None for one in bundles])
            return
        judged = 0
        with self._database.write() as connection:
            outcomes = storing.store_documents(connection, target, bundles)
            if self._dry_run:
                connection.rollback()
            else:
                judged = storing.store_judgments(connection, target, bundles)
        self._count(outcomes)
        self.report.judgments += judged

    def _log(self, target: Target, lines: Sequence[QueryLine]) -> None:
        with self._database.write() as connection:
            new, said = query_storing.store_queries(connection, target, lines)
        self.report.queries += new
        self.report.feedback += said

    def _count(self, outcomes: Sequence[Outcome | None]) -> None:
        self.report.added += outcomes.count(Outcome.ADDED)
        self.report.updated += outcomes.count(Outcome.UPDATED)
        self.report.unchanged += outcomes.count(Outcome.UNCHANGED)
        self.report.failed += outcomes.count(None)


def _batches(items: Iterable[Item]) -> Iterator[CollectionLine | list[Bundle | QueryLine]]:
    """Documents, and queries, in groups for one transaction each; a collection by itself."""
    batch: list[Bundle | QueryLine] = []
    size = 0
    for item in items:
        alike = batch and type(item) is type(batch[0])
        if batch and (not alike or size >= _BATCH_CHARACTERS or len(batch) >= _BATCH_ITEMS):
            yield batch
            batch, size = [], 0
        if isinstance(item, CollectionLine):
            yield item
        else:
            batch.append(item)
            size += _characters(item)
    if batch:
        yield batch


def _characters(item: Bundle | QueryLine) -> int:
    if isinstance(item, QueryLine):
        return len(item.text)
    document = item.line.document
    return (len(document.parsed.text) if document else 0) + sum(len(chunk.text) for chunk in item.chunks)
