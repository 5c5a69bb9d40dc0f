"""A data folder that lives through many kills: its server, its commands, and what must be true of it.

Speaks to the product as a user does, by commands and over HTTP.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from tests.killing.oracle import Oracle, Version, version_of
from tests.killing.places import Place
from tests.killing.processes import PATIENCE_SECONDS, Child, Nursery, Stuck

DEFAULT = "default"
SERVE = "nvr-rag serve"  # the name of a server's process
_POLL_SECONDS, _PAUSE_SECONDS = 0.005, 0.05  # between two looks at a file, and at a server
_MANY = 1000  # hits: more than a life has chunks


class Refused(Exception):
    """The server answered, but not with what was asked for; its text says what."""


class Server:
    """A running `nvr-rag serve`."""

    def __init__(self, child: Child, url: str) -> None:
        self.child, self.url = child, url
        # It is no https, and reading the certificates would take longer than the server needs to start.
        self.http = httpx.Client(base_url=url, timeout=PATIENCE_SECONDS, trust_env=False, verify=False)

    def call(self, method: str, path: str, **options: Any) -> Any:
        """The answer to a request. Raises Refused unless it is a 2xx, httpx.TransportError when nobody answers."""
        response = self.http.request(method, path, **options)
        if not response.is_success:
            raise Refused(f"{method} {path}: {response.status_code} {response.text[:500]}")
        return response.json()

    def search(self, query: str, mode: str | None = None, *, collection: str = DEFAULT, k: int = _MANY) -> Any:
        """What POST /v1/search answers."""
        body = {"query": query, "collection": collection, "k": k, **({"mode": mode} if mode else {})}
        return self.call("POST", "/v1/search", json=body)


class Life:
    """One data folder; `oracles` by the name of the collection."""

    def __init__(self, nursery: Nursery, place: Place) -> None:
        self.place = place
        self.oracles: dict[str, Oracle] = {DEFAULT: Oracle()}
        self.files: dict[str, dict[str, Version]] = {}  # collection -> URI -> what the file to mirror holds
        self.feedback: dict[tuple[str, ...], set[int | None]] = {}  # row -> grades; None = it may not be there
        self.feedback_together: set[tuple[str, ...]] = set()  # rows of the request that is under way
        self.chunks: dict[str, str] = {}  # chunk that somebody has said something about -> URI of its document
        self.serving: dict[str, set[int]] = {}  # collection -> deployments, one of which must serve
        self.documents = 0  # numbers given
        self.serial = 0  # of the last mark that was made
        self.history: dict[str, list[Version]] = {}  # what documents were ever to say
        self.models: dict[int, str] = {}  # fingerprints of those that were added, by seed
        self.begun = False  # the first ingest has left enough to go on with
        self.erases = False  # something was asked to be erased
        self.built: set[int] = set()  # indexes whose build was acknowledged
        self.server: Server | None = None
        self.children: list[Child] = []
        self._nursery = nursery

    def start(self, *arguments: str, as_json: bool = True) -> Child:
        """Start a command."""
        line = [*arguments, "--json"] if as_json else arguments
        child = self._nursery.start(line, self.place.settings, self.place.logs)
        self.children.append(child)
        return child

    def run(self, *arguments: str) -> dict[str, Any]:
        """Run a command to its end. Raises Stuck when it fails."""
        child = self.start(*arguments)
        code, said = child.finish(), child.said
        if code != 0 or said is None:
            raise Stuck(f"{child.name} ended with {code}: {child.errors[-400:]}")
        return said

    def begin_serving(self) -> Child:
        """Start a server without waiting for it."""
        assert self.server is None
        return self.start("serve")

    def serve(self) -> Server:
        """The running server, started when there is none."""
        if self.server is None:
            child = self.begin_serving()
            while child.said is None:
                if child.wait(_POLL_SECONDS) is not None or time.monotonic() > child.started + PATIENCE_SECONDS:
                    child.kill()
                    raise Stuck(f"the server does not start: {child.code} {child.errors[-400:]}")
            self.server = Server(child, child.said["url"])
        return self.server

    def kill_server(self) -> None:
        """SIGKILL to the server, if there is one."""
        if self.server is not None:
            self.server.child.kill()
            self.server.http.close()
            self.server = None

    def stop_server(self) -> None:
        """SIGTERM to the server, if there is one, and wait for its end."""
        if self.server is not None:
            self.server.http.close()
            code = self.server.child.stop()
            errors, self.server = self.server.child.errors, None
            if code != 0:
                raise Stuck(f"the server ended with {code} when it was told to stop: {errors[-400:]}")

    def found(self, mode: str, collection: str = DEFAULT, query: str = "common") -> dict[str, Version]:
        """The version of each document that a search shows."""
        hits = self.serve().search(query, mode, collection=collection)["hits"]
        return documents_in(hits)

    def has(self, collection: str) -> bool:
        """Whether a collection is there."""
        names = [one["name"] for one in self.serve().call("GET", "/v1/collections")["collections"]]
        return collection in names

    def catch_up(self, collection: str = DEFAULT) -> None:
        """Wait until every live index has all changes. Raises Stuck when that never comes."""
        until = time.monotonic() + PATIENCE_SECONDS
        while lags := self._lags(collection):
            if time.monotonic() > until:
                raise Stuck(f"indexes of {collection} do not catch up: {lags}")
            time.sleep(_PAUSE_SECONDS)

    def _lags(self, collection: str) -> list[Mapping[str, Any]]:
        detail = self.serve().call("GET", f"/v1/collections/{collection}")
        return [index for index in detail["indexes"] if index["lag"] > 0]

    def finish_jobs(self) -> None:
        """Wait until no job waits or runs: one whose server was killed is the next one's. Raises Stuck."""
        self.serve()
        until = time.monotonic() + PATIENCE_SECONDS
        with self.place.look() as look:
            while jobs := look("SELECT id, kind, state FROM job WHERE state IN ('queued', 'running')"):
                if time.monotonic() > until:
                    raise Stuck(f"jobs do not end: {jobs}")
                time.sleep(_PAUSE_SECONDS)

    def finish_erasures(self) -> None:
        """Wait until nothing that was erased is left anywhere. Raises Stuck."""
        until = time.monotonic() + PATIENCE_SECONDS
        while left := [one for one in self.run("erasures", "list")["erasures"] if one["pending"]]:
            if time.monotonic() > until:
                raise Stuck(f"erasures do not end: {left}")
            time.sleep(_PAUSE_SECONDS)

    def deployments(self, collection: str = DEFAULT) -> dict[int, str]:
        """The state of each deployment, by plain SQL."""
        with self.place.look() as look:
            rows = look(
                "SELECT d.id, d.state FROM deployment d JOIN collection c ON c.id = d.collection_id "
                f"WHERE c.name = '{collection}' ORDER BY d.id"
            )
        return {int(number): str(state) for number, state in rows}

    def end(self) -> None:
        """Kill whatever runs."""
        for child in self.children:
            child.kill()
        if self.server is not None:
            self.server.http.close()
            self.server = None


def documents_in(hits: Sequence[Mapping[str, Any]]) -> dict[str, Version]:
    """The versions that the hits of an answer make up, by URI."""
    pieces: dict[str, list[tuple[str, int, str]]] = {}
    for hit in hits:
        document = hit["document"]
        pieces.setdefault(document["uri"], []).append((document["title"], hit["start"], hit["text"]))
    return {uri: version_of(found) for uri, found in pieces.items()}
