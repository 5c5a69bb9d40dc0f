"""`nvr-rag evaluate`: a BEIR folder's questions, asked of an encoder over the folder's corpus, or of a collection."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nvr_rag import output
from nvr_rag.commands import common
from nvr_rag.errors import InvalidInput, StoreBusy
from nvr_rag.types import OWNER, Mode, Query, SearchResult

if TYPE_CHECKING:
    from rich.progress import TaskID

    from nvr_rag.encoders.base import Encoder
    from nvr_rag.workspace import Workspace
    from training.beir import Beir
    from training.data import JudgedQuery
    from training.evaluation import Evaluation, Report

CHUNKS = 400  # asked for, so that there are 100 documents among them

_FINGERPRINT = re.compile(r"[0-9a-fA-F]{4,64}")
_SHOWN = 5


def evaluate(
    folder: Annotated[
        Path, typer.Argument(metavar="BEIR_DIR", help="Has corpus.jsonl, queries.jsonl and qrels/<split>.tsv.")
    ],
    split: Annotated[str, typer.Option(help="Which judgments to use.")] = "test",
    model: Annotated[
        str | None,
        typer.Option(
            help="Encoder: bundled:<name>, a model directory, a hub id, or the beginning of a registered fingerprint.  "
            "[default: the encoder of new collections]"
        ),
    ] = None,
    collection: Annotated[
        str | None,
        typer.Option("--collection", "-c", help="Ask this collection the way users do, not the folder's corpus."),
    ] = None,
    mode: Annotated[
        Mode | None, typer.Option(help="With --collection: which sides to ask.  [default: what it says]")
    ] = None,
    result_file: Annotated[Path | None, typer.Option("--output", help="Write the evaluation to this file.")] = None,
    as_json: common.AsJson = False,
) -> None:
    """Measure how well questions with known answers are answered.

    Without --collection an encoder searches the folder's corpus exactly. With it, the collection's serving deployment
    answers; its documents are told by their URIs: the id, or an end of #<id>, /<id> or /<id>.<extension>. Nothing is
    logged.
    """
    from training.beir import read_beir
    from training.measures import library

    _check_options(model, collection, mode, result_file)
    library()
    data = read_beir(folder, split)
    found = _of_encoder(data, model) if collection is None else _of_collection(data, collection, mode)
    if result_file is not None:
        found.write(result_file)
    if as_json:
        output.emit(found.as_json())
    else:
        _show(found)


def _check_options(model: str | None, collection: str | None, mode: Mode | None, result_file: Path | None) -> None:
    """Raise InvalidInput for what cannot be meant, before long work."""
    if collection is not None and model is not None:
        raise InvalidInput("--model and --collection exclude each other: a collection has its own encoder")
    if collection is None and mode is not None:
        raise InvalidInput("--mode is about a collection; name one with --collection")
    if result_file is not None and not result_file.absolute().parent.is_dir():
        raise InvalidInput(f"there is no folder {result_file.absolute().parent}; make it, or write elsewhere")


def _of_encoder(data: Beir, model: str | None) -> Evaluation:
    from training.beir import corpus_ids, read_corpus
    from training.evaluation import dataset, evaluation, exact_search

    ids = corpus_ids(data.folder)
    asked = dataset(data, documents=len(ids), unknown=len(data.judged - set(ids)))
    with _encoder(model) as encoder, _bars() as report:
        started = time.perf_counter()
        run = exact_search(encoder, data.queries, read_corpus(data.folder), ids=ids, report=report)
        seconds = {"search": time.perf_counter() - started}
    return evaluation({"kind": "encoder", "fingerprint": encoder.fingerprint}, asked, data.qrels, run, seconds)


@contextmanager
def _encoder(model: str | None) -> Iterator[Encoder]:
    """The encoder that is meant; a registered one lives in the data folder, which stays open as long."""
    from nvr_rag import registry
    from nvr_rag.settings import load_settings

    if model is not None and _FINGERPRINT.fullmatch(model) and not Path(model).is_dir():
        with common.open_workspace() as workspace:
            with workspace.database.read() as connection:
                version = registry.find(connection, model)
            yield workspace.encoder(version.fingerprint)
    else:
        from nvr_rag.encoders.torch import load_encoder

        settings = load_settings()
        yield load_encoder(model or settings.encoder, threads=settings.threads)


def _of_collection(data: Beir, collection: str, mode: Mode | None) -> Evaluation:
    from nvr_rag.running import processes
    from training.evaluation import dataset, evaluation, run_deployment

    with common.open_workspace() as workspace:
        documents = _documents(workspace, collection)
        queries, unknown = _judged(data, documents, collection)
        asked = dataset(data, documents=len(documents), unknown=unknown)

        def search(text: str) -> SearchResult:
            query = Query(text=text, collection=collection, k=CHUNKS, mode=mode, reader=OWNER)
            return workspace.retriever.search(query)

        try:
            with _bars() as report:
                done = run_deployment(search, queries, documents={}, digests={}, report=report)
        except StoreBusy as error:
            raise processes.busy(workspace.database, error) from error
    used = done.deployment
    what = {
        "kind": "deployment",
        "collection": collection,
        "deployment": used.id,
        "index": used.index,
        "fingerprint": used.encoder,
        "mode": done.mode,
    }
    return evaluation(what, asked, done.qrels, done.run, {"search": sum(done.seconds.values())})


def _documents(workspace: Workspace, collection: str) -> dict[str, str]:
    """The URIs of all documents that can be found, with their ids."""
    from sqlalchemy import select

    from nvr_rag import collections
    from nvr_rag.db.tables import Document
    from nvr_rag.types import DocumentState

    with workspace.database.read() as connection:
        collection_id = collections.find(connection, collection)
        statement = select(Document.uri, Document.id).where(
            Document.collection_id == collection_id, Document.state != DocumentState.DELETED
        )
        return {row.uri: row.id for row in connection.execute(statement)}


def _judged(data: Beir, documents: dict[str, str], collection: str) -> tuple[list[JudgedQuery], int]:
    """The folder's questions, their judgments told by the collection's documents, and how many ids it does not have.

    A query's key is the folder's own name for it, by which evaluations are compared.
    """
    from training.beir import match_uris
    from training.data import JudgedQuery

    matches = match_uris(data.judged, documents.items())
    unknown = len(matches.missing) + len(matches.ambiguous)
    if not matches.found:
        raise InvalidInput(
            f"none of the {unknown:,} judged ids of {data.folder} is in the collection {collection!r}; a document's "
            "URI has to be the id, or to end with #<id>, /<id> or /<id>.<extension>: "
            f"nvr-rag ingest {data.folder / 'corpus.jsonl'} makes such documents"
        )
    _warn(matches.missing, f"that are no document of {collection}")
    _warn(matches.ambiguous, "that fit the URIs of several documents")
    queries = []
    for query, text in data.queries.items():
        grades: dict[str, int] = {}
        for id_, grade in data.qrels[query].items():
            document = matches.found.get(id_, id_)
            grades[document] = max(grade, grades.get(document, 0))
        queries.append(JudgedQuery(key=query, id=query, text=text, documents=grades))
    return queries, unknown


def _warn(ids: tuple[str, ...], what: str) -> None:
    if ids:
        shown = ", ".join(ids[:_SHOWN]) + (" ..." if len(ids) > _SHOWN else "")
        output.note(f"Judged ids {what}, and so count as never found: {len(ids):,} ({shown})")


@contextmanager
def _bars() -> Iterator[Report]:
    """A bar for each thing that is being done, with how many of it a second."""
    with output.progress() as bars:
        tasks: dict[str, tuple[TaskID, float]] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = (bars.add_task(what.capitalize(), total=total), time.perf_counter())
            elif done:
                task, started = tasks[what]
                rate = done / max(time.perf_counter() - started, 1e-9)
                bars.update(task, description=f"{what.capitalize()}, {rate:,.0f}/s", completed=done)

        yield report


def _show(found: Evaluation) -> None:
    data, what = found.data, found.what
    if what["kind"] == "encoder":
        asked = f"encoder {what['fingerprint'][:12]}, exact search"
    else:
        asked = f"collection {what['collection']}, deployment {what['deployment']}, {what['mode']}"
    output.pairs(
        {
            "asked": asked,
            "data": f"{data.name} {data.split}: {data.queries:,} queries, {data.documents:,} documents",
            "took": f"{sum(found.seconds.values()):.1f} s",
        }
    )
    if data.unanswerable:
        output.note(f"Judged queries without any grade above 0, which are left out: {data.unanswerable:,}")
    if data.unknown and what["kind"] == "encoder":
        output.note(f"Judged ids that are not in the corpus, and so count as never found: {data.unknown:,}")
    output.say()
    output.table(("measure", "mean"), [(name, f"{value:.4f}") for name, value in found.means.items()])
