"""The commands of the feedback loop, mounted on the one command line."""

from __future__ import annotations

import typer

from training.commands import compare, evaluate, judgments, mine, retrain


def register(app: typer.Typer) -> None:
    """Mount the commands on the command line."""
    app.command("retrain")(retrain.retrain)
    app.command("mine")(mine.mine)
    app.command("evaluate")(evaluate.evaluate)
    app.command("compare")(compare.compare)
    app.add_typer(judgments.app, name="judgments")
