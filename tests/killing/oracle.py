"""What must be true of the documents, kept in plain dictionaries: texts that were sent enter, faults in what is found
leave. It knows nothing of the product, and imports nothing of it.

A text is told by its marks: words of which every paragraph has one that no other paragraph ever had. A `Version` is a
title and the marks in their order; the empty one means that there is no document.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

Version = tuple[str, ...]  # (title, mark, mark, ...)
ABSENT: Version = ()

EVERYWHERE = "common"  # a word of every paragraph
_MARK = re.compile(r"\bm\d{4}x\d{5}\b")
_FILLER = (
    "and then the keeper of the light wrote down in his book what the tide had brought to the shore during that day, "
    "and which of the ships had passed"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """Something that must not be."""

    kind: str  # "loss", "duplicate", "resurrection", "mixture", "unusable", "other"
    about: str  # a URI, a deployment, a row
    words: str  # what was found, and what should have been

    def __str__(self) -> str:
        return f"{self.kind}: {self.about}: {self.words}"


def name_of(document: int) -> str:
    """The word that only this document has, in every paragraph of every version."""
    return f"d{document:04d}"


def mark_of(document: int, serial: int) -> str:
    """A word that only one paragraph of one document has."""
    return f"m{document:04d}x{serial:05d}"


def text_of(document: int, version: Version) -> str:
    """The text of a version: a paragraph for each mark, full of the name, so that it leads a dense search as well."""
    names = " ".join([name_of(document)] * 4)
    return "\n\n".join(f"{names} {mark} {EVERYWHERE} {_FILLER} {names}." for mark in version[1:])


def marks_in(text: str) -> list[str]:
    """The marks of a piece of text, in their order."""
    return _MARK.findall(text)


def version_of(pieces: Iterable[tuple[str, int, str]]) -> Version:
    """The version that the found pieces (title, position, text) of one document make up together."""
    pieces = sorted(pieces, key=lambda piece: piece[1])
    titles = "|".join(sorted({title for title, _, _ in pieces}))
    return (titles, *(mark for _, _, text in pieces for mark in marks_in(text))) if pieces else ABSENT


@dataclass(kw_only=True, slots=True)
class _Expected:
    """What one URI may hold."""

    allowed: set[Version] = field(default_factory=lambda: {ABSENT})  # once the index has caught up
    lagging: set[Version] = field(default_factory=lambda: {ABSENT})  # before that


class Oracle:
    """The documents of a collection as they must be."""

    def __init__(self) -> None:
        self._documents: dict[str, _Expected] = {}
        self._history: dict[str, list[Version]] = {}
        self.touched: set[str] = set()  # URIs that were sent with something else than they had, since it was settled
        self._together: list[dict[str, Version]] = []  # what one request sends is stored together, or not at all

    def maybe(self, versions: Mapping[str, Version], *, together: bool = False) -> None:
        """These versions were sent: from now on they may be there."""
        for uri, version in versions.items():
            expected = self._documents.setdefault(uri, _Expected())
            self.touched |= {uri} if expected.allowed != {version} else set()
            expected.allowed.add(version)
            expected.lagging.add(version)
            if version and version not in (known := self._history.setdefault(uri, [])):
                known.append(version)
        if together:
            self._together.append(dict(versions))

    def sure(self, versions: Mapping[str, Version]) -> None:
        """These versions, sent before, were acknowledged: nothing else may be there."""
        for uri, version in versions.items():
            self._documents[uri].allowed = {version}
            if version == ABSENT:  # a deletion counts at once, however far an index lags
                self._documents[uri].lagging = {ABSENT}
        self._together = [group for group in self._together if group != dict(versions)]

    def settle(self, found: Mapping[str, Version]) -> None:
        """What was found is the state from here on: nothing is under way any more."""
        for uri, expected in self._documents.items():
            expected.allowed = {found.get(uri, ABSENT)}
            expected.lagging = {found.get(uri, ABSENT)}
        self._together.clear()
        self.touched.clear()

    def allowed(self, uri: str) -> set[Version]:
        """What a URI may hold once the index has caught up."""
        return self._documents[uri].allowed if uri in self._documents else {ABSENT}

    def history(self, uri: str) -> list[Version]:
        """The versions that a URI has ever been sent with, oldest first."""
        return self._history.get(uri, [])

    def uris(self) -> list[str]:
        """Every URI that was ever sent."""
        return sorted(self._documents)

    def present(self) -> list[str]:
        """URIs that must be there."""
        return [uri for uri in self.uris() if ABSENT not in self.allowed(uri)]

    def judge(self, found: Mapping[str, Version], *, lagging: bool = False) -> list[Fault]:
        """What is wrong with the documents found; `lagging`: the index has not caught up yet."""
        faults = []
        for uri in sorted({*found, *self._documents}):
            expected = self._documents.get(uri, _Expected())
            may = expected.lagging | expected.allowed if lagging else expected.allowed
            there = found.get(uri, ABSENT)
            if there not in may:
                words = f"found {_shown([there])}, not {_shown(may)}"
                faults.append(Fault(kind=_kind(there, may, self.history(uri)), about=uri, words=words))
        return faults if lagging else [*faults, *self._torn(found)]

    def _torn(self, found: Mapping[str, Version]) -> list[Fault]:
        """Requests of which a part is there and a part is not."""
        faults = []
        for group in self._together:
            told = {u: v for u, v in group.items() if len(self._documents[u].allowed) == 2}  # old and new differ
            there = [uri for uri, version in told.items() if found.get(uri, ABSENT) == version]
            if there and len(there) < len(told):
                words = f"of one request, these are stored, and the others are not: {', '.join(sorted(told))}"
                faults.append(Fault(kind="mixture", about=", ".join(sorted(there)), words=words))
        return faults


def _kind(there: Version, may: set[Version], history: Sequence[Version]) -> str:
    """In one word, what is wrong with a document that is not as it may be."""
    if any(count > 1 for count in Counter(there[1:]).values()):
        return "duplicate"
    if may == {ABSENT}:
        return "resurrection"
    part = any(set(there[1:]) < set(version[1:]) for version in may)
    return "loss" if part or there in history else "mixture"  # an older version: the newer one is lost


def _shown(versions: Iterable[Version]) -> str:
    return " or ".join(sorted(" ".join(version) or "nothing" for version in versions))
