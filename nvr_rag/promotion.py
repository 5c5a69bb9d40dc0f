"""Promotion and rollback: prepare, verify, and one transaction that switches what serves.

A deployment enters, another one serves when it is over, or nothing has changed. Preparing means that every API process
has loaded index and encoder and said so in its row, so that no request waits or fails at the switch; requests in flight
finish where they began.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from nvr_rag import collections, deployments, indexes
from nvr_rag.chunkings import installed_chunker
from nvr_rag.collections import head_seq
from nvr_rag.db.session import Database
from nvr_rag.deployments import Deployment
from nvr_rag.errors import Conflict, StoreUnavailable
from nvr_rag.running import processes
from nvr_rag.upkeep.verification import KIND, verify_by_owner
from nvr_rag.workspace import Workspace

PREPARE_SECONDS = 120.0  # how long API processes may take to load an index and an encoder
LEVEL_SECONDS = 15.0  # how long an index that lags is waited for
POLL_SECONDS = 0.05
PROMOTABLE = (*deployments.WAITING, "previous")

Tell = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Switch:
    """What a promotion or a rollback came to."""

    collection: str
    serving: int  # deployment ids
    previous: int
    prepared_by: int  # API processes that had it loaded before the switch
    seconds: float

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def promote(workspace: Workspace, deployment_id: int, *, collection: str, tell: Tell | None = None) -> Switch:
    """Make a deployment of a collection serve: verified, prepared everywhere, then switched in one transaction.

    `tell` hears each step. Raises NotFound, Conflict (another collection's, another state, lagging, wrong points) and
    StoreUnavailable (a process could not load it); then what served still serves.
    """
    tell = tell or (lambda _words: None)
    started = time.monotonic()
    wanted = _of_collection(workspace.database, deployment_id, collection)
    if wanted.state not in PROMOTABLE:
        there = _listed(workspace.database, wanted.collection_id, PROMOTABLE)
        raise Conflict(f"deployment {deployment_id} is {wanted.state}; one can promote {there or 'none at the moment'}")
    _wait_until_level(workspace, wanted, tell)
    if wanted.state != "previous":  # that one has served, and is kept up and loaded
        tell("verifying the index against the documents")
        _verify(workspace, wanted)
        with workspace.database.write() as connection:
            deployments.prepare(connection, deployment_id)
    try:
        tell("preparing: servers load index and encoder")
        prepared = _wait_until_prepared(workspace.database, deployment_id)
        before = _switch(workspace, wanted, tell)
    except BaseException:
        with workspace.database.write() as connection:
            deployments.unprepare(connection, deployment_id)
        raise
    tell("switched")
    return Switch(
        collection=collection,
        serving=deployment_id,
        previous=before.id,
        prepared_by=prepared,
        seconds=time.monotonic() - started,
    )


def roll_back(
    workspace: Workspace, deployment_id: int | None = None, *, collection: str, tell: Tell | None = None
) -> Switch:
    """Make the deployment that served before serve again, or another one that has served and is kept ready.

    Raises NotFound when there is none, Conflict as `promote` and for one that never served.
    """
    if deployment_id is None:
        with workspace.database.read() as connection:
            deployment_id = deployments.last(connection, collections.find(connection, collection)).id
    else:
        wanted = _of_collection(workspace.database, deployment_id, collection)
        if wanted.state != "previous":
            there = _listed(workspace.database, wanted.collection_id, ("previous",))
            raise Conflict(
                f"deployment {deployment_id} is {wanted.state}; one can go back to {there or 'none at the moment'}"
            )
    return promote(workspace, deployment_id, collection=collection, tell=tell)


def _of_collection(database: Database, deployment_id: int, collection: str) -> Deployment:
    with database.read() as connection:
        collection_id = collections.find(connection, collection)
        found = deployments.get(connection, deployment_id)
    if found.collection_id != collection_id:
        raise Conflict(
            f"deployment {deployment_id} is not one of the collection {collection!r}; nvr-rag deploy list --collection "
            f"{collection} shows its own"
        )
    return found


def _listed(database: Database, collection_id: int, states: Sequence[str]) -> str:
    with database.read() as connection:
        found = deployments.all_of(connection, collection_id, states)
    return ", ".join(f"{one.id} ({one.state})" for one in found)


def _switch(workspace: Workspace, wanted: Deployment, tell: Tell) -> Deployment:
    """Switch at a moment at which the index is level: while documents come in, it lags now and then."""
    until = time.monotonic() + LEVEL_SECONDS
    while True:
        _wait_until_level(workspace, wanted, tell)
        try:
            with workspace.database.write() as connection:
                return deployments.switch(connection, wanted.id)
        except Conflict:
            if time.monotonic() > until or not _is_switchable(workspace.database, wanted.id):
                raise


def _is_switchable(database: Database, deployment_id: int) -> bool:
    with database.read() as connection:
        return deployments.get(connection, deployment_id).state in deployments.SWITCHABLE


def _wait_until_level(workspace: Workspace, wanted: Deployment, tell: Tell) -> None:
    """Give an owner that is at work a little time to bring up an index that lags further than the serving one.

    Raises Conflict when it still does.
    """
    keepers = processes.taking(workspace.database, KIND)
    told, until = False, time.monotonic() + (LEVEL_SECONDS if keepers else 0.0)
    while (behind := _behind(workspace.database, wanted)) > 0:
        if time.monotonic() > until:
            raise Conflict(
                f"the index of deployment {wanted.id} is {behind} changes behind the one that serves; run nvr-rag "
                f"index build --resume {wanted.index_id}, or wait for its owner, and promote again"
            )
        if not told:
            tell(f"waiting for the index, {behind} changes behind")
            told = True
        time.sleep(POLL_SECONDS)


def _behind(database: Database, wanted: Deployment) -> int:
    """How many changes the index lags further than the serving one; at most what the log has."""
    with database.read() as connection:
        now = deployments.all_of(connection, wanted.collection_id, ("serving",))
        serving = (
            indexes.applied_seq(connection, now[0].index_id) if now else head_seq(connection, wanted.collection_id)
        )
        return serving - indexes.applied_seq(connection, wanted.index_id)


def _verify(workspace: Workspace, wanted: Deployment) -> None:
    own = workspace.has_open(wanted.index_id)
    try:
        found = verify_by_owner(workspace, wanted.index_id, installed_chunker())
    finally:
        if not own:
            workspace.close_index(wanted.index_id)  # an index has one owner, and the server is to load it now
    if not found["clean"]:
        raise Conflict(
            f"the index of deployment {wanted.id} is not what the documents say ({found['missing']} missing, "
            f"{found['stale']} stale, {found['foreign']} foreign); nvr-rag verify --repair mends it"
        )


def _wait_until_prepared(database: Database, deployment_id: int) -> int:
    """Wait until every API process has it loaded; how many there are."""
    until, key = time.monotonic() + PREPARE_SECONDS, str(deployment_id)
    while True:
        servers = processes.alive(database, "serve")
        for server in servers:
            error = server.prepared.get(key)
            if error is not None:
                raise StoreUnavailable(f"the server {server.url or server.pid} cannot load it: {error}")
        late = [server for server in servers if key not in server.prepared]
        if not late:
            return len(servers)
        if time.monotonic() > until:
            raise StoreUnavailable(
                f"the server {late[0].url or late[0].pid} has not loaded the new index and encoder within "
                f"{PREPARE_SECONDS:.0f} s; see its log, or restart it, and promote again"
            )
        time.sleep(POLL_SECONDS)
