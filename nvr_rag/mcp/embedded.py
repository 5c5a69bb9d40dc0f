"""The desk of a data folder on this disk: asks the server that runs on it, or, without one, opens its indexes itself.

An agent's program may run for days. So an index is open only while a question is answered: commands that ingest, and a
server that starts, find it free.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TypeVar

from nvr_rag.access.callers import Caller
from nvr_rag.client import Client, ServerGone
from nvr_rag.errors import NvrError, StoreBusy
from nvr_rag.mcp.desk import Answer, Desk, Whole
from nvr_rag.mcp.local import LocalDesk
from nvr_rag.mcp.remote import RemoteDesk
from nvr_rag.query_log import QueryLog
from nvr_rag.running import processes
from nvr_rag.types import Feedback, Passage, Query
from nvr_rag.workspace import Workspace

_Given = TypeVar("_Given")


class EmbeddedDesk:
    """Asks whoever has the data folder. Use as a context manager; the workspace belongs to the caller."""

    def __init__(self, workspace: Workspace, caller: Caller, *, api_key: str | None = None) -> None:
        """`caller` is who asks where no server runs; one that does is sent the key."""
        self._workspace, self._api_key = workspace, api_key
        self._query_log = QueryLog(workspace.database)
        self._own = LocalDesk(workspace, self._query_log, caller)
        self._one = threading.Lock()  # question at a time: an index that is closed is in nobody's hands

    def __enter__(self) -> EmbeddedDesk:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._query_log.close()

    def collections(self) -> Sequence[str]:
        return self._ask(lambda desk: desk.collections())

    def search(self, query: Query) -> Answer:
        return self._ask(lambda desk: desk.search(query))

    def passage(self, collection: str, chunk_id: str, context: int) -> Passage:
        return self._ask(lambda desk: desk.passage(collection, chunk_id, context))

    def document(self, collection: str, document_id: str) -> Whole | None:
        return self._ask(lambda desk: desk.document(collection, document_id))

    def feedback(self, word: Feedback) -> int:
        return self._ask(lambda desk: desk.feedback(word))

    def told(self, error: NvrError) -> str:
        return str(error)  # whoever asks has the folder, or a server has seen to it

    def _ask(self, question: Callable[[Desk], _Given]) -> _Given:
        with self._one:
            for server in processes.alive(self._workspace.database, processes.SERVER):
                if server.url:
                    try:
                        # Where it is gone, the index is asked, and at once.
                        with Client(server.url, api_key=self._api_key, retries=0) as client:
                            return question(RemoteDesk(client))
                    except ServerGone:
                        continue  # its row has outlived it
            try:
                return question(self._own)
            except StoreBusy as error:
                raise processes.busy(self._workspace.database, error) from error
            finally:
                self._workspace.release()
