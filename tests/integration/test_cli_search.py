"""nvr-rag search with all that it can be asked, with and without a server."""

from __future__ import annotations

from pathlib import Path

import pytest

from nvr_rag.access.callers import Scope
from nvr_rag.api.search_schemas import SearchAnswer
from nvr_rag.commands import common
from nvr_rag.running import processes
from tests.integration.api_support import running
from tests.integration.command_line import CommandLine
from tests.integration.key_support import make_key
from tests.support import document


@pytest.fixture
def run(home: Path, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    """A command line on a data folder with three documents, one of them for ann."""
    line = CommandLine(home)
    monkeypatch.setattr(common, "open_workspace", line.open_workspace)
    with line.house() as house:
        house.put(
            document("tea", "green tea is hot\n\nblack tea is cold", title="Tea", source="kitchen"),
            document("sea", "blue whale swims"),
            document("secret", "the tea of ann", acl=["user:ann"]),
        )
        house.catch_up()
    return line


def uris(answer: dict[str, list[dict[str, dict[str, str]]]]) -> set[str]:
    return {hit["document"]["uri"] for hit in answer["hits"]}


def test_all_options_at_once(run: CommandLine) -> None:
    options = ("--group-by", "document", "--context", "1", "--diversity", "0.2", "--min-score", "0.001", "--explain")
    answer = SearchAnswer.model_validate(run.json("search", "black tea", "-k", "2", *options))
    first = answer.hits[0]
    assert (first.text, first.document.source) == ("black tea is cold", "kitchen")
    assert first.context is not None
    assert (first.context.before, first.context.after) == ("green tea is hot\n\n", "")
    assert first.explain is not None
    assert first.explain.mmr is not None
    assert (first.explain.mmr.rank, len(answer.hits)) == (1, 2)
    assert first.document.updated_at is not None


def test_context_and_reasons_for_a_person(run: CommandLine) -> None:
    shown = run("search", "black tea", "-k", "1", "--context", "1", "--explain").stdout
    assert "green tea is hot" in shown
    assert "dense 1. (" in shown
    assert "fused 1. (0.0328)" in shown  # 2/61


def test_on_whose_behalf(run: CommandLine) -> None:
    assert uris(run.json("search", "tea")) == {"tea", "sea"}
    assert uris(run.json("search", "tea", "--principal", "user:bob")) == {"tea", "sea"}
    assert uris(run.json("search", "tea", "--principal", "user:bob", "--principal", "user:ann")) == {
        "tea",
        "sea",
        "secret",
    }
    assert uris(run.json("search", "tea", "--everything")) == {"tea", "sea", "secret"}


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (("--context", "11"), "context"),
        (("--diversity", "2"), "diversity"),
        (("--diversity", "nan"), "diversity"),
        (("--min-score", "nan"), "min_score"),
        (("--rerank",), "rerank"),
    ],
)
def test_what_is_wrong_is_named(run: CommandLine, options: tuple[str, ...], field: str) -> None:
    error = run.json("search", "tea", *options, code=2)["error"]
    assert (error["type"], error["field"]) == ("InvalidInput", field)


def test_beside_a_server_its_key_decides(run: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    with run.open_workspace() as workspace, running(workspace) as api:
        processes.announce(workspace.database, "serve", str(api.client.base_url))
        assert uris(run.json("search", "tea")) == {"tea", "sea"}
        refused = run.json("search", "tea", "--everything", code=2)["error"]
        assert refused["field"] == "everything"
        make = (workspace, Scope.SEARCH)
        assert uris(run.json("search", "tea", "--api-key", make_key(*make, principals=["user:ann"]))) == {
            "tea",
            "sea",
            "secret",
        }
        monkeypatch.setenv("NVR_API_KEY", make_key(*make, Scope.IMPERSONATE))
        assert uris(run.json("search", "tea", "--principal", "user:ann")) == {"tea", "sea", "secret"}
        assert uris(run.json("search", "tea")) == {"tea", "sea"}
