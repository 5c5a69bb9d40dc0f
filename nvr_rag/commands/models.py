"""`nvr-rag models`: add, list, show, remove encoder versions. Only `add` loads one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nvr_rag import disk, output
from nvr_rag.commands import common

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from nvr_rag.registry import EncoderVersion, Measured
    from nvr_rag.workspace import Workspace

app = typer.Typer(help="Add, list, show and remove models.", rich_markup_mode=None)

Source = Annotated[
    str, typer.Argument(metavar="DIR_OR_HUB_ID", help="A model directory, or owner/name at the Hugging Face hub.")
]
Model = Annotated[
    str, typer.Argument(metavar="FINGERPRINT", help="The model's fingerprint, or the beginning of it; or its name.")
]


@app.command("add")
def add(source: Source, as_json: common.AsJson = False) -> None:
    """Check a model and copy it into the data folder, where nothing changes it any more."""
    from nvr_rag import registry

    with common.open_workspace() as workspace:
        with workspace.database.read() as connection:
            known = {version.fingerprint for version in registry.all_versions(connection)}
        version = workspace.adopt(source)
        with workspace.database.read() as connection:
            found = _described(workspace, version, _uses(connection))
    new = version.fingerprint not in known
    if as_json:
        output.emit({"added": new, "model": found})
        return
    short = version.fingerprint[: registry.SHORT]
    output.say(f"Added the model {short}." if new else f"The model {short} is here already.")
    _show([found])
    output.note(f"nvr-rag index build --collection NAME --model {short} builds an index with it.")


@app.command("list")
def list_models(as_json: common.AsJson = False) -> None:
    """List the models and what uses them."""
    from nvr_rag import registry

    with common.open_workspace() as workspace, workspace.database.read() as connection:
        uses = _uses(connection)
        found = [_described(workspace, version, uses) for version in registry.all_versions(connection)]
    if as_json:
        output.emit({"models": found})
    elif found:
        _show(found)
    else:
        output.say("No models yet: the first collection brings one, and nvr-rag models add DIR_OR_HUB_ID others.")


@app.command("show")
def show(model: Model, as_json: common.AsJson = False) -> None:
    """Show a model: what it is, how it was made, what it was measured at."""
    from nvr_rag import registry

    with common.open_workspace() as workspace, workspace.database.read() as connection:
        version = registry.find(connection, model)
        found = _described(workspace, version, _uses(connection))
        measured = registry.measured(connection, version.fingerprint)
    if as_json:
        evaluations = [_evaluation(one) for one in measured]
        whole = {"tokenizer": version.tokenizer, "spec": version.spec, "training": version.training}
        output.emit({"model": {**found, **whole, "evaluations": evaluations}})
    else:
        output.pairs({**found, "used_by": _used_by(found), "bytes_on_disk": _size(found)})
        _show_more(version, measured)


@app.command("remove")
def remove(model: Model, yes: common.Yes = False, as_json: common.AsJson = False) -> None:
    """Remove a model that no index needs, with its copy in the data folder."""
    from nvr_rag import registry

    with common.open_workspace() as workspace:
        with workspace.database.read() as connection:
            version = registry.find(connection, model)
        short = version.fingerprint[: registry.SHORT]
        if not yes:
            common.confirm(f"Remove the model {short}, made {common.moment(version.created_at)}?")
        freed = workspace.discard(version.fingerprint)
    if as_json:
        output.emit({"removed": version.fingerprint, "bytes_freed": freed})
    else:
        output.say(f"Removed the model {short}; {output.size(freed)} are free again.")


def _uses(connection: Connection) -> dict[str, list[dict[str, Any]]]:
    """The indexes that need each encoder version, by its fingerprint."""
    from nvr_rag import collections, deployments, indexes

    names = {info.id: info.name for info in collections.all_infos(connection)}
    serving = {deployment.index_id for deployment in deployments.all_serving(connection).values()}
    uses: dict[str, list[dict[str, Any]]] = {}
    for index in indexes.kept(connection):
        name = names.get(index.collection_id) if index.collection_id else None
        use = {"index": index.id, "collection": name, "serves": index.id in serving}
        uses.setdefault(index.encoder, []).append(use)
    return uses


def _described(workspace: Workspace, version: EncoderVersion, uses: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    training = version.training or {}
    kept = workspace.home / "models" / version.fingerprint
    return {
        "fingerprint": version.fingerprint,
        "source": version.source,
        "added_from": training.get("added_from"),
        "run": training.get("run"),
        "parent": version.parent,
        "dimension": version.spec["dimension"],
        "max_tokens": version.spec["max_tokens"],
        "bytes_on_disk": disk.allocated(kept) if kept.is_dir() else None,
        "used_by": uses.get(version.fingerprint, []),
        "created_at": version.created_at,
    }


def _show(found: list[dict[str, Any]]) -> None:
    from nvr_rag.registry import SHORT

    columns = ("model", "from", "parent", "dimension", "tokens", "disk", "used by", "made (UTC)", "by run")
    rows = [
        [
            one["fingerprint"][:SHORT],
            one["added_from"] or one["source"],
            one["parent"] and one["parent"][:SHORT],
            one["dimension"],
            one["max_tokens"],
            _size(one),
            _used_by(one),
            common.moment(one["created_at"]),
            one["run"],
        ]
        for one in found
    ]
    output.table(columns, rows)


def _size(found: dict[str, Any]) -> str:
    """One that comes with the installation takes nothing of the data folder."""
    return output.size(found["bytes_on_disk"]) if found["bytes_on_disk"] is not None else "-"


def _used_by(found: dict[str, Any]) -> str:
    return ", ".join(
        f"index {use['index']} ({'serves ' if use['serves'] else ''}{use['collection'] or 'retired'})"
        for use in found["used_by"]
    )


def _show_more(version: EncoderVersion, measured: list[Measured]) -> None:
    for heading, values in (("spec", version.spec), ("training", version.training or {})):
        if values:
            output.say(f"\n{heading}")
            output.pairs({key: json.dumps(value, ensure_ascii=False) for key, value in values.items()})
    if not measured:
        return
    output.say("\nevaluations")
    names = sorted({name for one in measured for name in one.measures})
    columns = ("when (UTC)", "deployment", "data", *names)
    rows = [
        [common.moment(one.created_at), one.deployment_id, _data(one), *(_number(one.measures.get(n)) for n in names)]
        for one in measured
    ]
    output.table(columns, rows)


def _data(measured: Measured) -> str:
    return str(measured.data.get("name") or json.dumps(dict(measured.data), ensure_ascii=False))


def _number(value: float | None) -> str | None:
    return f"{value:.4f}" if value is not None else None


def _evaluation(measured: Measured) -> dict[str, Any]:
    return {
        "deployment": measured.deployment_id,
        "data": measured.data,
        "measures": measured.measures,
        "created_at": measured.created_at,
    }
