"""Does the API keep to what it says of itself? Schemathesis over the OpenAPI document, all checks.

    python -m tests.bench.openapi --cases 10000

Three passes over a real server with SQLite, Edge and a small encoder: without keys, with a key for everything, and with
a narrow key. Each operation gets examples of the document, boundary values, random data that fits and that does not,
and sequences of calls. What the table counts as a case is a request that was sent and whose answer was checked.

No check is off but one in one pass: `ignored_auth` asks whether a request without a key is refused, and a server that
has no keys refuses none. One is told more than it can see: what fits the schema may still be refused with 422 (a filter
on no field, a folder that is not served), so `positive_data_acceptance` takes that for an answer as well. Keys are not
drawn at random: all that comes back is 401.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import schemathesis
from schemathesis import GenerationMode
from schemathesis.engine import Status, from_schema
from schemathesis.engine.events import (
    EngineEvent,
    FatalError,
    FuzzScenarioFinished,
    NonFatalError,
    ScenarioFinished,
)
from schemathesis.engine.recorder import ScenarioRecorder

from nvr_rag.access import keys
from nvr_rag.access.callers import Scope
from nvr_rag.access.keys import NewKey
from nvr_rag.api import documents, events, uploads
from nvr_rag.settings import Settings
from nvr_rag.stores.base import Store
from nvr_rag.testing import HashEncoder
from nvr_rag.types import Reader
from nvr_rag.workspace import Workspace
from tests.integration.api_support import Api, running
from tests.support import document

SEMANTIC = ["2xx", "3xx", "401", "403", "404", "409", "422", "429", "5xx"]
PHASES = ("examples", "coverage", "fuzzing", "stateful")
TEXT = "Roll back with nvr-rag rollback.\n\nA second paragraph about keys.\n\nA third one."


@dataclass(kw_only=True, slots=True)
class Row:
    """What came of one operation."""

    cases: int = 0
    statuses: Counter[str] = field(default_factory=Counter)  # "2xx", "401" ...
    failures: Counter[str] = field(default_factory=Counter)  # by check and title
    examples: dict[str, str] = field(default_factory=dict)  # a message for each of them


@dataclass(kw_only=True, slots=True)
class Table:
    """What came of all of them."""

    rows: dict[str, Row] = field(default_factory=dict)
    checks: Counter[str] = field(default_factory=Counter)  # how often each was made
    errors: list[str] = field(default_factory=list)  # of the tool itself

    @property
    def cases(self) -> int:
        return sum(row.cases for row in self.rows.values())

    @property
    def failures(self) -> int:
        return sum(row.failures.total() for row in self.rows.values())


@contextmanager
def served(home: Path, store: Store | None = None, key: str | None = None) -> Iterator[tuple[Api, dict[str, str]]]:
    """A server with a few documents; with the headers of a caller: none, "all" or "narrow"."""
    settings = Settings(home=home, ingest={"roots": [str(home)]})
    with Workspace(settings, store=store, encoder=HashEncoder()) as workspace:
        workspace.create_collection("default")
        headers = {} if key is None else {"Authorization": f"Bearer {_key(workspace, narrow=key == 'narrow')}"}
        # Nobody parses files here, so whoever waits for one, or follows its job, does so by a clock that runs faster.
        fast = SimpleNamespace(monotonic=lambda: 3600 * time.monotonic())
        hurried = [patch.object(module, "time", fast) for module in (documents, events, uploads)]
        with running(workspace) as api, ExitStack() as stack:
            for one in hurried:
                stack.enter_context(one)
            _fill(api)
            yield api, headers


def _fill(api: Api) -> None:
    from nvr_rag import corpus

    acls = [None, ["user:ann"], ["user:bob"], []]
    with api.workspace.database.write() as connection:
        corpus.put(
            connection,
            "default",
            [
                document(f"doc:{n}", TEXT + str(n), title=f"T{n}", metadata={"year": 2020 + n}, acl=acl)
                for n, acl in enumerate(acls)
            ],
        )


def _key(workspace: Workspace, *, narrow: bool) -> str:
    new = NewKey(
        name="narrow" if narrow else "all",
        scopes=frozenset({Scope.SEARCH, Scope.FEEDBACK}) if narrow else frozenset(Scope),
        collections=frozenset({"default"}) if narrow else None,
        reader=Reader(principals=frozenset({"user:ann"})) if narrow else Reader(everything=True),
    )
    with workspace.database.write() as connection:
        return keys.create(connection, new)[1]


def examine(
    api: Api, headers: dict[str, str], table: Table, *, drawn: int, seed: int = 1, phases: Collection[str] = PHASES
) -> None:
    """Put the API to the test; `drawn` cases an operation at most where they are drawn; in these phases."""
    schema = schemathesis.openapi.from_url(str(api.client.base_url).rstrip("/") + "/openapi.json")
    config = schema.config
    config.seed = seed
    config.update(headers=headers, workers=1, request_timeout=120)  # who puts documents may wait for a minute
    config.generation.update(max_examples=drawn, modes=list(GenerationMode), no_shrink=True, database="none")
    config.generation.update(with_security_parameters=False)  # random keys, and all that comes back is 401
    config.checks.positive_data_acceptance.expected_statuses = SEMANTIC
    config.checks.ignored_auth.enabled = bool(headers)
    for name in PHASES:
        getattr(config.phases, name).enabled = name in phases
    for event in from_schema(schema).execute():
        _count(event, table)


def _count(event: EngineEvent, table: Table) -> None:
    if isinstance(event, ScenarioFinished | FuzzScenarioFinished):
        _record(event.recorder, table)
    elif isinstance(event, NonFatalError):
        table.errors.append(f"{event.label}: {event.value!r}"[:600])
    elif isinstance(event, FatalError):
        table.errors.append(repr(event.exception)[:600])


def _record(recorder: ScenarioRecorder, table: Table) -> None:
    for case_id, node in recorder.cases.items():
        row = table.rows.setdefault(node.value.operation.label, Row())
        interaction = recorder.interactions.get(case_id)
        if interaction is not None and interaction.response is not None:
            row.cases += 1
            status = interaction.response.status_code
            row.statuses["2xx" if status < 300 else str(status)] += 1
        for check in recorder.checks.get(case_id, ()):
            table.checks[check.name] += 1
            if check.status == Status.FAILURE and check.failure_info is not None:
                failure = check.failure_info.failure
                name = f"{check.name}: {failure.title}"
                row.failures[name] += 1
                if name not in row.examples:
                    row.examples[name] = f"{failure.message}\n{node.value.as_curl_command()}"[:1500]


def show(table: Table, out: Any = sys.stdout) -> None:
    """The table, and after it an example of everything that is wrong."""
    print("| operation | cases | answers | failures |\n|---|---|---|---|", file=out)
    for label, row in sorted(table.rows.items()):
        answers = ", ".join(f"{status} {count:,}" for status, count in sorted(row.statuses.items()))
        print(f"| {label} | {row.cases:,} | {answers} | {row.failures.total():,} |", file=out)
    print(f"| all | {table.cases:,} | | {table.failures:,} |\n", file=out)
    print("checks made: " + ", ".join(f"{name} {n:,}" for name, n in sorted(table.checks.items())), file=out)
    for label, row in sorted(table.rows.items()):
        for name, example in row.examples.items():
            print(f"\n{label}: {name} ({row.failures[name]})\n{example}", file=out)
    for error in table.errors:
        print(f"\nnot tested: {error}", file=out)


def main() -> None:
    """One table over three passes; exit code 1 when anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=10_000, help="at least so many requests")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--passes", default="none,all,narrow", help="which keys")
    asked = parser.parse_args()
    table, seed, passes = Table(), asked.seed, asked.passes.split(",")
    while table.cases < asked.cases:
        for key in passes:
            wanted = None if key == "none" else key
            with tempfile.TemporaryDirectory() as home, served(Path(home) / "home", key=wanted) as (api, headers):
                examine(api, headers, table, drawn=30, seed=seed)
            print(f"{key}: {table.cases:,} cases, {table.failures:,} failures so far", file=sys.stderr)
            if table.cases >= asked.cases and key == passes[-1]:
                break
        seed += 1
    show(table)
    sys.exit(1 if table.failures or table.errors else 0)


if __name__ == "__main__":
    main()
