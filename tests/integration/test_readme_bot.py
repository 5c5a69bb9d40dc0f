"""The README's programs as they stand there: the QA bot, run against a server on a socket and a stand-in for a language
model, and what is shown of the clients and of LangChain."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from nvr_rag import corpus
from nvr_rag.access.callers import Scope
from nvr_rag.db import tables as t
from nvr_rag.encoders.base import Encoder
from nvr_rag.ids import document_id
from nvr_rag.types import ChunkDraft, ParsedText
from nvr_rag.upkeep import indexing
from nvr_rag.workspace import Workspace
from tests.integration.api_support import Api, running
from tests.integration.key_support import make_key
from tests.support import document

README = Path(__file__).parents[2] / "README.md"
BOT, CLIENTS, LANGCHAIN = "## A QA bot in 40 lines", "## From Python", "## In LangChain"
ADDRESS = "http://127.0.0.1:8000"  # in the README

BOOK = "file:///srv/animals.pdf"
PAGES = ("The red fox sleeps by day.\n\n", "The blue whale swims in the sea.")


def blocks(title: str) -> list[str]:
    """The blocks of Python in a section of the README, without their fences."""
    _, found, section = README.read_text(encoding="utf-8").partition(f"\n{title}\n")
    assert found, f"README.md has no section {title!r}"
    return re.findall(r"^```python\n(.*?)^```$", section.partition("\n## ")[0], flags=re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def program() -> str:
    """The bot."""
    (found,) = blocks(BOT)
    return found


class LanguageModel(BaseHTTPRequestHandler):
    """OpenAI's chat completions: says of the source that speaks of whales where they swim, and cites one more that
    nobody has given to it."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        asked = self.server.asked  # type: ignore[attr-defined]
        asked.append({"path": self.path, "key": self.headers["authorization"], **body})
        prompt = body["messages"][-1]["content"]
        number = next(
            (found[1] for found in re.finditer(r"\[(\d+)\] ([^[]*)", prompt) if "blue whale" in found[2]), None
        )
        said = f"Whales swim in the sea [{number}, 99]." if number else "The sources do not say it."
        answer = {"choices": [{"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}]}
        data = json.dumps({"id": "c-1", "object": "chat.completion", "model": body["model"], **answer}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Nothing on stderr."""


@contextmanager
def language_model() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Its address, and what it is asked while the block runs."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), LanguageModel)
    asked: list[dict[str, Any]] = []
    server.asked = asked  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def page_by_page(parsed: ParsedText, encoder: Encoder, *, overlap: int = 0) -> list[ChunkDraft]:
    """A chunk for each page."""
    starts = list(parsed.page_starts) or [0]
    spans = pairwise([*starts, len(parsed.text)])
    return [
        ChunkDraft(text=parsed.text[start:end], start=start, end=end, page=number)
        for number, (start, end) in enumerate(spans, start=1)
    ]


@pytest.fixture
def api(workspace: Workspace) -> Iterator[Api]:
    """A server with a document of two pages and a note."""
    workspace.create_collection("default")
    book = document(BOOK, "".join(PAGES), page_starts=[0, len(PAGES[0])])
    with workspace.database.write() as connection:
        corpus.put(connection, "default", [book, document("doc:tea", "Green tea is hot.")])
    indexing.catch_up(workspace.database, workspace.index(1), page_by_page)
    with running(workspace) as api:
        yield api


def ask(program: str, question: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *question.split()],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def stored(api: Api) -> list[tuple[str, str, str]]:
    """Query, kind and URI of all feedback in the database."""
    f, q, c, d = t.FeedbackRow, t.QueryRow, t.Chunk, t.Document
    found = select(q.text, f.kind, d.uri).order_by(f.id).join(q, q.id == f.query_id).join(c, c.id == f.chunk_id)
    with api.workspace.database.read() as connection:
        return [tuple(row) for row in connection.execute(found.join(d, d.id == c.document_id))]


def test_it_is_as_short_as_it_says(program: str) -> None:
    assert 20 < len(program.splitlines()) <= 40


def test_it_answers_cites_and_tells_what_was_cited(program: str, api: Api) -> None:
    url = str(api.client.base_url)
    with language_model() as (llm, asked):
        done = ask(program, "where do whales swim?", NVR_URL=url, LLM_URL=llm, LLM_MODEL="small", LLM_API_KEY="k-1")
    assert (done.returncode, done.stderr) == (0, "")
    answer, *sources = done.stdout.splitlines()
    cited = re.fullmatch(r"Whales swim in the sea \[(\d), 99\]\.", answer)
    assert cited
    assert sources == [f"[{cited[1]}] {BOOK}, page 2"]
    (request,) = asked
    assert (request["path"], request["key"], request["model"]) == ("/v1/chat/completions", "Bearer k-1", "small")
    assert [one["role"] for one in request["messages"]] == ["system", "user"]
    assert request["messages"][1]["content"].endswith("Question: where do whales swim?")
    assert stored(api) == [("where do whales swim?", "cited", BOOK)]


def test_where_nothing_is_cited_nothing_is_said(program: str, api: Api) -> None:
    with api.workspace.database.write() as connection:
        corpus.delete_documents(connection, "default", [document_id("default", BOOK)])
    key = make_key(api.workspace, Scope.SEARCH, Scope.FEEDBACK)
    with language_model() as (llm, _):
        done = ask(program, "where do whales swim?", NVR_URL=str(api.client.base_url), LLM_URL=llm, NVR_API_KEY=key)
    assert (done.returncode, done.stdout, done.stderr) == (0, "The sources do not say it.\n", "")
    assert stored(api) == []


def test_what_is_shown_of_the_clients_runs(api: Api) -> None:
    url = str(api.client.base_url)
    written, awaited = blocks(CLIENTS)
    (chained,) = blocks(LANGCHAIN)
    told = []
    for block in (written, awaited, chained):
        assert ADDRESS in block
        done = ask(block.replace(ADDRESS, url), "")
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        told.append(done.stdout)
    text = "Everybody has 30 days of leave."
    assert told == [
        f"1 doc:leave {text}\n",
        f"3 3 ['doc:leave', 'doc:tea', '{BOOK}']\n",
        f"{text} doc:leave None\n64\n",
    ]
    assert stored(api) == [("days of leave", "relevant", "doc:leave"), ("days of leave", "cited", "doc:leave")]
