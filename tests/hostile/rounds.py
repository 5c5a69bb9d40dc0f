"""One round: a folder of hostile files with good ones among them goes through the real pipeline, and all is checked.

Every file ends in a state with a reason in words; no file takes longer, and no child more memory, than the limits say;
every good file is found by a word that it alone holds. What is not so becomes a fault, told in words.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from sqlalchemy import select

from ingest.parsers.file_bytes import open_regular
from ingest.parsers.limits import ParseLimits
from ingest.pipeline import IngestReport, ingest
from ingest.sources import Skipped, path_to_uri, walk
from nvr_rag import documents
from nvr_rag.db import tables as t
from nvr_rag.encoders.base import Vectors
from nvr_rag.errors import ParseFailed
from nvr_rag.settings import IngestSettings, Settings
from nvr_rag.testing import HashEncoder
from nvr_rag.types import Query
from nvr_rag.workspace import Workspace
from tests.hostile import places
from tests.hostile.mutations import MUTATIONS, mutated
from tests.hostile.watching import Watch
from tests.unit.ingest import documents as made
from tests.unit.ingest import files

SECONDS, MEMORY_MB, FILE_MB = 5.0, 512, 8
SLACK_SECONDS = 3.0  # to kill a child and start another one
SLACK_MB = 160  # code of the parser that is mapped, not taken
PARENT_MB = 1000  # in a round: what one document's text and its chunks take
KINDS = (*MUTATIONS, "odd name", "special", "changing", "feed")
_OF_CONTAINERS = ("bomb", "xml bomb", "nested", "member missing", "damaged inside")
_PLACES = {"odd name": places.odd_name, "special": places.special, "changing": places.changing}
_REASON_CHARACTERS = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What became of one hostile file."""

    round: int
    kind: str
    name: str
    state: str  # ready, failed, passed over; "" = nobody knows, which is a fault
    reason: str = ""
    seconds: float = 0.0  # parsing
    child_mb: float = 0.0  # the most memory of the process that parsed it
    faults: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """What one round showed."""

    round: int
    outcomes: Sequence[Outcome]
    good: int  # files beside them, all of which must be found
    seconds: float
    parent_mb: float
    faults: Sequence[str]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class QuickEncoder(HashEncoder):
    """Takes no time: a text's vector is drawn from its checksum, so it finds by words only."""

    def _encode(self, texts: Sequence[str]) -> Vectors:
        seeds = np.array([[zlib.crc32(text.encode("utf-8", "replace"))] for text in texts], np.float64)
        vectors = np.sin(seeds * np.arange(1, self.spec.dimension + 1)).astype(np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def settings(home: Path) -> Settings:
    limits = IngestSettings(
        max_file_bytes=FILE_MB * 2**20, parse_timeout_seconds=SECONDS, parse_memory_bytes=MEMORY_MB * 2**20
    )
    return Settings(home=home, ingest=limits)


@dataclass(kw_only=True, slots=True)
class _Set:
    """The files of a round."""

    folder: Path
    hostile: dict[Path, str] = field(default_factory=dict)  # by path, what was done to it
    good: dict[Path, str] = field(default_factory=dict)  # by path, the word that it alone holds
    meanwhile: dict[Path, places.Meanwhile] = field(default_factory=dict)
    feeds: list[Path] = field(default_factory=list)


def play(home: Path, folder: Path, bases: Sequence[tuple[str, bytes]], *, number: int, size: int, seed: int) -> Round:
    """Make the files of this round, ingest them, look at what became of them; the folder is removed if all is well."""
    found = _made(folder, bases, number, size, Random(f"{seed}/{number}"))
    passed_over = {entry.path: entry.reason for entry in walk(folder) if isinstance(entry, Skipped)}
    faults: list[str] = []
    started = time.monotonic()
    watch = Watch(found.meanwhile)
    with Workspace(settings(home), encoder=QuickEncoder(max_tokens=256)) as workspace:
        report = IngestReport()
        try:
            with watch:
                report = ingest(workspace, [folder, *found.feeds])
        except Exception as error:
            faults.append(f"the worker died: {type(error).__name__}: {error}")
        outcomes = list(_outcomes(workspace, found, report, passed_over, watch, number))
        faults += _not_found(workspace, found)
    if watch.own_mb - watch.before_mb > PARENT_MB:
        faults.append(f"the worker took {watch.own_mb - watch.before_mb:.0f} MB")
    seconds = time.monotonic() - started
    if not faults and not any(outcome.faults for outcome in outcomes):
        _remove(folder)
    return Round(
        round=number, outcomes=outcomes, good=len(found.good), seconds=seconds, parent_mb=watch.own_mb, faults=faults
    )


def _made(folder: Path, bases: Sequence[tuple[str, bytes]], number: int, size: int, chance: Random) -> _Set:
    _remove(folder)
    folder.mkdir(parents=True)
    found = _Set(folder=folder)
    containers = [base for base in bases if base[1].startswith(b"PK")]
    for index in range(size):
        kind = KINDS[(number * size + index) % len(KINDS)]
        if index % 16 == 0:
            _put_good(found, index, f"good{number}x{index}")
        name, data = chance.choice(containers if kind in _OF_CONTAINERS and chance.random() < 0.8 else bases)
        name = f"{index:03}-{name}"
        if kind == "feed":
            path = folder.with_name(f"{folder.name}-{index}.jsonl")
            feed = b"".join(_LINE % (number, index, line) for line in range(20))
            path.write_bytes(mutated(chance.choice(_LINE_BY_LINE), [("a.jsonl", feed)], chance)[1])
            found.feeds.append(path)
        elif kind in _PLACES:
            path, event = _PLACES[kind](folder, name, data, chance)
            found.meanwhile |= {path: event} if event else {}
        else:
            name, data = mutated(kind, [(name, data)], chance)
            path = folder / name
            path.write_bytes(data)
        found.hostile[path] = kind
    return found


_LINE = b'{"id": "tea-%d-%d-%d", "text": "Green tea.", "metadata": {"n": 1}}\n'
_LINE_BY_LINE = sorted(set(MUTATIONS) - {"deep", "bomb", "encrypted", "nested", "xml bomb"})


def _put_good(found: _Set, index: int, word: str) -> None:
    text = f"The word is {word}."
    contents = {
        "md": f"# Good\n\n{text}\n".encode(),
        "pdf": files.pdf([[(11, text)]]),
        "docx": files.docx(files.paragraph(text)),
        "html": f"<html><p>{text}</p></html>".encode(),
        "xlsx": files.xlsx({"a": [["said"], [text]]}),
        "odt": made.open_document("text", f"<text:p>{text}</text:p>"),
        "eml": f"Subject: good\r\n\r\n{text}\r\n".encode(),
    }
    kind = sorted(contents)[index // 16 % len(contents)]
    path = found.folder / f"{index:03}-good.{kind}"
    path.write_bytes(contents[kind])
    found.good[path] = word


def _outcomes(
    workspace: Workspace, found: _Set, report: IngestReport, passed_over: dict[Path, str], watch: Watch, number: int
) -> Iterator[Outcome]:
    failed = {failure.uri: failure.reason for failure in report.failed}
    with workspace.database.read() as connection:
        sources = set(connection.scalars(select(t.Document.source).distinct()))
        for path, kind in found.hostile.items():
            uri = path_to_uri(path)
            below = [entry for entry in documents.known(connection, "default", uri) if entry.sha256]
            lines = [
                reason for name, reason in failed.items() if name == uri or name.startswith((f"{uri}#", f"{uri}/"))
            ]
            skipped = [reason for name, reason in passed_over.items() if name == path or path in name.parents]
            if kind == "feed":
                state, reason = _state_of_feed(path, lines, ready=uri in sources)
            else:
                state, reason = _state(lines, skipped, ready=bool(below), folder=path.is_dir())
            yield Outcome(
                round=number,
                kind=kind,
                name=ascii(path.name),
                state=state,
                reason=reason,
                seconds=watch.seconds.get(path, 0.0),
                child_mb=watch.child_mb.get(path, 0.0),
                faults=_faults(path, state, reason, watch),
            )


def _state(failed: Sequence[str], skipped: Sequence[str], *, ready: bool, folder: bool) -> tuple[str, str]:
    if failed:
        return "failed", failed[0]
    if ready:
        return "ready", ""
    if folder and not skipped:
        return "passed over", "is a folder without documents"
    return ("passed over", skipped[0]) if skipped else ("", "")


def _state_of_feed(path: Path, failed: Sequence[str], *, ready: bool) -> tuple[str, str]:
    """Lines that are refused are told one by one, and leave the others alone."""
    if ready or failed:
        return ("ready", "") if ready else ("failed", failed[0])
    return ("passed over", "holds no lines") if not path.read_bytes().strip() else ("", "")


def _faults(path: Path, state: str, reason: str, watch: Watch) -> list[str]:
    faults = []
    if not state:
        faults.append("nobody knows what became of it")
    if state in ("failed", "passed over") and not _is_said_well(reason):
        faults.append(f"its reason is none: {reason!r}")
    allowed = SECONDS + SLACK_SECONDS + (ParseLimits(seconds=SECONDS).ocr_seconds if b"%PDF" in _head(path) else 0)
    if watch.slowest.get(path, 0.0) > allowed:
        faults.append(f"took {watch.slowest[path]:.1f} s")
    if watch.child_mb.get(path, 0.0) > MEMORY_MB + SLACK_MB:
        faults.append(f"took {watch.child_mb[path]:.0f} MB")
    return faults


def _head(path: Path) -> bytes:
    try:
        with open_regular(path) as file:
            return file.read(2000)
    except (OSError, ParseFailed):
        return b""


def _is_said_well(reason: str) -> bool:
    return 5 <= len(reason) <= _REASON_CHARACTERS and reason.isprintable() and "Traceback" not in reason


def _not_found(workspace: Workspace, found: _Set) -> Iterator[str]:
    for path, word in found.good.items():
        hits = workspace.retriever.search(Query(text=word, k=3)).hits
        if not any(word in hit.text for hit in hits):
            yield f"{path.name} beside them is not found"


def _remove(folder: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(os.fsencode(folder))
    for feed in folder.parent.glob(f"{folder.name}-*.jsonl"):
        feed.unlink()
