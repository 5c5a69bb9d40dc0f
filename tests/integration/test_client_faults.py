"""Both clients when things go wrong: what is sent again and when, what is not, problems as our errors, late and cut off
answers, and a key that nobody gets to see."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from nvr_rag import errors
from nvr_rag.client import EVERYBODY, AsyncClient, Client, ServerGone, TextDocument, UploadFields
from nvr_rag.client.repeating import Attempts
from nvr_rag.errors import (
    InvalidInput,
    NotFound,
    NvrError,
    StoreUnavailable,
    TimedOut,
    TooManyRequests,
)
from nvr_rag.types import Feedback, FeedbackKind, Query, Reader
from tests.integration.scripted_server import Step, problem, scripted

Ask = Callable[..., Any]

EMPTY = {"query_id": "q", "collection": "default", "mode": "dense", "deployment": {}, "hits": [], "took_ms": {}}
FOUND = Step(body=EMPTY)
GONE = Step(body={"deleted": ["d-1"]})
SAID = Step(body={"accepted": 1, "new": 1})
PUT = Step(body={"collection": "default", "indexed": True, "documents": []})
JOB = {"id": 7, "kind": "retrain", "collection": None, "state": "queued", "error": None, "cancelled": False}
QUEUED = Step(body={**JOB, "result": None, "progress": {}})
BUSY = problem(503, "index-busy")
CUT = Step(cut=True)
WORD = Feedback(query_id="q", kind=FeedbackKind.CITED, chunk_id="c")
TEXTS = [TextDocument(uri="u", text="t")]


def waiting(url: str, what: Callable[[Client], Any], **options: Any) -> Any:
    with Client(url, **options) as client:
        return what(client)


def meanwhile(url: str, what: Callable[[AsyncClient], Any], **options: Any) -> Any:
    async def ask() -> Any:
        async with AsyncClient(url, **options) as client:
            return await what(client)

    return asyncio.run(ask())


@pytest.fixture(params=[waiting, meanwhile], ids=["sync", "async"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """Asks with one of the two clients."""
    found: Ask = request.param
    return found


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that a client has waited; none of them in truth."""
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr("nvr_rag.client.sync.time", SimpleNamespace(sleep=waited.append, monotonic=time.monotonic))
    monkeypatch.setattr("nvr_rag.client.asynchronous.anyio", SimpleNamespace(sleep=sleep))
    return waited


@pytest.mark.parametrize("fault", [BUSY, CUT, Step(status=502, body=b"<html>", kind="text/html"), problem(429, "x")])
@pytest.mark.parametrize(
    ("what", "answer"),
    [
        (lambda client: client.search("red fox"), FOUND),
        (lambda client: client.job(7), QUEUED),
        (lambda client: client.delete("d-1"), GONE),
        (lambda client: client.feedback(WORD), SAID),
        (lambda client: client.put(TEXTS), PUT),
        (lambda client: client.ingest("/srv"), QUEUED),
    ],
    ids=["search", "get", "delete", "feedback", "put", "ingest"],
)
def test_what_can_be_done_twice_is_sent_again(
    ask: Ask, waits: list[float], what: Any, answer: Step, fault: Step
) -> None:
    with scripted(fault, fault, answer) as server:
        ask(server.url, what)
    first, *others = server.asked
    assert len(server.asked) == 3
    assert [one.body for one in others] == [first.body] * 2
    keys = {one.headers.get("idempotency-key") for one in server.asked}
    assert len(keys) == 1
    assert (keys != {None}) == (first.path in ("/v1/documents", "/v1/ingest") and first.method == "POST")
    assert len(waits) == 2
    assert all(0 <= seconds <= most for seconds, most in zip(waits, (0.2, 0.4), strict=True))


@pytest.mark.parametrize(
    "what",
    [lambda client: client.retrain(), lambda client: client.create_collection("a")],
    ids=["retrain", "create_collection"],
)
def test_what_would_be_done_twice_is_not_sent_again(ask: Ask, waits: list[float], what: Any) -> None:
    for fault in (BUSY, CUT, Step(status=504, body=b"")):
        with scripted(fault, QUEUED) as server, pytest.raises(NvrError):
            ask(server.url, what)
        assert len(server.asked) == 1
    assert waits == []


def test_what_never_began_may_always_be_sent_again(ask: Ask, waits: list[float]) -> None:
    with scripted(problem(429, "too-many-requests", headers={"Retry-After": "2"}), QUEUED) as server:
        assert ask(server.url, lambda client: client.retrain()).id == 7
    assert len(server.asked) == 2
    assert 2.0 <= waits[0] <= 2.2


