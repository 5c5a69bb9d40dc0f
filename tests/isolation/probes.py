"""A probe for every endpoint: a random request that asks for what somebody else has, too.

A probe may say more than its answer's marks do: that a stranger's thing must be answered as one that is not there.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import httpx
from sqlalchemy import select

from nvr_rag import ids
from nvr_rag.access.callers import Caller, Scope
from nvr_rag.db import tables as t
from tests.isolation.oracle import MARK, Known, State, Window
from tests.isolation.oracle import Asked as Job
from tests.isolation.world import COLLECTIONS, SHARED, Holder, World, impersonated


@dataclass(kw_only=True, slots=True)
class Asked:
    """A request and what was answered."""

    response: httpx.Response
    sent: str  # everything in it that an answer may repeat
    caller: Caller | None
    window: Window
    leaks: list[str] = field(default_factory=list)  # what the probe itself has found


class Prober:
    """Asks as one holder of a key, on behalf of somebody."""

    def __init__(self, world: World, client: httpx.Client, draw: Random, holder: Holder) -> None:
        self.world, self.draw, self._client = world, draw, client
        self.caller, named = impersonated(draw, holder)
        self._headers = {} if holder.secret is None else {"Authorization": f"Bearer {holder.secret}"}
        if named:
            self._headers["X-NVR-Principals"] = ", ".join(named)

    def ask(self, method: str, path: str, **options: Any) -> Asked:
        headers = {**self._headers, **options.pop("headers", {})}
        begin = time.monotonic()
        request = self._client.build_request(method, path, headers=headers, **options)
        response = self._client.send(request, stream=True)
        if response.headers.get("content-type", "").startswith("text/event-stream") and "/events" in path:
            text = "".join(line for _, line in zip(range(3), response.iter_lines(), strict=False))
            response.close()
            response._content = text.encode()
        else:
            response.read()
        sent = f"{request.url} {request.read().decode('utf-8', 'replace')}"
        window = Window(begin=begin, end=time.monotonic())
        return Asked(response=response, sent=sent, caller=self.caller, window=window)

    def has(self, *scopes: Scope) -> bool:
        return self.caller is not None and self.caller.scopes.issuperset(scopes)

    def collection(self) -> str:
        return self.draw.choice(COLLECTIONS)

    def some(self) -> Known:
        """One of the documents; every other time one that is for the caller, if there is one."""
        if self.caller is not None and self.draw.random() < 0.5:
            now = Window(begin=time.monotonic(), end=time.monotonic())
            mine = [one for one in list(self.world.oracle.documents.values()) if one.shown(self.caller, now)]
            if mine:
                return self.draw.choice(mine)
        return self.world.some(self.draw)

    def hidden(self, asked: Asked, known: Known) -> bool:
        return self.caller is None or not known.shown(self.caller, asked.window)


Probe = Callable[[Prober], Asked]


def _said(asked: Asked) -> tuple[int, str]:
    """An answer without what the request itself has named."""
    detail = asked.response.json().get("detail", "") if "json" in asked.response.headers["content-type"] else ""
    for word in sorted(set(_words(asked.sent)), key=len, reverse=True):
        detail = detail.replace(word, "*")
    return asked.response.status_code, detail


def _words(sent: str) -> Sequence[str]:
    return MARK.findall(sent)


def _as_if_not_there(asked: Asked, absent: Asked, what: str) -> None:
    if _said(asked) != _said(absent):
        asked.leaks.append(f"{what} is told from one that is not there: {_said(asked)} and {_said(absent)}")


def search_body(prober: Prober, collection: str | None = None) -> dict[str, Any]:
    draw, known = prober.draw, prober.some()
    body: dict[str, Any] = {
        "query": " ".join(draw.choices(SHARED, k=2)),
        "collection": collection or known.collection,
        "k": draw.choice((1, 5, 50, 1000)),
        "mode": draw.choice(("dense", "lexical", "hybrid", None)),
    }
    extras: dict[str, Any] = {
        "group_by": "document",
        "context": draw.randint(1, 3),
        "mmr": {"diversity": 0.5},
        "explain": True,
        "filter": draw.choice(
            (
                {"uri": {"equals": known.uri}},
                {"document_id": {"in": [known.id]}},
                {"not": {"metadata.mark": {"exists": False}}},
                {"title": {"exists": True}},
            )
        ),
    }
    chosen = draw.sample(sorted(extras), draw.randint(0, 3))
    return {**body, **{name: extras[name] for name in chosen if {"mmr", "group_by"} - set(chosen) or name != "mmr"}}


def search(prober: Prober) -> Asked:
    asked = prober.ask("POST", "/v1/search", json=search_body(prober))
    if asked.response.status_code == 200:
        _searched(prober, asked, asked.response.json())
    return asked


def search_batch(prober: Prober) -> Asked:
    body = {"searches": [search_body(prober) for _ in range(prober.draw.randint(1, 3))]}
    asked = prober.ask("POST", "/v1/search/batch", json=body)
    if asked.response.status_code == 200:
        for answer in asked.response.json()["answers"]:
            _searched(prober, asked, answer)
    return asked


def _searched(prober: Prober, asked: Asked, answer: dict[str, Any]) -> None:
    assert prober.caller is not None
    shown = [hit["chunk_id"] for hit in answer["hits"]]
    prober.world.oracle.answered(answer["query_id"], prober.caller, shown)
    if not prober.caller.reader.everything and answer["deployment"]["applied_seq"] is not None:
        asked.leaks.append("applied_seq")


def chunk(prober: Prober) -> Asked:
    known = prober.some()
    key = _a_chunk(prober, known)
    query = {"collection": known.collection, "context": prober.draw.randint(0, 3)}
    asked = prober.ask("GET", f"/v1/chunks/{key}", params=query)
    if prober.hidden(asked, known):
        _as_if_not_there(asked, prober.ask("GET", f"/v1/chunks/{uuid.uuid4()}", params=query), "a chunk")
    return asked


def _a_chunk(prober: Prober, known: Known) -> str:
    """The id of a chunk of a document, as somebody may have it who has read it once."""
    with prober.world.workspace.database.read() as connection:
        found = connection.scalars(select(t.Chunk.id).where(t.Chunk.document_id == known.id)).all()
    return prober.draw.choice(found) if found else str(uuid.uuid4())


def documents(prober: Prober) -> Asked:
    query = {"collection": prober.collection(), "limit": prober.draw.choice((1, 7, 1000))}
    if prober.draw.random() < 0.5:
        query["state"] = prober.draw.choice(("ready", "failed", "deleted"))
    if prober.draw.random() < 0.3:
        query["after"] = "doc:m"
    asked = prober.ask("GET", "/v1/documents", params=query)
    if asked.response.status_code == 200:
        for one in asked.response.json()["documents"]:
            _no_numbers(asked, one, "seq")
    return asked


def document(prober: Prober) -> Asked:
    known, text = prober.some(), prober.draw.choice(("true", "false"))
    query = {"collection": known.collection, "text": text}
    asked = prober.ask("GET", f"/v1/documents/{known.id}", params=query)
    if prober.hidden(asked, known):
        _as_if_not_there(asked, prober.ask("GET", f"/v1/documents/{uuid.uuid4()}", params=query), "a document")
    elif asked.response.status_code == 200:
        _no_numbers(asked, asked.response.json(), "seq")
    return asked


def put(prober: Prober) -> Asked:
    known, acl = _target(prober)
    text, title, mark = prober.world.text(prober.draw), prober.world.word(prober.draw), prober.world.word(prober.draw)
    body = {"uri": known.uri, "text": text, "title": title, "metadata": {"mark": mark}}
    body |= {} if acl == "default" else {"acl": acl}
    headers = {"Idempotency-Key": str(prober.draw.randint(0, 20))} if prober.draw.random() < 0.1 else {}
    with known.lock:
        state = _begins(prober, known, [*prober.world.marks(known.id, text, title, mark)], acl)
        answer = {"collection": known.collection, "documents": [body]}
        asked = prober.ask("POST", "/v1/documents", json=answer, headers=headers)
        asked.sent += f" {known.id}"  # whoever has a URI can tell the id
        if asked.response.status_code in (200, 202):
            prober.world.oracle.stands(known, state, time.monotonic())
            for one in asked.response.json()["documents"]:
                _no_numbers(asked, one, "seq")
            if len(known.states) > 1 and _strange_before(prober, known, asked):
                asked.leaks.append(f"{known.uri} was written over by somebody who may not read it")
        else:
            prober.world.oracle.refused(state, time.monotonic())
    return asked


def _strange_before(prober: Prober, known: Known, asked: Asked) -> bool:
    """Whether the caller could not read what was there before; whoever writes holds the document's lock."""
    assert prober.caller is not None
    before = known.states[-2]
    return before.end >= asked.window.begin and not prober.caller.reader.may_read(before.acl)


