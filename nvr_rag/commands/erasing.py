"""`nvr-rag documents erase`, `nvr-rag users erase` and `nvr-rag erasures`: removing for good, and what was removed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from nvr_rag import output
from nvr_rag.commands import common
from nvr_rag.errors import NotFound

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nvr_rag.removal.erasure import Erasure
    from nvr_rag.workspace import Workspace

WAIT_SECONDS = 30.0  # for a server that owns an index

users = typer.Typer(help="Erase what a user has asked and said.", rich_markup_mode=None)
erasures = typer.Typer(help="List erasures, and finish those that were broken off.", rich_markup_mode=None)

Keys = Annotated[list[str], typer.Argument(metavar="ID_OR_URI...", help="Ids or URIs of documents.")]
User = Annotated[str, typer.Argument(metavar="USER", help="The user, as searches and feedback name it.")]


def erase_documents(
    keys: Keys, collection: common.InCollection = "default", yes: common.Yes = False, as_json: common.AsJson = False
) -> None:
    """Erase documents for good: every version, judgments and feedback about them, their points in every index, and what
    laps have of them. Deleted documents can be erased as well.

    Backups that were made before still have them, and encoders that were trained with them have learned from them. A
    PostgreSQL server keeps removed rows until its vacuum has run, a Qdrant server removed points until its optimiser
    has, or nvr-rag index compact. The source of a document is not touched: ingesting it again brings it back.
    """
    from nvr_rag.removal import erasing, erasure

    with common.open_workspace() as workspace:
        with workspace.database.read() as connection:
            found = erasure.find_documents(connection, collection, keys)
        if found and not yes:
            common.confirm(f"Erase {_documents(len(found))} for good? This cannot be undone.")
        records, unknown = erasing.erase_documents(workspace, collection, keys)
        records = _waited(workspace, records)
    if as_json:
        output.emit({"erasures": [one.as_json() for one in records], "unknown": unknown})
    else:
        output.say(f"Erased {_documents(len(records))}.")
        _tell(records)
    for key in unknown:
        output.note(f"Error: no document {key!r} in the collection {collection!r}")
    if unknown:
        raise typer.Exit(1)


@users.command("erase")
def erase_user(user: User, yes: common.Yes = False, as_json: common.AsJson = False) -> None:
    """Erase what a user has asked and said, in every collection: queries with their texts and sessions, feedback, and
    what laps have of them. What others have said stays.

    Backups that were made before still have it, and encoders that were trained with it have learned from it.
    """
    from nvr_rag.removal import erasing, erasure

    with common.open_workspace() as workspace:
        with workspace.database.read() as connection:
            if not erasure.texts_of_user(connection, user):
                raise NotFound(f"the query log knows no user {user[:80]!r}; names are compared to the letter")
        if not yes:
            common.confirm(f"Erase everything that the user {user[:80]!r} has asked and said? This cannot be undone.")
        (record,) = _waited(workspace, [erasing.erase_user(workspace, user)])
    if as_json:
        output.emit({"erasure": record.as_json()})
    else:
        output.say(f"Erased {record.removed['queries']} queries and {record.removed['feedback']} words of feedback.")
        _tell([record])


@erasures.command("list")
def list_erasures(as_json: common.AsJson = False) -> None:
    """List what was erased: when, how much, and what is still to be removed. What it was is kept as a hash only."""
    from nvr_rag.removal import erasure

    with common.open_workspace() as workspace, workspace.database.read() as connection:
        records = erasure.all_records(connection)
    if as_json:
        output.emit({"erasures": [one.as_json() for one in records]})
        return
    columns = ("id", "erased", "what", "collection", "sha256", "removed", "still to remove")
    output.table(columns, [_row(one) for one in records])


@erasures.command("finish")
def finish(as_json: common.AsJson = False) -> None:
    """Remove what is still to be removed. Servers and workers do the same by themselves."""
    from nvr_rag.removal import erasing, erasure

    with common.open_workspace() as workspace:
        with workspace.database.read() as connection:
            records = erasure.unfinished(connection)
        problems = erasing.settle(workspace)
        records = _waited(workspace, records)
    left = [one for one in records if one.pending is not None]
    if as_json:
        output.emit({"erasures": [one.as_json() for one in records], "problems": problems if left else {}})
    else:
        output.say(f"Finished {len(records) - len(left)} of {len(records)}.")
        for what, words in problems.items() if left else ():
            output.note(f"Error: {what}: {words}")
    if left:
        raise typer.Exit(1)


def _waited(workspace: Workspace, records: Sequence[Erasure]) -> list[Erasure]:
    """The records, after a server that owns an index has had its time."""
    from nvr_rag.removal import erasing
    from nvr_rag.running import processes

    servers = processes.alive(workspace.database, "serve")
    return erasing.wait(workspace, records, WAIT_SECONDS if servers else 0.0)


def _tell(records: Sequence[Erasure]) -> None:
    from nvr_rag.removal.erasure import left

    for encoder in sorted({one[:12] for record in records for one in record.removed["encoders"]}):
        output.note(f"The encoder version {encoder} was trained with it: nvr-rag models remove {encoder}")
    pending = sorted({words for record in records for words in left(record.pending)})
    if pending:
        output.note(f"Still to be removed from: {', '.join(pending)}. nvr-rag erasures finish goes on with it.")
    if records:
        output.note("Backups that were made before still have it.")


def _row(one: Erasure) -> list[object]:
    from nvr_rag.removal.erasure import left

    removed = ", ".join(f"{count} {name}" for name, count in one.removed.items() if isinstance(count, int) and count)
    pending = ", ".join(left(one.pending)) or "nothing"
    return [one.id, common.moment(one.created_at), one.kind, one.collection, one.subject[:12], removed, pending]


def _documents(count: int) -> str:
    return f"{count} document{'' if count == 1 else 's'}"