def test_a_refused_connection_is_tried_again_and_then_told(ask: Ask, waits: list[float]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        for what in (lambda client: client.search("x"), lambda client: client.retrain()):
            with pytest.raises(ServerGone, match="no server answers at http"):
                ask(url, what, retries=2)
    assert len(waits) == 4


def test_new_requests_have_new_keys_and_a_given_one_is_kept(ask: Ask) -> None:
    with scripted(PUT) as server:
        for _ in range(2):
            ask(server.url, lambda client: client.put(TEXTS))
        ask(server.url, lambda client: client.put(TEXTS, idempotency_key="mine"))
    first, second, third = (one.headers["idempotency-key"] for one in server.asked)
    assert len({first, second, third}) == 3
    assert third == "mine"
    assert len(first) == 32


def test_an_upload_is_sent_again_from_its_beginning(ask: Ask, waits: list[float], tmp_path: Any) -> None:
    (tmp_path / "a.txt").write_bytes(b"x" * 200_000)
    one = {"id": "d", "uri": "u", "sha256": "s", "outcome": None, "error": None}
    answer = Step(body={"documents": [one], "job": 3, "indexed": False})
    with scripted(BUSY, CUT, answer) as server:
        uploaded = ask(server.url, lambda client: client.upload(tmp_path / "a.txt", fields=UploadFields(acl=EVERYBODY)))
    assert uploaded.job == 3
    assert [asked.body.count(b"x" * 200_000) for asked in server.asked] == [1, 1, 1]
    assert len({asked.headers["idempotency-key"] for asked in server.asked}) == 1
    assert all(b'name="acl"\r\n\r\nnull\r\n' in asked.body for asked in server.asked)


@pytest.mark.parametrize("said", ["3", None])
def test_what_the_server_says_of_waiting_is_heeded(ask: Ask, waits: list[float], said: str | None) -> None:
    when = said or format_datetime(datetime.now(UTC) + timedelta(seconds=6), usegmt=True)
    with scripted(problem(503, "database-unavailable", headers={"Retry-After": when}), FOUND) as server:
        ask(server.url, lambda client: client.search("x"))
    least = 3.0 if said else 3.9  # a date has whole seconds, and this machine may be busy
    assert least <= waits[0] <= 6.3
    assert len(server.asked) == 2


def test_who_is_told_to_wait_for_long_is_asked_what_to_do(ask: Ask, waits: list[float]) -> None:
    with (
        scripted(problem(429, "too-many-requests", headers={"Retry-After": "60"}), FOUND) as server,
        pytest.raises(TooManyRequests) as caught,
    ):
        ask(server.url, lambda client: client.search("x"))
    assert (caught.value.after_seconds, waits, len(server.asked)) == (60.0, [], 1)


def test_patience_has_an_end(ask: Ask, waits: list[float]) -> None:
    with scripted(BUSY) as server:
        for retries in (0, 1, 3):
            server.asked.clear()
            with pytest.raises(errors.StoreBusy):
                ask(server.url, lambda client: client.search("x"), retries=retries)
            assert len(server.asked) == retries + 1


def test_waits_grow_and_are_drawn_from_zero_on() -> None:
    response = httpx.Response(503)
    for drawn, expected in ((0.0, [0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]), (0.75, [0.05, 0.1, 0.2, 0.4, 0.8, 1.25, 1.25])):
        attempts = Attempts(repeatable=True, retries=7, chance=SimpleNamespace(random=lambda d=drawn: d))  # type: ignore[arg-type]
        assert [attempts.wait(response) for _ in range(8)] == [*(pytest.approx(one) for one in expected), None]


def test_a_document_that_went_with_the_answer_is_gone(ask: Ask, waits: list[float]) -> None:
    missing = problem(404, "not-found", "no document with this id")
    with scripted(CUT, missing) as server:
        ask(server.url, lambda client: client.delete("d-1"))
        server.asked.clear()
        ask(server.url, lambda client: client.delete(uri="u"))
        assert [one.path for one in server.asked] == ["/v1/documents?collection=default&uri=u"] * 2
    for before in ([], [problem(429, "too-many-requests")]):
        with scripted(*before, missing) as server, pytest.raises(NotFound):
            ask(server.url, lambda client: client.delete("d-1"))


def test_no_answer_in_time_is_said_once(ask: Ask, waits: list[float]) -> None:
    with scripted(Step(silent=True)) as server:
        with pytest.raises(TimedOut, match="did not answer in time"):
            ask(server.url, lambda client: client.search("x"), timeout_seconds=0.2)
        assert (len(server.asked), waits) == (1, [])


async def test_a_cancelled_call_lets_go_of_its_connection() -> None:
    with scripted(Step(silent=True), FOUND) as server:
        async with AsyncClient(server.url) as client:
            task = asyncio.create_task(client.search("x"))
            while not server.asked:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert (await client.search("x")).query_id == "q"
            server.steps = [problem(503, "index-busy", headers={"Retry-After": "9"})]
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.search("x"), 0.1)  # while it waits for the next attempt