def _target(prober: Prober) -> tuple[Known, Any]:
    """A document to write, there or not, and who is to read it."""
    world, draw = prober.world, prober.draw
    acl = draw.choice(("default", world.acl(draw)))
    if draw.random() < 0.6:
        return prober.some(), acl
    collection, uri = prober.collection(), f"doc:{world.word(draw)}"
    return world.oracle.document(ids.document_id(collection, uri), collection, uri), acl


def _begins(prober: Prober, known: Known, marks: Sequence[str], acl: Any) -> State:
    default = None if prober.caller is None else prober.caller.default_acl
    return prober.world.oracle.begins(known, marks, default if acl == "default" else acl, time.monotonic())


def upload(prober: Prober) -> Asked:
    known, acl = _target(prober)
    text, title, mark = prober.world.text(prober.draw), prober.world.word(prober.draw), prober.world.word(prober.draw)
    text = "unreadable" if prober.draw.random() < 0.2 else text
    fields = {"collection": known.collection, "uri": known.uri, "title": title, "metadata": json.dumps({"mark": mark})}
    fields |= {} if acl == "default" else {"acl": json.dumps(acl)}
    with known.lock:
        state = _begins(prober, known, prober.world.marks(known.id, text, title, mark), acl)
        asked = prober.ask(
            "POST",
            "/v1/documents",
            data={**fields, "wait": "true", "timeout_seconds": "2"},
            files={"file": ("note.txt", text.encode(), "text/plain")},
        )
        asked.sent += f" {known.id}"
        if asked.response.status_code in (200, 202):
            _uploaded(prober, asked, known, state)
        else:
            prober.world.oracle.refused(state, time.monotonic())
    return asked


