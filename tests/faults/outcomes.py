"""What a fault comes to: a life, something to break and something to mend enter, an outcome leaves, as JSON.

While clients are at work something breaks, stays broken for a while, and is mended; then everything must be as the
clients were told, without anybody doing anything.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from random import Random
from typing import Any

import httpx

from tests.faults.clients import Answer, Clients, counts
from tests.killing.checks import check
from tests.killing.life import DEFAULT, Life, Refused
from tests.killing.oracle import name_of, text_of
from tests.killing.processes import PATIENCE_SECONDS, Stuck

WARM_SECONDS, AFTER_SECONDS = 0.7, 0.4  # that clients work before the fault, and once all is well again
_LOOK_SECONDS = 0.05
_LONGEST, _DIFFERENT = 300, 5  # characters of a text, and how many of them are kept
_PROBE = 900  # the number of the document by which one sees that everything works

Break = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What clients saw, and what was left."""

    fault: str
    configuration: str
    answers: dict[str, dict[str, int]]  # by what was asked until all was well, by status; status 0: none came
    wrong: Sequence[str]  # answers that nobody should get
    longest_seconds: float
    said: Sequence[str]  # by /readyz, meanwhile
    recovered_seconds: float | None  # from the mending until everything worked; None: never
    acknowledged: int  # changes and feedback, in all
    faults: Sequence[str]  # what was lost, or is otherwise not as it should be
    verified: str  # "clean", "mended" or "failed"
    note: str = ""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def noted(self, note: str) -> Outcome:
        """The same, with a word on what was done."""
        return replace(self, note=note)

    @property
    def good(self) -> bool:
        return not self.wrong and not self.faults and self.recovered_seconds is not None and self.verified != "failed"


def begin(life: Life) -> None:
    """A server with a document that is found. Raises Stuck when that never comes."""
    if not life.begun:
        life.serve().call("POST", "/v1/collections", json={"name": DEFAULT})
        life.begun = True
    took, words = recovered(life, time.monotonic())
    if took is None:
        raise Stuck(f"a new server does not work: {words}")


def probe(life: Life) -> None:
    """See that everything works: a change is stored and found, by both sides, and feedback is taken.

    Raises Refused, Stuck, and what httpx raises.
    """
    server, uri, word = life.serve(), f"note://{_PROBE}", name_of(_PROBE)
    life.serial += 1
    version = ("probe", f"m{_PROBE:04d}x{life.serial:05d}")
    life.oracles[DEFAULT].maybe({uri: version})
    text = text_of(_PROBE, version)
    document = {"uri": uri, "title": version[0], "text": text}
    server.call("POST", "/v1/documents", json={"documents": [document], "wait": True})
    life.oracles[DEFAULT].sure({uri: version})
    for mode in ("lexical", "dense"):
        found = server.search(word, mode, k=1)
        if [hit["text"] for hit in found["hits"]] != [text]:
            raise Stuck(f"a {mode} search does not find {text!r}")
    key = (found["query_id"], found["hits"][0]["chunk_id"], "click", "probe")
    item = dict(zip(("query_id", "chunk_id", "kind", "user"), key, strict=True))
    life.feedback[key] = {None}
    server.call("POST", "/v1/feedback", json=item)
    server.call("GET", "/readyz")


def recovered(life: Life, since: float) -> tuple[float | None, str]:
    """Seconds from `since` until everything works, and what did not work last."""
    until, words = time.monotonic() + PATIENCE_SECONDS, ""
    while time.monotonic() < until:
        if life.server is not None and (code := life.server.child.wait(0)) is not None:
            return None, f"the server has ended with {code}: {life.server.child.errors[-_LONGEST:]}"
        try:
            probe(life)
        except (Refused, Stuck, httpx.HTTPError) as error:
            words = f"{type(error).__name__}: {error}"
        else:
            return time.monotonic() - since, words
        time.sleep(_LOOK_SECONDS)
    return None, words


def outcome(
    life: Life,
    fault: str,
    broken: Break,
    seconds: float,
    *,
    mend: Callable[[], object] = lambda: None,
    allowed: Callable[[Answer], bool] = lambda answer: answer.fair,
    note: str = "",
) -> Outcome:
    """Break something for so long while clients are at work, and see what becomes of it.

    `mend` is what somebody has to do afterwards; `allowed` says which answers a client may get meanwhile.
    """
    begin(life)
    with Clients(life) as clients:
        time.sleep(WARM_SECONDS)
        begun = time.monotonic()
        with broken():
            time.sleep(seconds)
        ended = time.monotonic()
        mend()
        took, words = recovered(life, ended)
        well = time.monotonic()
        time.sleep(AFTER_SECONDS)
    answers = clients.during(begun, well)
    wrong = [answer for answer in answers if not allowed(answer)]
    wrong += [answer for answer in clients.during(well, time.monotonic()) if not answer.good]
    alive = [answer for answer in answers if answer.what == "livez" and answer not in wrong]
    wrong += [answer for answer in alive if answer.status and not answer.good]  # a process that is there is alive
    found, verified = check(life, Random(0)) if took is not None else ([f"unusable: {words}"], "failed")
    return Outcome(
        fault=fault,
        configuration=life.place.configuration,
        answers=counts(answers),
        wrong=_told(f"{answer.what} {answer.status} {answer.words}" for answer in wrong),
        longest_seconds=max((answer.seconds for answer in answers), default=0.0),
        said=_told(answer.words for answer in answers if answer.what == "readyz" and not answer.good),
        recovered_seconds=took,
        acknowledged=clients.acknowledged,
        faults=[str(one) for one in found],
        verified=verified,
        note=note,
    )


def _told(words: Iterable[str]) -> list[str]:
    """Each once, the most frequent first, with how often it was said."""
    most = Counter(" ".join(text.split())[:_LONGEST] for text in words).most_common(_DIFFERENT)
    return [f"{times} x {text}" for text, times in most]
