"""LangChain: `index()` with full cleanup, a record manager in SQLite, and langchain-qdrant in the client's local mode;
chunks of the model's length, counted by the model's tokenizer."""

from __future__ import annotations

from pathlib import Path

from langchain_classic.indexes import SQLRecordManager
from langchain_community.document_loaders import DirectoryLoader, TextLoader
from langchain_core.indexing import index
from langchain_huggingface import HuggingFaceEmbeddings
from langchain_qdrant import QdrantVectorStore
from langchain_text_splitters import RecursiveCharacterTextSplitter
from qdrant_client import QdrantClient
from qdrant_client.models import Distance, VectorParams
from transformers import AutoTokenizer

from tests.bench.rivals.drive import refuse_once

_TOKENS, _NAME, _DIMENSION = 254, "docs", 384


class LangChain:
    def __init__(self, state: Path, model: str) -> None:
        state.mkdir(parents=True, exist_ok=True)
        self._client = QdrantClient(path=str(state / "qdrant"))
        if not self._client.collection_exists(_NAME):
            self._client.create_collection(_NAME, VectorParams(size=_DIMENSION, distance=Distance.COSINE))
        self._store = QdrantVectorStore(
            client=self._client,
            collection_name=_NAME,
            embedding=HuggingFaceEmbeddings(
                model_name=model, model_kwargs={"device": "cpu"}, encode_kwargs={"batch_size": 32}
            ),
        )
        self._records = SQLRecordManager(f"qdrant/{_NAME}", db_url=f"sqlite:///{state / 'records.sqlite3'}")
        self._records.create_schema()
        self._splitter = RecursiveCharacterTextSplitter.from_huggingface_tokenizer(
            AutoTokenizer.from_pretrained(model), chunk_size=_TOKENS, chunk_overlap=0
        )

    def sync(self, folder: Path) -> None:
        loader = DirectoryLoader(
            str(folder), glob="**/*.md", loader_cls=TextLoader, loader_kwargs={"encoding": "utf-8"}
        )
        index(
            self._splitter.split_documents(loader.load()),
            self._records,
            self._store,
            cleanup="full",
            source_id_key="source",
        )

    def dump(self) -> list[tuple[str, str]]:
        points, _ = self._client.scroll(_NAME, limit=1_000_000)
        payloads = [point.payload or {} for point in points]
        return [(one["metadata"]["source"], one["page_content"]) for one in payloads]

    def fail_at(self, call: int) -> None:
        refuse_once(QdrantClient, "upsert", call, ConnectionError("refused for the benchmark"))


def open_tool(state: Path, model: str) -> LangChain:
    return LangChain(state, model)
