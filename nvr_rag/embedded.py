"""A data folder that a program opens in its own process, without a server: questions, feedback and texts in; the
records of the HTTP client out.

All that open one folder share what is open: an index has one owner. It is let go of when the last of them is gone. Who
asks here has the folder and may say whom it asks for; nothing is checked that a key would stand for.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from nvr_rag import deployments, indexes
from nvr_rag.access.callers import Caller
from nvr_rag.client.records import Embedded, FeedbackAnswer, SearchAnswer
from nvr_rag.encoders.base import Encoder
from nvr_rag.errors import ConfigurationError, InvalidInput, StoreBusy
from nvr_rag.query_log import QueryLog, record_feedback
from nvr_rag.running import processes
from nvr_rag.settings import load_settings
from nvr_rag.storable import storable
from nvr_rag.types import ANYBODY, Feedback, Query, Reader
from nvr_rag.workspace import Workspace

_BATCH = 256  # texts that the encoder is given at a time

_opened: weakref.WeakValueDictionary[Path, DataFolder] = weakref.WeakValueDictionary()
_opening = threading.RLock()  # again by the same thread: what is thrown away may go while it opens something


def open_folder(home: Path | str) -> DataFolder:
    """The data folder, opened where it is not open in this process.

    Raises ConfigurationError for one that is not there, and as `Workspace`.
    """
    path = Path(home).expanduser().resolve()
    with _opening:
        found = _opened.get(path)
        if found is None:
            if not path.is_dir():  # a wrong path would become an empty data folder
                raise ConfigurationError(f"there is no data folder {path}; nvr-rag --home {path} ingest ... makes one")
            found = _opened[path] = DataFolder(path)
        return found


class DataFolder:
    """An open data folder. Safe to share between threads."""

    def __init__(self, home: Path) -> None:
        """Use `open_folder`: two of the same folder would be in each other's way."""
        self._workspace = Workspace(load_settings().model_copy(update={"home": home}))
        self._log = QueryLog(self._workspace.database)
        weakref.finalize(self, _close, self._workspace, self._log)

    def search(self, query: Query) -> SearchAnswer:
        """Answer a question and log it. Raises as `Retriever.search`; StoreBusy says what to do where a server, or
        another program, has the index."""
        try:
            query = replace(query, asker=_asker(query.reader))
            result = self._workspace.retriever.search(query)
        except StoreBusy as error:
            raise self._busy(error) from error
        return SearchAnswer.of(self._log.record(query, result), query, result)

    def feedback(self, items: Sequence[Feedback], *, reader: Reader = ANYBODY) -> FeedbackAnswer:
        """Store what was said about hits: all, or nothing. `reader` is whom they were shown to. Raises NotFound for a
        query of somebody else, InvalidInput."""
        with self._workspace.database.write() as connection:
            new = record_feedback(connection, items, asker=_asker(reader))
        return FeedbackAnswer(accepted=len(items), new=new)

    def embed(self, texts: Sequence[str], *, collection: str = "default", input_type: str = "document") -> Embedded:
        """Texts as vectors of the encoder that answers for a collection. Needs no index, so that a server may have it.

        Raises NotFound for an unknown collection, InvalidInput for a blank text.
        """
        for position, text in enumerate(texts):
            if not text.strip():
                raise InvalidInput("a text is blank, and nothing is like it; leave it out", field=f"input[{position}]")
        encoder = self._encoder(collection)
        encode = encoder.encode_queries if input_type == "query" else encoder.encode_documents
        given = [storable(text) for text in texts]
        parts = [given[start : start + _BATCH] for start in range(0, len(given), _BATCH)]
        counts = (encoder.count_query_tokens if input_type == "query" else encoder.count_tokens)(given)
        return Embedded(
            vectors=[vector for part in parts for vector in encode(part).tolist()],
            encoder=encoder.fingerprint,
            truncated=[position for position, count in enumerate(counts) if count > encoder.spec.max_tokens],
        )

    def _encoder(self, collection: str) -> Encoder:
        with self._workspace.database.read() as connection:
            serving = deployments.serving(connection, collection)
            fingerprint = indexes.get(connection, serving.index_id).encoder
        return self._workspace.encoder(fingerprint)

    def _busy(self, error: StoreBusy) -> StoreBusy:
        """The same error for who has given a folder, and could give an address."""
        servers = [one.url for one in processes.alive(self._workspace.database, processes.SERVER) if one.url]
        if not servers:
            return processes.busy(self._workspace.database, error)
        return StoreBusy(
            f"{self._workspace.home} is served at {servers[0]}, and that server has its index: "
            f"give url={servers[0]!r} in place of home"
        )


def _asker(reader: Reader) -> str:
    """Who may judge what this reader was shown; see nvr_rag.access.callers. No key has this id."""
    return "" if reader == ANYBODY else Caller(key_id="data folder", reader=reader).asker


def _close(workspace: Workspace, log: QueryLog) -> None:
    with _opening:
        log.close()
        workspace.close()
