"""`nvr-rag prune`: remove what nothing needs any more, as the settings say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from nvr_rag import output
from nvr_rag.commands import common

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nvr_rag.removal.retention import Removal


def prune(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be removed.")] = False,
    yes: common.Yes = False,
    as_json: common.AsJson = False,
) -> None:
    """Remove what nothing needs any more: old deployments, models, laps, jobs, queries and texts.

    NVR_RETENTION__* says how long each is kept; servers and workers do the same once an hour. What answers searches,
    what is being built, and what can be gone back to always stays.
    """
    from nvr_rag.removal import retention

    with common.open_workspace() as workspace:
        if not dry_run and not yes:
            planned = retention.prune(workspace, dry_run=True)
            if any(one.count for one in planned):
                if not as_json:
                    _show(planned)
                common.confirm("Remove all this?")
        done = retention.prune(workspace, dry_run=dry_run)
    if as_json:
        output.emit(_as_json(done, dry_run=dry_run))
    else:
        _tell(done, dry_run=dry_run)


def _as_json(done: Sequence[Removal], *, dry_run: bool) -> dict[str, Any]:
    return {
        "dry_run": dry_run,
        "removed": [one.as_json() for one in done],
        "bytes": sum(one.bytes or 0 for one in done),
    }


def _tell(done: Sequence[Removal], *, dry_run: bool) -> None:
    if not any(one.count for one in done):
        output.say("There is nothing to remove.")
        return
    _show(done)
    size = output.size(sum(one.bytes or 0 for one in done))
    output.say(f"{'Would free' if dry_run else 'Freed'} about {size}.")


def _show(done: Sequence[Removal]) -> None:
    rows = [
        [one.rule, one.count, output.size(one.bytes) if one.bytes is not None else None, one.why, _names(one)]
        for one in done
        if one.count
    ]
    output.table(("what", "how many", "bytes", "why", "such as"), rows)


def _names(one: Removal) -> str:
    more = ", ..." if one.count > len(one.examples) > 0 else ""
    return ", ".join(one.examples) + more
