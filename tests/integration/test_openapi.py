"""The API keeps to its OpenAPI document: a few hundred requests of Schemathesis with all checks.

Ten thousand and more are a benchmark: python -m tests.bench.openapi.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from nvr_rag.api.doorman import OPEN_PATHS
from nvr_rag.testing import MemoryStore
from tests.bench.openapi import Table, examine, served


@pytest.mark.parametrize(("key", "phase", "least"), [(None, "coverage", 500), ("narrow", "fuzzing", 50)])
def test_the_api_keeps_to_its_document(tmp_path: Path, key: str | None, phase: str, least: int) -> None:
    table = Table()
    with served(tmp_path / "home", MemoryStore(), key) as (api, headers):
        examine(api, headers, table, drawn=3, phases=(phase,))
        document = api.app.openapi()
    found = {f"{label}: {name}": text for label, row in table.rows.items() for name, text in row.examples.items()}
    assert found == {}
    assert table.errors == []
    assert table.cases > least
    assert not any(status.startswith("5") for row in table.rows.values() for status in row.statuses)
    operations = {f"{method.upper()} {path}" for path, named in document["paths"].items() for method in named}
    assert set(table.rows) == operations
    made = {"status_code_conformance", "response_schema_conformance", "negative_data_rejection", "not_a_server_error"}
    assert made <= set(table.checks)


def test_what_is_wrong_would_be_found(tmp_path: Path) -> None:
    table = Table()
    with served(tmp_path / "home", MemoryStore()) as (api, headers):
        schema = api.app.openapi()
        schema["paths"] = {"/v1/models": schema["paths"]["/v1/models"]}
        answers = schema["paths"]["/v1/models"]["get"]["responses"]
        answers["200"]["content"]["application/json"]["schema"] = {"type": "array"}
        examine(api, headers, table, drawn=1, phases=("coverage",))
    assert table.failures > 0
    assert any("response_schema_conformance" in name for name in table.rows["GET /v1/models"].failures)


def test_every_path_but_the_open_ones_takes_a_key_and_says_what_happens_without(tmp_path: Path) -> None:
    with served(tmp_path / "home", MemoryStore()) as (api, _):
        schema = api.app.openapi()
    for path, named in schema["paths"].items():
        for operation in named.values():
            locked = path not in OPEN_PATHS
            assert operation.get("security", []) == ([{"bearer": []}, {"header": []}] if locked else [])
            assert ({"401", "403", "429", "503"} <= set(operation["responses"])) or not locked
    assert set(schema["components"]["securitySchemes"]) == {"bearer", "header"}
