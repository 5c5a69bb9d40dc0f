"""A typed HTTP client for a running server, for programs that wait and for those that do not.

requests      arguments -> what is sent
repeating     what came of an attempt -> whether there is another one
problems      what is no answer -> our exceptions
answers       what the server writes -> records
line          all of it together, but for the waiting
sync, asynchronous   the waiting
"""

from __future__ import annotations

from nvr_rag.client.asynchronous import AsyncClient
from nvr_rag.client.records import (
    EVERYBODY,
    CollectionInfo,
    DocumentInfo,
    Embedded,
    FeedbackAnswer,
    JobStatus,
    PutAnswer,
    PutResult,
    Readiness,
    SearchAnswer,
    ServerGone,
    TextDocument,
    Uploaded,
    UploadFields,
)
from nvr_rag.client.requests import SearchOptions
from nvr_rag.client.sync import Client

__all__ = [
    "EVERYBODY",
    "AsyncClient",
    "Client",
    "CollectionInfo",
    "DocumentInfo",
    "Embedded",
    "FeedbackAnswer",
    "JobStatus",
    "PutAnswer",
    "PutResult",
    "Readiness",
    "SearchAnswer",
    "SearchOptions",
    "ServerGone",
    "TextDocument",
    "UploadFields",
    "Uploaded",
]
