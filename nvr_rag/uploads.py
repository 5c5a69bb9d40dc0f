"""Files that were uploaded and wait to be parsed: where they lie, which job parses them, and when they are of no use.

A file is written and synced first, then accepted in one transaction with its job; whoever parses it takes its row out
in the transaction that stores the document. So what dies in between leaves a file that `sweep` finds, and never a
promise without its file. It knows no request and no parser.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, delete, insert, or_, select

from nvr_rag import collections, jobs
from nvr_rag.access.callers import Caller
from nvr_rag.corpus import check_free, identify, taken
from nvr_rag.db import clock
from nvr_rag.db import tables as t
from nvr_rag.db.session import Database
from nvr_rag.errors import InvalidInput, NoRoom
from nvr_rag.ids import new_id
from nvr_rag.transfer.files import sync_folder
from nvr_rag.types import ANYBODY, OWNER, Reader

KIND = "upload"  # of the jobs that parse them
ORPHAN_SECONDS = 6 * 3600.0  # after which a file that nobody waits for is deleted: until then a request may be at it
_RETRIABLE = timedelta(days=1)  # so long the files of a failed job stay, so that it can be tried again
_FOLDER, _MARK = "uploads", ".folder"


@dataclass(frozen=True, kw_only=True, slots=True)
class NewUpload:
    """A file that lies in the folder, synced, and what it is to become."""

    file: str  # its name in the folder
    uri: str
    name: str  # what the client calls it; never a path
    media_type: str  # what the client says that it is; "" = nothing
    sha256: str  # of its bytes, hex
    bytes: int = 0  # how many there are
    title: str = ""  # "" = the document's own
    metadata: Mapping[str, Any]
    acl: Sequence[str] | None = None  # principals who may read it; None = everyone


@dataclass(frozen=True, kw_only=True, slots=True)
class Upload:
    """A file that waits, as the database has it."""

    document_id: str
    uri: str
    file: str
    name: str
    media_type: str
    title: str
    metadata: Mapping[str, Any]
    acl: Sequence[str] | None


class Folder:
    """The folder of uploads in a data folder. Another machine may have another one: its `mark` tells them apart."""

    def __init__(self, home: Path) -> None:
        self.path = home / _FOLDER

    def mark(self) -> str:
        """The name that this folder has among others; made on first use. Raises NoRoom."""
        with no_room(self.path):
            self.path.mkdir(mode=0o700, exist_ok=True)
            mark = self.path / _MARK
            if not mark.exists():
                mine = self.path / f".{new_id()}"
                mine.write_text(new_id(), encoding="ascii")
                with suppress(FileExistsError):  # of two who begin at once, one is the first
                    os.link(mine, mark)
                mine.unlink()
                sync_folder(self.path)
            return mark.read_text(encoding="ascii")

    def remove(self, files: Iterable[str]) -> None:
        """Delete files, where they are still there."""
        for file in files:
            with suppress(OSError):
                (self.path / Path(file).name).unlink(missing_ok=True)

    def names(self) -> list[str]:
        """Of every file, without the mark."""
        try:
            return sorted(entry.name for entry in os.scandir(self.path) if entry.name != _MARK)
        except OSError:  # nothing was ever uploaded
            return []

    def age(self, file: str) -> float:
        """Seconds since something was written into it; 0 when it is not there."""
        with suppress(OSError):
            return time.time() - (self.path / file).stat().st_mtime
        return 0.0


@contextmanager
def no_room(folder: Path) -> Iterator[None]:
    """Turn the errors of a disk that is full, or takes nothing for another reason, into NoRoom."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        what = (
            f"there is no room on the disk of {folder}" if full else f"{folder} cannot be written to ({error.strerror})"
        )
        todo = "make room there" if full else "make it writable"
        raise NoRoom(f"{what}, and nothing of what was sent was kept: {todo}, and send it again") from error


