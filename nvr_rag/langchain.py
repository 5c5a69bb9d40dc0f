"""nvr-rag in LangChain: a retriever and embeddings, of a server by its address or of a data folder in this process.

The only file that knows langchain_core. Hits leave as documents whose id is the chunk's, and whose metadata says all
that a citation and feedback need.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

try:
    from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
    from langchain_core.documents import Document
    from langchain_core.embeddings import Embeddings
    from langchain_core.retrievers import BaseRetriever
    from langchain_core.runnables.config import run_in_executor
    from langchain_core.utils import secret_from_env
except ImportError as missing:
    raise ImportError("nvr_rag.langchain needs langchain-core: pip install 'nvr-rag[langchain]'") from missing
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, SecretStr, model_validator

from nvr_rag.client import AsyncClient, Client, SearchAnswer
from nvr_rag.client.line import line_to
from nvr_rag.embedded import DataFolder, open_folder
from nvr_rag.errors import InvalidInput
from nvr_rag.types import Feedback, FeedbackKind, GroupBy, Hit, Mmr, Mode, Query, Reader

Opened = TypeVar("Opened")
AnyClient = TypeVar("AnyClient", Client, AsyncClient)

_ABOUT_THE_ANSWER = (FeedbackKind.ANSWER_GOOD, FeedbackKind.ANSWER_BAD)


class _Held:
    """What is open: made on first use, and anew when other options are meant by then. Copies begin with nothing."""

    def __init__(self) -> None:
        self._made: dict[Callable[..., Any], tuple[Mapping[str, Any], Any]] = {}
        self._lock = threading.Lock()

    def get(self, make: Callable[..., Opened], **options: Any) -> Opened:
        with self._lock:
            known = self._made.get(make)
            if known is not None and known[0] == options:
                opened: Opened = known[1]
                return opened
            opened = make(**options)
            if isinstance(opened, Client):
                weakref.finalize(self, opened.close)
            self._made[make] = options, opened
            return opened

    def close(self) -> None:
        with self._lock:
            _, client = self._made.get(Client, (None, None))
            self._made.clear()
        if client is not None:
            client.close()

    def __deepcopy__(self, memo: Any) -> _Held:
        return _Held()

    def __reduce__(self) -> tuple[type[_Held], tuple[()]]:
        return _Held, ()


class _Connected(BaseModel):
    """Where questions go: either `url` or `home` is given."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    url: str | None = Field(default=None, description="Address of a server, such as http://127.0.0.1:8000.")
    home: Path | None = Field(default=None, description="A data folder to open in this process, without a server.")
    api_key: SecretStr | None = Field(
        default_factory=secret_from_env("NVR_API_KEY", default=None),
        description="Of the server; default: what NVR_API_KEY says.",
    )
    timeout_seconds: float = Field(default=60.0, gt=0, description="That the server may be silent.")
    retries: int = Field(default=3, ge=0, description="Of what can safely be sent again.")
    collection: str = "default"
    _held: _Held = PrivateAttr(default_factory=_Held)

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.url is None) == (self.home is None):
            raise InvalidInput(
                "say where to search: url= with the address of a server, or home= with a data folder", field="url"
            )
        if self.url is not None:
            line_to(self.url, None, self.retries)
        return self

    @property
    def lc_secrets(self) -> dict[str, str]:
        return {"api_key": "NVR_API_KEY"}

    def close(self) -> None:
        """Let go of connections and of the data folder, if nobody else here needs it. The next question opens anew."""
        self._held.close()

    def _folder(self) -> DataFolder:
        return self._held.get(open_folder, home=self.home)

    def _client(self) -> Client:
        return self._held.get(Client, **self._server())

    def _async_client(self) -> AsyncClient:
        # A chain may run in one event loop after another: no connection may outlive the one it was made in.
        return self._held.get(AsyncClient, **self._server(), keep_alive=False)

    def _server(self) -> dict[str, Any]:
        key = self.api_key.get_secret_value() if self.api_key else None
        return {"url": self.url, "api_key": key, "timeout_seconds": self.timeout_seconds, "retries": self.retries}


class _Asking(BaseModel):
    """What a search may say besides its text. Fields as in `nvr_rag.types.Query`."""

    model_config = ConfigDict(extra="forbid")

    collection: str = "default"
    k: int = Field(default=10, description="How many hits to return, at most.")
    mode: Mode | None = Field(default=None, description="Default: what the collection says.")
    filter: dict[str, Any] | None = Field(default=None, description='Such as {"metadata.year": {"gte": 2020}}.')
    group_by: GroupBy | None = Field(default=None, description="document: the best chunk of each.")
    context: int = Field(default=0, description="Neighbouring chunks on each side that go into page_content.")
    mmr: Mmr | None = Field(default=None, description="Hits that do not repeat each other.")
    min_score: float | None = Field(default=None, description="Hits with a lower score are left out.")
    rerank: bool = Field(default=False, description="By the cross-encoder that the server's settings name.")
    explain: bool = Field(default=False, description="The metadata say why each hit ranks where it does.")
    user: str | None = Field(default=None, description="Opaque; kept with the query.")
    session: str | None = Field(default=None, description="Opaque; kept with the query.")
    principals: list[str] | None = Field(
        default=None,
        description="On whose behalf; with a server, for a key that may impersonate. Default: as the key; in a data "
        "folder, documents that everybody may read.",
    )


