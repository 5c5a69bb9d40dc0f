"""The points of a collection that another program has filled enter; documents leave, their parts joined and in order.

Points that name the same source are one document; any other is a document by itself. Parts are spooled to a temporary
file of the system, as those of one document may come from anywhere in the collection. Knows no server and no database
of ours.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from nvr_rag.corpus import MAX_URI_CHARACTERS
from nvr_rag.errors import InvalidInput
from nvr_rag.ids import sha256_text
from nvr_rag.storable import storable, storable_json
from nvr_rag.transfer.joining import PAGE_KEYS, PART_KEYS, Piece, join
from nvr_rag.types import NewDocument, ParsedText, TextFormat

PARSER = "qdrant"
URI_KEYS = ("source", "uri", "url", "file_path")  # of metadata; the first that is there names the document
_SHOWN_KEYS = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Keys:
    """Where a payload has what. The defaults are those of langchain-qdrant."""

    text: str = "page_content"
    metadata: str = "metadata"  # a payload without it is all metadata, apart from the text
    uri: Sequence[str] = URI_KEYS


@dataclass(kw_only=True, slots=True)
class Seen:
    """What there was to read."""

    points: int = 0
    without_text: int = 0
    dropped: Counter[str] = field(default_factory=Counter)  # metadata that cannot be stored, by key


class Spool:
    """All points, on disk."""

    def __init__(self, collection: str, keys: Keys) -> None:
        self.seen = Seen()
        self._collection, self._keys = collection, keys
        self._file = sqlite3.connect("", isolation_level=None)  # a temporary database, gone with the connection
        self._file.execute("CREATE TABLE part (uri TEXT, point TEXT, text TEXT, metadata TEXT)")
        self._other_keys: set[str] = set()

    def close(self) -> None:
        self._file.close()

    def take(self, points: Iterable[tuple[str | int, Mapping[str, Any]]], report: Callable[[int], None]) -> None:
        """Keep all points. Raises InvalidInput when none of them has a text."""
        self._file.execute("BEGIN")
        for point, payload in points:
            self.seen.points += 1
            self._keep(str(point), payload)
            if self.seen.points % 256 == 0:
                report(self.seen.points)
        self._file.execute("CREATE INDEX by_uri ON part (uri, point)")
        self._file.execute("COMMIT")
        report(self.seen.points)
        if self.seen.points == self.seen.without_text:
            self._refuse()

    def _refuse(self) -> None:
        there = ", ".join(sorted(self._other_keys)[:_SHOWN_KEYS])
        what = f"payloads have: {there}" if there else "it has no payloads" if self.seen.points else "it has no points"
        raise InvalidInput(
            f"nothing in the collection {self._collection!r} has a text under {self._keys.text!r}; {what}. Name the "
            "key with --text-key",
            field="text_key",
        )

    def _keep(self, point: str, payload: Mapping[str, Any]) -> None:
        text = payload.get(self._keys.text)
        if not isinstance(text, str) or not text.strip():
            self.seen.without_text += 1
            self._other_keys |= set(list(payload)[:_SHOWN_KEYS])
            return
        metadata = self._metadata(payload)
        uri = self._uri(metadata, payload) or f"qdrant:{self._collection}/{point}"
        packed = json.dumps(metadata, ensure_ascii=False)
        self._file.execute("INSERT INTO part VALUES (?, ?, ?, ?)", (uri, point, storable(text), packed))

    def _metadata(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        nested = payload.get(self._keys.metadata)
        found = nested if isinstance(nested, Mapping) else {k: v for k, v in payload.items() if k != self._keys.text}
        kept = {}
        for key, value in found.items():
            try:
                kept.update(storable_json({key: value}))
            except InvalidInput:
                self.seen.dropped[key] += 1
        return kept

    def _uri(self, metadata: Mapping[str, Any], payload: Mapping[str, Any]) -> str | None:
        """What the point says of where it is from, if that can be a URI."""
        for key in self._keys.uri:
            value = metadata.get(key, payload.get(key))
            if isinstance(value, str) and 1 <= len(value) <= MAX_URI_CHARACTERS and storable(value) == value:
                return value
        return None

    def documents(self) -> Iterator[NewDocument]:
        """Documents in ascending order of URI, one at a time in memory."""
        with closing(self._file.execute("SELECT uri, point, text, metadata FROM part ORDER BY uri, point")) as rows:
            for uri, parts in groupby(rows, key=lambda row: row[0]):
                pieces = [Piece(point=point, text=text, metadata=json.loads(data)) for _, point, text, data in parts]
                yield self._document(uri, pieces)

    def count(self) -> int:
        """How many documents there are."""
        return int(self._file.execute("SELECT count(DISTINCT uri) FROM part").fetchone()[0])

    def _document(self, uri: str, pieces: Sequence[Piece]) -> NewDocument:
        joined = join(pieces)
        metadata = _common([piece.metadata for piece in pieces])
        if len(pieces) > 1:
            metadata = {key: value for key, value in metadata.items() if key not in (*PAGE_KEYS, *PART_KEYS)}
        title = metadata.get("title")
        return NewDocument(
            uri=uri,
            sha256=sha256_text(joined.text),
            parser=PARSER,
            parsed=ParsedText(
                text=joined.text,
                format=TextFormat.PLAIN,
                media_type="text/plain",
                title=title if isinstance(title, str) else "",
                page_starts=joined.page_starts,
                metadata=metadata,
            ),
        )


def _common(all_metadata: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What all parts of a document say alike."""
    first, *others = all_metadata
    return {key: value for key, value in first.items() if all(key in one and _same(one[key], value) for one in others)}


def _same(one: Any, other: Any) -> bool:
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)  # 1, 1.0 and true are equal in Python