def _uploaded(prober: Prober, asked: Asked, known: Known, state: State) -> None:
    assert prober.caller is not None
    answer, oracle = asked.response.json(), prober.world.oracle
    _job_of(prober, known.collection, answer["job"], f"{known.id} {known.uri}")
    deadline = time.monotonic() + 20
    while True:  # what becomes of it is nobody else's business while the document is locked
        job = prober.world.job(answer["job"])
        if job.finished or time.monotonic() > deadline:
            break
        time.sleep(0.02)
    became = (job.result or {}).get("documents") or [{}]
    if became[0].get("outcome") in ("added", "updated", "unchanged"):
        oracle.stands(known, state, time.monotonic())
    elif job.finished and len(known.states) > 1:
        oracle.refused(state, time.monotonic())
    for one in answer["documents"]:
        _no_numbers(asked, one, "seq")


def delete(prober: Prober) -> Asked:
    known = prober.some()
    query = {"collection": known.collection}
    if prober.draw.random() < 0.8:  # mostly what is not there, or the world would be empty soon
        return prober.ask("DELETE", f"/v1/documents/{uuid.uuid4()}", params=query)
    with known.lock:
        asked = prober.ask("DELETE", f"/v1/documents/{known.id}", params=query)
    _deleted(prober, asked, known, prober.ask("DELETE", f"/v1/documents/{uuid.uuid4()}", params=query))
    return asked


def delete_by_uri(prober: Prober) -> Asked:
    known = prober.some()
    with known.lock:
        asked = prober.ask("DELETE", "/v1/documents", params={"collection": known.collection, "uri": known.uri})
        asked.sent += f" {known.id}"
    nobody = {"collection": known.collection, "uri": f"doc:{prober.world.word(prober.draw)}"}
    _deleted(prober, asked, known, prober.ask("DELETE", "/v1/documents", params=nobody))
    return asked


def _deleted(prober: Prober, asked: Asked, known: Known, absent: Asked) -> None:
    if prober.hidden(asked, known):
        _as_if_not_there(asked, absent, "a document to delete")


