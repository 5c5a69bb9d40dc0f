"""Clients that put, delete, search and send feedback all the time, and write down what they are answered.

Everything that is sent is told to the life's oracle before it is sent, and what was acknowledged as soon as the answer
is there. Whatever they are answered, they go on.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from random import Random
from typing import Any

import httpx

from tests.killing.life import DEFAULT, Life
from tests.killing.oracle import ABSENT, Version, mark_of, text_of

PUTTERS, SEARCHERS, FRIENDS = 2, 2, 2  # those who send feedback
HANGS_SECONDS = 60.0  # nobody waits longer for an answer
_DOCUMENTS = 8  # of each who puts
_PAUSE_SECONDS = 0.1  # between two requests of a client
_GOOD = (200, 202)


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What one request came to."""

    what: str  # "put", "search" ...
    at: float  # when it was sent, by the monotonic clock
    seconds: float
    status: int  # 0: none came
    retry_after: bool  # the answer says when to come again
    words: str  # of a problem

    @property
    def good(self) -> bool:
        return self.status in _GOOD

    @property
    def fair(self) -> bool:
        """Done, or put off in the way that was promised."""
        return self.good or (self.status == 503 and self.retry_after)


def fair_or_none(answer: Answer) -> bool:
    """What may be answered where the server itself is away for a while: then nobody answers."""
    return answer.fair or answer.status == 0


class Clients:
    """A context manager: they work while the block runs."""

    def __init__(self, life: Life) -> None:
        self.answers: list[Answer] = []
        self.acknowledged = 0  # changes and feedback
        self._life = life
        self._stop = threading.Event()
        self._lock = threading.Lock()
        work: list[Callable[[Any], None]] = [
            *[self._putter(number) for number in range(PUTTERS)],
            *[self._searcher(mode) for mode in ("lexical", "dense")[:SEARCHERS]],
            *[self._friend(number) for number in range(FRIENDS)],
            self._onlooker(),
        ]
        self._threads = [threading.Thread(target=self._run, args=(one,), daemon=True) for one in work]

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def during(self, begun: float, ended: float) -> list[Answer]:
        """Answers to what was sent in a span of time."""
        with self._lock:
            return [answer for answer in self.answers if begun <= answer.at < ended]

    def _run(self, work: Callable[[Any], None]) -> None:
        with httpx.Client(timeout=HANGS_SECONDS, trust_env=False) as http:
            while not self._stop.wait(_PAUSE_SECONDS):
                work(http)

    def _ask(self, http: httpx.Client, what: str, method: str, path: str, **options: Any) -> tuple[Answer, Any]:
        begun, said = time.monotonic(), None
        status, retry_after, words = 0, False, ""
        try:
            server = self._life.server
            response = http.request(method, f"{server.url if server else ''}{path}", **options)
            status, retry_after = response.status_code, "retry-after" in response.headers
            said = response.json()
            words = "" if response.is_success else str(said.get("detail", ""))
        except (httpx.HTTPError, httpx.UnsupportedProtocol, ValueError) as error:
            words = type(error).__name__
        answer = Answer(
            what=what,
            at=begun,
            seconds=time.monotonic() - begun,
            status=status,
            retry_after=retry_after,
            words=words,
        )
        with self._lock:
            self.answers.append(answer)
        return answer, said

    def _putter(self, number: int) -> Callable[[httpx.Client], None]:
        rng, turns = Random(number), count()
        oracle = self._life.oracles[DEFAULT]
        mine = [10 * number + i for i in range(1, _DOCUMENTS + 1)]

        def put(http: httpx.Client, document: int, version: Version) -> None:
            uri = f"note://{document}"
            with self._lock:
                oracle.maybe({uri: version})
            if version == ABSENT:
                answer, _ = self._ask(http, "delete", "DELETE", "/v1/documents", params={"uri": uri})
            else:
                text = {"uri": uri, "title": version[0], "text": text_of(document, version)}
                answer, _ = self._ask(http, "put", "POST", "/v1/documents", json={"documents": [text]})
            if answer.good:
                with self._lock:
                    oracle.sure({uri: version})
                    self.acknowledged += 1

        def work(http: httpx.Client) -> None:
            document = mine[next(turns) % len(mine)]
            with self._lock:
                self._life.serial += 1
                serial, known = self._life.serial, oracle.allowed(f"note://{document}")
            there = len(known) == 1 and ABSENT not in known
            put(http, document, ABSENT if there and rng.random() < 0.2 else ("note", mark_of(document, serial)))

        return work

    def _searcher(self, mode: str) -> Callable[[httpx.Client], None]:
        def work(http: httpx.Client) -> None:
            self._ask(http, "search", "POST", "/v1/search", json={"query": "common", "mode": mode, "k": 10})

        return work

    def _friend(self, number: int) -> Callable[[httpx.Client], None]:
        user, life = f"u{number}", self._life

        def work(http: httpx.Client) -> None:
            answer, found = self._ask(http, "search", "POST", "/v1/search", json={"query": "common", "k": 3})
            if not answer.good or not found["hits"]:
                return
            key = (found["query_id"], found["hits"][0]["chunk_id"], "relevant", user)
            item = dict(zip(("query_id", "chunk_id", "kind", "user"), key, strict=True))
            with self._lock:
                life.feedback[key] = {None, 1}
            if self._ask(http, "feedback", "POST", "/v1/feedback", json={**item, "grade": 1})[0].good:
                with self._lock:
                    life.feedback[key] = {1}
                    self.acknowledged += 1

        return work

    def _onlooker(self) -> Callable[[httpx.Client], None]:
        def work(http: httpx.Client) -> None:
            self._ask(http, "livez", "GET", "/livez")
            self._ask(http, "readyz", "GET", "/readyz")

        return work


def counts(answers: Sequence[Answer]) -> dict[str, dict[str, int]]:
    """How many answers of each status, by what was asked; without /readyz, which is asked to say what is wrong."""
    found: dict[str, Counter[str]] = {}
    for answer in answers:
        if answer.what != "readyz":
            found.setdefault(answer.what, Counter())[str(answer.status)] += 1
    return {what: dict(sorted(found[what].items())) for what in sorted(found)}
