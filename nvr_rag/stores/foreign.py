"""Qdrant collections that others have made, read: ids and payloads leave, in the order of the server's ids.

Writes nothing. Vectors are left where they are: they belong to another encoder. Knows nothing of what a payload means.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from pydantic import SecretStr, ValidationError
from qdrant_client import QdrantClient

from nvr_rag.errors import IndexMissing, InvalidInput, NotFound, StoreError
from nvr_rag.settings import QdrantSettings
from nvr_rag.stores.server_link import Server
from nvr_rag.stores.server_options import make_client

KEY_VARIABLE = "QDRANT_API_KEY"
_PAGE = 256  # points in one request

T = TypeVar("T")


def foreign_collection(settings: QdrantSettings, url: str, api_key: str | None, name: str) -> ForeignCollection:
    """A collection on the server at `url`; timeouts and TLS are those of the settings.

    Connects at the first call. Raises InvalidInput for a URL or a key that cannot be one.
    """
    changes = {"url": url, "api_key": SecretStr(api_key) if api_key else None}
    try:
        where = QdrantSettings.model_validate({**settings.model_dump(), **changes})
    except ValidationError as error:
        field = error.errors(include_input=False, include_url=False)[0]
        name_of = KEY_VARIABLE if field["loc"] == ("api_key",) else "the URL"
        raise InvalidInput(f"{name_of} cannot be used: {field['msg']}; such as http://localhost:6333") from None
    return ForeignCollection(make_client(where), where, name)


class ForeignCollection:
    """One collection on a server. Requests are repeated where that can help."""

    def __init__(self, client: QdrantClient, settings: QdrantSettings, name: str) -> None:
        self.name = name
        self._server = Server(client, settings)

    def count(self) -> int:
        """Points at this moment. Raises NotFound with the names there are, StoreError, StoreUnavailable."""
        try:
            return self._ask(lambda client, seconds: client.count(self.name, exact=True, timeout=seconds).count)
        except NotFound:
            names = self._ask(lambda client, _: sorted(one.name for one in client.get_collections().collections))
            there = f"there are: {', '.join(names[:20])}" if names else "it has none"
            raise NotFound(f"no collection {self.name[:80]!r} on the Qdrant server; {there}") from None

    def points(self) -> Iterator[tuple[str | int, Mapping[str, Any]]]:
        """The id and the payload of every point, in bounded memory."""
        offset: Any = None
        while True:
            records, offset = self._page(offset)
            for record in records:
                yield record.id, record.payload or {}
            if offset is None:
                return

    def _page(self, offset: Any) -> tuple[list[Any], Any]:
        return self._ask(
            lambda client, seconds: client.scroll(
                self.name, limit=_PAGE, offset=offset, with_payload=True, with_vectors=False, timeout=seconds
            )
        )

    def _ask(self, work: Callable[[QdrantClient, int], T]) -> T:
        try:
            return self._server.ask(self.name, work)
        except IndexMissing as error:
            raise NotFound(f"no collection {self.name[:80]!r} on the Qdrant server") from error
        except StoreError as error:  # the words are for the server that we keep our own indexes on
            words = str(error).replace("NVR_QDRANT__API_KEY", KEY_VARIABLE).replace("NVR_QDRANT__URL", "the URL")
            raise type(error)(words.replace(f"index {self.name!r}", f"collection {self.name!r}")) from error