class NvrRetriever(_Connected, _Asking, BaseRetriever):
    """Searches a collection; each question is logged, so that `feedback` can refer to it.

    Every option of a search can be given for one call as well: retriever.invoke("...", k=3, mode="dense").
    """

    model_config = ConfigDict(extra="forbid")  # that of LangChain lets misspelt options pass

    def feedback(
        self,
        document: Document,
        kind: FeedbackKind | Literal["relevant", "irrelevant", "click", "cited", "answer_good", "answer_bad"],
        *,
        grade: int | None = None,
        user: str | None = None,
        session: str | None = None,
        principals: Sequence[str] | None = None,
    ) -> None:
        """Say what became of a document that this retriever returned; twice is once. `principals` are those of the
        search, where they are not the retriever's own.

        Raises InvalidInput for another document, NotFound for a query that is not known (any more).
        """
        word = self._word(document, kind, grade=grade, user=user, session=session)
        if self.home is not None:
            self._folder().feedback([word], reader=self._reader(principals))
        else:
            _for(self._client(), self.principals if principals is None else principals).feedback(word)

    async def afeedback(
        self,
        document: Document,
        kind: FeedbackKind | Literal["relevant", "irrelevant", "click", "cited", "answer_good", "answer_bad"],
        *,
        grade: int | None = None,
        user: str | None = None,
        session: str | None = None,
        principals: Sequence[str] | None = None,
    ) -> None:
        """As `feedback`."""
        word = self._word(document, kind, grade=grade, user=user, session=session)
        if self.home is not None:
            await run_in_executor(None, lambda: self._folder().feedback([word], reader=self._reader(principals)))
        else:
            await _for(self._async_client(), self.principals if principals is None else principals).feedback(word)

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, **options: Any
    ) -> list[Document]:
        asked, principals = self._asked(query, options)
        if self.home is not None:
            return self._search_here(asked, principals)
        return _documents(_for(self._client(), principals).search(asked))

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, **options: Any
    ) -> list[Document]:
        asked, principals = self._asked(query, options)
        if self.home is not None:
            return await run_in_executor(None, self._search_here, asked, principals)
        return _documents(await _for(self._async_client(), principals).search(asked))

    def _search_here(self, asked: Query, principals: Sequence[str] | None) -> list[Document]:
        reader = Reader(principals=frozenset(principals or ()))
        return _documents(self._folder().search(replace(asked, reader=reader)))

    def _reader(self, principals: Sequence[str] | None) -> Reader:
        """Whom a search of the data folder was for; `principals` are those of the call."""
        return Reader(principals=frozenset((self.principals if principals is None else principals) or ()))

    def _asked(self, query: str, options: Mapping[str, Any]) -> tuple[Query, Sequence[str] | None]:
        """The query that a call means, and on whose behalf. Raises ValidationError for what it cannot say."""
        own = {name: getattr(self, name) for name in _Asking.model_fields}
        given = {name: value for name, value in options.items() if name != "verbose"}  # that one is LangChain's
        said = _Asking.model_validate({**own, **given})
        names = [name for name in _Asking.model_fields if name != "principals"]
        return Query(text=query, **{name: getattr(said, name) for name in names}), said.principals

    def _word(self, document: Document, kind: str, **options: Any) -> Feedback:
        query_id = document.metadata.get("query_id")
        if not query_id or not document.id:
            raise InvalidInput("this document is not from an NvrRetriever: it has no query_id", field="document")
        said = FeedbackKind(kind)
        chunk = None if said in _ABOUT_THE_ANSWER else document.id
        options = {"user": self.user, "session": self.session} | {k: v for k, v in options.items() if v is not None}
        return Feedback(query_id=str(query_id), chunk_id=chunk, kind=said, **options)


class NvrEmbeddings(_Connected, Embeddings):
    """The encoder that answers for a collection: its vectors and those of the index can be compared."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return self._embed(texts, "document")

    def embed_query(self, text: str) -> list[float]:
        return self._embed([text], "query")[0]

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        return await self._aembed(texts, "document")

    async def aembed_query(self, text: str) -> list[float]:
        return (await self._aembed([text], "query"))[0]

    def _embed(self, texts: Sequence[str], input_type: Literal["query", "document"]) -> list[list[float]]:
        asked = self._client() if self.home is None else self._folder()
        return [list(one) for one in asked.embed(texts, collection=self.collection, input_type=input_type).vectors]

    async def _aembed(self, texts: Sequence[str], input_type: Literal["query", "document"]) -> list[list[float]]:
        if self.home is not None:
            return await run_in_executor(None, self._embed, texts, input_type)
        answer = await self._async_client().embed(texts, collection=self.collection, input_type=input_type)
        return [list(one) for one in answer.vectors]


def _for(client: AnyClient, principals: Sequence[str] | None) -> AnyClient:
    """The client that asks for these principals; itself where none are named."""
    return client if principals is None else client.on_behalf_of(*principals)


def _documents(answer: SearchAnswer) -> list[Document]:
    return [_document(hit, answer) for hit in answer.hits]


def _document(hit: Hit, answer: SearchAnswer) -> Document:
    """A hit in LangChain's words; the metadata are JSON values."""
    around = hit.context
    text = hit.text if around is None else f"{around.before}{hit.text}{around.after}"
    names = ("rank", "score", "document_id", "uri", "title", "source", "media_type", "sha256", "page", "start", "end")
    metadata = {
        "query_id": answer.query_id,
        "collection": answer.collection,
        **{name: getattr(hit, name) for name in names},
        "headings": list(hit.headings),
        "updated_at": hit.updated_at.isoformat() if hit.updated_at else None,
        "metadata": dict(hit.metadata),
    }
    if around is not None:
        metadata["context"] = {"start": around.start, "end": around.end}
    if hit.explain is not None:
        metadata["explain"] = asdict(hit.explain)
    return Document(id=hit.chunk_id, page_content=text, metadata=metadata)
