"""What each key is shown and may change: documents, uploads, counts, jobs, feedback, and what it has sent before."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import select

from nvr_rag import ids, jobs, uploads
from nvr_rag.access import keys
from nvr_rag.access.callers import Caller, Scope
from nvr_rag.access.keys import NewKey
from nvr_rag.db import tables as t
from nvr_rag.query_keys import query_key
from nvr_rag.running.working import JobLoop
from nvr_rag.types import Reader
from nvr_rag.workspace import Workspace
from tests.integration.api_support import Api, running
from tests.integration.key_support import make_key
from tests.isolation.world import Idle, PlainUploads

SEA, FIR = "group:sea", "group:fir"


@pytest.fixture
def full(workspace: Workspace) -> Iterator[Api]:
    """An API with uploads, and a document for everybody, for the group sea, and for nobody."""
    workspace.create_collection("default")
    loop = JobLoop("uploads", {"upload": PlainUploads(workspace.settings.ingest)})
    with running(workspace, [Idle()]) as api:
        api.put({"uri": "open", "text": "green tea"})
        api.put({"uri": "sea", "text": "green sea", "acl": [SEA], "title": "waves"})
        api.put({"uri": "nobody", "text": "green dust", "acl": []})
        loop.start(workspace)
        yield api
        loop.stop()


class Key:
    """Asks with a key of its own."""

    def __init__(self, api: Api, *scopes: Scope, principals: tuple[str, ...] = (), everything: bool = False) -> None:
        self.api = api
        reader = Reader(principals=frozenset(principals), everything=everything)
        new = NewKey(name=str(uuid4()), scopes=frozenset(scopes or Scope), reader=reader)
        with api.workspace.database.write() as connection:
            made, self.secret = keys.create(connection, new)
        self.caller: Caller = made.caller

    def call(self, method: str, path: str, status: int = 200, **options: Any) -> Any:
        headers = {"X-API-Key": self.secret, **options.pop("headers", {})}
        return self.api.call(method, path, status, headers=headers, **options)

    def uris(self, **query: Any) -> list[str]:
        return [one["uri"] for one in self.call("GET", "/v1/documents", params=query)["documents"]]

    def put(self, uri: str, status: int = 200, headers: dict[str, str] | None = None, **document: Any) -> Any:
        body = {"documents": [{"uri": uri, "text": f"text of {uri}", **document}], "wait": True}
        return self.call("POST", "/v1/documents", status, json=body, headers=headers or {})

    def upload(self, uri: str, status: int = 200, text: str = "a text", **fields: str) -> Any:
        files = {"file": ("note.txt", text.encode(), "text/plain")}
        data = {"uri": uri, "wait": "true", "timeout_seconds": "10", **fields}
        return self.call("POST", "/v1/documents", status, data=data, files=files)

    def search(self, query: str = "green", **options: Any) -> Any:
        return self.call("POST", "/v1/search", json={"query": query, **options})

    def id_of(self, uri: str) -> str:
        found = self.call("GET", "/v1/documents", params={"limit": 1000})["documents"]
        return str(next(one["id"] for one in found if one["uri"] == uri))


def test_documents_are_for_their_readers(full: Api) -> None:
    sea, fir, owner = Key(full, principals=(SEA,)), Key(full, principals=(FIR,)), Key(full, everything=True)
    assert fir.uris() == ["open"]
    assert sea.uris() == ["open", "sea"]
    assert owner.uris() == ["nobody", "open", "sea"]
    assert sea.uris(limit=1) == ["open"]  # pages are of what one may read
    page = fir.call("GET", "/v1/documents", params={"limit": 1})
    assert page["next"] is None
    key = sea.id_of("sea")
    shown = sea.call("GET", f"/v1/documents/{key}", params={"text": "true"})
    assert (shown["text"], shown["acl"], shown["seq"]) == ("green sea", [SEA], None)
    assert owner.call("GET", f"/v1/documents/{key}")["seq"] == 2
    hidden = fir.call("GET", f"/v1/documents/{key}", 404)["detail"]
    nothing = str(uuid4())
    assert hidden.replace(key, "*") == fir.call("GET", f"/v1/documents/{nothing}", 404)["detail"].replace(nothing, "*")


def test_nobody_writes_over_what_he_cannot_read(full: Api) -> None:
    sea, fir = Key(full, principals=(SEA,)), Key(full, principals=(FIR,))
    assert "may not read" in fir.put("sea", 409)["detail"]
    fir.upload("sea", 409)
    key = sea.id_of("sea")
    words = [fir.call("DELETE", f"/v1/documents/{one}", 404)["detail"].replace(one, "*") for one in (key, str(uuid4()))]
    assert words[0] == words[1]
    words = [fir.call("DELETE", "/v1/documents", 404, params={"uri": one})["detail"] for one in ("sea", "see")]
    assert words[0].replace("sea", "*") == words[1].replace("see", "*")
    assert sea.put("sea")["documents"][0]["outcome"] == "updated"
    assert sea.call("DELETE", f"/v1/documents/{key}") == {"deleted": [key]}
    assert fir.put("sea", 409)["status"] == 409  # deleted, and still not his


def test_who_may_read_what_one_stores(full: Api) -> None:
    sea, plain, owner = Key(full, principals=(SEA, FIR)), Key(full), Key(full, everything=True)
    expected = {"default": [FIR, SEA], "all": None, "others": ["x"]}
    sea.put("default")
    sea.put("all", acl=None)
    sea.put("others", 200, acl=["x"])
    plain.put("plain")
    sea.upload("default-file")
    sea.upload("all-file", acl="null")
    acls = {one["uri"]: one["acl"] for one in owner.call("GET", "/v1/documents")["documents"]}
    assert {name: acls[name] for name in expected} == expected
    assert (acls["plain"], acls["default-file"], acls["all-file"]) == (None, [FIR, SEA], None)
    assert "others" not in sea.uris()
    sea.put("others", 409)  # not even whoever gave it away


def test_what_changed_hands_while_a_file_waited(full: Api) -> None:
    """A document is stored as whoever sent it, at the moment at which it is stored."""
    sea, fir = Key(full, principals=(SEA,)), Key(full, principals=(FIR,))
    with full.workspace.database.write() as connection:
        new = uploads.NewUpload(file="x", uri="late", name="x", media_type="", sha256="0" * 64, metadata={}, acl=[FIR])
        job_id = uploads.accept(connection, "default", "elsewhere", [new], by=fir.caller)
    sea.put("late", 409)  # it waits to be somebody's
    words = [sea.call("DELETE", "/v1/documents", 404, params={"uri": one})["detail"] for one in ("late", "l8te")]
    assert words[0].replace("late", "*") == words[1].replace("l8te", "*")
    assert uploads.reader_of(jobs.get(full.workspace.database, job_id).payload) == fir.caller.reader
    assert fir.call("DELETE", "/v1/documents", params={"uri": "late"})["deleted"]


def test_a_waiting_file_of_a_collection_that_a_key_is_not_for(full: Api) -> None:
    full.call("POST", "/v1/collections", 201, json={"name": "theirs"})
    new = uploads.NewUpload(file="x", uri="late", name="x", media_type="", sha256="0" * 64, metadata={})
    with full.workspace.database.write() as connection:
        uploads.accept(connection, "theirs", "elsewhere", [new])
    key = make_key(full.workspace, Scope.INGEST, collections=["default"])
    guessed = ids.document_id("theirs", "late")
    full.call("DELETE", f"/v1/documents/{guessed}", 404, headers={"X-API-Key": key})
    with full.workspace.database.read() as connection:
        assert list(connection.scalars(select(t.Upload.document_id))) == [guessed]
    owner = make_key(full.workspace, Scope.INGEST)
    full.call("DELETE", f"/v1/documents/{guessed}", headers={"X-API-Key": owner}, params={"collection": "theirs"})
    with full.workspace.database.read() as connection:
        assert list(connection.scalars(select(t.Upload.document_id))) == []


def test_what_could_not_be_read_is_for_its_readers_too(full: Api) -> None:
    sea, plain = Key(full, principals=(SEA,)), Key(full)
    sea.upload("broken", text="unreadable")
    deadline = time.monotonic() + 10
    while "broken" not in sea.uris(state="failed"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert plain.uris(state="failed") == []
    assert plain.call("GET", "/v1/collections/default")["documents"] == {"ready": 1, "failed": 0, "deleted": 0}


def test_counts_are_of_what_one_may_read(full: Api) -> None:
    for key, ready in ((Key(full), 1), (Key(full, principals=(SEA,)), 2), (Key(full, everything=True), 3)):
        told = key.caller.reader.everything
        detail = key.call("GET", "/v1/collections/default")
        (listed,) = key.call("GET", "/v1/collections")["collections"]
        assert detail["documents"]["ready"] == listed["documents"]["ready"] == ready
        assert detail["head_seq"] == listed["head_seq"] == (3 if told else None)
        assert (detail["indexes"][0]["applied_seq"], detail["indexes"][0]["lag"]) == ((3, 0) if told else (None, None))
        assert key.search()["deployment"]["applied_seq"] == (3 if told else None)
        assert len(key.search()["hits"]) == ready


def test_jobs_are_for_who_asked(full: Api) -> None:
    sea, fir = Key(full, Scope.INGEST, principals=(SEA,)), Key(full, Scope.INGEST, principals=(FIR,))
    admin, owner = Key(full, Scope.ADMIN), Key(full, Scope.INGEST, everything=True)
    answer = sea.upload("mine")
    number = answer["job"]
    assert answer["documents"][0]["seq"] is None
    path = f"/v1/jobs/{number}"
    mine = sea.call("GET", path)
    assert [one["uri"] for one in mine["result"]["documents"]] == ["mine"]
    assert mine["result"]["documents"][0]["seq"] is None
    assert "documents" not in admin.call("GET", path)["result"]  # that it was done, and not what
    assert owner.call("GET", path)["result"]["documents"][0]["seq"] == 4
    for way in (path, f"{path}/events"):
        hidden = fir.call("GET", way, 404)["detail"]
        assert hidden.replace(str(number), "*") == fir.call("GET", "/v1/jobs/999", 404)["detail"].replace("999", "*")
    with full.workspace.database.read() as connection:
        assert connection.scalar(select(t.Job.key_id).where(t.Job.id == number)) == sea.caller.key_id
    of_all = jobs.enqueue(full.workspace.database, "verify", {"index_id": 1})
    sea.call("GET", f"/v1/jobs/{of_all}", 404)
    assert admin.call("GET", f"/v1/jobs/{of_all}")["state"] == "queued"


def test_a_lap_tells_who_asked_for_it_how_it_ended_and_counts_nothing(full: Api) -> None:
    key, owner = Key(full, Scope.TRAIN), Key(full, Scope.TRAIN, everything=True)
    number = key.call("POST", "/v1/retrain", 202, json={"dry_run": True})["id"]
    database = full.workspace.database
    assert jobs.claim(database, "w", ["retrain"]) is not None
    jobs.heartbeat(database, number, "w", {"done": 12, "words": "of 12 queries"})
    assert key.call("GET", f"/v1/jobs/{number}")["progress"] == {}
    assert owner.call("GET", f"/v1/jobs/{number}")["progress"]["done"] == 12
    jobs.finish(
        database, number, "w", result={"run": "r", "outcome": "rejected", "reasons": ["12 queries"]}, error=None
    )
    assert key.call("GET", f"/v1/jobs/{number}")["result"] == {"run": "r", "outcome": "rejected"}
    assert owner.call("GET", f"/v1/jobs/{number}")["result"]["reasons"] == ["12 queries"]


def test_folders_are_mirrored_by_who_reads_everything(full: Api) -> None:
    problem = Key(full, Scope.INGEST).call("POST", "/v1/ingest", 403, json={"path": "/srv"})
    assert "--everything" in problem["detail"]


def test_what_was_sent_before_is_ones_own(full: Api) -> None:
    sea, fir = Key(full, principals=(SEA,)), Key(full, principals=(FIR,))
    same = {"Idempotency-Key": "monday"}
    first = sea.put("a", headers=same)
    assert sea.put("a", headers=same) == first
    sea.put("b", 422, headers=same)  # it stands for another request
    assert fir.put("b", headers=same)["documents"][0]["outcome"] == "added"  # but not for somebody else
    fir.put("a", 409, headers={"Idempotency-Key": "tuesday"})


def test_only_who_was_answered_may_judge_the_answer(full: Api) -> None:
    sea, fir = Key(full, principals=(SEA,)), Key(full, principals=(FIR,))
    answer = sea.search("sea")
    word = {"query_id": answer["query_id"], "chunk_id": answer["hits"][0]["chunk_id"], "kind": "relevant"}
    assert sea.call("POST", "/v1/feedback", json={**word, "session": "s"}) == {"accepted": 1, "new": 1}
    assert sea.call("POST", "/v1/feedback", json=word) == {"accepted": 1, "new": 0}
    hidden = fir.call("POST", "/v1/feedback", 404, json=word)["detail"]
    nothing = str(uuid4())
    absent = fir.call("POST", "/v1/feedback", 404, json={**word, "query_id": nothing})["detail"]
    assert hidden.replace(answer["query_id"], "*") == absent.replace(nothing, "*")
    fir.call("POST", "/v1/feedback", 404, json={"items": [word]})


def test_one_bot_answers_for_many(full: Api) -> None:
    bot = Key(full)
    ann, bob = {"X-NVR-Principals": f"user:ann, {SEA}"}, {"X-NVR-Principals": "user:bob"}
    answer = bot.call("POST", "/v1/search", json={"query": "sea"}, headers=ann)
    assert {hit["document"]["uri"] for hit in answer["hits"]} == {"open", "sea"}
    word = {"query_id": answer["query_id"], "chunk_id": answer["hits"][0]["chunk_id"], "kind": "cited"}
    bot.call("POST", "/v1/feedback", 404, json=word)
    bot.call("POST", "/v1/feedback", 404, json=word, headers=bob)
    bot.call("POST", "/v1/feedback", json=word, headers=ann)


def test_judgments_from_outside(full: Api) -> None:
    sea = Key(full, principals=(SEA,))
    expert, fir = Key(full, Scope.FEEDBACK, Scope.TRAIN, principals=(SEA,)), Key(full, principals=(FIR,))
    query_id = sea.search("Which sea?", k=1)["query_id"]
    chunks = {hit["document"]["uri"]: hit["chunk_id"] for hit in sea.search(k=10)["hits"]}
    word = {"query_id": query_id, "chunk_id": chunks["sea"], "kind": "relevant", "grade": 2, "outside": True}
    Key(full, Scope.FEEDBACK, principals=(SEA,)).call("POST", "/v1/feedback", 403, json=word)
    assert expert.call("POST", "/v1/feedback", json=word) == {"accepted": 1, "new": 1}
    assert expert.call("POST", "/v1/feedback", json={**word, "grade": 3}) == {"accepted": 1, "new": 0}
    nothing = str(uuid4())
    words = [
        fir.call("POST", "/v1/feedback", 422, json={**word, "chunk_id": one})["detail"].replace(one, "*")
        for one in (chunks["sea"], nothing)
    ]
    assert words[0] == words[1]
    for wrong in ({"kind": "cited"}, {"chunk_id": None}, {"query_id": str(uuid4())}):
        assert expert.call("POST", "/v1/feedback", 404 if "query_id" in wrong else 422, json={**word, **wrong})
    with full.workspace.database.read() as connection:
        (row,) = connection.execute(select(*t.JudgmentRow.__table__.c)).all()
    assert (row.origin, row.query_key, row.grade) == (f"outside-{expert.caller.key_id}", query_key("which sea"), 3)
    assert row.chunk_id == chunks["sea"]
