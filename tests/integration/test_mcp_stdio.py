"""`nvr-rag mcp` as an agent's program starts it: the official client talks to the process on its stdin and stdout."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nvr_rag import corpus, indexes
from nvr_rag.access.callers import Scope
from nvr_rag.running import processes
from nvr_rag.running.presence import Presence
from nvr_rag.settings import Settings
from nvr_rag.testing import HashEncoder, MemoryStore
from nvr_rag.types import NewDocument
from nvr_rag.upkeep import indexing
from nvr_rag.workspace import Workspace
from tests.integration.api_support import running
from tests.integration.key_support import make_key
from tests.integration.mcp_support import PROGRAM, error_of, over_stdio, result_of, texts_of
from tests.support import document, paragraphs

FOX = document("file:///a", "red fox jumps\n\nblue whale swims", title="A")
SECRET = document("file:///s", "the merger is on monday", acl=["user:ann"])


@contextmanager
def at_work(home: Path) -> Iterator[Workspace]:
    """The data folder in the hands of this process, as a command has it."""
    with Workspace(Settings(home=home), encoder=HashEncoder()) as workspace:
        yield workspace


def put(home: Path, *documents: NewDocument) -> None:
    """Put documents into the collection "default" and into its index, which has to be free."""
    with at_work(home) as workspace:
        with workspace.database.write() as connection:
            corpus.put(connection, "default", documents)
        with workspace.database.read() as connection:
            (index,) = indexes.all_infos(connection)
        indexing.catch_up(workspace.database, workspace.index(index.id), paragraphs)


@pytest.fixture
def filled(home: Path) -> Path:
    """A data folder with a document for everybody and one for ann."""
    put(home, FOX, SECRET)
    return home


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_search_fetch_and_feedback_on_a_data_folder(filled: Path, mode: str) -> None:
    async with over_stdio(mode=mode) as client:
        assert [tool.name for tool in (await client.list_tools()).tools] == ["search", "fetch", "feedback"]
        found = await result_of(client, "search", query="blue whale", k=1)
        (first,) = found["results"]
        assert (first["text"], first["title"], first["url"]) == ("blue whale swims", "A", "file:///a")
        assert (await result_of(client, "fetch", id=first["id"]))["text"] == "red fox jumps\n\nblue whale swims"
        said = {"query_id": found["query_id"], "id": first["id"], "kind": "cited"}
        assert await result_of(client, "feedback", **said) == {"new": True}
        assert "k must be" in await error_of(client, "search", query="x", k=1000)
        assert "no collection 'nope'; there are: default" in await error_of(
            client, "search", query="x", collection="nope"
        )


async def test_a_restricted_document_is_shown_to_whom_it_is_for(filled: Path) -> None:
    async def seen(*arguments: str) -> bool:
        async with over_stdio(*arguments) as client:
            return "the merger is on monday" in await texts_of(client, "merger monday", k=100)

    assert not await seen()
    assert not await seen("--principal", "user:bob")
    assert await seen("--principal", "user:bob", "--principal", "user:ann")
    assert await seen("--everything")


async def test_the_data_folder_stays_free_for_others(filled: Path) -> None:
    """An agent's program runs for days: what is ingested beside it goes in, and is found."""
    async with over_stdio() as client:
        assert "red fox jumps" in await texts_of(client, "red fox")
        put(filled, document("file:///b", "green tea is hot"))
        assert "green tea is hot" in await texts_of(client, "green tea")
        with at_work(filled) as workspace, workspace.database.read() as connection:
            (index,) = indexes.all_infos(connection)
            workspace.index(index.id)
            said = await error_of(client, "search", query="fox")
        assert "another nvr-rag command is at work" in said
        assert said.endswith("(the same call may succeed in a moment)")
        assert "red fox jumps" in await texts_of(client, "red fox")


async def test_a_server_on_the_data_folder_is_asked(home: Path) -> None:
    """What it finds is in the memory of the server alone."""
    with (
        Workspace(Settings(home=home), store=MemoryStore(), encoder=HashEncoder()) as workspace,
        running(workspace) as api,
    ):
        api.put({"uri": "a", "text": "red fox jumps"})
        processes.announce(workspace.database, processes.SERVER, "http://127.0.0.1:9")  # and died
        presence = Presence(workspace.database, processes.SERVER, job_kinds=[])
        presence.start(str(api.client.base_url))
        async with over_stdio() as client:
            assert await texts_of(client, "red fox") == ["red fox jumps"]
        key = make_key(workspace, Scope.SEARCH)
        async with over_stdio(NVR_API_KEY=key) as client:
            assert await texts_of(client, "red fox") == ["red fox jumps"]
            assert "has not the scope feedback" in await error_of(client, "feedback", query_id="q", kind="answer_good")
        async with over_stdio(NVR_API_KEY="nvr_wrong") as client:
            assert "not known here" in await error_of(client, "search", query="fox")
        presence.stop()


