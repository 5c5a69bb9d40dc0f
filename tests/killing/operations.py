"""The operations that a kill interrupts: each prepares a life undisturbed, then begins, and is killed by its caller.

What each tells the life when it is acknowledged is what must be true from there on, whatever dies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from tests.killing.attempts import Attempt, BothAttempts, CommandAttempt, RequestsAttempt
from tests.killing.life import DEFAULT, Life
from tests.killing.oracle import ABSENT, Oracle, Version
from tests.killing.places import MODELS
from tests.killing.sending import document_requests, edit_files, feedback_requests

ALONE = "command, no server"  # what is killed
COMMAND, SERVER, BOTH = "command beside a server", "server", "both"
FIRST_FILES = 24
_COMPACTIONS = 3  # deployments that one command, begun again by servers that die, may make
_WAITING = ("candidate", "prepared")

Begin = Callable[[Life, Random, str], Attempt]


@dataclass(frozen=True, kw_only=True, slots=True)
class Operation:
    """Something that is done to a life, and what may be killed meanwhile."""

    name: str
    targets: Sequence[str]
    begin: Begin  # the life, a seeded RNG, what is going to be killed
    weight: int  # how often it is chosen
    usual_seconds: float  # what it takes, until it was measured


def _ingest(life: Life, rng: Random, target: str) -> Attempt:
    edit_files(life, rng, DEFAULT, life.place.documents, rng.randint(3, 14))
    return _mirror(life, DEFAULT, target)


def _first_ingest(life: Life, rng: Random, target: str) -> Attempt:
    """Into a data folder that is not there yet; later into a new collection of it."""
    if not life.begun:
        if DEFAULT not in life.files:
            edit_files(life, rng, DEFAULT, life.place.documents, FIRST_FILES)
        return _mirror(life, DEFAULT, target)
    for name in [name for name in life.oracles if name != DEFAULT]:
        _forget(life, name)
    life.documents += 1
    name = f"more-{life.documents}"
    life.oracles[name] = Oracle()
    edit_files(life, rng, name, life.place.more, FIRST_FILES)
    return _mirror(life, name, target)


def _forget(life: Life, collection: str) -> None:
    """Delete a collection, if it came to be, and the files that it mirrors."""
    there = {row["name"] for row in life.run("collections", "list")["collections"]}
    if collection in there:
        life.run("collections", "delete", collection, "--yes")
    for path in life.place.more.iterdir():
        path.unlink()
    for known in (life.oracles, life.files, life.serving):
        known.pop(collection, None)


def _mirror(life: Life, collection: str, target: str) -> Attempt:
    """Ingest the folder as it is now: acknowledged, the collection holds that, and nothing else of it."""
    oracle, wanted = life.oracles[collection], dict(life.files[collection])
    oracle.maybe(wanted)
    folder = life.place.documents if collection == DEFAULT else life.place.more
    child = life.start("ingest", str(folder), "--collection", collection)
    return CommandAttempt(child, lambda _said: oracle.sure(wanted))


def _documents(life: Life, rng: Random, target: str) -> Attempt:
    return RequestsAttempt(life.serve(), document_requests(life, rng, 16))


def _feedback(life: Life, rng: Random, target: str) -> Attempt:
    return RequestsAttempt(life.serve(), feedback_requests(life, rng, 16))


def _build(life: Life, rng: Random, target: str) -> Attempt:
    """Begin a candidate, or go on with one that a kill has interrupted."""
    waiting = _candidates(life)
    if waiting and rng.random() < 0.4:
        return _built(life, "--resume", str(rng.choice(sorted(waiting.values()))))
    for index in sorted(set(waiting.values())):
        life.run("index", "retire", str(index), "--yes")
    return _built(life, "--model", _model(life, rng))


def _built(life: Life, *how: str) -> Attempt:
    child = life.start("index", "build", *how)
    return CommandAttempt(child, lambda said: life.built.add(said["index"]["id"]))


def _candidates(life: Life) -> dict[int, int]:
    """The indexes of deployments that wait to be promoted, by deployment."""
    listed = life.run("deploy", "list")["deployments"]
    return {row["id"]: row["index"] for row in listed if row["state"] in _WAITING}


def _model(life: Life, rng: Random) -> str:
    """The fingerprint of a model that does not serve, added when it is new."""
    seed = rng.choice([seed for seed in range(1, MODELS) if life.models.get(seed, "") != _serving_model(life)])
    if seed not in life.models:
        said = life.run("models", "add", str(life.place.model(seed)))
        life.models[seed] = said["model"]["fingerprint"]
    return life.models[seed]


def _serving_model(life: Life) -> str:
    listed = life.run("deploy", "list")["deployments"]
    return next(str(row["encoder"]) for row in listed if row["state"] == "serving")


def _candidate(life: Life, rng: Random) -> int:
    """A deployment that can be promoted, its index built."""
    waiting = _candidates(life)
    if not waiting:
        life.run("index", "build", "--model", _model(life, rng))
        waiting = _candidates(life)
    number, index = max(waiting.items())
    life.run("index", "build", "--resume", str(index))
    return number


def _compact(life: Life, rng: Random, target: str) -> Attempt:
    """The index that serves written anew, by a deployment of its own; a killed server's job is the next server's."""
    newest = max(life.deployments())
    new = range(newest + 1, newest + 1 + _COMPACTIONS)
    life.serving[DEFAULT] = {*life.serving[DEFAULT], *new, *_compactions_under_way(life)}

    def acknowledge(said: Mapping[str, Any]) -> None:
        if "deployment" in said:  # otherwise it was compacted already, by a job of before
            life.serving[DEFAULT] = {int(said["deployment"])}

    # A server that has just died still looks alive: the command leaves the work to it, and then says that it is gone.
    return CommandAttempt(life.start("index", "compact", "--yes"), acknowledge, may_fail=True)


def _compactions_under_way(life: Life) -> set[int]:
    """Deployments left by a compaction that was killed, of the index that serves: the next one goes on with them."""
    with life.place.look() as look:
        rows = look(
            "SELECT d.id FROM deployment d JOIN search_index i ON i.id = d.index_id "
            "JOIN deployment now ON now.index_id = i.copied_from AND now.state = 'serving' "
            "WHERE d.state IN ('candidate', 'prepared')"
        )
    return {int(number) for (number,) in rows}


def _erase(life: Life, rng: Random, target: str) -> Attempt:
    """Documents, or what a user has said, for good."""
    users = sorted({user for _query, _chunk, _kind, user in life.feedback})
    if users and rng.random() < 0.5:
        user = rng.choice(users)
        return _erased(life, [key for key in life.feedback if key[3] == user], {}, "users", "erase", user)
    present = life.oracles[DEFAULT].present()
    uris = rng.sample(present, min(len(present), rng.randint(1, 4)))
    about = [key for key in life.feedback if life.chunks[key[1]] in uris]
    return _erased(life, about, dict.fromkeys(uris, ABSENT), "documents", "erase", *uris)


def _erased(
    life: Life, feedback: Sequence[tuple[str, ...]], documents: Mapping[str, Version], *command: str
) -> CommandAttempt:
    """Acknowledged, the rows and the documents are gone; before that, each of them may be."""
    oracle, life.erases = life.oracles[DEFAULT], True
    oracle.maybe(documents)
    life.feedback.update({key: life.feedback[key] | {None} for key in feedback})

    def acknowledge(_said: Mapping[str, Any]) -> None:
        oracle.sure(documents)
        life.feedback.update({key: {None} for key in feedback})

    return CommandAttempt(life.start(*command, "--yes"), acknowledge)


def _promote(life: Life, rng: Random, target: str) -> Attempt:
    return _switch(life, rng, target, _candidate(life, rng), "promote")


def _roll_back(life: Life, rng: Random, target: str) -> Attempt:
    previous = _previous(life)
    if not previous:
        life.run("deploy", "promote", str(_candidate(life, rng)))
        life.serving[DEFAULT] = {number for number, state in life.deployments().items() if state == "serving"}
        previous = _previous(life)
    return _switch(life, rng, target, rng.choice(previous), "rollback")


def _previous(life: Life) -> list[int]:
    return [number for number, state in life.deployments().items() if state == "previous"]


def _switch(life: Life, rng: Random, target: str, number: int, command: str) -> Attempt:
    """Make another deployment serve, now and then while documents come in."""
    life.serving[DEFAULT] = {*life.serving[DEFAULT], number}

    def acknowledge(said: Mapping[str, Any]) -> None:
        life.serving[DEFAULT] = {int(said["serving"])}

    requests = document_requests(life, rng, 12) if target != ALONE and rng.random() < 0.5 else []
    may_fail = target in (SERVER, BOTH)  # a server that is being prepared and dies is a reason not to switch
    attempt = CommandAttempt(life.start("deploy", command, str(number)), acknowledge, may_fail=may_fail)
    return BothAttempts(attempt, RequestsAttempt(life.serve(), requests)) if requests else attempt


_ANY = (ALONE, COMMAND, SERVER, BOTH)
FIRST = Operation(name="first ingest", targets=_ANY, begin=_first_ingest, weight=2, usual_seconds=1.2)
OPERATIONS = (
    FIRST,
    Operation(name="re-ingest", targets=_ANY, begin=_ingest, weight=6, usual_seconds=0.8),
    Operation(name="documents over HTTP", targets=(SERVER,), begin=_documents, weight=4, usual_seconds=0.6),
    Operation(name="index build", targets=_ANY, begin=_build, weight=4, usual_seconds=0.6),
    Operation(name="compaction", targets=_ANY, begin=_compact, weight=4, usual_seconds=0.8),
    Operation(name="promotion", targets=_ANY, begin=_promote, weight=4, usual_seconds=0.5),
    Operation(name="rollback", targets=_ANY, begin=_roll_back, weight=3, usual_seconds=0.4),
    Operation(name="erasure", targets=_ANY, begin=_erase, weight=3, usual_seconds=0.5),
    Operation(name="feedback", targets=(SERVER,), begin=_feedback, weight=3, usual_seconds=0.5),
)
