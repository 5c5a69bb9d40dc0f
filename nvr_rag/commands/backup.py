"""`nvr-rag backup` and `nvr-rag restore`: everything that cannot be made again, into a folder and back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nvr_rag import output
from nvr_rag.commands import common

if TYPE_CHECKING:
    from nvr_rag.backups.manifest import Manifest

_TOLD = {  # tables that people know, and what they call a row
    "collection": "collection(s)",
    "document": "documents",
    "query": "queries",
    "feedback": "feedback",
    "judgment": "judgments",
}


def backup(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty folder.")],
    as_json: common.AsJson = False,
) -> None:
    """Back up documents, models, queries and feedback, of one moment, while everything goes on.

    Indexes are left out, as they are made from the documents again; settings and keys are left out too. The backup
    holds texts, users and queries: keep it where only you can read it.
    """
    from nvr_rag.backups.taking import back_up

    with common.open_workspace() as workspace, output.progress() as bars:
        task = bars.add_task("Backing up", total=None)
        made = back_up(
            workspace, folder, lambda what, done: bars.update(task, description=f"Backing up {what}", completed=done)
        )
    for fingerprint in made.missing:
        output.note(f"Warning: the files of the encoder version {fingerprint[:12]} were not there to be copied")
    if as_json:
        output.emit({"path": str(folder), **_described(made)})
    else:
        output.say(f"Backed up {_counts(made)} to {folder} ({output.size(made.bytes)}).")


def restore(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="What nvr-rag backup has written.")],
    as_json: common.AsJson = False,
) -> None:
    """Restore a backup into an empty data folder, and an empty database where NVR_DATABASE_URL names one.

    A backup of SQLite can be restored into PostgreSQL, and the other way round.
    """
    from nvr_rag.backups.restoring import restore as restore_backup
    from nvr_rag.settings import load_settings

    settings = load_settings()
    with output.progress() as bars:
        task = bars.add_task("Restoring", total=None)
        found = restore_backup(settings, folder, lambda what, done: bars.update(task, description=what, completed=done))
    for fingerprint in found.missing:
        output.note(
            f"Warning: the backup has no files of the encoder version {fingerprint[:12]}; bring them back with "
            "nvr-rag models add"
        )
    if as_json:
        output.emit({"path": str(folder), "home": str(settings.home.expanduser().absolute()), **_described(found)})
        return
    output.say(f"Restored {_counts(found)}, as of {found.created_at}.")
    output.say("Nothing is found before the indexes are built again: start nvr-rag serve, which does that.")
    if "erasure" in found.tables:
        output.say("What was erased after the backup was made is there again: erase it again.")


def _described(made: Manifest) -> dict[str, object]:
    return {
        "created_at": made.created_at,
        "release": made.release,
        "rows": {name: table.rows for name, table in made.tables.items()},
        "bytes": made.bytes,
        "missing_models": list(made.missing),
    }


def _counts(made: Manifest) -> str:
    counts = {words: made.tables[name].rows for name, words in _TOLD.items() if name in made.tables}
    told = [f"{count:,} {words}" for words, count in counts.items() if count]
    return ", ".join(told) or "an empty installation"
