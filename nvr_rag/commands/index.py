"""`nvr-rag index`: build one with another model beside the one that serves; list; retire."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nvr_rag import output
from nvr_rag.commands import common
from nvr_rag.commands.bars import IndexBar
from nvr_rag.commands.compact import compact
from nvr_rag.errors import Conflict, InvalidInput, NotFound

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection

    from nvr_rag.deployments import Deployment
    from nvr_rag.indexes import IndexInfo
    from nvr_rag.upkeep.writing import Work
    from nvr_rag.workspace import Workspace

app = typer.Typer(help="Build, list, compact and retire indexes.", rich_markup_mode=None)
app.command("compact")(compact)

Index = Annotated[int, typer.Argument(metavar="INDEX", help="The index's number; nvr-rag index list shows it.")]
OfCollection = Annotated[
    str | None, typer.Option("--collection", "-c", help="The collection.  [default: default, or the index's own]")
]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Owned:
    """An index and whose it is."""

    index: IndexInfo
    collection_id: int
    collection: str  # its name

    @property
    def id(self) -> int:
        return self.index.id


@app.command("build")
def build(
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Fingerprint or name; nvr-rag models list shows them.")
    ] = None,
    resume: Annotated[int | None, typer.Option("--resume", metavar="INDEX", help="Go on with this one.")] = None,
    collection: OfCollection = None,
    as_json: common.AsJson = False,
) -> None:
    """Build an index with another model, and a deployment that can be promoted to answer from it.

    The index that serves goes on serving. Beside a running server the server builds. Stop it whenever you like: the
    same command, or --resume, goes on.
    """
    if (model is None) == (resume is None):
        raise InvalidInput("say --model FINGERPRINT, or --resume INDEX to go on with an index", field="model")
    with common.open_workspace() as workspace:
        if model is not None:
            owned = _begun(workspace, collection or "default", model)
        else:
            owned = next(_known(workspace, collection, resume))
        started = time.monotonic()
        work = _bring_up(workspace, owned)
        found = _described(workspace, _again(workspace, owned))
    found = {**found, "encoded": work.encoded, "seconds": time.monotonic() - started}
    if as_json:
        output.emit({"index": found})
    else:
        _tell_built(found)


@app.command("list")
def list_indexes(
    collection: Annotated[str | None, typer.Option("--collection", "-c", help="Only this one's.")] = None,
    as_json: common.AsJson = False,
) -> None:
    """List indexes: how far each is, and which deployments answer from it."""
    with common.open_workspace() as workspace:
        found = [_described(workspace, owned) for owned in _known(workspace, collection)]
    if as_json:
        output.emit({"indexes": found})
    elif found:
        _show(found)
    else:
        output.say("No indexes yet: nvr-rag ingest PATH makes the first.")


@app.command("retire")
def retire(number: Index, yes: common.Yes = False, as_json: common.AsJson = False) -> None:
    """Give an index up, with the deployments that need it."""
    from nvr_rag import deployments

    with common.open_workspace() as workspace:
        owned = next(_known(workspace, number=number))
        with workspace.database.read() as connection:
            users = _users(connection, owned)
        _check_idle(owned, users)
        if any(one.state == "previous" for one in users) and not yes:
            names = ", ".join(str(one.id) for one in users)
            common.confirm(
                f"Retire index {number} of {owned.collection}? There is no going back to deployment {names} then."
            )
        with workspace.database.write() as connection:
            for one in users:
                end = deployments.retire if one.state == "previous" else deployments.reject
                end(connection, one.id)
        gone = common.dropped(workspace, number)
    if not gone:
        output.note("The index's owner, or the next server, removes what is left of it on the disk.")
    if as_json:
        output.emit({"retired": number, "deployments": [one.id for one in users], "dropped": gone})
    else:
        output.say(f"Retired index {number} of {owned.collection}.")


def _known(workspace: Workspace, collection: str | None = None, number: int | None = None) -> Iterator[_Owned]:
    """The indexes that are in the store, of one collection or of all; or the one with a number.

    Raises NotFound (collection, number), Conflict for a number of another collection's.
    """
    from nvr_rag import collections, indexes

    with workspace.database.read() as connection:
        if collection is not None:
            collections.find(connection, collection)
        infos = collections.all_infos(connection)
        found = [
            _Owned(index=index, collection_id=info.id, collection=info.name)
            for info in infos
            for index in indexes.kept(connection, info.id)
            if number in (None, index.id)
        ]
    if number is not None and not found:
        raise NotFound(f"no index {number}; nvr-rag index list shows what there is")
    mine = [owned for owned in found if collection in (None, owned.collection)]
    if number is not None and not mine:
        raise Conflict(f"index {number} is one of the collection {found[0].collection!r}, not of {collection!r}")
    return iter(mine)


def _begun(workspace: Workspace, collection: str, model: str) -> _Owned:
    """The index that is being built with a model already, or else a new one."""
    from nvr_rag import registry

    with workspace.database.read() as connection:
        version = registry.find(connection, model)
    same = [one for one in _known(workspace, collection) if one.index.encoder == version.fingerprint]
    short = version.fingerprint[: registry.SHORT]
    for owned in same:
        if owned.index.copied_from is None and _waits(workspace, owned):
            output.note(f"Going on with index {owned.id}, which was begun with the model {short}.")
            return owned
    if same:
        output.note(f"Note: index {same[-1].id} of {collection} was built with the model {short} as well.")
    candidate = workspace.propose(collection, version.fingerprint)
    output.note(f"Index {candidate.index_id} of {collection} begun with the model {short}.")
    return next(_known(workspace, collection, candidate.index_id))


def _waits(workspace: Workspace, owned: _Owned) -> bool:
    """Whether only a candidate that a person asked for needs it: a lap looks after its own."""
    from nvr_rag.deployments import WAITING

    with workspace.database.read() as connection:
        users = _users(connection, owned)
    return bool(users) and all(one.state in WAITING and one.run is None for one in users)


def _again(workspace: Workspace, owned: _Owned) -> _Owned:
    """The same, as it is now."""
    from nvr_rag import indexes

    with workspace.database.read() as connection:
        return replace(owned, index=indexes.get(connection, owned.id))


def _users(connection: Connection, owned: _Owned) -> list[Deployment]:
    """The deployments that need an index, oldest first."""
    from nvr_rag.deployments import READY, WAITING, all_of

    found = all_of(connection, owned.collection_id, (*WAITING, *READY))
    return [one for one in found if one.index_id == owned.id]


def _check_idle(owned: _Owned, users: list[Deployment]) -> None:
    serving = [one.id for one in users if one.state == "serving"]
    if serving:
        raise Conflict(
            f"index {owned.id} answers the searches of {owned.collection} (deployment {serving[0]}); promote another "
            f"deployment first (nvr-rag deploy list --collection {owned.collection})"
        )


def _bring_up(workspace: Workspace, owned: _Owned) -> Work:
    """Bring an index up with the log, here or by its owner, and show how far it is."""
    from nvr_rag.chunkings import installed_chunker
    from nvr_rag.upkeep.catching_up import Upkeep, settle

    _check_live(owned)
    finished = threading.Event()
    finished.set()
    with output.progress() as bars:
        upkeep = Upkeep(
            workspace=workspace,
            collection_id=owned.collection_id,
            chunker=installed_chunker(),
            stop=threading.Event(),
            only=owned.id,
            report=IndexBar(bars, f"Building index {owned.id}"),
        )
        try:
            work = settle(upkeep, finished)
        except KeyboardInterrupt:
            _tell_stopped(workspace, owned)
            raise
    _check_live(_again(workspace, owned))
    return work


def _tell_stopped(workspace: Workspace, owned: _Owned) -> None:
    from nvr_rag.running import processes

    again = f"nvr-rag index build --resume {owned.id}"
    if processes.alive(workspace.database, "serve"):
        output.note(f"The server goes on building index {owned.id}; {again} shows how far it is.")
    else:
        output.note(f"Index {owned.id} is not finished; {again} goes on with it.")


def _check_live(owned: _Owned) -> None:
    if owned.index.state != "live":
        raise Conflict(f"index {owned.id} was given up; begin another one with nvr-rag index build --model FINGERPRINT")


def _described(workspace: Workspace, owned: _Owned) -> dict[str, Any]:
    from nvr_rag import collections

    with workspace.database.read() as connection:
        head = collections.head_seq(connection, owned.collection_id)
        users = _users(connection, owned)
    return {
        "collection": owned.collection,
        "state": owned.index.state,
        **common.index_as_json(workspace, owned.index, head),
        "created_at": owned.index.created_at,
        "deployments": [{"id": one.id, "state": one.state} for one in users],
    }


def _show(found: list[dict[str, Any]]) -> None:
    from nvr_rag.registry import SHORT

    of_build = ("applied", "head", "lag", "disk", "deployments", "building")
    rows = [
        [
            one["id"],
            one["collection"],
            one["state"],
            one["encoder"][:SHORT],
            *(one[key] for key in ("applied_seq", "head_seq", "lag")),
            output.size(one["bytes_on_disk"]),
            ", ".join(f"{user['id']} {user['state']}" for user in one["deployments"]),
            common.pace_in_words(one["pace"]),
            one["name"],
        ]
        for one in found
    ]
    output.table(("index", "collection", "state", "model", *of_build, "name"), rows)


def _tell_built(found: dict[str, Any]) -> None:
    output.say(
        f"Index {found['id']} has all {found['applied_seq']:,} changes of {found['collection']}, after "
        f"{found['seconds']:.1f} s."
    )
    states = {user["state"]: user["id"] for user in found["deployments"]}
    if "serving" in states:
        output.say(f"Deployment {states['serving']} answers from it already.")
        return
    for state, command in (("prepared", "promote"), ("candidate", "promote"), ("previous", "rollback")):
        if state in states:
            output.say(f"Make it serve: nvr-rag deploy {command} {states[state]} --collection {found['collection']}")
            return
