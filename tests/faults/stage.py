"""Where faults are played: a life on a data folder, a database and a store of the scenario's choice.

A scenario is a function of a Stage that returns an Outcome; what it opens is closed when the stage is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from tests.faults import disks
from tests.faults.cluster import Cluster, programs
from tests.faults.outcomes import Outcome
from tests.killing.life import Life
from tests.killing.places import CONFIGURATIONS, Place
from tests.killing.processes import Nursery
from tests.qdrant_stand_in import StandIn

SQLITE, POSTGRESQL, QDRANT = CONFIGURATIONS
STORE_TIMEOUT_SECONDS = 2  # of a search in a Qdrant server

T = TypeVar("T")


class Site(Place):
    """A place whose data folder and database are somebody else's choice."""

    def __init__(
        self, folder: Path, *, home: Path | None, url: str | None, qdrant: str | None, more: Mapping[str, str]
    ) -> None:
        super().__init__(folder, SQLITE)
        self.home = home or self.home
        self.extra = dict(more)  # settings
        self._url, self._qdrant = url, qdrant
        self.configuration = QDRANT if qdrant else POSTGRESQL if url else SQLITE

    @property
    def settings(self) -> Mapping[str, str]:
        return {**super().settings, "NVR_QDRANT__TIMEOUT_SECONDS": str(STORE_TIMEOUT_SECONDS), **self.extra}


class Stage:
    """For one scenario. A context manager, at whose end nothing of it runs or is mounted."""

    def __init__(self, nursery: Nursery, folder: Path, cluster: Callable[[], Cluster]) -> None:
        """`cluster` gives the PostgreSQL server that scenarios share."""
        self.nursery, self.folder = nursery, folder
        self._cluster, self._open = cluster, ExitStack()

    def __enter__(self) -> Stage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    @property
    def cluster(self) -> Cluster:
        return self._cluster()

    def opened(self, thing: AbstractContextManager[T]) -> T:
        """Open something until the end of the stage."""
        return self._open.enter_context(thing)

    def life(
        self,
        *,
        home: Path | None = None,
        url: str | None = None,
        qdrant: StandIn | None = None,
        more: Mapping[str, str] | None = None,
    ) -> Life:
        """A life that nobody has begun yet; `more` are settings of its processes."""
        site = Site(self.folder / "site", home=home, url=url, qdrant=qdrant.url if qdrant else None, more=more or {})
        life = Life(self.nursery, site)
        self._open.callback(life.end)
        return life

    def shared(self, **more: str) -> tuple[Life, StandIn]:
        """A life on PostgreSQL and a stand-in for a Qdrant server."""
        qdrant = self.opened(StandIn())
        return self.life(url=self.cluster.new_database(), qdrant=qdrant, more=more), qdrant


@dataclass(frozen=True, kw_only=True, slots=True)
class Scenario:
    """A fault that can be played."""

    name: str
    play: Callable[[Stage, str], Outcome]  # the stage and the scenario's name
    needs: Sequence[Callable[[], object]] = ()  # what must be so here

    @property
    def possible(self) -> bool:
        return all(need() for need in self.needs)


POSTGRES = (programs,)
MOUNTS, LOOPS = (disks.mountable,), (disks.loopable,)
