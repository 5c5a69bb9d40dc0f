"""`nvr-rag search`: asks the running server; without one, opens the index itself. Both log the query."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nvr_rag import output
from nvr_rag.commands import common
from nvr_rag.errors import InvalidFilter, StoreBusy
from nvr_rag.filters import FIELDS
from nvr_rag.types import Hit, Mode, Query

if TYPE_CHECKING:
    from nvr_rag.client import SearchAnswer
    from nvr_rag.workspace import Workspace

_SNIPPET_LINES = 4


def search(
    query: Annotated[str, typer.Argument(metavar="QUERY", help="What to look for; - reads it from stdin.")],
    k: Annotated[int, typer.Option("-k", help="How many hits to show, at most.")] = 10,
    mode: Annotated[
        Mode | None, typer.Option(help="Which sides of the index to ask.  [default: what the collection says]")
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            metavar="FILTER",
            help='field=value, or JSON such as {"metadata.year": {"gte": 2020}}; repeatable.',
        ),
    ] = None,
    collection: common.InCollection = "default",
    as_json: common.AsJson = False,
) -> None:
    """Search a collection."""
    from nvr_rag.filters import parse_filter
    from nvr_rag.retriever import check_query
    from nvr_rag.storable import storable

    text = storable(_read_stdin() if query == "-" else query)
    asked = Query(text=text, collection=collection, k=k, mode=mode, filter=_filter(where or []))
    check_query(asked)
    parse_filter(asked.filter)
    with common.open_workspace() as workspace:
        answer = _ask_server(workspace, asked) or _ask_index(workspace, asked)
    if as_json:
        output.emit(_as_json(answer))
    else:
        _show(answer)


def _read_stdin() -> str:
    return sys.stdin.buffer.read().decode("utf-8", "replace").strip()


def _filter(entries: Sequence[str]) -> Mapping[str, Any] | None:
    """The entries joined by and; None without any."""
    parts = [_entry(entry) for entry in entries]
    return {"and": parts} if len(parts) > 1 else parts[0] if parts else None


def _entry(entry: str) -> dict[str, Any]:
    if entry.lstrip().startswith("{"):
        try:
            value = json.loads(entry)
        except (ValueError, RecursionError) as error:
            raise InvalidFilter(f"--filter is not valid JSON ({error}): {entry[:80]!r}") from error
        assert isinstance(value, dict)
        return value
    field, equals, text = entry.partition("=")
    if not equals or not field.strip():
        raise InvalidFilter(f"--filter takes field=value or a JSON object, not {entry[:80]!r}")
    field, number = field.strip(), _number(text)
    if field in FIELDS or number is None:
        return {field: text}
    # A person does not say whether the year is a number or a string: both are meant.
    return {"or": [{field: number}, {field: text}]}


def _number(text: str) -> int | float | bool | None:
    """The JSON number, true or false that a text can be read as."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, (int, float)) and math.isfinite(value) and abs(value) <= 2**53 else None


def _ask_server(workspace: Workspace, query: Query) -> SearchAnswer | None:
    """The answer of the first server that is there; None without one."""
    from nvr_rag.running import processes

    for server in processes.alive(workspace.database, "serve"):
        if server.url:
            from nvr_rag.client import Client, ServerGone

            try:
                with Client(server.url, retries=0) as client:  # where it is gone, the index is asked
                    return client.search(query)
            except ServerGone:
                continue  # its row has outlived it
    return None


def _ask_index(workspace: Workspace, query: Query) -> SearchAnswer:
    from nvr_rag.client import SearchAnswer
    from nvr_rag.query_log import QueryLog
    from nvr_rag.running import processes

    try:
        result = workspace.retriever.search(query)
    except StoreBusy as error:
        raise processes.busy(workspace.database, error) from error
    log = QueryLog(workspace.database)
    try:
        query_id = log.record(query, result)
    finally:
        log.close()
    used = result.deployment
    return SearchAnswer(
        query_id=query_id,
        collection=query.collection,
        mode=result.mode,
        deployment={name: getattr(used, name) for name in ("id", "index", "encoder", "mode", "applied_seq")},
        hits=result.hits,
        took_ms={stage: round(1000 * seconds, 3) for stage, seconds in result.seconds.items()},
    )


def _as_json(answer: SearchAnswer) -> dict[str, Any]:
    """The document that POST /v1/search answers."""
    return {
        "query_id": answer.query_id,
        "collection": answer.collection,
        "mode": answer.mode,
        "deployment": answer.deployment,
        "hits": [_hit_as_json(hit) for hit in answer.hits],
        "took_ms": answer.took_ms,
    }


def _hit_as_json(hit: Hit) -> dict[str, Any]:
    own = ("rank", "score", "chunk_id", "text", "headings", "page", "start", "end")
    of_document = ("uri", "title", "media_type", "metadata")
    return {
        **{name: getattr(hit, name) for name in own},
        "document": {"id": hit.document_id, **{name: getattr(hit, name) for name in of_document}},
        "dense": _side(hit.dense_rank, hit.dense_score),
        "lexical": _side(hit.lexical_rank, hit.lexical_score),
    }


def _side(rank: int | None, score: float | None) -> dict[str, Any] | None:
    return None if rank is None else {"rank": rank, "score": score}


def _show(answer: SearchAnswer) -> None:
    """Hits for a person, and what feedback has to name."""
    for hit in answer.hits:
        _show_hit(hit)
    count = f"{len(answer.hits)} hit{'' if len(answer.hits) == 1 else 's'}" if answer.hits else "Nothing found"
    output.say(f"{count} ({answer.mode}, {sum(answer.took_ms.values()):.0f} ms), query {answer.query_id}")


def _show_hit(hit: Hit) -> None:
    """Rank, place and score; the URI; the beginning of the text."""
    from rich.text import Text

    title, *headings = (output.one_line(part) for part in (hit.title or hit.uri, *hit.headings))
    place = " > ".join([title, *(part for part in headings if part and part != title)])
    page = f", page {hit.page}" if hit.page is not None else ""
    output.show(Text.assemble(f"{hit.rank:>3}. ", (place, "bold"), page, (f"  {hit.score:.4f}", "dim")), wrap=False)
    output.show(Text(f"     {output.one_line(hit.uri)}", style="dim"), wrap=False)
    output.paragraph(hit.text, indent=5, lines=_SNIPPET_LINES)
    output.say()
