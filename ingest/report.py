"""What a run is told and what it tells: options in; counts, reasons and a view of how far it is out. Records only."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ingest.folders.selection import Selection
from ingest.folders.stamps import FileState
from nvr_rag.upkeep.progress import Progress
from nvr_rag.upkeep.writing import Work


@dataclass(frozen=True, kw_only=True, slots=True)
class IngestOptions:
    """How a run takes its paths."""

    selection: Selection = field(default_factory=Selection)  # which files are wanted
    create: bool = True  # the collection, where it is new; otherwise one that is not there raises NotFound
    reread: bool = False  # read every file, also where the disk says that it has not changed
    only: Sequence[Path] = ()  # nothing but what is at or below these; () = everything below the paths of the run
    # Files that could not be parsed, by URI: while they stay as they are, that is taken as said. None = they are tried
    # again. The run adds to it.
    failed_before: MutableMapping[str, tuple[FileState, str]] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """A document that could not be read."""

    uri: str
    reason: str


@dataclass(kw_only=True, slots=True)
class _Findings:
    """What is told of what did not become a document."""

    failed: list[Failure] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)  # by reason

    def skip(self, reason: str) -> None:
        """Something was passed over."""
        self.skipped[reason] = self.skipped.get(reason, 0) + 1

    def fail(self, uri: str, reason: str) -> None:
        """Something could not be read."""
        self.failed.append(Failure(uri=uri, reason=reason))


@dataclass(kw_only=True, slots=True)
class IngestReport(_Findings):
    """What a run did, counted in documents."""

    added: int = 0
    updated: int = 0
    unchanged: int = 0
    deleted: int = 0
    restricted: int = 0  # of those added and updated: only for some principals
    work: Work = field(default_factory=Work)  # in chunks; what another process indexed is not counted
    # read: until all was committed; total; walk, parse, commit: spent on that, side by side with the other stages
    seconds: dict[str, float] = field(default_factory=dict)
    stopped: bool = False  # before it was done; the next run goes on

    @property
    def seen(self) -> int:
        return self.added + self.updated + self.unchanged + len(self.failed)

    def spend(self, stage: str, seconds: float) -> None:
        """Count seconds to a stage."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds


@dataclass(kw_only=True, slots=True)
class Plan(_Findings):
    """What a run would do, by URI in the order of the walk, as far as can be told without parsing; nothing is done."""

    add: list[str] = field(default_factory=list)
    update: list[str] = field(default_factory=list)  # what is stored differs, or could not be read the last time
    delete: list[str] = field(default_factory=list)
    unchanged: int = 0
    refused: list[str] = field(default_factory=list)  # why the run would end without deleting anything

    @property
    def seen(self) -> int:
        return len(self.add) + len(self.update) + self.unchanged + len(self.failed)


@dataclass(frozen=True, kw_only=True, slots=True)
class Stand:
    """How far a run is, counted in documents."""

    seen: int  # looked at: they are committed, or failed, or had not changed
    done: int  # of those: can be found, or failed; the others wait to be indexed
    total: int | None  # that there are to be seen; None = not counted yet
    encoded: int  # chunks so far


@dataclass(kw_only=True, slots=True)
class Watcher:
    """Whom to tell how far a run is; every call comes from a thread of the run."""

    documents: Callable[[int], None] = lambda _seen: None
    index: Callable[[Progress], None] = lambda _progress: None
    stand: Callable[[Stand], None] | None = None  # with this, the documents are counted beforehand
