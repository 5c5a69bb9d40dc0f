"""LlamaIndex: IngestionPipeline with a docstore that upserts and deletes, its cache, and Qdrant in the client's local
mode; chunks of the model's length, counted by the model's tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

from llama_index.core import SimpleDirectoryReader
from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.embeddings.huggingface import HuggingFaceEmbedding
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import QdrantClient
from transformers import AutoTokenizer

from tests.bench.rivals.drive import refuse_once

_TOKENS, _NAME = 254, "docs"


class LlamaIndex:
    def __init__(self, state: Path, model: str) -> None:
        self._kept = state / "pipeline"
        self._client = QdrantClient(path=str(state / "qdrant"))
        tokenizer = AutoTokenizer.from_pretrained(model)
        self._pipeline = IngestionPipeline(
            transformations=[
                SentenceSplitter(chunk_size=_TOKENS, chunk_overlap=0, tokenizer=tokenizer.tokenize),
                HuggingFaceEmbedding(model_name=model, device="cpu", embed_batch_size=32),
            ],
            vector_store=QdrantVectorStore(collection_name=_NAME, client=self._client),
            docstore=SimpleDocumentStore(),
            docstore_strategy=DocstoreStrategy.UPSERTS_AND_DELETE,
        )
        if self._kept.exists():
            self._pipeline.load(str(self._kept))

    def sync(self, folder: Path) -> None:
        documents = SimpleDirectoryReader(str(folder), recursive=True, filename_as_id=True).load_data()
        for document in documents:  # dates and sizes are no part of what is searched
            document.excluded_embed_metadata_keys = list(document.metadata)
            document.excluded_llm_metadata_keys = list(document.metadata)
        self._pipeline.run(documents=documents)
        self._pipeline.persist(str(self._kept))

    def dump(self) -> list[tuple[str, str]]:
        if not self._client.collection_exists(_NAME):
            return []
        points, _ = self._client.scroll(_NAME, limit=1_000_000)
        payloads = [point.payload or {} for point in points]
        return [(one["file_path"], json.loads(one["_node_content"])["text"]) for one in payloads]

    def fail_at(self, call: int) -> None:
        refuse_once(QdrantClient, "upload_points", call, ConnectionError("refused for the benchmark"))


def open_tool(state: Path, model: str) -> LlamaIndex:
    return LlamaIndex(state, model)
