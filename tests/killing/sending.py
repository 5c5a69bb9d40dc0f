"""What a life is asked to take: files to mirror, documents over HTTP, searches and feedback, drawn from a seeded RNG.

Everything that is sent is told to the life's oracle before it is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random

from tests.killing.attempts import Request
from tests.killing.life import DEFAULT, Life, Server
from tests.killing.oracle import ABSENT, Version, mark_of, name_of, text_of

_NOTES = "note://"  # documents that come over HTTP
_MOST = 40  # documents of a kind that a life has at a time
_PARAGRAPHS = (1, 4)
_KINDS = ("relevant", "irrelevant", "click", "cited")


def number_of(uri: str) -> int:
    """The number of a document, by its URI."""
    return int(uri.rsplit("/", 1)[-1].partition(".")[0])


def changes(
    life: Life, rng: Random, now: Mapping[str, Version], count: int, name: Callable[[int], tuple[str, str]]
) -> dict[str, Version]:
    """What to change: so many documents that are new, edited, deleted, or put back to what they said once.

    `now` is what there is, by URI; `name` gives URI and title of a document's number.
    """
    wanted: dict[str, Version] = {}
    for _ in range(count):
        present = [uri for uri in sorted(now) if now[uri] != ABSENT and uri not in wanted]
        gone = [uri for uri in sorted(now) if now[uri] == ABSENT and uri not in wanted]
        kind = rng.choices(("new", "edit", "delete", "back"), (3, 4, 2, 4))[0]
        if len(present) < 5 or (kind == "new" and len(present) < _MOST):
            life.documents += 1
            uri, title = name(life.documents)
            wanted[uri] = (title, *(_mark(life, uri) for _ in range(rng.randint(*_PARAGRAPHS))))
        elif kind == "back":
            uri = rng.choice([*present, *gone])
            wanted[uri] = rng.choice(life.history[uri])
        elif kind == "delete":
            wanted[rng.choice(present)] = ABSENT
        else:
            uri = rng.choice(present)
            wanted[uri] = _edited(life, rng, uri, now[uri])
    for uri, version in wanted.items():
        life.history.setdefault(uri, []).extend([version] if version else [])
    return wanted


def _mark(life: Life, uri: str) -> str:
    life.serial += 1
    return mark_of(number_of(uri), life.serial)


def _edited(life: Life, rng: Random, uri: str, version: Version) -> Version:
    """The version with a paragraph replaced, added, left out, or all of them replaced."""
    title, *marks = version
    how = rng.choice(("replace", "add", "remove", "rewrite"))
    place = rng.randrange(len(marks))
    if how == "add":
        marks.insert(place, _mark(life, uri))
    elif how == "remove" and len(marks) > 1:
        del marks[place]
    elif how == "rewrite":
        marks = [_mark(life, uri) for _ in marks]
    else:
        marks[place] = _mark(life, uri)
    return (title, *marks)


def edit_files(life: Life, rng: Random, collection: str, folder: Path, count: int) -> None:
    """Change files of the folder that a collection mirrors."""

    def name(number: int) -> tuple[str, str]:
        path = folder / f"{number:05d}{rng.choice(('.txt', '.md'))}"
        return path.as_uri(), path.stem

    files = life.files.setdefault(collection, {})
    for uri, version in changes(life, rng, files, count, name).items():
        files[uri] = version
        path = folder / uri.rsplit("/", 1)[-1]
        if version == ABSENT:
            path.unlink()
        else:
            path.write_text(text_of(number_of(uri), version), encoding="utf-8")


def document_requests(life: Life, rng: Random, count: int) -> list[Request]:
    """Puts and deletions over HTTP, one after the other, some of several documents."""
    now = {uri: _only(life, uri) for uri in life.oracles[DEFAULT].uris() if uri.startswith(_NOTES)}
    requests: list[Request] = []
    for _ in range(count):
        wanted = changes(life, rng, now, rng.choice((1, 1, 1, 2, 4)), lambda number: (f"{_NOTES}{number}", "note"))
        deleted = [uri for uri, version in wanted.items() if version == ABSENT]
        put = {uri: _retitled(rng, version) for uri, version in wanted.items() if version != ABSENT}
        requests += [_deletion(life, uri) for uri in deleted if now.get(uri)]
        if put:
            requests.append(_put(life, put, wait=rng.random() < 0.3))
        now |= dict.fromkeys(deleted, ABSENT) | put
    return requests


def _only(life: Life, uri: str) -> Version:
    (version,) = life.oracles[DEFAULT].allowed(uri)
    return version


def _retitled(rng: Random, version: Version) -> Version:
    """Now and then another title: the same text in new clothes."""
    return (rng.choice(("note", "letter", "list")), *version[1:]) if rng.random() < 0.3 else version


def _put(life: Life, versions: Mapping[str, Version], *, wait: bool) -> Request:
    documents = [
        {"uri": uri, "title": version[0], "text": text_of(number_of(uri), version)} for uri, version in versions.items()
    ]

    def send(server: Server) -> None:
        life.oracles[DEFAULT].maybe(versions, together=True)
        server.call("POST", "/v1/documents", json={"documents": documents, "wait": wait})
        life.oracles[DEFAULT].sure(versions)

    return send


def _deletion(life: Life, uri: str) -> Request:
    def send(server: Server) -> None:
        life.oracles[DEFAULT].maybe({uri: ABSENT})
        server.call("DELETE", "/v1/documents", params={"uri": uri})
        life.oracles[DEFAULT].sure({uri: ABSENT})

    return send


def feedback_requests(life: Life, rng: Random, count: int) -> list[Request]:
    """Searches, and what somebody thinks of their hits: single words, several at once, and words taken back."""
    names = [name_of(number_of(uri)) for uri in life.oracles[DEFAULT].present()]
    return [_feedback(life, Random(rng.random()), rng.choice(names)) for _ in range(count)]


def _feedback(life: Life, rng: Random, word: str) -> Request:
    def send(server: Server) -> None:
        answer = server.search(word, k=5)
        hits = rng.sample(answer["hits"], min(len(answer["hits"]), rng.choice((1, 1, 3))))
        keys: list[tuple[str, ...]] = [
            (answer["query_id"], hit["chunk_id"], rng.choice(_KINDS), f"u{rng.randrange(9)}") for hit in hits
        ]
        life.chunks.update({hit["chunk_id"]: hit["document"]["uri"] for hit in hits})
        known = sorted(key for key, grades in life.feedback.items() if None not in grades)
        if known and rng.random() < 0.3:
            keys.append(rng.choice(known))
        words = {key: rng.randrange(4) for key in keys}
        for key, grade in words.items():
            life.feedback[key] = life.feedback.get(key, {None}) | {grade}
        life.feedback_together = set(words)
        items = [
            {"query_id": query, "chunk_id": chunk, "kind": kind, "user": user, "grade": grade}
            for (query, chunk, kind, user), grade in words.items()
        ]
        server.call("POST", "/v1/feedback", json={"items": items} if len(items) > 1 else items[0])
        life.feedback.update({key: {grade} for key, grade in words.items()})
        life.feedback_together = set()

    return send