async def test_a_server_elsewhere_is_asked(home: Path) -> None:
    with (
        Workspace(Settings(home=home), store=MemoryStore(), encoder=HashEncoder()) as workspace,
        running(workspace) as api,
    ):
        api.put({"uri": "file:///a", "text": "red fox jumps\n\nblue whale swims"})
        with workspace.database.write() as connection:
            corpus.put(connection, "default", [SECRET])
        api.put({"uri": "b", "text": "level with the log"})
        url = str(api.client.base_url)
        ann = make_key(workspace, Scope.SEARCH, Scope.FEEDBACK, principals=["user:ann"])
        async with over_stdio("--url", url, "--api-key", ann, NVR_HOME="/nowhere") as client:
            found = await result_of(client, "search", query="blue whale", k=1)
            (first,) = found["results"]
            assert (await result_of(client, "fetch", id=first["id"]))["whole"] is True
            assert (await result_of(client, "fetch", id=first["id"], context=0))["text"] == "blue whale swims"
            said = {"query_id": found["query_id"], "id": first["id"], "kind": "cited"}
            assert await result_of(client, "feedback", **said) == {"new": True}
            assert "the merger is on monday" in await texts_of(client, "merger monday")
        bob = make_key(workspace, Scope.SEARCH, principals=["user:bob"])
        async with over_stdio(NVR_URL=url, NVR_API_KEY=bob) as client:
            assert "the merger is on monday" not in await texts_of(client, "merger monday", k=100)
            assert "no collection 'nope'; there are: default" in await error_of(
                client, "search", query="x", collection="nope"
            )


async def test_a_key_that_may_impersonate_asks_for_others(home: Path) -> None:
    with (
        Workspace(Settings(home=home), store=MemoryStore(), encoder=HashEncoder()) as workspace,
        running(workspace) as api,
    ):
        with workspace.database.write() as connection:
            corpus.put(connection, "default", [SECRET])
        api.put({"uri": "b", "text": "level with the log"})
        bot = make_key(workspace, Scope.SEARCH, Scope.IMPERSONATE)
        plain = make_key(workspace, Scope.SEARCH, principals=["user:ann"])
        asked = ["--url", str(api.client.base_url), "--principal"]
        async with over_stdio(*asked, "user:ann", NVR_API_KEY=bot) as client:
            assert "the merger is on monday" in await texts_of(client, "merger monday")
        async with over_stdio(*asked, "user:bob", NVR_API_KEY=bot) as client:
            assert await texts_of(client, "merger monday") == ["level with the log"]
        async with over_stdio(*asked, "user:ann", NVR_API_KEY=plain) as client:
            assert "has not the scope impersonate" in await error_of(client, "search", query="merger")


async def test_a_server_that_is_not_there_is_said_to_be_away() -> None:
    async with over_stdio("--url", "http://127.0.0.1:9") as client:
        assert "no server answers at http://127.0.0.1:9" in await error_of(client, "search", query="fox")


def test_nothing_but_the_protocol_is_on_stdout(filled: Path) -> None:
    about = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
    call = {"name": "search", "arguments": {"query": "fox"}}
    talk = [
        {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": about},
        {"jsonrpc": "2.0", "method": "notifications/initialized"},
        "this is no message",
        {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": call},
    ]
    loud = "HashEncoder.encode_queries = lambda *a: (print('noise'), was(*a))[1]"
    program = PROGRAM.replace("common.open", f"was = HashEncoder.encode_queries\n{loud}\ncommon.open")
    with subprocess.Popen(
        [sys.executable, "-c", program, "mcp"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("".join(json.dumps(one) + "\n" for one in talk))
        process.stdin.flush()
        answers = []
        while not answers or answers[-1].get("id") != 2:
            answers.append(json.loads(process.stdout.readline()))
        rest, errors = process.communicate(timeout=60)
    assert answers[-1]["result"]["structuredContent"]["results"][0]["text"] == "red fox jumps"
    assert (process.returncode, rest) == (0, "")
    assert "noise" in errors


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--url", "http://127.0.0.1:9", "--everything"], "what a server shows is said by the key"),
        (["--url", "http://127.0.0.1:9", "--principal", "a\nb"], "printable"),
        (["--url", "not a url"], "url"),
        (["--principal", "a\nb"], "printable"),
        (["--principal", ""], "printable"),
    ],
)
def test_wrong_usage_is_said_on_stderr(home: Path, arguments: list[str], words: str) -> None:
    started = [sys.executable, "-c", PROGRAM, "mcp", *arguments]
    ended = subprocess.run(started, input="", capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert words in ended.stderr
    assert "Traceback" not in ended.stderr