def feedback(prober: Prober) -> Asked:
    oracle, draw = prober.world.oracle, prober.draw
    asker = "" if prober.caller is None else prober.caller.asker
    mine = draw.random() < 0.6
    queries = oracle.query_of(asker, mine=mine)
    query_id = draw.choice(queries) if queries else str(uuid.uuid4())
    known = prober.some()
    outside = prober.has(Scope.TRAIN) and draw.random() < 0.6
    shown = oracle.shown(query_id) if draw.random() < 0.5 else ()
    chunk_id = draw.choice(shown) if shown else _a_chunk(prober, known)
    known = oracle.home(chunk_id) or known
    body = {"query_id": query_id, "chunk_id": chunk_id, "kind": "relevant", "outside": outside}
    if not outside and draw.random() < 0.3:
        body = {"query_id": query_id, "kind": "answer_good"}
    asked = prober.ask("POST", "/v1/feedback", json=body)
    nobody = {**body, "query_id": str(uuid.uuid4())}
    if queries and not mine and not body.get("outside"):
        _as_if_not_there(asked, prober.ask("POST", "/v1/feedback", json=nobody), "a query")
    if body.get("outside") and asked.response.status_code == 200 and prober.hidden(asked, known):
        asked.leaks.append("a judgment of a chunk that is not for this caller")
    return asked


def collections(prober: Prober) -> Asked:
    asked = prober.ask("GET", "/v1/collections")
    if asked.response.status_code == 200:
        for one in asked.response.json()["collections"]:
            _counted(prober, asked, one)
    return asked


def collection(prober: Prober) -> Asked:
    name = prober.collection()
    asked = prober.ask("GET", f"/v1/collections/{name}")
    if asked.response.status_code == 200:
        _counted(prober, asked, asked.response.json())
    return asked


def _counted(prober: Prober, asked: Asked, one: dict[str, Any]) -> None:
    assert prober.caller is not None
    if not prober.caller.knows(one["name"]):
        asked.leaks.append(f"the collection {one['name']}")
    count, most = (
        sum(one["documents"].values()),
        prober.world.oracle.most_documents(prober.caller, one["name"], asked.window),
    )
    if count > most:
        asked.leaks.append(f"{count} documents counted of {most}")
    _no_numbers(asked, one, "head_seq")
    for index in one.get("indexes", ()):
        _no_numbers(asked, index, "applied_seq", "lag")


def _no_numbers(asked: Asked, one: dict[str, Any], *names: str) -> None:
    if asked.caller is not None and not asked.caller.reader.everything:
        asked.leaks += [name for name in names if one.get(name) is not None]


def new_collection(prober: Prober) -> Asked:
    return prober.ask("POST", "/v1/collections", json={"name": prober.collection()})  # all of them are there


def change_collection(prober: Prober) -> Asked:
    asked = prober.ask("PATCH", f"/v1/collections/{prober.collection()}", json={"mode": "hybrid"})
    if asked.response.status_code == 200:
        _counted(prober, asked, asked.response.json())
    return asked


def delete_collection(prober: Prober) -> Asked:
    return prober.ask("DELETE", f"/v1/collections/no-{prober.collection()}")


def ingest(prober: Prober) -> Asked:
    path = prober.world.roots / prober.world.word(prober.draw)
    path.mkdir()
    collection = prober.collection()
    asked = prober.ask("POST", "/v1/ingest", json={"path": str(path), "collection": collection})
    if asked.response.status_code == 202:
        _job_of(prober, collection, asked.response.json()["id"], str(path))
    return asked


def retrain(prober: Prober) -> Asked:
    collection = prober.collection()
    asked = prober.ask("POST", "/v1/retrain", json={"collection": collection, "dry_run": True})
    if asked.response.status_code == 202:
        _job_of(prober, collection, asked.response.json()["id"])
    return asked


def _job_of(prober: Prober, collection: str, number: int, sent: str = "") -> None:
    assert prober.caller is not None
    prober.world.oracle.jobs[number] = Job(collection=collection, asker=prober.caller.asker, sent=sent)


