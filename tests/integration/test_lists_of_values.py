"""`column IN values` for lists of any length: the same answers as ever, from a statement that does not grow with it."""

from __future__ import annotations

from sqlalchemy import Connection, event, select

from nvr_rag import chunks
from nvr_rag.db import tables as t
from nvr_rag.db.session import among, among_bound, listed
from nvr_rag.ids import document_id
from tests.heap import in_use
from tests.support import House, document

URIS = ["plain", 'with "quotes"', "it's", "\\u0041", "Ünïcødé 漢字 🙂", "[1, 2]", "%s :name ?"]


def found(connection: Connection, *wanted: str) -> list[str]:
    d = t.Document
    statement = select(d.uri).where(among_bound(connection.dialect.name, d.uri, "wanted"))
    once = list(connection.scalars(statement.order_by(d.uri), {"wanted": listed(connection, wanted)}))
    assert once == list(connection.scalars(select(d.uri).where(among(connection, d.uri, wanted)).order_by(d.uri)))
    return once


def test_words_are_found_whatever_they_hold(house: House) -> None:
    house.put(*[document(uri, "text") for uri in URIS])
    with house.database.read() as connection:
        assert sorted(found(connection, *URIS)) == sorted(URIS)
        assert [found(connection, uri) for uri in URIS] == [[uri] for uri in URIS]
        assert found(connection) == []
        assert found(connection, "no such", "plain", "plain") == ["plain"]


def test_numbers_are_found_and_what_is_not_listed_is_not(house: House) -> None:
    house.put(*[document(f"d{number}", "text") for number in range(5)])
    v = t.DocumentVersion
    with house.database.read() as connection:
        ids = list(connection.scalars(select(v.id).order_by(v.id)))
        some = select(v.id).where(among(connection, v.id, ids[1:3])).order_by(v.id)
        others = select(v.id).where(~among(connection, v.id, ids[1:3])).order_by(v.id)
        assert list(connection.scalars(some)) == ids[1:3]
        assert list(connection.scalars(others)) == [ids[0], *ids[3:]]
        assert list(connection.scalars(select(v.id).where(~among(connection, v.id, [])).order_by(v.id))) == ids


def test_lists_of_every_length_are_one_statement_and_cost_no_memory(house: House) -> None:
    """With a place for each value, these statements took 19 MB of a connection of SQLite, for as long as it lived."""
    house.put(document("a", "text"))
    ids = [document_id("default", f"d{number}") for number in range(1000)]
    said: set[str] = set()

    def ask(lengths: range) -> None:
        for length in lengths:
            some = [document_id("default", "a"), *ids[:length]]
            assert [version.seq for version in chunks.versions_at(connection, some, 1)] == [1]

    event.listen(house.database.engine, "before_cursor_execute", lambda _c, _cursor, sql, *_: said.add(sql))
    with house.database.read() as connection:
        ask(range(900, 910))
        said.clear()
        before = in_use()
        ask(range(910, 970))
        if connection.dialect.name == "sqlite":
            assert len(said) == 1
            assert in_use() - before < 3
