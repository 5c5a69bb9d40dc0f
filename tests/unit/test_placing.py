"""Many documents placed in one transaction: those that are free, and nobody is waited for."""

from __future__ import annotations

import pytest
from sqlalchemy import delete, func, select

from nvr_rag import chunks, placing
from nvr_rag.chunks import Version
from nvr_rag.db import tables as t
from nvr_rag.errors import NotFound
from nvr_rag.ids import document_id
from nvr_rag.placing import Cutting
from nvr_rag.types import ChunkDraft
from tests.support import House, document


def cuttings(house: House, *uris: str) -> list[Cutting]:
    """A cutting of each document: its text as one chunk, which has been put there."""
    house.put(*[document(uri, f"text of {uri}") for uri in uris])
    with house.database.read() as connection:
        versions = chunks.versions_at(connection, [document_id("default", uri) for uri in uris], 100)
        texts = placing.parsed_texts(connection, versions)
    return [
        Cutting(version=version, drafts=[ChunkDraft(text=parsed.text, start=0, end=len(parsed.text))])
        for version, parsed in zip(versions, texts, strict=True)
    ]


def placed(house: House, version: Version) -> list[str]:
    with house.database.read() as connection:
        return [chunk.text for chunk in chunks.chunks_of(connection, [version], 1)]


def test_many_are_placed_at_once_and_the_first_time_counts(house: House) -> None:
    found = cuttings(house, "a", "b", "c")
    with house.database.write() as connection:
        assert placing.place_free(connection, 1, found[:2]) == []
        placing.place_free(connection, 1, [Cutting(version=found[0].version, drafts=(), error="later"), found[2]])
        assert placing.unplaced(connection, [one.version for one in found], 1) == []
    assert [placed(house, one.version) for one in found] == [["text of a"], ["text of b"], ["text of c"]]


def test_one_that_has_gone_meanwhile_is_given_back_and_the_others_are_placed(house: House) -> None:
    found = cuttings(house, "a", "b")
    with house.database.write() as connection:
        connection.execute(delete(t.Document).where(t.Document.id == found[0].version.document_id))
    with house.database.write() as connection:
        assert placing.place_free(connection, 1, found) == [found[0]]
    assert placed(house, found[1].version) == ["text of b"]
    with house.database.write() as connection, pytest.raises(NotFound, match="deleted"):
        placing.place(connection, 1, found[0])
    with house.database.read() as connection, pytest.raises(NotFound, match="deleted"):
        placing.parsed_texts(connection, [one.version for one in found])


def test_one_that_somebody_is_removing_is_not_waited_for(house: House) -> None:
    if house.database.engine.dialect.name == "sqlite":
        pytest.skip("SQLite has one writer at a time")
    found = cuttings(house, "a", "b")
    row = select(t.Document.id).where(t.Document.id == found[1].version.document_id)
    with house.database.write() as remover:
        remover.execute(row.with_for_update())
        with house.database.write() as connection:
            assert placing.place_free(connection, 1, found) == [found[1]]
    assert placed(house, found[0].version) == ["text of a"]
    with house.database.write() as connection:
        assert placing.place_free(connection, 1, [found[1]]) == []
        assert connection.scalar(select(func.count()).select_from(t.Placed)) == 2


def test_nothing_is_placed_of_nothing(house: House) -> None:
    with house.database.write() as connection:
        assert placing.place_free(connection, 1, []) == []
        assert placing.parsed_texts(connection, []) == []
