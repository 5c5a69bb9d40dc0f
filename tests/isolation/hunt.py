"""A hunt for leaks: a served world and a number of probes enter, what was asked and what leaked leaves."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from random import Random

import httpx
from starlette.routing import BaseRoute

from tests.isolation.oracle import Oracle
from tests.isolation.probes import PROBES, Asked, Prober
from tests.isolation.world import World

OPEN = frozenset({"GET /livez", "GET /readyz", "GET /openapi.json"})  # for who has no key
FREQUENT = ("POST /v1/search", "GET /v1/documents", "GET /v1/documents/{document_id}", "POST /v1/feedback")


@dataclass(kw_only=True, slots=True)
class Found:
    """What came of one endpoint."""

    answers: Counter[int] = field(default_factory=Counter)  # by hundred of the status
    leaks: list[str] = field(default_factory=list)

    @property
    def probes(self) -> int:
        return sum(self.answers.values())


def endpoints(routes: Iterable[BaseRoute]) -> list[str]:
    """What can be asked of an app, as PROBES names it."""
    return [
        f"{method} {path}" for path, route in flat(routes) for method in sorted(_methods(route)) if method != "HEAD"
    ]


def flat(routes: Iterable[BaseRoute]) -> Iterator[tuple[str, BaseRoute]]:
    """Every route with its path, those of included routers as well."""
    for route in routes:
        included = getattr(route, "original_router", None)
        if included is None:
            yield str(getattr(route, "path", "")), route
        else:
            yield from flat(included.routes)


def _methods(route: BaseRoute) -> Iterable[str]:
    methods: Iterable[str] | None = getattr(route, "methods", None)
    return methods or ("ANY",)  # of what no probe knows


def hunt(world: World, url: str, names: list[str], *, probes: int, seed: int, threads: int = 4) -> dict[str, Found]:
    """Ask so often, of all endpoints, several at a time. Raises KeyError for an endpoint that has no probe."""
    found = {name: Found() for name in names}
    chosen = {name: PROBES[name] for name in names}
    lock, failures = threading.Lock(), list[BaseException]()

    def ask(number: int) -> None:
        draw = Random(f"{seed}/prober/{number}")
        order = [*names, *(name for name in FREQUENT if name in chosen)]
        try:
            with httpx.Client(base_url=url, timeout=60) as client:
                for turn in range(number, probes, threads):
                    name = order[(turn // threads) % len(order)]
                    asked = chosen[name](Prober(world, client, draw, draw.choice(world.holders)))
                    leaks = [*_judged(world.oracle, name, asked)]
                    with lock:
                        found[name].answers[asked.response.status_code // 100] += 1
                        found[name].leaks += leaks
        except BaseException as failure:  # the others go on, and whoever waits hears of it
            failures.append(failure)

    every = [threading.Thread(target=ask, args=(number,)) for number in range(threads)]
    for thread in every:
        thread.start()
    for thread in every:
        thread.join()
    if failures:
        raise failures[0]
    return found


def _judged(oracle: Oracle, name: str, asked: Asked) -> Iterator[str]:
    """What an answer tells that it should not."""
    response = asked.response
    if asked.caller is None and name not in OPEN and response.status_code != 401:
        yield f"{response.status_code} without a good key"
    if response.status_code >= 500 and response.status_code != 503:
        yield f"it failed: {response.text[:200]}"
    told = " ".join(
        (response.text, *(f"{key}: {value}" for key, value in response.headers.items() if key != "x-request-id"))
    )
    told = told.replace(response.headers.get("x-request-id", "-"), "")
    yield from asked.leaks
    yield from oracle.leaks(told, asked.sent, asked.caller, asked.window)
