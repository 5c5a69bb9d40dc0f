"""nvr-rag: a self-hosted retrieval backend for RAG that gets better with use.

The clients of a server and what they are given to send are found here, and loaded when they are first asked for:
importing this package takes no time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nvr_rag.client import EVERYBODY, AsyncClient, Client, TextDocument, UploadFields
    from nvr_rag.types import Feedback, FeedbackKind, Mmr, Mode, Query

__version__ = "0.1.0"
__all__ = [
    "EVERYBODY",
    "AsyncClient",
    "Client",
    "Feedback",
    "FeedbackKind",
    "Mmr",
    "Mode",
    "Query",
    "TextDocument",
    "UploadFields",
    "__version__",
]

_OF_THE_CLIENT = ("EVERYBODY", "AsyncClient", "Client", "TextDocument", "UploadFields")
_OF_THE_TYPES = ("Feedback", "FeedbackKind", "Mmr", "Mode", "Query")


def __getattr__(name: str) -> Any:
    if name in _OF_THE_CLIENT:
        from nvr_rag import client

        return getattr(client, name)
    if name in _OF_THE_TYPES:
        from nvr_rag import types

        return getattr(types, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
