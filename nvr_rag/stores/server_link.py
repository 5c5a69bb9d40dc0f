"""The connection to a Qdrant server: a client, the patience that its users have, and what every request carries.

It knows no collection.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

from qdrant_client import QdrantClient, models

from nvr_rag.errors import StoreUnavailable
from nvr_rag.settings import QdrantSettings
from nvr_rag.stores.server_errors import translated
from nvr_rag.stores.server_retries import Deadline, patiently

T = TypeVar("T")


class Server:
    """Work enters and is told the client to use; the errors that leave are this project's, and name the index."""

    def __init__(self, client: QdrantClient, settings: QdrantSettings) -> None:
        self.settings = settings
        self._client = client
        self.reading: dict[str, Any] = {"consistency": _consistency(settings.read_consistency)}
        self.writing: dict[str, Any] = {"wait": True, "ordering": models.WriteOrdering(settings.write_ordering)}

    def deadline(self) -> Deadline:
        """By when an operation that begins now is over."""
        return Deadline(self.settings.timeout_seconds)

    def ask(self, name: str, work: Callable[[QdrantClient, int], T], deadline: Deadline | None = None) -> T:
        """What `work(client, whole seconds it may take)` returns. It is repeated after a failure, hence may be done
        twice."""

        def attempt(left: float) -> T:
            if left <= 0:
                raise StoreUnavailable(f"index {name!r}: no answer within {self.settings.timeout_seconds} s")
            with translated(name):
                return work(self._client, math.ceil(left))

        return patiently(attempt, deadline or self.deadline())

    def once(self, name: str, work: Callable[[QdrantClient], T]) -> T:
        """The same for what would fail the second time."""
        with translated(name):
            return work(self._client)


def _consistency(setting: str | int | None) -> models.ReadConsistencyType | int | None:
    return models.ReadConsistencyType(setting) if isinstance(setting, str) else setting
