"""Every error that callers may handle, in one tree. `retry` says whether the same call can succeed later by itself;
`elsewhere`, that another process is at what was asked for, and that this one had better leave it to that; `inside`,
that the words may name hosts, users and folders, or count what is stored, and are for who manages the server.

NvrError
├── InvalidInput             the request is wrong; the message names the field and the remedy
│   └── InvalidFilter
├── NotFound                 no such collection, document, query, index ...
│   └── NoCollection
├── Unauthenticated          no key, or one that is not good (any more)
├── Forbidden                the key is good, but not for this
├── TooManyRequests          of one key in a minute              (retry)
├── TimedOut                 the answer would have come too late (retry)
├── Conflict                 the request contradicts what is stored
│   └── JobThere             there is a job of the kind already, and one at a time
├── ConfigurationError       settings or data folder unusable
│   └── NewerDataFolder      written by a newer release
├── EncoderError             a model directory cannot be used
│   └── EncoderMismatch      an index and an encoder that do not belong together
│       └── IndexMismatch    the physical index is not the one that the log describes: rebuild
├── ChunkingMismatch         chunks that an encoder would truncate
├── ParseFailed              one document could not be read; the others go on
├── StoreError               the vector store
│   ├── StoreBusy            owned by another process            (retry, elsewhere)
│   │   └── Maintained       shared, and brought up by another one   (retry, elsewhere)
│   ├── StoreUnavailable     refused, slow, cut off                          (retry)
│   │   └── IndexClosed      this process has let go of the index meanwhile  (retry)
│   ├── IndexMissing         the store has lost an index that the log knows: rebuild
│   │   └── IndexDamaged     it is there and cannot be read or written any more: rebuild
│   └── IndexExists
├── Stopped                  long work was told to stop
├── NotHere                  this machine does not have it; another one may  (retry, elsewhere)
├── NoRoom                   the disk of the data folder is full, or takes nothing
└── DatabaseUnavailable      locked for too long, or gone                    (retry)
"""

from __future__ import annotations

from collections.abc import Sequence


class NvrError(Exception):
    """Base of all of them. The message is one or two sentences for a person: what is wrong and what to do."""

    retry = False
    elsewhere = False
    inside = False


class InvalidInput(NvrError):
    """A value that the caller sent is not acceptable. `field` names it."""

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class InvalidFilter(InvalidInput):
    """A filter that does not follow the filter language."""

    def __init__(self, message: str) -> None:
        super().__init__(message, field="filter")


class NotFound(NvrError):
    """What was named does not exist."""


class NoCollection(NotFound):
    """There is no collection of this name, or the caller may not know of it. `others` are those that exist: for who
    works on the data folder itself, not for whoever asks over HTTP."""

    def __init__(self, name: str, others: Sequence[str] = ()) -> None:
        self.name, self.others = name, others
        super().__init__(self.without_others)

    @property
    def without_others(self) -> str:
        """The message for somebody who may not know of the others."""
        return f"no collection {self.name[:80]!r}; GET /v1/collections lists those there are"

    def __str__(self) -> str:
        there = f"there are: {', '.join(self.others)}" if self.others else "there are none yet; ingest something first"
        return f"no collection {self.name[:80]!r}; {there}"


class Unauthenticated(NvrError):
    """Who asks has sent no key where one is needed, or one that is unknown, revoked or expired."""


class Forbidden(NvrError):
    """Who asks has a key that is not for this."""


class TooManyRequests(NvrError):
    """A key has asked more often than it may."""

    retry = True

    def __init__(self, message: str, *, after_seconds: float) -> None:
        super().__init__(message)
        self.after_seconds = after_seconds  # until it may ask again


class TimedOut(NvrError):
    """The answer would have taken longer than the server spends on one."""

    retry = True


class Conflict(NvrError):
    """What was asked contradicts what is stored."""


class JobThere(Conflict):
    """A collection has one job of a kind at a time, and there is one. `without_job` is for who may not see it."""

    def __init__(self, message: str, *, job_id: int, without_job: str) -> None:
        super().__init__(message)
        self.job_id, self.without_job = job_id, without_job


class ConfigurationError(NvrError):
    """The settings, or the data folder, cannot be used as they are."""

    inside = True


class NewerDataFolder(ConfigurationError):
    """The data folder was written by a newer release."""


class EncoderError(NvrError):
    """A model directory is incomplete, unsafe or not what it says."""

    inside = True


class EncoderMismatch(EncoderError):
    """An index was opened with an encoder other than the one that built it."""


class IndexMismatch(EncoderMismatch):
    """The physical index was not made for the encoder or the lexical settings that are in use."""


class ChunkingMismatch(NvrError):
    """The chunks of a chunking do not fit an encoder's token budget."""


class ParseFailed(NvrError):
    """A document could not be turned into text. The message is the reason, in words for a person."""


class StoreError(NvrError):
    """The vector store did not do what was asked."""

    inside = True


class StoreBusy(StoreError):
    """Another process owns the index."""

    retry = True
    elsewhere = True


class Maintained(StoreBusy):
    """Another process brings an index up that several share. It can be searched meanwhile."""


class StoreUnavailable(StoreError):
    """The vector store refused, was too slow, or was cut off."""

    retry = True


class IndexClosed(StoreUnavailable):
    """This process has let go of the index while it was in use; it can be opened again."""


class IndexMissing(StoreError):
    """The vector store does not have an index that the corpus log knows."""


class IndexDamaged(IndexMissing):
    """The vector store has an index whose files are not what it wrote."""


class IndexExists(StoreError):
    """The vector store has an index of this name already."""


class Stopped(NvrError):
    """Long work was told to stop. What is finished stays finished, and somebody may go on with it."""


class NotHere(NvrError):
    """What the work is about is not on this machine; a process on another one may see it."""

    retry = True
    elsewhere = True
    inside = True


class NoRoom(NvrError):
    """The disk of the data folder has no room for what was sent, or takes nothing for another reason."""

    inside = True


class DatabaseUnavailable(NvrError):
    """The database is locked for too long, or cannot be reached."""

    retry = True
    inside = True
