"""`nvr-rag mine`: hard negatives for what was judged, and a report of what was filtered; nothing is trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from nvr_rag import output
from nvr_rag.commands import common
from nvr_rag.errors import InvalidInput, NvrError
from training.commands.retrain import RecipeName, Rule


def mine(
    collection: common.InCollection = "default",
    recipe: RecipeName = None,
    rule: Rule = None,
    examples: Annotated[
        Path | None, typer.Option("--output", help="Write the examples, with texts, to this JSON Lines file.")
    ] = None,
    as_json: common.AsJson = False,
) -> None:
    """Mine hard negatives from the judgments that are not held out, and tell what each rule removed."""
    from training.commands import following

    following.check_installed()
    if examples is not None and (examples.is_dir() or not examples.parent.is_dir()):
        raise InvalidInput(f"{examples} cannot be a file; give one in a folder that exists", field="output")
    with common.open_workspace() as workspace:
        from training.runs import run_folder

        request = following.new_request(collection, recipe=recipe, rule=rule, dry_run=True)
        result = following.follow(workspace, following.take(workspace, request, resume=False))
        folder = run_folder(workspace.home, str(result["run"]))
        if not folder.mining.is_file():
            raise NvrError(f"nothing was mined: {'; '.join(result['reasons'])}")
        report: dict[str, Any] = json.loads(folder.mining.read_text(encoding="utf-8"))["report"]
        if examples is not None:
            shutil.copyfile(folder.examples, examples)
    if as_json:
        output.emit({"collection": collection, "run": result["run"], "mining": report, "report": result["report"]})
    else:
        _show(report)
        output.say(f"Report: {result['report']['page']}")


def _show(report: dict[str, Any]) -> None:
    """For a person: plain counts first, then what was removed and how many negatives came of it, then the scores."""
    output.pairs({_words(name): value for name, value in report.items() if isinstance(value, int)})
    for name in ("removed", "emitted", "short"):
        if report[name]:
            output.say()
            output.table((_words(name), "count"), [[_words(key), count] for key, count in report[name].items()])
    scores = {_words(name): report[name] for name in ("positive_scores", "negative_scores", "differences")}
    if any(scores.values()):
        quantiles = list(next(filter(None, scores.values())))
        output.say()
        output.table(("teacher's scores", *quantiles), [[name, *_short(found)] for name, found in scores.items()])


def _words(name: str) -> str:
    return name.replace("_", " ")


def _short(quantiles: dict[str, float]) -> list[str]:
    return [f"{value:.3f}" for value in quantiles.values()]
