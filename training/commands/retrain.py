"""`nvr-rag retrain`: one lap of the feedback loop, from judgments to another deployment."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nvr_rag import output
from nvr_rag.commands import common

if TYPE_CHECKING:
    from nvr_rag.workspace import Workspace

Rule = Annotated[str | None, typer.Option(help="naive, margin-pos or perc-pos; default: what the recipe says.")]
RecipeName = Annotated[str | None, typer.Option("--recipe", help="A recipe by name, or a TOML file.")]
_OUTCOMES = {
    "accept": "The candidate is better.",
    "reject": "The candidate is not better, and was given up; what served still serves.",
    "not_enough_evidence": "There is not enough evidence; what served still serves.",
    "dry_run": "A dry run: nothing was trained, nothing was changed.",
}


def retrain(
    collection: common.InCollection = "default",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Collect and mine only.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Promote without asking what the gate accepts.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the last lap, which failed.")] = False,
    recipe: RecipeName = None,
    rule: Rule = None,
    as_json: common.AsJson = False,
) -> None:
    """Mine, train, build an index beside the live one, and let the gate decide; promote what is better.

    A lap that was interrupted goes on behind its last finished step. Beside a server the server runs it.
    """
    from training.commands import following

    following.check_installed()
    with common.open_workspace() as workspace:
        from training.running import new_request

        request = new_request(collection, recipe=recipe, rule=rule, dry_run=dry_run, promote=yes)
        result = dict(following.follow(workspace, following.take(workspace, request, resume=resume)))
        if result["outcome"] == "accept" and not result["promoted"] and _wants(as_json=as_json):
            result = {**result, **_promote(workspace, collection, str(result["run"]))}
    if as_json:
        output.emit({"collection": collection, **result})
    else:
        show(result)


def show(result: Mapping[str, Any]) -> None:
    """Tell a person how a lap ended."""
    output.say(_OUTCOMES.get(str(result["outcome"]), str(result["outcome"])))
    for reason in result["reasons"]:
        output.say(f"  {reason}")
    if result["promoted"]:
        output.say("It serves now.")
    for step in result["next_steps"]:
        output.say(f"{step['words']} {step['command']}")
    output.say(f"Report: {result['report']['page']}")


def _wants(*, as_json: bool) -> bool:
    if as_json or not sys.stdin.isatty():
        return False
    return typer.confirm("The gate accepts the candidate. Promote it?", default=False, err=True)


def _promote(workspace: Workspace, collection: str, run: str) -> dict[str, Any]:
    from nvr_rag import deployments, promotion

    with workspace.database.read() as connection:
        found = deployments.of_run(connection, run)
    assert found is not None
    promotion.promote(workspace, found.id, collection=collection, tell=output.note)
    undo = {"words": "To go back to what served before:", "command": f"nvr-rag deploy rollback -c {collection}"}
    return {"promoted": True, "next_steps": [undo]}
