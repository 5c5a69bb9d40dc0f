"""Edge shards on disk: the folder of an index owned, loaded and replaced, and what can go wrong there.

    <root>/<name>/index.json    StoreConfig
    <root>/<name>/owner.lock    locked by the kernel for the owner, for as long as it lives
    <root>/<name>/shard/        the shard; what is in it is the business of nvr_rag.stores.edge_segments

The shard has a lock of its own, but loading takes it last: by then the files of the owner have been touched, whose next
flush fails ("tracker_journal.dat is shorter than expected"). So ours is taken first.

The library writes through memory maps of sparse files. On a full disk that is no error but a SIGBUS, which ends the
process, searches and all; so nothing that writes is begun unless there is room to spare. It raises bare Exceptions with
a text; all of them are translated here.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import qdrant_edge as edge

from nvr_rag.disk import allocated, free
from nvr_rag.errors import IndexClosed, IndexDamaged, IndexMissing, NvrError, StoreBusy, StoreError, StoreUnavailable
from nvr_rag.stores.edge_segments import SHARD_FOLDER, index_fields

# Left free on the disk. A write takes up to 6 MB (of 4096 dimensions), opening up to 32 MB where the disk is memory;
# the rest is for what others write meanwhile.
WRITING_BYTES, OPENING_BYTES = 64 * 2**20, 32 * 2**20
LOCK_FILE = "owner.lock"
NEW_SHARD, _OLD_SHARD = "shard.new", "shard.old"  # while one takes the place of the other

REMEDY = "`nvr-rag verify --repair` rebuilds it from the corpus log"
# What the disk or the machine refuses now and may grant later, in the library's words. It is no damage.
_REFUSED = re.compile(
    "No space left|StorageFull|quota exceeded|QuotaExceeded|Too many open files|Permission denied|PermissionDenied|"
    "Read-only file system|ReadOnlyFilesystem|Input/output error|InputOutputError|Cannot allocate memory|OutOfMemory"
)


def see_room(name: str, folder: Path, needed: int) -> None:
    """Raise StoreUnavailable where the disk is all but full."""
    left = free(folder)
    if left < needed:
        raise StoreUnavailable(
            f"index {name!r}: {left / 1e6:,.0f} MB are free on the disk of {folder.parent}, and this needs "
            f"{needed / 1e6:,.0f} MB; nothing is lost: make room there, and it goes on by itself"
        )


def own(name: str, folder: Path) -> int:
    """Take the lock of an index; a descriptor to be closed. Raises StoreBusy, IndexMissing when the folder has gone."""
    try:
        descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError as error:
        raise IndexMissing(f"there is no index {name!r} in {folder.parent}; {REMEDY}") from error
    except OSError as error:
        raise StoreUnavailable(f"index {name!r} cannot be opened: {error}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise StoreBusy(f"index {name!r} is open in another process (or twice in this one)") from error
    return descriptor


def load(name: str, folder: Path) -> edge.EdgeShard:
    _finish_swap(folder)
    if not has_segments(folder):  # the library would make an empty one, and say nothing
        raise IndexDamaged(f"index {name!r} is damaged: its segments are gone; {REMEDY}")
    if not any((folder / SHARD_FOLDER / "wal").glob("open-*")):
        # It would number updates from 0 again, and take those of all that is there for old ones and pass over them.
        raise IndexDamaged(f"index {name!r} is damaged: its write-ahead log is gone; {REMEDY}")
    try:
        shard = edge.EdgeShard.load(str(folder / SHARD_FOLDER))
        if free(folder) > WRITING_BYTES + allocated(folder):  # without room filters are slow, and right all the same
            index_fields(shard)  # a shard of an earlier release has fewer
        return shard
    except BaseException as error:
        text = str(error)
        if not _is_edge(error):
            raise
        if "WouldBlock" in text:
            raise StoreBusy(f"index {name!r} is open in another process (or twice in this one)") from error
        if _REFUSED.search(text):
            raise StoreUnavailable(f"index {name!r} cannot be opened: {text}") from error
        raise IndexDamaged(f"index {name!r} is damaged ({text}); {REMEDY}") from error


def take_new_shard(folder: Path) -> None:
    """Let the new shard take the place of the old one. What a crash leaves of it, `_finish_swap` finishes."""
    os.rename(folder / SHARD_FOLDER, folder / _OLD_SHARD)
    _finish_swap(folder)


def _finish_swap(folder: Path) -> None:
    if not (folder / SHARD_FOLDER).exists() and (folder / _OLD_SHARD).exists() and (folder / NEW_SHARD).exists():
        os.rename(folder / NEW_SHARD, folder / SHARD_FOLDER)
        sync_folder(folder)
    for leftover in (NEW_SHARD, _OLD_SHARD):  # a new one that did not get its turn lacks what was written since
        shutil.rmtree(folder / leftover, ignore_errors=True)


def has_segments(folder: Path) -> bool:
    """Whether an index has the files of any segment that was finished."""
    try:
        with os.scandir(folder / SHARD_FOLDER / "segments") as entries:
            return any(os.path.exists(f"{entry.path}/version.info") for entry in entries)
    except OSError:
        return False


@contextmanager
def translated(name: str) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        if isinstance(error, NvrError) or not _is_edge(error):
            raise
        if "Shard is not initialized" in str(error):
            raise closed(name) from error
        if _is_damage(error):
            raise IndexDamaged(f"index {name!r} is damaged ({error}); {REMEDY}") from error
        if _REFUSED.search(str(error)):
            raise StoreUnavailable(f"index {name!r}: {error}") from error
        raise StoreError(f"index {name!r}: {error}") from error


def closed(name: str) -> IndexClosed:
    return IndexClosed(f"index {name!r} is closed; open it again")


def _is_damage(error: BaseException) -> bool:
    """The library stumbled over its own files: a full disk, or a value that it does not take, is none of them."""
    text = str(error)
    stumbled = type(error).__name__ == "PanicException" or text.startswith("Service runtime error")
    return stumbled and _REFUSED.search(text) is None


def _is_edge(error: BaseException) -> bool:
    """An error of the library, or of a value that it could not take; a Rust panic is no Exception."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def sync_tree(folder: Path) -> None:
    for parent, _, files in os.walk(folder):
        for file in files:
            _sync(os.path.join(parent, file))
        _sync(parent)


def sync_folder(folder: Path) -> None:
    _sync(str(folder))


def _sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
