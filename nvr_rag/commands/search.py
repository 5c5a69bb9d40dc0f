"""`nvr-rag search`: asks the running server; without one, opens the index itself. Both log the query."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nvr_rag import output
from nvr_rag.commands import common, hits
from nvr_rag.errors import InvalidFilter, InvalidInput, StoreBusy
from nvr_rag.filters import FIELDS
from nvr_rag.types import GroupBy, Mmr, Mode, Query, Reader

if TYPE_CHECKING:
    from nvr_rag.client import SearchAnswer
    from nvr_rag.workspace import Workspace


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
    group_by: Annotated[GroupBy | None, typer.Option(help="Only the best hit of each.")] = None,
    context: Annotated[int, typer.Option(help="Show so many neighbouring chunks on each side as well.")] = 0,
    diversity: Annotated[
        float | None, typer.Option(help="From 0 to 1: how much hits must differ from those before.")
    ] = None,
    min_score: Annotated[float | None, typer.Option(help="Leave out hits that score lower.")] = None,
    rerank: Annotated[bool, typer.Option("--rerank", help="Put hits in order by the cross-encoder.")] = False,
    explain: Annotated[bool, typer.Option("--explain", help="Say why hits rank where they do.")] = False,
    collection: common.InCollection = "default",
    principal: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="On whose behalf: a user or a group that documents name; repeatable."),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--everything", help="Search documents that are not for everybody as well.")
    ] = False,
    api_key: Annotated[
        str | None, typer.Option(envvar="NVR_API_KEY", help="The key that a server wants.", show_envvar=True)
    ] = None,
    as_json: common.AsJson = False,
) -> None:
    """Search a collection."""
    from nvr_rag.storable import storable

    asked = Query(
        text=storable(_read_stdin() if query == "-" else query),
        collection=collection,
        k=k,
        mode=mode,
        filter=_filter(where or []),
        group_by=group_by,
        context=context,
        mmr=None if diversity is None else Mmr(diversity=diversity),
        min_score=min_score,
        rerank=rerank,
        explain=explain,
    )
    _check(asked)
    reader = Reader(principals=frozenset(principal or ()), everything=everything)
    with common.open_workspace() as workspace:
        answer = _ask_server(workspace, asked, reader, api_key) or _ask_index(workspace, replace(asked, reader=reader))
    if as_json:
        output.emit(hits.as_json(answer))
    else:
        hits.show(answer)


def _check(query: Query) -> None:
    """Before anything is opened. Raises InvalidInput."""
    from nvr_rag.filters import parse_filter
    from nvr_rag.retriever import check_query

    try:
        check_query(query)
    except InvalidInput as error:
        error.field = "diversity" if error.field == "mmr.diversity" else error.field
        raise
    parse_filter(query.filter)


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


def _ask_server(workspace: Workspace, query: Query, reader: Reader, api_key: str | None) -> SearchAnswer | None:
    """The answer of the first server that is there; None without one. What it shows is for its key to say."""
    from nvr_rag.running import processes

    for server in processes.alive(workspace.database, "serve"):
        if server.url:
            from nvr_rag.client import Client, ServerGone

            try:
                # Where it is gone, the index is asked.
                with Client(server.url, api_key=api_key, principals=reader.principals or None, retries=0) as client:
                    answer = client.search(query)
            except ServerGone:
                continue  # its row has outlived it
            if reader.everything and not api_key:
                raise InvalidInput(
                    "a server is running, and shows what a key may read: give it one that reads everything "
                    "(nvr-rag keys create NAME --everything) as --api-key, or stop the server",
                    field="everything",
                )
            return answer
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
    return SearchAnswer.of(query_id, query, result)
