"""`nvr-rag retrain`: one lap of the feedback loop, from judgments to another deployment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nvr_rag import output
from nvr_rag.commands import common
from nvr_rag.errors import InvalidInput

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
    if resume and (dry_run or recipe is not None or rule is not None):
        raise InvalidInput("--resume goes on with a lap as it was begun; leave the other options out", field="resume")
    with common.open_workspace() as workspace:
        request = following.new_request(collection, recipe=recipe, rule=rule, dry_run=dry_run, promote=yes)
        job_id = following.take(workspace, request, resume=resume)
        result = following.follow(workspace, job_id)
        if not as_json:
            _tell_decision(result)
        if (
            result["outcome"] == "accept"
            and not result["promoted"]
            and _serves_still(workspace, collection, result)
            and _wants(workspace, job_id, yes, as_json)
        ):
            result = {**result, **_promote(workspace, collection, str(result["run"]))}
    if as_json:
        output.emit({"collection": collection, **result})
    else:
        _tell_rest(result)


def _tell_decision(result: Mapping[str, Any]) -> None:
    """Tell a person how a lap ended, before anything is asked."""
    output.say(_OUTCOMES.get(str(result["outcome"]), str(result["outcome"])))
    for reason in result["reasons"]:
        output.say(f"  {reason}")
    output.flush()


def _tell_rest(result: Mapping[str, Any]) -> None:
    """Tell a person what serves now, what can be done next, and where more is to be read."""
    if result["promoted"]:
        output.say("It serves now.")
    for step in result["next_steps"]:
        output.say(f"{step['words']} {step['command']}")
    output.say(f"Report: {result['report']['page']}")


def _serves_still(workspace: Workspace, collection: str, result: Mapping[str, Any]) -> bool:
    """Whether what the candidate was compared with is what serves: of anything else it is not known to be better."""
    from nvr_rag import deployments

    with workspace.database.read() as connection:
        serving = deployments.serving(connection, collection).id
    if serving == result.get("compared_with"):
        return True
    output.note(
        f"Not promoted: what serves now, deployment {serving}, is not what the candidate was compared with; nvr-rag "
        f"retrain --collection {collection} compares anew."
    )
    return False


def _wants(workspace: Workspace, job_id: int, yes: bool, as_json: bool) -> bool:
    """Whether to promote what the lap has left as a candidate: one that was begun without --yes may have got it now."""
    from nvr_rag import jobs

    if yes and not jobs.get(workspace.database, job_id).payload.get("promote"):
        return True
    if as_json or not common.is_watched():
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