@pytest.mark.parametrize(
    ("step", "kind", "words"),
    [
        (problem(422, "invalid-input", field="k"), errors.InvalidInput, "it is wrong"),
        (problem(422, "invalid-filter", field="filter"), errors.InvalidFilter, "it is wrong"),
        (problem(400, "malformed"), errors.InvalidInput, "it is wrong"),
        (problem(401, "unauthenticated"), errors.Unauthenticated, "it is wrong"),
        (problem(403, "forbidden"), errors.Forbidden, "it is wrong"),
        (problem(404, "not-found"), errors.NotFound, "it is wrong"),
        (problem(409, "conflict"), errors.Conflict, "it is wrong"),
        (problem(429, "too-many-requests"), errors.TooManyRequests, "it is wrong"),
        (problem(503, "timed-out"), errors.TimedOut, "it is wrong"),
        (problem(503, "encoder-unusable"), errors.EncoderError, "it is wrong"),
        (problem(503, "encoder-mismatch"), errors.EncoderMismatch, "it is wrong"),
        (problem(503, "store-unavailable"), errors.StoreUnavailable, "it is wrong"),
        (problem(503, "index-busy"), errors.StoreBusy, "it is wrong"),
        (problem(503, "index-missing"), errors.IndexMissing, "it is wrong"),
        (problem(503, "index-damaged"), errors.IndexDamaged, "it is wrong"),
        (problem(503, "no-room"), errors.NoRoom, "it is wrong"),
        (problem(503, "database-unavailable"), errors.DatabaseUnavailable, "it is wrong"),
        (problem(500, "not-known-yet"), errors.StoreUnavailable, "it is wrong"),
        (problem(405, "not-known-yet"), errors.NotFound, "it is wrong"),
        (problem(413, "not-known-yet"), errors.InvalidInput, "it is wrong"),
        (Step(status=500, kind="application/problem+json", body=[]), errors.StoreUnavailable, "no reason given"),
        (Step(status=503, kind="text/html", body=b"<html>"), errors.StoreUnavailable, "says 503 Service Unavailable"),
        (Step(status=404, kind="text/html", body=b"<html>"), ServerGone, "is not nvr-rag"),
        (Step(status=200, kind="text/html", body=b"<html>"), ServerGone, "is not nvr-rag"),
        (Step(status=404, body={"detail": "Not Found"}), ServerGone, "is not nvr-rag"),
        (Step(status=307, body={}, headers={"Location": "http://127.0.0.1:9/"}), ServerGone, "is not nvr-rag"),
        (Step(body={"hits": None}), ServerGone, "does not answer as nvr-rag"),
        (Step(body=[]), ServerGone, "does not answer as nvr-rag"),
        (Step(body=b"\xff"), ServerGone, "is not nvr-rag"),
        (Step(body=b"[" * 100_000), ServerGone, "is not nvr-rag"),
    ],
)
def test_problems_of_every_kind_are_our_errors(ask: Ask, step: Step, kind: type[NvrError], words: str) -> None:
    with scripted(step) as server, pytest.raises(kind, match=words) as caught:
        ask(server.url, lambda client: client.search("x"), retries=0)
    assert type(caught.value) is kind
    if isinstance(caught.value, InvalidInput) and kind is InvalidInput:
        assert caught.value.field == (step.body.get("field"))
    if step.kind == "application/problem+json" and isinstance(step.body, dict):
        assert caught.value.__notes__ == ["request id: r-1"]


@pytest.mark.parametrize(
    ("what", "body"),
    [
        (lambda client: client.search("x"), {**EMPTY, "hits": [{"dense": "x", "lexical": None}]}),
        (lambda client: client.collection("a"), []),
        (
            lambda client: client.embed(["x"]),
            {"data": [{"index": 0, "embedding": "AAA="}], "encoder": "", "truncated": []},
        ),
        (
            lambda client: client.embed(["x"]),
            {"data": [{"index": 0, "embedding": "***"}], "encoder": "", "truncated": []},
        ),
        (lambda client: client.document("d"), {"id": "d", "updated_at": "yesterday"}),
        (lambda client: client.delete("d"), {"deleted": []}),
    ],
)
def test_what_is_no_answer_of_ours_is_said(ask: Ask, what: Any, body: Any) -> None:
    with scripted(Step(body=body)) as server, pytest.raises(ServerGone, match="does not answer as nvr-rag"):
        ask(server.url, what)


