"""LangChain's own tests of retrievers and embeddings, of a server and of a data folder; and what they do not ask."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.load import dumps
from langchain_core.runnables import ConfigurableField
from langchain_tests.integration_tests import EmbeddingsIntegrationTests, RetrieversIntegrationTests
from langchain_tests.unit_tests import EmbeddingsUnitTests
from pydantic import ValidationError
from sqlalchemy import select

from nvr_rag import corpus
from nvr_rag.access.callers import Scope
from nvr_rag.client import EVERYBODY, Client, TextDocument
from nvr_rag.db import tables as t
from nvr_rag.embedded import open_folder
from nvr_rag.errors import ConfigurationError, InvalidInput, NotFound, StoreBusy, StoreUnavailable, Unauthenticated
from nvr_rag.langchain import NvrEmbeddings, NvrRetriever
from nvr_rag.running import processes
from nvr_rag.settings import Settings
from nvr_rag.testing import HashEncoder, MemoryStore
from nvr_rag.types import Mmr
from nvr_rag.upkeep import indexing
from nvr_rag.workspace import Workspace
from tests.integration.api_support import Api, running
from tests.integration.key_support import make_key
from tests.support import document, paragraphs

TEXTS = {
    "doc:fox": "The red fox jumps over the dog.\n\nFoxes sleep by day.\n\nA fox has a red tail.",
    "doc:whale": "The blue whale swims in the sea.",
    "doc:tea": "Green tea is hot.",
}


@pytest.fixture(scope="module")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with the bundled encoder and a shard on the disk, closed."""
    home = tmp_path_factory.mktemp("embedded") / "home"
    with Workspace(Settings(home=home)) as workspace:
        workspace.create_collection("default")
        with workspace.database.write() as connection:
            new = [document(uri, text, metadata={"length": len(text)}) for uri, text in TEXTS.items()]
            secret = document("doc:secret", "The red fox is a spy.", acl=["group:spies"])
            corpus.put(connection, "default", [*new, secret])
        indexing.catch_up(workspace.database, workspace.index(1), paragraphs)
    return home


