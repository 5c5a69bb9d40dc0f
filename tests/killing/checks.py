"""What must be true once a life has been restarted: documents, deployments, feedback and indexes are looked at as a
user sees them, and everything that is wrong leaves as faults.

Afterwards what was found is the state from which the life goes on: whatever was in flight has happened, or never will.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from random import Random

import httpx

from tests.killing.life import DEFAULT, Life, Refused, documents_in
from tests.killing.oracle import ABSENT, Fault, Version, name_of
from tests.killing.processes import Stuck
from tests.killing.sending import number_of

Found = dict[str, Version]  # by URI

_MODES = ("lexical", "dense")
_BEGUN = 5  # documents with which a life can go on to other operations than its first ingest
_OTHERS = 8  # documents a round that it has not touched, and that are asked for by their word all the same
_K = 50  # more than one document has paragraphs


def check(life: Life, rng: Random) -> tuple[list[Fault], str]:
    """Everything that is wrong, and what verifying came to: "clean", "mended" or "failed"."""
    faults: list[Fault] = []
    try:
        faults += _at_once(life)
        life.finish_jobs()
        if life.erases:
            life.finish_erasures()
        found, wrong = _documents(life, rng)
        faults += [*wrong, *_serving(life), *_feedback(life)]
        verified, words = _verify(life)
        if verified == "failed":
            faults.append(Fault(kind="other", about="verify", words=words))
        if verified == "mended":
            found, wrong = _documents(life, rng)
            faults += wrong
        _settle(life, found)
    except (Refused, Stuck, httpx.HTTPError) as error:
        fault = Fault(kind="unusable", about=type(error).__name__, words=str(error))
        return [*faults, fault], _verify(life)[0]
    return faults, verified


def _at_once(life: Life) -> list[Fault]:
    """What searches show while the index may still lag: old or new, never neither."""
    faults = []
    for collection, oracle in life.oracles.items():
        if life.has(collection):
            for mode in _MODES:
                faults += oracle.judge(life.found(mode, collection), lagging=True)
    return faults


def _documents(life: Life, rng: Random) -> tuple[dict[str, Found], list[Fault]]:
    """What every collection holds once its indexes have caught up, and what is wrong with it."""
    found: dict[str, Found] = {}
    faults: list[Fault] = []
    for collection, oracle in life.oracles.items():
        found[collection], wrong = _in_collection(life, rng, collection) if life.has(collection) else ({}, [])
        faults += [*oracle.judge(found[collection]), *wrong]
    return found, faults


def _in_collection(life: Life, rng: Random, collection: str) -> tuple[Found, list[Fault]]:
    """All documents by a search for all of them; those of this round, and some others, by the word that only they
    have. With them, where the ways differ."""
    oracle = life.oracles[collection]
    life.catch_up(collection)
    found, dense = life.found("lexical", collection), life.found("dense", collection)
    faults = [] if dense == found else oracle.judge(dense) or [_other(collection, f"lexical {found}, dense {dense}")]
    others = sorted({*oracle.uris()} - oracle.touched)
    for uri in [*sorted(oracle.touched), *rng.sample(others, min(_OTHERS, len(others)))]:
        faults += _by_its_word(life, collection, uri, found.get(uri, ABSENT))
    return found, faults


def _settle(life: Life, found: Mapping[str, Found]) -> None:
    """What was found is the state from here on."""
    for collection, oracle in life.oracles.items():
        oracle.settle(found[collection])
    life.begun = life.begun or len(life.oracles[DEFAULT].present()) >= _BEGUN


def _by_its_word(life: Life, collection: str, uri: str, version: Version) -> Iterator[Fault]:
    """What a search for a document's own word finds of it must be what was found among all."""
    word, server = name_of(number_of(uri)), life.serve()
    wanted = {uri: version} if version else {}
    lexical = server.search(word, "lexical", collection=collection, k=_K)["hits"]
    if documents_in(lexical) != wanted:
        yield _other(uri, f"lexical search for {word}: {documents_in(lexical)}, among all: {wanted}")
    if version:
        dense = server.search(word, "dense", collection=collection, k=len(lexical) or 1)["hits"]
        if documents_in(dense) != wanted:
            yield _other(uri, f"dense search for {word}: {documents_in(dense)}, among all: {wanted}")


def _serving(life: Life) -> Iterator[Fault]:
    """Exactly one deployment serves a collection, one that may, and it answers."""
    for collection in life.oracles:
        if not life.has(collection):
            continue
        serving = {number for number, state in life.deployments(collection).items() if state == "serving"}
        may = life.serving.get(collection) or serving
        answered = life.serve().search("keeper", collection=collection, k=1)["deployment"]["id"]
        if len(serving) != 1 or not serving <= may or answered not in serving:
            words = f"deployments {serving} serve, {answered} answered, one of {may} should"
            yield Fault(kind="unusable", about=collection, words=words)
        life.serving[collection] = {answered}


def _feedback(life: Life) -> Iterator[Fault]:
    """Every acknowledged word is stored once, with its grade; what one request sent is stored together."""
    if not life.has(DEFAULT):
        return
    with life.place.look() as look:
        rows = look('SELECT query_id, chunk_id, kind, "user", grade FROM feedback')
    stored = {tuple(map(str, row[:4])): row[4] for row in rows}
    for key, count in Counter(tuple(map(str, row[:4])) for row in rows).items():
        if count > 1:
            yield Fault(kind="duplicate", about=f"feedback {key}", words=f"{count} rows")
    for key, grades in life.feedback.items():
        if stored.get(key) not in grades:
            yield Fault(kind="loss", about=f"feedback {key}", words=f"{stored.get(key)}, not one of {grades}")
    for key in stored.keys() - life.feedback.keys():
        yield Fault(kind="other", about=f"feedback {key}", words="nobody has said it")
    fresh = {key for key in life.feedback_together if None in life.feedback[key]}
    if 0 < len(fresh & stored.keys()) < len(fresh):
        yield Fault(kind="mixture", about="feedback", words=f"of one request a part is stored: {fresh & stored.keys()}")
    life.feedback = {key: {grade} for key, grade in stored.items()}
    life.feedback_together = set()
    yield from _said_again(life)


def _said_again(life: Life) -> Iterator[Fault]:
    """A word that is stored is known when it is said again, and so is the query that it is about."""
    for (query, chunk, kind, user), (grade,) in sorted(life.feedback.items())[:1]:
        item = {"query_id": query, "chunk_id": chunk, "kind": kind, "user": user, "grade": grade}
        if (new := life.serve().call("POST", "/v1/feedback", json=item)["new"]) != 0:
            yield Fault(kind="duplicate", about=f"feedback {item}", words=f"{new} new, said again")


def _verify(life: Life) -> tuple[str, str]:
    """Compare every index with the documents, and mend what is wrong."""
    first = life.start("verify")
    if first.finish() == 0:
        return "clean", ""
    mending = life.start("verify", "--repair")
    mended = mending.finish() == 0 and life.start("verify").finish() == 0
    return ("mended" if mended else "failed"), f"{first.said} {first.errors[-500:]} {mending.errors[-500:]}"


def _other(about: str, words: str) -> Fault:
    return Fault(kind="other", about=about, words=words)
