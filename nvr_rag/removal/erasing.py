"""Erasing for good, outside the database's tables: points out of every index, lines out of files, and what the database
file keeps of rows that are gone.

Records of `erasure` enter and are finished. Every step may be repeated, so whatever dies in between is done again; what
another process owns is left to it, and tried again by every indexer.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol

from nvr_rag import chunks, indexes
from nvr_rag.errors import Conflict, NotFound, NvrError, Stopped, StoreBusy
from nvr_rag.removal import erasure
from nvr_rag.removal.erasure import Erasure
from nvr_rag.workspace import Workspace

GROUP = "nvr_rag.erasers"  # of the entry points
_LOOKUP = 500  # ids in one look-up
_POLL_SECONDS = 0.2
_TRY_SECONDS = 1.0  # between two tries to do what another process has not done yet

log = logging.getLogger(__name__)


class Eraser(Protocol):
    """What a package that keeps files of its own does when something is erased."""

    def names(self, queries: Sequence[str]) -> list[str]:
        """What its files call queries with these texts."""

    def encoders(self, workspace: Workspace, names: Collection[str]) -> list[str]:
        """Fingerprints of the encoder versions that it has trained with something that goes by one of the names."""

    def erase(self, home: Path, names: Collection[str], record: int, since: datetime) -> bool:
        """Remove what goes by one of the names; False when something is in use, and is to be tried again.

        `record` names the erasure, whose transaction was committed before `since`.
        """


def installed() -> list[Eraser]:
    """The erasers of installed packages, by name."""
    return [entry.load()() for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name)]


def erase_documents(workspace: Workspace, collection: str, keys: Sequence[str]) -> tuple[list[Erasure], list[str]]:
    """Erase documents by id or URI; the records, not all finished, and the keys that nothing has.

    Raises NotFound for the collection, DatabaseUnavailable.
    """
    with workspace.database.read() as connection:
        found = erasure.find_documents(connection, collection, keys)
    one_each = {document.id: document for document in found.values()}
    names = {name for document in one_each.values() for name in (*document.chunks, *document.digests)}
    encoders = _trained(workspace, names)
    records = erasure.erase_documents(workspace.database, collection, one_each.values(), encoders) if one_each else []
    settle(workspace)
    return _again(workspace, records), [key for key in dict.fromkeys(keys) if key not in found]


def erase_user(workspace: Workspace, user: str) -> Erasure:
    """Erase what a user has asked and said; the record, perhaps not finished. Raises NotFound for an unknown user."""
    with workspace.database.read() as connection:
        texts = erasure.texts_of_user(connection, user)
    names = sorted({name for eraser in installed() for name in eraser.names(texts)})
    record = erasure.erase_user(workspace.database, user, names, _trained(workspace, names))
    settle(workspace)
    return _again(workspace, [record])[0]


def wait(workspace: Workspace, records: Sequence[Erasure], seconds: float) -> list[Erasure]:
    """The records once they are finished, or as they are after so many seconds: the owner of an index may be at it,
    or have died, and then it is done here."""
    begun = tried = time.monotonic()
    while True:
        now = _again(workspace, records)
        if all(one.pending is None for one in now) or time.monotonic() - begun >= seconds:
            return now
        if time.monotonic() - tried >= _TRY_SECONDS:
            settle(workspace)
            tried = time.monotonic()
        time.sleep(_POLL_SECONDS)


def settle(workspace: Workspace, stop: threading.Event | None = None) -> dict[str, str]:
    """Remove what is still pending, as far as this process can; what is in the way, by what it is about."""
    with workspace.database.read() as connection:
        records = erasure.unfinished(connection)
    problems: dict[str, str] = {}
    for index_id in sorted({index_id for one in records for index_id in (one.pending or {})["indexes"]}):
        mine = [one for one in records if index_id in (one.pending or {})["indexes"]]
        _try(f"index {index_id}", problems, partial(_out_of, workspace, index_id, mine, stop))
    for record in records:
        if (record.pending or {})["files"]:
            _try("files", problems, partial(_out_of_files, workspace, record))
    with workspace.database.read() as connection:
        waiting = [one for one in erasure.unfinished(connection) if "database" in erasure.left(one.pending)]
    if waiting:
        _try("database", problems, partial(_out_of_database, workspace, waiting))
    return problems


def _try(what: str, problems: dict[str, str], work: Callable[[], object]) -> None:
    """Do a part of the work; what is in the way of it is no reason to leave the others."""
    try:
        work()
    except Stopped:
        raise
    except (NvrError, OSError) as error:
        log.info("erasing from %s is tried again: %s", what, error)
        problems[what] = str(error)


def _out_of(workspace: Workspace, index_id: int, records: Sequence[Erasure], stop: threading.Event | None) -> None:
    """Remove points from an index, and what its files keep of them."""
    try:
        with workspace.database.read() as connection:
            info = indexes.get(connection, index_id)
            there = index_id in {one.id for one in indexes.kept(connection)}
    except NotFound:
        there = False
    if there:
        if info.state == "retired":
            raise StoreBusy(f"index {index_id} is about to be dropped by the process that owns it")
        _remove_points(
            workspace, index_id, sorted({key for one in records for key in (one.pending or {})["chunks"]}), stop
        )
    with workspace.database.write() as connection:
        for record in records:
            erasure.done(connection, record.id, index=index_id)


def _remove_points(workspace: Workspace, index_id: int, ids: Sequence[str], stop: threading.Event | None) -> None:
    """A round that began before the erasure has ended by the time that this one has the index to itself."""
    index = workspace.index(index_id)
    if not index.maintenance.acquire(blocking=False):
        raise StoreBusy(f"index {index_id} is being changed; try again")
    try:
        index.hold()
        for start in range(0, len(ids), _LOOKUP):
            part = ids[start : start + _LOOKUP]
            with workspace.database.read() as connection:
                back = chunks.known(connection, part)  # the document came again, and says the same
            index.hold()
            index.points.delete([key for key in part if key not in back])
        index.points.flush()
        index.points.scrub(stop)
        index.rest()
    finally:
        index.maintenance.release()


def _out_of_files(workspace: Workspace, record: Erasure) -> None:
    names = set((record.pending or {})["names"])
    in_use = [eraser for eraser in installed() if not eraser.erase(workspace.home, names, record.id, record.created_at)]
    if in_use:
        raise Conflict("a lap is at work on files that have it; it begins anew without it")
    with workspace.database.write() as connection:
        erasure.done(connection, record.id, files=True)


def _out_of_database(workspace: Workspace, records: Sequence[Erasure]) -> None:
    with workspace.database.write() as connection:
        for record in records:
            erasure.forget_late(connection, record)
            erasure.without_ids(connection, record)
    workspace.database.scrub()
    with workspace.database.write() as connection:
        for record in records:
            erasure.done(connection, record.id, database=True)


def _trained(workspace: Workspace, names: Collection[str]) -> list[str]:
    return sorted({one for eraser in installed() for one in eraser.encoders(workspace, names)})


def _again(workspace: Workspace, records: Sequence[Erasure]) -> list[Erasure]:
    """The records as they are now."""
    ids = {one.id for one in records}
    with workspace.database.read() as connection:
        return [one for one in erasure.all_records(connection) if one.id in ids]
