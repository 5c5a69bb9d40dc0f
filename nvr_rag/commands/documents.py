"""`nvr-rag documents`: list, show, delete. Files come in through `nvr-rag ingest`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Any

import typer

from nvr_rag import output
from nvr_rag.commands import common
from nvr_rag.errors import NotFound
from nvr_rag.types import Document, DocumentState

app = typer.Typer(help="List, show and delete documents.", rich_markup_mode=None)

Key = Annotated[str, typer.Argument(metavar="ID_OR_URI", help="The document's id or its URI.")]
Keys = Annotated[list[str], typer.Argument(metavar="ID_OR_URI...", help="Ids or URIs of documents.")]


@app.command("list")
def list_documents(
    collection: common.InCollection = "default",
    state: Annotated[
        DocumentState | None, typer.Option(help="Only documents in this state.  [default: all but deleted ones]")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many to list, at most.")] = 100,
    as_json: common.AsJson = False,
) -> None:
    """List documents by URI."""
    from nvr_rag import documents as stored

    with common.open_workspace() as workspace, workspace.database.read() as connection:
        found = stored.list_documents(connection, collection, state=state, limit=limit + 1)
    listed, more = found[:limit], len(found) > limit
    if as_json:
        output.emit({"documents": [_as_json(document) for document in listed], "more": more})
        return
    columns = ("state", "characters", "uri", "title", "error")
    output.table(columns, [_row(document) for document in listed])
    if more:
        output.note(f"There are more than {limit}; say --limit.")


@app.command("show")
def show(
    key: Key,
    text: Annotated[bool, typer.Option("--text", help="Show the parsed text instead.")] = False,
    collection: common.InCollection = "default",
    as_json: common.AsJson = False,
) -> None:
    """Show a document."""
    from nvr_rag import documents as stored

    with common.open_workspace() as workspace, workspace.database.read() as connection:
        document = stored.get(connection, collection, key)
        content = stored.text_of(connection, document.id) if text else None
    if as_json:
        output.emit({"document": _as_json(document) | ({"text": content} if text else {})})
    elif content is not None:
        output.say(content)
    else:
        output.pairs(_as_json(document) | {"metadata": json.dumps(document.metadata, ensure_ascii=False)})


@app.command("delete")
def delete(keys: Keys, collection: common.InCollection = "default", as_json: common.AsJson = False) -> None:
    """Delete documents. Searches do not show them from then on."""
    from nvr_rag import collections, corpus
    from nvr_rag import documents as stored

    known: dict[str, str] = {}
    with common.open_workspace() as workspace, workspace.database.write() as connection:
        collections.find(connection, collection)
        for key in dict.fromkeys(keys):
            try:
                known[key] = stored.get(connection, collection, key).id
            except NotFound:
                continue
        gone = set(corpus.delete_documents(connection, collection, list(known.values())))
    unknown = [key for key in dict.fromkeys(keys) if known.get(key) not in gone]
    if as_json:
        output.emit({"deleted": sorted(gone), "unknown": unknown})
    else:
        output.say(f"Deleted {len(gone)} document{'' if len(gone) == 1 else 's'}.")
    for key in unknown:
        output.note(f"Error: no document {key!r} in the collection {collection!r}")
    if unknown:
        raise typer.Exit(1)


def _as_json(document: Document) -> dict[str, Any]:
    return asdict(document)


def _row(document: Document) -> list[object]:
    return [document.state, document.characters, document.uri, document.title, document.error]