@pytest.fixture(scope="module")
def folder(furnished: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The same, kept open, or its encoder would be loaded for every test."""
    home = tmp_path_factory.mktemp("open") / "home"
    shutil.copytree(furnished, home)
    opened = open_folder(home)
    yield home
    del opened


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """A server on a socket, over doubles for store and encoder."""
    home = tmp_path_factory.mktemp("remote") / "home"
    with (
        Workspace(Settings(home=home), store=MemoryStore(), encoder=HashEncoder()) as workspace,
        running(workspace) as api,
        Client(str(api.client.base_url)) as client,
    ):
        client.create_collection("default")
        documents = [
            TextDocument(uri=uri, text=text, metadata={"length": len(text)}, acl=EVERYBODY)
            for uri, text in TEXTS.items()
        ]
        assert client.put(documents, wait=True).indexed
        yield api


@pytest.fixture(params=["url", "home"])
def place(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Where to search, said both ways."""
    if request.param == "home":
        return {"home": request.getfixturevalue("folder")}
    return {"url": str(request.getfixturevalue("server").client.base_url)}


class OfRetrievers(RetrieversIntegrationTests):
    place: dict[str, Any]

    @property
    def retriever_constructor(self) -> type[NvrRetriever]:
        return NvrRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return self.place

    @property
    def retriever_query_example(self) -> str:
        return "red fox"


class OfEmbeddings:
    place: dict[str, Any]

    @property
    def embeddings_class(self) -> type[NvrEmbeddings]:
        return NvrEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return self.place

    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        return {"NVR_API_KEY": "nvr_key"}, self.place, {"api_key": "nvr_key"}


class OfServer:
    @pytest.fixture(autouse=True)
    def there(self, server: Api) -> None:
        self.place = {"url": str(server.client.base_url)}


class OfFolder:
    @pytest.fixture(autouse=True)
    def there(self, folder: Path) -> None:
        self.place = {"home": folder}


class TestRemoteRetriever(OfServer, OfRetrievers):
    """LangChain's tests of a retriever that asks a server."""


class TestEmbeddedRetriever(OfFolder, OfRetrievers):
    """LangChain's tests of a retriever in its own process."""


class TestRemoteEmbeddings(OfServer, OfEmbeddings, EmbeddingsIntegrationTests):
    """LangChain's tests of embeddings that ask a server."""


class TestRemoteEmbeddingsUnit(OfServer, OfEmbeddings, EmbeddingsUnitTests):
    """LangChain's tests of how they are made."""


class TestEmbeddedEmbeddings(OfFolder, OfEmbeddings, EmbeddingsIntegrationTests):
    """LangChain's tests of embeddings in their own process."""


class TestEmbeddedEmbeddingsUnit(OfFolder, OfEmbeddings, EmbeddingsUnitTests):
    """LangChain's tests of how they are made."""


def feedback_of(place: dict[str, Any], query_id: str) -> list[tuple[Any, ...]]:
    """What is stored of a query, read from the database."""
    home = place["home"]
    with Workspace(Settings(home=home), store=MemoryStore(), encoder=HashEncoder()) as workspace:
        f = t.FeedbackRow
        with workspace.database.read() as connection:
            rows = connection.execute(
                select(f.chunk_id, f.kind, f.grade, f.user, f.session).where(f.query_id == query_id).order_by(f.id)
            )
            return [tuple(row) for row in rows]


@pytest.fixture
def database(place: dict[str, Any], request: pytest.FixtureRequest) -> dict[str, Any]:
    """Where the data lies that `place` is asked about."""
    if "home" in place:
        return place
    return {"home": request.getfixturevalue("server").workspace.home}


def test_a_document_says_all_that_a_citation_needs(place: dict[str, Any]) -> None:
    (found,) = NvrRetriever(**place, k=1, mode="lexical").invoke("whale sea")
    assert found.page_content == "The blue whale swims in the sea."
    assert found.id
    told = found.metadata
    assert json.loads(json.dumps(told)) == told
    assert (told["uri"], told["source"], told["title"], told["headings"], told["page"]) == (
        "doc:whale",
        "",
        "",
        [],
        None,
    )
    assert (told["rank"], told["start"], told["end"], told["collection"]) == (1, 0, 32, "default")
    assert told["metadata"] == {"length": 32}
    assert told["score"] > 0
    assert set(told) == {
        *("query_id", "collection", "rank", "score", "document_id", "uri", "title", "source", "media_type", "sha256"),
        *("page", "start", "end", "headings", "updated_at", "metadata"),
    }


def test_options_of_one_call_are_over_those_of_the_constructor(place: dict[str, Any]) -> None:
    retriever = NvrRetriever(**place, k=2, filter={"uri": "doc:fox"})
    assert {found.metadata["uri"] for found in retriever.invoke("fox")} == {"doc:fox"}
    assert len(retriever.invoke("fox")) == 2
    (tea,) = retriever.invoke("fox", filter={"metadata.length": 17}, mode="dense", verbose=True)
    assert tea.metadata["uri"] == "doc:tea"
    grouped = retriever.invoke("fox", filter=None, group_by="document", k=10)
    assert sorted(found.metadata["uri"] for found in grouped) == ["doc:fox", "doc:tea", "doc:whale"]
    assert len(retriever.invoke("fox", mmr={"diversity": 0.5})) == 2
    with pytest.raises(ValidationError, match="filtre"):
        retriever.invoke("fox", filtre={})
    with pytest.raises(ValidationError, match="colection"):
        NvrRetriever(**place, colection="default")
    with pytest.raises(NotFound, match="no collection 'nowhere'"):
        retriever.invoke("fox", collection="nowhere")


def test_context_and_explanation(place: dict[str, Any]) -> None:
    retriever = NvrRetriever(**place, k=1, context=1, mmr=Mmr(diversity=0.1), explain=True)
    (found,) = retriever.invoke("sleep by day")
    assert found.page_content == TEXTS["doc:fox"]
    assert found.metadata["context"] == {"start": 0, "end": len(TEXTS["doc:fox"])}
    assert TEXTS["doc:fox"][found.metadata["start"] : found.metadata["end"]] == "Foxes sleep by day."
    assert found.metadata["explain"]["lexical"]["rank"] == 1


async def test_chains_batches_and_loops(place: dict[str, Any]) -> None:
    retriever = NvrRetriever(**place, k=1)
    first = retriever | (lambda found: found[0].metadata["uri"])
    expected = ["doc:whale", "doc:tea"]
    assert first.batch(["blue whale", "green tea"]) == expected
    assert await first.abatch(["blue whale", "green tea"]) == expected
    changing = retriever.configurable_fields(k=ConfigurableField(id="k"))
    assert len(changing.invoke("fox", {"configurable": {"k": 3}})) == 3

    def in_another_loop() -> str:
        return asyncio.run(first.ainvoke("green tea"))

    assert [await asyncio.to_thread(in_another_loop) for _ in range(2)] == ["doc:tea", "doc:tea"]


async def test_feedback_is_stored(place: dict[str, Any], database: dict[str, Any]) -> None:
    retriever = NvrRetriever(**place, k=2, user="ann", session="s1")
    first, second = retriever.invoke("fox")
    retriever.feedback(first, "cited")
    retriever.feedback(first, "cited")
    await retriever.afeedback(second, "relevant", grade=2, user="bob", session="s2")
    retriever.feedback(first, "answer_good")
    assert feedback_of(database, first.metadata["query_id"]) == [
        (first.id, "cited", None, "ann", "s1"),
        (second.id, "relevant", 2, "bob", "s2"),
        ("", "answer_good", None, "ann", "s1"),
    ]


def test_a_data_folder_takes_feedback_of_those_whom_the_answer_was_for(folder: Path) -> None:
    retriever = NvrRetriever(home=folder, principals=["user:ann"])
    found = retriever.invoke("fox")[0]
    for principals in (["user:bob"], ["user:ann", "user:bob"], []):
        with pytest.raises(NotFound):
            retriever.feedback(found, "cited", principals=principals)
    retriever.feedback(found, "cited")


def test_feedback_on_what_is_not_ours_is_refused(place: dict[str, Any]) -> None:
    retriever = NvrRetriever(**place, k=1)
    (found,) = retriever.invoke("fox")
    with pytest.raises(InvalidInput, match="not from an NvrRetriever"):
        retriever.feedback(Document("fox"), "cited")
    with pytest.raises(NotFound, match="no query"):
        retriever.feedback(Document("fox", id=found.id, metadata={"query_id": "never-was"}), "cited")
    with pytest.raises(ValueError, match="'liked' is not a valid FeedbackKind"):
        retriever.feedback(found, "liked")  # type: ignore[arg-type]


def test_copies_open_what_they_need_themselves(place: dict[str, Any]) -> None:
    retriever = NvrRetriever(**place, k=1)
    retriever.invoke("fox")
    for again in (copy.deepcopy(retriever), pickle.loads(pickle.dumps(retriever)), retriever.model_copy()):
        assert len(again.invoke("fox")) == 1
    other = retriever.model_copy(update={"url": "http://127.0.0.1:9", "home": None, "retries": 0})
    with pytest.raises(StoreUnavailable, match="no server answers at http://127"):
        other.invoke("fox")
    retriever.close()
    assert len(retriever.invoke("fox")) == 1


def test_embeddings_are_those_of_the_serving_encoder(server: Api, folder: Path) -> None:
    url = str(server.client.base_url)
    encoder = HashEncoder()
    remote = NvrEmbeddings(url=url)
    texts = [f"text {number}" for number in range(300)]  # more than one request takes
    assert remote.embed_documents(texts) == encoder.encode_documents(texts).tolist()
    assert remote.embed_query("red fox") == encoder.encode_queries(["red fox"])[0].tolist()
    here = NvrEmbeddings(home=folder)
    question, answer, other = here.embed_query("What does a whale do?"), *here.embed_documents(list(TEXTS.values())[1:])
    assert len(question) == 384
    assert _product(question, answer) > _product(question, other)
    for embeddings in (remote, here):
        with pytest.raises(InvalidInput, match="blank"):
            embeddings.embed_documents(["a", " "])
        assert embeddings.embed_documents([]) == []


def _product(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def test_a_folder_shows_restricted_documents_to_those_who_are_named(folder: Path) -> None:
    retriever = NvrRetriever(home=folder, k=10)
    uris = {found.metadata["uri"] for found in retriever.invoke("fox spy")}
    assert uris == set(TEXTS)
    spies = {found.metadata["uri"] for found in retriever.invoke("fox spy", principals=["group:spies"])}
    assert spies == {*TEXTS, "doc:secret"}


async def test_a_server_shows_what_the_named_may_read(workspace: Workspace) -> None:
    """One retriever of a bot that knows who its users are, and tells the server with each question."""
    workspace.create_collection("default")
    writer = make_key(workspace, Scope.INGEST, principals=["user:ann"])
    key = make_key(workspace, Scope.SEARCH, Scope.FEEDBACK, Scope.IMPERSONATE)
    with running(workspace) as api:
        url = str(api.client.base_url)
        with Client(url, api_key=writer) as client:
            diary = TextDocument(uri="doc:diary", text="red fox diary")
            assert client.put(
                [diary, TextDocument(uri="doc:poem", text="red fox poem", acl=EVERYBODY)], wait=True
            ).indexed
        bot = NvrRetriever(url=url, api_key=key, principals=["user:bob"])
        assert [found.metadata["uri"] for found in bot.invoke("fox")] == ["doc:poem"]
        shown = await bot.ainvoke("fox", principals=["user:ann"])
        assert {found.metadata["uri"] for found in shown} == {"doc:poem", "doc:diary"}
        with pytest.raises(NotFound, match="no query"):
            bot.feedback(shown[0], "cited")
        bot.feedback(shown[0], "cited", principals=["user:ann"])
        await bot.afeedback(shown[1], "click", principals=["user:ann"])
        with pytest.raises(Unauthenticated):
            NvrEmbeddings(url=url, api_key="nvr_unknown").embed_query("fox")


def test_a_folder_that_is_served_names_the_address(furnished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "home"
    shutil.copytree(furnished, folder)
    with Workspace(Settings(home=folder)) as owner:
        owner.index(1)
        process = processes.announce(owner.database, processes.SERVER, "http://127.0.0.1:8123")
        retriever = NvrRetriever(home=folder)
        with pytest.raises(StoreBusy, match=r"give url='http://127.0.0.1:8123' in place of home"):
            retriever.invoke("fox")
        assert len(NvrEmbeddings(home=folder).embed_query("fox")) == 384
        processes.withdraw(owner.database, process)
        with pytest.raises(StoreBusy, match="No server is running"):
            retriever.invoke("fox")
    assert retriever.invoke("fox")


def test_one_place_is_named(tmp_path: Path) -> None:
    for options in ({}, {"url": "http://127.0.0.1:1", "home": tmp_path}):
        with pytest.raises(InvalidInput, match=r"url= with the address of a server, or home="):
            NvrRetriever(**options)
    with pytest.raises(InvalidInput, match="such as http://127"):
        NvrEmbeddings(url="localhost:8000")
    with pytest.raises(ConfigurationError, match="there is no data folder"):
        NvrRetriever(home=tmp_path / "nowhere").invoke("fox")
    assert not (tmp_path / "nowhere").exists()


def test_the_key_is_not_shown() -> None:
    retriever = NvrRetriever(url="http://127.0.0.1:9", api_key="nvr_secret", retries=0)
    embeddings = NvrEmbeddings(url="http://127.0.0.1:9", api_key="nvr_secret", retries=0)
    with pytest.raises(StoreUnavailable) as caught:
        retriever.invoke("fox")
    shown = [repr(retriever), str(retriever), dumps(retriever), repr(embeddings), str(caught.value)]
    shown += [retriever.model_dump_json(), repr(retriever._client())]
    assert not [text for text in shown if "nvr_secret" in text]


def test_without_langchain_it_says_what_to_install() -> None:
    program = (
        "import sys; sys.modules['langchain_core'] = None\n"
        "try: import nvr_rag.langchain\n"
        "except ImportError as error: print(error)"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "nvr_rag.langchain needs langchain-core: pip install 'nvr-rag[langchain]'"
