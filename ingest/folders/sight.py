"""What a run sees of one source, and what it may conclude is to be deleted.

Files that were seen enter; the documents that are not wanted any more leave, with a reason not to believe it where
there is one. It deletes nothing.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from ingest.folders.ledger import Ledger
from ingest.report import IngestReport, Plan
from ingest.sources import Skipped, SourceFile, path_to_uri, shown, status_of, uri_to_path
from nvr_rag.documents import Known
from nvr_rag.errors import Conflict, InvalidInput

FOREIGN = "has the uri of a document that another source holds"


class Sight:
    """Of one run over one source."""

    def __init__(self, root: Path, ledger: Ledger, *, whole: bool) -> None:
        """`whole`: everything at the source is looked at, not just some of it."""
        self.root, self._uri, self._ledger, self._whole = root, path_to_uri(root), ledger, whole
        self._identity = _identity(root)
        self._seen = 0
        self._blind: list[str] = []  # URIs of what could not be looked at: nothing below them may be taken for gone

    def files(
        self, entries: Iterable[SourceFile | Skipped], found: IngestReport | Plan
    ) -> Iterator[tuple[SourceFile, Known | None]]:
        """The files of a walk, with what is stored of them; what is passed over or cannot be looked at is reported."""
        for entry in entries:
            if isinstance(entry, SourceFile):
                self._seen += 1
                known = self._ledger.see(entry.uri)
                if known is None or mirrored(known):
                    yield entry, known
                else:
                    found.skip(FOREIGN)
            elif entry.unreadable:
                self._blind.append(path_to_uri(entry.path))
                found.fail(path_to_uri(entry.path), entry.reason)
            else:
                found.skip(entry.reason)

    def missing(self) -> Iterator[Known]:
        """The documents to be deleted: those that have gone, and those of this source that are not wanted."""
        for known in self._ledger.unseen():
            own = known.source == self._uri
            if mirrored(known) and not below(known.uri, self._blind) and (own or not _exists(known.uri)):
                yield known

    def refusal(self, count: int) -> Conflict | None:
        """Why so many documents should not be deleted after all, if they should not."""
        if not count:
            return None
        there = shown(self.root)
        try:
            same = _identity(self.root) == self._identity
        except InvalidInput:
            same = False
        if not same:
            return Conflict(f"{there} went away while it was read; nothing was deleted. Is it mounted? Try again")
        if self._blind or not self._is_bare():
            return None
        return Conflict(
            f"{there} holds no documents any more, but {count} of them are stored; if they are to be deleted, "
            "say --allow-empty; if the folder should not be empty, see whether it is mounted"
        )

    def _is_bare(self) -> bool:
        if self._whole:
            return not self._seen
        try:
            with os.scandir(self.root) as entries:
                return next(entries, None) is None
        except OSError:
            return True


def mirrored(known: Known) -> bool:
    """Whether a document was made of the file that its URI names; not one of a feed, where the feed says the URI."""
    return below(known.uri, [known.source])


def below(uri: str, roots: Iterable[str]) -> bool:
    """Whether a URI is that of one of these or of something below one."""
    return any(uri == root or uri.startswith(root.rstrip("/") + "/") for root in roots)


def _identity(root: Path) -> tuple[int, int] | None:
    """What tells a folder from another one that is mounted in its place. None for a file: editors replace them."""
    status = status_of(root)
    return (status.st_dev, status.st_ino) if stat.S_ISDIR(status.st_mode) else None


def _exists(uri: str) -> bool:
    """Whether there is, or may be, something at a file URI."""
    try:
        os.lstat(uri_to_path(uri))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, InvalidInput):
        pass
    return True
