"""An export file enters; collections, documents with all that belongs to them, and queries leave, in order.

Everything is checked on the way, so that reading a file once without doing anything tells whether it is whole. Memory
holds one document at a time. Knows no database.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from nvr_rag.errors import InvalidInput
from nvr_rag.ids import chunk_id
from nvr_rag.transfer.files import lines_of
from nvr_rag.transfer.parsing import Context, parse
from nvr_rag.transfer.records import (
    COUNTED,
    ChunkingLine,
    ChunkLine,
    CollectionLine,
    DocumentLine,
    Header,
    JudgmentLine,
    Line,
    Place,
    QueryLine,
    Trailer,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Bundle:
    """A document with its chunks and its judgments."""

    where: str  # file and line of the document
    line: DocumentLine
    chunks: Sequence[ChunkLine]
    judgments: Sequence[JudgmentLine]
    chunkings: Mapping[str, Mapping[str, Any]]  # settings by hash, of all that the file has described so far


@dataclass(frozen=True, kw_only=True, slots=True)
class Contents:
    """What a whole file holds."""

    header: Header
    collections: Sequence[CollectionLine]
    counts: Mapping[str, int]  # by the names in COUNTED


Item = CollectionLine | Bundle | QueryLine


def check(path: Path, report: Callable[[int], None] = lambda _documents: None) -> Contents:
    """Read a file to its end and change nothing. Raises InvalidInput: what is wrong with which line."""
    reader = Reader(path)
    collections: list[CollectionLine] = []
    for item in reader:
        if isinstance(item, CollectionLine):
            collections.append(item)
        elif isinstance(item, Bundle):
            report(reader.counts["documents"])
    assert reader.header is not None
    return Contents(header=reader.header, collections=tuple(collections), counts=dict(reader.counts))


@dataclass(slots=True)
class Reader:
    """Reads one file once; `header` and `counts` tell how far it has come."""

    path: Path
    header: Header | None = None
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTED, 0))
    _where: str = ""
    _context: Context = field(default_factory=Context)
    _names: set[str] = field(default_factory=set)
    _open: _Open | None = None  # the document whose lines are being read
    _last_query: str = ""
    _ended: bool = False

    def __iter__(self) -> Iterator[Item]:
        for number, content in lines_of(self.path):
            self._where = f"{self.path}, line {number}"
            if self._ended:
                self._refuse("something stands after the last line of the export; remove it")
            yield from self._take(parse(self._where, self._json(content), self._context))
        if not self._ended:
            self._where = str(self.path)
            self._refuse(
                "the file is empty"
                if self.header is None
                else "cut off: its last line, of the type trailer, is missing; copy or export it again"
            )

    def _json(self, content: bytes) -> Any:
        try:
            return json.loads(content.decode("utf-8"), parse_constant=_no_number)
        except UnicodeDecodeError as error:
            self._refuse(f"not UTF-8 ({error.reason} at byte {error.start})")
        except RecursionError:
            self._refuse("JSON nested too deeply")
        except ValueError as error:
            self._refuse(f"not JSON ({error}); the file may be cut off or damaged")

    def _take(self, line: Line) -> Iterator[Item]:
        if (self.header is None) != isinstance(line, Header):
            self._refuse("the first line, and no other, is of the type header; give a file that nvr-rag export wrote")
        if isinstance(line, ChunkLine | JudgmentLine):
            assert self._open is not None  # a line about a document names the one before
            self._open.add(line, self._refuse)
            self.counts["chunks" if isinstance(line, ChunkLine) else "judgments"] += 1
        elif isinstance(line, ChunkingLine):
            self._context.chunkings[line.hash] = line.settings
        else:
            yield from self._finish_document()
            yield from self._begin(line)

    def _begin(self, line: Header | CollectionLine | DocumentLine | QueryLine | Trailer) -> Iterator[Item]:
        if isinstance(line, Header):
            self.header = line
        elif isinstance(line, Trailer):
            self._end(line)
        elif isinstance(line, CollectionLine):
            self._begin_collection(line)
            yield line
        elif isinstance(line, DocumentLine):
            self._begin_document(line)
        else:
            self._check_query(line)
            yield line

    def _begin_collection(self, line: CollectionLine) -> None:
        if line.name in self._names:
            self._refuse(f"the collection {line.name!r} is there twice")
        self._names.add(line.name)
        self._context.collection, self._context.document, self._last_query = line.name, None, ""
        self.counts["collections"] += 1

    def _begin_document(self, line: DocumentLine) -> None:
        before = self._context.document
        if self._last_query:
            self._refuse("the documents of a collection come before its queries")
        if before is not None and before.uri >= line.uri:
            self._refuse(
                f"documents come in ascending order of URI, each once, and {line.uri[:80]!r} is not after "
                f"{before.uri[:80]!r}"
            )
        self._context.document, self._open = line, _Open(self._where, line)
        self.counts["documents"] += 1

    def _check_query(self, line: QueryLine) -> None:
        if line.id <= self._last_query:
            self._refuse("queries come in ascending order of id, each once")
        self._last_query = line.id
        self.counts["queries"] += 1
        self.counts["feedback"] += len(line.feedback)

    def _finish_document(self) -> Iterator[Bundle]:
        if self._open is not None:
            yield self._open.bundle(self._context.chunkings)
            self._open = None

    def _end(self, line: Trailer) -> None:
        wrong = [name for name in COUNTED if line.counts[name] != self.counts[name]]
        if wrong:
            name = wrong[0]
            self._refuse(
                f"the file should have {line.counts[name]} {name} and has {self.counts[name]}: lines are missing or "
                "were added; copy or export it again"
            )
        self._ended = True

    def _refuse(self, message: str) -> NoReturn:
        raise InvalidInput(f"{self._where}: {message}")


@dataclass(slots=True)
class _Open:
    """A document whose lines are being read."""

    where: str
    line: DocumentLine
    chunks: dict[str, ChunkLine] = field(default_factory=dict)  # by id
    judgments: list[JudgmentLine] = field(default_factory=list)
    _judged: set[tuple[str, str, str | None]] = field(default_factory=set)

    def add(self, line: ChunkLine | JudgmentLine, refuse: Callable[[str], NoReturn]) -> None:
        if isinstance(line, ChunkLine):
            if line.ref.id in self.chunks:
                refuse(f"the chunk {line.ref.id} is there twice")
            self.chunks[line.ref.id] = line
            return
        key = (line.origin, line.query_key, line.chunk)
        if key in self._judged:
            refuse("this judgment is there twice")
        if line.chunk is not None and line.chunk not in self.chunks:
            refuse(f"the chunk {line.chunk} is not described by a line before")
        self._judged.add(key)
        self.judgments.append(line)

    def bundle(self, chunkings: Mapping[str, Mapping[str, Any]]) -> Bundle:
        for cut in cuts(list(self.chunks.values())).values():
            self._check_cut(cut)
        return Bundle(
            where=self.where,
            line=self.line,
            chunks=tuple(self.chunks.values()),
            judgments=tuple(self.judgments),
            chunkings=chunkings,
        )

    def _check_cut(self, cut: Sequence[tuple[Place, ChunkLine]]) -> None:
        """A cut is whole, and its chunks have the ids that they get when it is made again."""
        seen: dict[str, int] = {}
        for ordinal, (place, chunk) in enumerate(cut):
            occurrence = seen.get(chunk.ref.sha256, 0)
            seen[chunk.ref.sha256] = occurrence + 1
            if place.ordinal != ordinal or chunk.ref.id != chunk_id(self.line.id, chunk.ref.sha256, occurrence):
                raise InvalidInput(
                    f"{self.where}: the chunks of this document are not whole (chunk {ordinal} of the chunking "
                    f"{place.chunking[:12]}); lines are missing or were edited"
                )


def cuts(chunks: Sequence[ChunkLine]) -> dict[str, list[tuple[Place, ChunkLine]]]:
    """The chunks of a document as each chunking has them, by its hash, in the order of the text."""
    found: dict[str, list[tuple[Place, ChunkLine]]] = {}
    for chunk in chunks:
        for place in chunk.places:
            found.setdefault(place.chunking, []).append((place, chunk))
    return {key: sorted(places, key=lambda pair: pair[0].ordinal) for key, places in found.items()}


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")