def test_readiness_is_an_answer(ask: Ask) -> None:
    step = problem(503, "not-ready", reasons=["an index is not open"], headers={"Retry-After": "1"})
    with scripted(step, Step(body={"status": "ready"}), Step(status=503, body=b"", kind="text/html")) as server:
        told = ask(server.url, lambda client: client.ready())
        assert (told.ready, told.reasons) == (False, ["an index is not open"])
        assert ask(server.url, lambda client: client.ready()).ready
        with pytest.raises(StoreUnavailable, match="says 503"):
            ask(server.url, lambda client: client.ready())
    assert len(server.asked) == 3
    with scripted(problem(503, "not-ready", reasons=7)) as server, pytest.raises(ServerGone, match="does not answer"):
        ask(server.url, lambda client: client.ready())


def test_the_key_goes_to_the_server_and_nowhere_else(ask: Ask, caplog: pytest.LogCaptureFixture) -> None:
    secret = "nvr_abcdefghijkl_" + "s" * 43
    caplog.set_level(logging.DEBUG)
    with (
        scripted(problem(401, "unauthenticated", "this key is not known here")) as server,
        pytest.raises(errors.Unauthenticated) as caught,
    ):
        ask(server.url, lambda client: client.search("x"), api_key=secret, principals=["user:ann", "group:sea"])
    (asked,) = server.asked
    assert asked.headers["authorization"] == f"Bearer {secret}"
    assert asked.headers["x-nvr-principals"] == "user:ann, group:sea"
    assert asked.headers["user-agent"].startswith("nvr-rag/")
    client = Client(server.url, api_key=secret)
    other = AsyncClient(server.url, api_key=secret)
    shown = [repr(client), repr(other), repr(client._line), repr(vars(client)), str(caught.value), repr(caught.value)]
    assert not [text for text in [*shown, caplog.text] if secret in text]
    client.close()
    asyncio.run(other.aclose())
    for wrong in ("with a blank", "nvr_käse", "line\nend", "", "x" * 1000):
        with pytest.raises(InvalidInput, match="api_key is not a key") as refused:
            Client(server.url, api_key=wrong)
        assert not wrong or wrong not in str(refused.value)


def test_on_behalf_of_others_over_the_same_connections(ask: Ask) -> None:
    with scripted(FOUND) as server:
        ask(server.url, lambda client: client.on_behalf_of("user:ann").search("x"), principals=["user:bob"])
        ask(server.url, lambda client: client.on_behalf_of().search("x"))
        ask(server.url, lambda client: client.search("x"))
    assert [one.headers.get("x-nvr-principals") for one in server.asked] == ["user:ann", "", None]
    for wrong in ("a,b", " a", "", "a\tb", "a\r\nX-Other: b"):
        with pytest.raises(InvalidInput, match="a principal that is sent"):
            Client(server.url, principals=[wrong])
    with pytest.raises(InvalidInput, match="list of names"):
        Client(server.url, principals="user:ann")


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8000", "ftp://127.0.0.1", "http://", "http://h:99999", "http://[::1", "http://h/?a=1", ""]
)
def test_an_address_is_one(url: str) -> None:
    with pytest.raises(InvalidInput, match="such as http://127"):
        Client(url)
    with pytest.raises(InvalidInput, match="no password") as caught:
        Client("http://ann:secret@127.0.0.1:8000")
    assert "secret" not in str(caught.value)


def test_what_cannot_be_sent_is_said_before_it_is(ask: Ask) -> None:
    with scripted(FOUND) as server:
        for what, words in (
            (lambda client: client.search("x", filter={"metadata.a": float("nan")}), "JSON"),
            (lambda client: client.search("x", filter={"metadata.a": object()}), "JSON"),
            (lambda client: client.search("half \ud800 pair"), "JSON"),
            (lambda client: client.delete(uri="half \ud800 pair"), "surrogate"),
            (lambda client: client.document("\ud800"), "surrogate"),
            (lambda client: client.delete(uri="x" * 70_000), "cannot be sent"),
            (lambda client: client.upload(b"x", name="\ud800.txt"), "surrogate"),
            (lambda client: client.put([TextDocument(uri="u", text="t", acl="user:ann")]), "list of principals"),
            (lambda client: client.delete(), "which document"),
            (lambda client: client.delete("d", uri="u"), "which document"),
            (lambda client: client.embed("one text"), "list of texts"),
            (lambda client: client.search(Query(text="x", reader=Reader(everything=True))), "impersonate"),
        ):
            with pytest.raises(InvalidInput, match=words):
                ask(server.url, what)
        for options in ({"retries": -1}, {"timeout_seconds": 0.0}, {"timeout_seconds": float("nan")}):
            with pytest.raises(InvalidInput):
                ask(server.url, lambda client: client.search("x"), **options)
    assert server.asked == []
