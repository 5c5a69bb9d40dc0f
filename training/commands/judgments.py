"""`nvr-rag judgments`: import, show, remove. Feedback needs no command: it counts from the moment it is given."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nvr_rag import output
from nvr_rag.commands import common
from nvr_rag.errors import NotFound

if TYPE_CHECKING:
    from training.importing import ImportReport
    from training.judgments import JudgmentSet

app = typer.Typer(help="Import, show and remove judgments of what answers which query.", rich_markup_mode=None)


@app.command("import")
def import_command(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH", help="A CSV file with the columns query,document[,chunk][,grade], or a BEIR folder."
        ),
    ],
    origin: Annotated[str, typer.Option("--origin", help="A name for where they come from.")],
    split: Annotated[
        str | None, typer.Option(help="Which qrels of a BEIR folder.  [default: the only one there is]")
    ] = None,
    collection: common.InCollection = "default",
    as_json: common.AsJson = False,
) -> None:
    """Import judgments; what the same origin said before is replaced.

    Documents are named by id, by URI, or by the end of their URI after '#' or '/', with or without the extension.
    """
    from training.importing import import_judgments

    with common.open_workspace() as workspace, output.progress() as bars:
        task = bars.add_task("Importing judgments", total=None)
        report = import_judgments(
            workspace.database,
            collection,
            path,
            origin=origin,
            split=split,
            progress=lambda done, total: bars.update(task, completed=done, total=total),
        )
    if as_json:
        output.emit({"collection": collection, **asdict(report)})
    else:
        _tell(report)


@app.command("show")
def show(collection: common.InCollection = "default", as_json: common.AsJson = False) -> None:
    """Count the judged queries by split and origin. Of what is held out only the number of queries is told."""
    from training.judgments import holdout_size, training_queries

    with common.open_workspace() as workspace, workspace.database.read() as connection:
        judged = training_queries(connection, collection)
        held_out = holdout_size(connection, collection)
    if not judged.queries and not held_out and not _left_out(judged):
        raise NotFound(
            f"no judgments in the collection {collection!r} yet: send feedback of kind relevant or irrelevant on hits "
            "to /v1/feedback, or give nvr-rag judgments import a file"
        )
    described = _described(judged, held_out)
    if as_json:
        output.emit({"collection": collection, **described})
    else:
        _show(described)


@app.command("remove")
def remove(
    origin: Annotated[str, typer.Argument(metavar="ORIGIN", help="The name that they were imported under.")],
    collection: common.InCollection = "default",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: common.AsJson = False,
) -> None:
    """Remove what was imported under an origin."""
    from training.importing import remove_judgments
    from training.judgments import IMPORTED

    name = origin.removeprefix(IMPORTED)  # as `show` writes it
    if not yes:
        common.confirm(f"Remove the judgments of {name} from the collection {collection}?")
    with common.open_workspace() as workspace:
        count = remove_judgments(workspace.database, collection, name)
    if as_json:
        output.emit({"collection": collection, "origin": name, "removed": count})
    else:
        output.say(f"Removed {count:,} judgments of {name}.")


def _tell(report: ImportReport) -> None:
    replaced = f"; they replace {report.replaced:,}" if report.replaced else ""
    output.say(f"Imported {report.judgments:,} judgments of {report.queries:,} queries as {report.origin}{replaced}.")
    if report.repeated:
        output.note(f"Said again further down, where the last word counts: {report.repeated:,}")
    if report.skipped:
        names = ", ".join(report.unknown) + (", ..." if report.skipped > len(report.unknown) else "")
        output.note(f"Left out, as the collection does not have what they judge: {report.skipped:,} ({names})")


def _left_out(judged: JudgmentSet) -> dict[str, int]:
    """What did not become a judged query, or not as it was said, by name; zeros left out."""
    counts = asdict(judged.counts)
    del counts["origins"]
    return {name: count for name, count in counts.items() if count}


def _described(judged: JudgmentSet, held_out: int) -> dict[str, Any]:
    from training.splits import Split

    splits: dict[str, Any] = {}
    for split in (Split.TRAIN, Split.DEV):
        queries = judged.of(split)
        splits[split] = {
            "queries": len(queries),
            "judgments": sum(len(query.chunks) + len(query.documents) for query in queries),
            "origins": {name: asdict(count) for name, count in judged.counts.origins[split].items()},
        }
    splits[Split.HOLDOUT] = {"queries": held_out}
    counts = {name: count for name, count in asdict(judged.counts).items() if name != "origins"}
    return {"splits": splits, **counts, "digest": judged.digest}


def _show(described: dict[str, Any]) -> None:
    rows: list[list[object]] = []
    for split, counts in described["splits"].items():
        rows.append([split, "", counts["queries"], counts.get("judgments")])
        rows += [[split, name, one["queries"], one["judgments"]] for name, one in counts.get("origins", {}).items()]
    output.table(("split", "origin", "queries", "judgments"), rows)
    told = {
        "contested": "judgments where people disagree; the lower median counts",
        "lifted": "judgments of chunks that count for their document, as the index cuts it elsewhere now",
        "gone": "judgments of what is not there any more, left out",
        "forbidden": "judgments of documents that are not for everyone, left out",
        "without_positive": "queries without anything relevant, left out",
    }
    for name, meaning in told.items():
        if described[name]:
            output.say(f"{described[name]:,} {meaning}")
