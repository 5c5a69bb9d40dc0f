"""The desk of a workspace that is open here: the API's own for each request, and that of a data folder."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from nvr_rag import deployments, documents
from nvr_rag.access.callers import Caller, Scope
from nvr_rag.api.problems import told_to
from nvr_rag.errors import NotFound, NvrError
from nvr_rag.mcp.desk import Answer, Whole
from nvr_rag.query_log import QueryLog, record_feedback
from nvr_rag.types import Feedback, Passage, Query
from nvr_rag.workspace import Workspace


class LocalDesk:
    """Asks a workspace for one caller, as the routes of the HTTP API do."""

    def __init__(
        self, workspace: Workspace, query_log: QueryLog, caller: Caller, *, timeout_seconds: float | None = None
    ) -> None:
        """`timeout_seconds` is how long one search may take; None = as long as it takes."""
        self._workspace, self._query_log, self._caller = workspace, query_log, caller
        self._seconds = timeout_seconds

    def collections(self) -> Sequence[str]:
        with self._workspace.database.read() as connection:
            return [name for name in sorted(deployments.all_serving(connection)) if self._caller.knows(name)]

    def search(self, query: Query) -> Answer:
        self._check(query.collection)
        query = replace(query, reader=self._caller.reader, asker=self._caller.asker)
        deadline = None if self._seconds is None else time.monotonic() + self._seconds
        result = self._workspace.retriever.search(query, deadline=deadline)
        return Answer(query_id=self._query_log.record(query, result), hits=result.hits)

    def passage(self, collection: str, chunk_id: str, context: int) -> Passage:
        self._check(collection)
        return self._workspace.retriever.passage(collection, chunk_id, context=context, reader=self._caller.reader)

    def document(self, collection: str, document_id: str) -> Whole | None:
        self._check(collection)
        with self._workspace.database.read() as connection:
            found = documents.get(connection, collection, document_id, reader=self._caller.reader)
            try:
                return Whole(sha256=found.sha256, text=documents.text_of(connection, found.id))
            except NotFound:  # it was never read
                return None

    def feedback(self, word: Feedback) -> int:
        self._caller.check(Scope.FEEDBACK)
        with self._workspace.database.write() as connection:
            new = record_feedback(connection, [word], asker=self._caller.asker)
        self._workspace.meter.judged([word.kind])
        return new

    def told(self, error: NvrError) -> str:
        return told_to(self._caller, error)

    def _check(self, collection: str) -> None:
        self._caller.check(Scope.SEARCH)
        self._caller.check_collection(collection)