def _a_job(prober: Prober) -> int:
    asker = "" if prober.caller is None else prober.caller.asker
    every = list(prober.world.oracle.jobs.items())
    mine = [number for number, one in every if one.asker == asker]
    jobs = mine if mine and prober.draw.random() < 0.5 else [number for number, _ in every]
    return prober.draw.choice(jobs) if jobs and prober.draw.random() < 0.9 else prober.draw.randint(1, 50)


def job(prober: Prober) -> Asked:
    number = _a_job(prober)
    asked = prober.ask("GET", f"/v1/jobs/{number}")
    _job(prober, asked, number, prober.ask("GET", "/v1/jobs/2000000000"))
    return asked


def events(prober: Prober) -> Asked:
    number = _a_job(prober)
    asked = prober.ask("GET", f"/v1/jobs/{number}/events")
    _job(prober, asked, number, prober.ask("GET", "/v1/jobs/2000000000/events"))
    return asked


def _job(prober: Prober, asked: Asked, number: int, absent: Asked) -> None:
    about, caller = prober.world.oracle.jobs.get(number), prober.caller
    if about is None or caller is None:
        return
    if about.asker == caller.asker:
        asked.sent += f" {about.sent}"
    asked_for = about.asker == caller.asker or caller.reader.everything or Scope.ADMIN in caller.scopes
    if not (caller.knows(about.collection) and asked_for):
        status, detail = _said(asked)
        if (status, detail.replace(str(number), "*")) != (
            absent.response.status_code,
            _said(absent)[1].replace("2000000000", "*"),
        ):
            asked.leaks.append("a job is told from one that is not there")


def embeddings(prober: Prober) -> Asked:
    model = f"collection:{prober.collection()}"
    return prober.ask("POST", "/v1/embeddings", json={"input": "harbour", "model": model})


def models(prober: Prober) -> Asked:
    asked = prober.ask("GET", "/v1/models")
    if asked.response.status_code == 200 and prober.caller is not None:
        names = {one["id"].removeprefix("collection:") for one in asked.response.json()["data"]}
        asked.leaks += [f"the collection {name}" for name in names & set(COLLECTIONS) if not prober.caller.knows(name)]
    return asked


def agents(prober: Prober) -> Asked:
    draw, known = prober.draw, prober.some()
    calls: list[tuple[str, dict[str, Any]]] = [
        ("search", {"query": " ".join(draw.choices(SHARED, k=2)), "collection": known.collection}),
        ("fetch", {"id": draw.choice((_a_chunk(prober, known), known.id))}),
        ("feedback", {"query_id": str(uuid.uuid4()), "chunk_id": _a_chunk(prober, known), "kind": "relevant"}),
    ]
    name, arguments = draw.choice(calls)
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": name, "arguments": arguments}}
    accept = {"Accept": "application/json, text/event-stream", "MCP-Protocol-Version": "2025-06-18"}
    return prober.ask("POST", "/mcp", json=body, headers=accept)


def plain(method: str, path: str) -> Probe:
    """A request that says nothing."""
    return lambda prober: prober.ask(method, path)


PROBES: dict[str, Probe] = {
    "POST /v1/search": search,
    "POST /v1/search/batch": search_batch,
    "GET /v1/chunks/{chunk_id}": chunk,
    "GET /v1/documents": documents,
    "GET /v1/documents/{document_id}": document,
    "POST /v1/documents": put,
    "POST /v1/documents#forms": upload,
    "DELETE /v1/documents/{document_id}": delete,
    "DELETE /v1/documents": delete_by_uri,
    "POST /v1/feedback": feedback,
    "GET /v1/collections": collections,
    "GET /v1/collections/{name}": collection,
    "POST /v1/collections": new_collection,
    "PATCH /v1/collections/{name}": change_collection,
    "DELETE /v1/collections/{name}": delete_collection,
    "POST /v1/ingest": ingest,
    "POST /v1/retrain": retrain,
    "GET /v1/jobs/{job_id}": job,
    "GET /v1/jobs/{job_id}/events": events,
    "POST /v1/embeddings": embeddings,
    "GET /v1/models": models,
    "POST /mcp": agents,
    "GET /metrics": plain("GET", "/metrics"),
    "GET /livez": plain("GET", "/livez"),
    "GET /readyz": plain("GET", "/readyz"),
    "GET /openapi.json": plain("GET", "/openapi.json"),
}