def accept(
    connection: Connection, collection: str, folder: str, files: Sequence[NewUpload], *, by: Caller | None = None
) -> int:
    """Add the job that parses files, which lie in the folder with this mark; its id. `by` is who sends them.

    Of several for one document the last one that was accepted counts. Raises NotFound (collection), InvalidInput (a URI
    that cannot be stored, or twice), Conflict for a URI of what he may not read.
    """
    collection_id = collections.find(connection, collection, lock=True)
    ids = [identify(collection, one.uri) for one in files]
    if len(set(ids)) != len(ids):
        raise InvalidInput("a URI may appear once in one request; files of one name need one each", field="uri")
    listed = [{"file": one.file, "document": key, "sha256": one.sha256} for one, key in zip(files, ids, strict=True)]
    # The source names the job alone: it never stands in the way of another one of the collection.
    payload: dict[str, Any] = {"collection": collection, "source": f"upload:{new_id()}", "folder": folder}
    payload["files"] = listed
    if by is not None:  # the document may be somebody else's by the time that it is stored
        check_free(connection, ids, by.reader)
        check_waiting(connection, ids, by.reader)
        payload["reader"] = {"principals": sorted(by.reader.principals), "everything": by.reader.everything}
    job_id = jobs.add(connection, KIND, payload, by=by)
    withdraw(connection, collection_id, ids)
    for key, one in zip(ids, files, strict=True):
        connection.execute(
            insert(t.Upload).values(
                document_id=key,
                collection_id=collection_id,
                job_id=job_id,
                uri=one.uri,
                file=one.file,
                name=one.name,
                media_type=one.media_type,
                title=one.title,
                meta=dict(one.metadata),
                acl=None if one.acl is None else list(one.acl),
            )
        )
    return job_id


def reader_of(payload: Mapping[str, Any]) -> Reader:
    """As whom a job stores documents; one that does not say writes over nothing that is restricted."""
    said = payload.get("reader")
    if not isinstance(said, Mapping):
        return ANYBODY
    return Reader(principals=frozenset(said.get("principals") or ()), everything=said.get("everything") is True)


def check_waiting(connection: Connection, document_ids: Sequence[str], reader: Reader) -> None:
    """Raise Conflict where one of these documents waits to be parsed, and the reader may not read it."""
    u = t.Upload
    for row in connection.execute(select(u.uri, u.acl).where(u.document_id.in_(document_ids))):
        if not reader.may_read(row.acl):
            raise taken(row.uri)


def withdraw(
    connection: Connection, collection_id: int, document_ids: Sequence[str], *, reader: Reader = OWNER
) -> list[str]:
    """Let what waits for documents of a collection count no more: something newer has come, or they are deleted. Those
    that waited and were for the reader."""
    u = t.Upload
    mine = (u.collection_id == collection_id, u.document_id.in_(document_ids))  # whoever asks may name any id
    rows = connection.execute(select(u.document_id, u.acl).where(*mine)).all()
    there = {row.document_id for row in rows if reader.may_read(row.acl)}
    connection.execute(delete(u).where(u.document_id.in_(there)))
    return [key for key in document_ids if key in there]


def waiting(connection: Connection, job_id: int) -> dict[str, Upload]:
    """What a job has still to parse, by the name of the file."""
    u = t.Upload
    names = ("document_id", "uri", "file", "name", "media_type", "title", "acl")
    rows = connection.execute(select(*(getattr(u, name) for name in names), u.meta).where(u.job_id == job_id))
    return {row.file: Upload(**{name: getattr(row, name) for name in names}, metadata=row.metadata) for row in rows}


def take(connection: Connection, job_id: int, upload: Upload) -> bool:
    """Take an upload out, in the transaction that stores its document; False when it does not count any more."""
    u = t.Upload
    mine = (u.document_id == upload.document_id, u.job_id == job_id, u.file == upload.file)
    return connection.execute(delete(u).where(*mine)).rowcount == 1


def sweep(database: Database, folder: Folder) -> int:
    """Delete files that nobody waits for: of requests that died, of jobs that ended. How many there were."""
    old = [file for file in folder.names() if folder.age(file) > ORPHAN_SECONDS]
    if not old:
        return 0
    needed = _needed(database)
    gone = [file for file in old if file not in needed]
    folder.remove(gone)
    return len(gone)


def _needed(database: Database) -> set[str]:
    """The files of jobs that have not ended, or that have failed and may be tried again."""
    j = t.Job
    with database.read() as connection:
        recent = clock.now(connection) - _RETRIABLE
        failed = (j.state == "failed") & (j.finished_at > recent)
        payloads = connection.scalars(
            select(j.payload).where(j.kind == KIND, or_(j.state.in_(("queued", "running")), failed))
        )
        return {str(one.get("file")) for payload in payloads for one in payload.get("files", ())}
