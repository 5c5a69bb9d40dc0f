"""The desk of a running server: what the tools ask goes there, with the key that it was opened with."""

from __future__ import annotations

from collections.abc import Sequence

from nvr_rag.client import Client
from nvr_rag.errors import NvrError
from nvr_rag.mcp.desk import Answer, Whole
from nvr_rag.types import Feedback, Passage, Query


class RemoteDesk:
    """Asks a server. Who reads is what the client's key says."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def collections(self) -> Sequence[str]:
        return [collection.name for collection in self._client.collections()]

    def search(self, query: Query) -> Answer:
        answer = self._client.search(query)
        return Answer(query_id=answer.query_id, hits=answer.hits)

    def passage(self, collection: str, chunk_id: str, context: int) -> Passage:
        return self._client.chunk(chunk_id, collection=collection, context=context)

    def document(self, collection: str, document_id: str) -> Whole | None:
        found = self._client.document(document_id, collection=collection, text=True)
        return None if found.text is None else Whole(sha256=found.sha256, text=found.text)

    def feedback(self, word: Feedback) -> int:
        return self._client.feedback(word).new

    def told(self, error: NvrError) -> str:
        return str(error)  # the server has seen to it
