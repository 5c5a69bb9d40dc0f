"""The records that the steps of a lap hand to each other, and the JSON Lines files that carry them between processes.

Judged queries go in at one end, training examples leave at the other. Files are written whole or not at all. Nothing
here knows a database, an index or a model.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nvr_rag.errors import InvalidInput


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgedQuery:
    """A query with everything that people of trusted origin said about what answers it."""

    key: str  # hex sha256 of the normalised text: names the query for good
    id: str  # of one logged query with this text, or the key where it was imported
    text: str  # as it was asked last
    chunks: Mapping[str, int] = field(default_factory=dict)  # chunk id -> grade; 0 = said to be irrelevant
    documents: Mapping[str, int] = field(default_factory=dict)  # document id -> grade, where no chunk was named
    origins: Sequence[str] = ()  # "feedback", "import:<name>" ..., sorted


@dataclass(frozen=True, kw_only=True, slots=True)
class Passage:
    """A text to be encoded in the document role."""

    id: str  # the sha256 of the chunk's text: exact copies share it
    text: str  # the document input, rendered by the encoder's template, prompt not yet


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One (query, positive) pair with its hard negatives, best first; how many there are differs from pair to pair."""

    query_key: str
    query: str  # prompt not yet
    positive: Passage
    negatives: Sequence[Passage] = ()
    known: frozenset[str] = frozenset()  # passage ids of all known positives of the query: never its negatives


def write_examples(path: Path, examples: Iterable[Example]) -> None:
    """Write examples as JSON Lines."""
    write_lines(path, (_example_row(example) for example in examples))


def read_examples(path: Path) -> list[Example]:
    """Read what `write_examples` wrote. Raises InvalidInput naming file and line."""
    return [_example(path, number, row) for number, row in enumerate(read_lines(path), start=1)]


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as JSON Lines, durably, whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a JSON Lines file. Raises InvalidInput naming file and line."""
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise InvalidInput(f"{path}, line {number}: not JSON ({error}); write the file again") from error
            if not isinstance(row, dict):
                raise InvalidInput(f"{path}, line {number}: not a JSON object; write the file again")
            yield row


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write one JSON document, durably, whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        json.dump(content, file, ensure_ascii=False, allow_nan=False, indent=2, default=str)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _example_row(example: Example) -> dict[str, Any]:
    return {**asdict(example), "known": sorted(example.known)}


def _example(path: Path, number: int, row: Mapping[str, Any]) -> Example:
    try:
        return Example(
            query_key=row["query_key"],
            query=row["query"],
            positive=Passage(**row["positive"]),
            negatives=tuple(Passage(**one) for one in row["negatives"]),
            known=frozenset(row["known"]),
        )
    except (KeyError, TypeError) as error:
        raise InvalidInput(f"{path}, line {number}: not an example ({error!r}); mine again") from error
