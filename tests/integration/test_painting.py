"""An index that the release before made: what it answers until it has the new fields, and how it gets them."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import update

from ingest.indexer import Indexer
from nvr_rag import chunks, indexes
from nvr_rag.access.reading import restriction
from nvr_rag.db import tables as t
from nvr_rag.errors import StoreUnavailable
from nvr_rag.ids import sha256_json
from nvr_rag.types import ANYBODY, Mode, Query, Reader
from nvr_rag.upkeep import painting
from nvr_rag.upkeep.writing import Work, want
from tests.support import House, document

DOCUMENTS = 7
NEW = ("source", "updated_at")


def as_the_release_before(house: House) -> None:
    """Take from the index and from its row what the release before did not write."""
    house.catch_up()
    index = house.index
    with house.database.read() as connection:
        placed = list(chunks.all_chunks(connection, 1, house.row.chunking_id, house.row.applied_seq))
    payloads: dict[str, dict[str, Any]] = {}
    for chunk in placed:
        item = want(index, chunk)
        fields = {name: value for name, value in item.payload.items() if name not in NEW} | {"acl": chunk.acl}
        payloads[item.id] = {**fields, "input_hash": item.input_hash, "payload_hash": sha256_json(fields)}
    index.points.set_payload(payloads)
    index.points.flush()
    with house.database.write() as connection:
        connection.execute(update(t.SearchIndex).values(store={"quantization": "int8"}))
    house.workspace.close_index(house.index_id)  # it is opened by the new release


def put_some(house: House) -> None:
    house.put(*[document(f"d{n}", f"fox {n}\n\nwhale {n}", source=f"s{n % 2}") for n in range(DOCUMENTS)])


def old_house(house: House) -> House:
    put_some(house)
    as_the_release_before(house)
    return house


@pytest.fixture
def old(house: House, monkeypatch: pytest.MonkeyPatch) -> House:
    monkeypatch.setattr(chunks, "_PAGE", 4)  # two documents a step
    return old_house(house)


def by_source(house: House, source: str) -> set[str]:
    return {hit.uri for hit in house.hits("fox", k=50, where={"source": source})}


def test_a_new_index_has_everything_from_the_start(house: House) -> None:
    put_some(house)
    house.catch_up()
    assert house.row.painted
    assert by_source(house, "s1") == {"d1", "d3", "d5"}
    assert not painting.step(house.database, house.index, Work())


@pytest.mark.parametrize(
    "where", [{"source": "s1"}, {"not": {"or": [{"uri": "x"}, {"updated_at": {"gt": "2000-01-01"}}]}}]
)
def test_until_it_has_the_new_fields_a_filter_on_them_is_refused(old: House, where: dict[str, Any]) -> None:
    assert not old.row.painted
    with pytest.raises(StoreUnavailable, match="earlier release") as raised:
        old.hits("fox", where=where)
    assert raised.value.retry
    assert "nvr-rag verify --repair" in str(raised.value)
    assert len(old.hits("fox", k=50, where={"uri": {"in": ["d1", "d2"]}})) == 4
    assert len(old.hits("fox", k=50)) == 2 * DOCUMENTS


def test_it_gets_them_in_steps_while_searches_go_on_and_nothing_is_encoded(old: House) -> None:
    encoded, steps, work = old.encoder.encoded, 1, Work()
    while painting.step(old.database, old.index, work):
        steps += 1
        assert len(old.hits("fox", k=50)) == 2 * DOCUMENTS
    assert steps >= DOCUMENTS // 2
    assert (work.repainted, work.encoded, work.kept) == (2 * DOCUMENTS, 0, 0)
    assert old.encoder.encoded == encoded
    assert by_source(old, "s1") == {"d1", "d3", "d5"}
    assert old.row.store == {"quantization": "int8", "payload": indexes.PAYLOAD}
    assert old.verify().wrong == 0


def test_a_restart_goes_on_where_it_was(old: House) -> None:
    first, second = Work(), Work()
    painting.step(old.database, old.index, first)
    done = old.row.painted_to
    assert done > chunks.BEGINNING
    old.close()
    again = House(old.home, store=old.store, encoder=old.encoder)
    try:
        while painting.step(again.database, again.index, second):
            pass
        assert first.repainted >= 2
        assert first.repainted + second.repainted == 2 * DOCUMENTS
        assert second.kept == 0
        assert by_source(again, "s0") == {"d0", "d2", "d4", "d6"}
    finally:
        again.close()


def test_what_changes_meanwhile_is_right_too(old: House) -> None:
    painting.step(old.database, old.index, Work())
    old.put(document("d0", "fox 0 again", source="s1"), document("d6", "fox 6", source="s1"), document("new", "fox"))
    old.delete("d3")
    painting.step(old.database, old.index, Work())
    old.catch_up()
    old.put(document("d1", "fox 1", source="elsewhere"))
    while painting.step(old.database, old.index, Work()):
        pass
    old.catch_up()
    assert by_source(old, "s1") == {"d0", "d5", "d6"}
    assert by_source(old, "s0") == {"d2", "d4"}
    assert by_source(old, "elsewhere") == {"d1"}
    assert by_source(old, "") == {"new"}
    assert old.verify().wrong == 0


def test_whoever_keeps_indexes_up_does_it_by_himself(old: House) -> None:
    indexer = Indexer(old.workspace, threading.Event())
    busy = 0
    while indexer.step():
        busy += 1
        assert busy < 50
    assert busy >= DOCUMENTS // 2
    assert indexer.problems == {}
    assert old.row.painted
    assert by_source(old, "s1") == {"d1", "d3", "d5"}


def test_verify_tells_and_repair_mends(old: House) -> None:
    found = old.verify()
    assert (found.stale, found.clean) == (2 * DOCUMENTS, False)
    assert not old.row.painted
    assert old.verify(repair=True).clean
    assert old.row.painted
    assert by_source(old, "s1") == {"d1", "d3", "d5"}


def test_a_rebuilt_index_and_a_copy_have_everything(old: House) -> None:
    with old.database.write() as connection:
        copied = indexes.get(connection, indexes.copy(connection, old.row))
    assert copied.painted
    assert copied.store["quantization"] == "int8"
    painting.step(old.database, old.index, Work())
    old.workspace.rebuild(old.index_id)
    old.catch_up()
    assert old.row.store == {"quantization": "int8", "payload": indexes.PAYLOAD}
    assert by_source(old, "s1") == {"d1", "d3", "d5"}


def test_a_version_is_found_by_when_it_was_stored(house: House) -> None:
    house.put(document("a", "fox"), document("b", "fox"))
    house.catch_up()
    moments = {"a": datetime(2020, 1, 1, tzinfo=UTC), "b": datetime(2021, 6, 1, 12, 30, 0, 250_000, tzinfo=UTC)}
    for uri, moment in moments.items():
        with house.database.write() as connection:
            key = hit_of(house, uri)
            version = update(t.DocumentVersion).where(t.DocumentVersion.document_id == key)
            connection.execute(version.values(created_at=moment))
    house.verify(repair=True)

    def found(**bounds: str) -> list[str]:
        return sorted(hit.uri for hit in house.hits("fox", where={"updated_at": bounds}))

    assert found(gte="2020-01-01") == ["a", "b"]
    assert found(gt="2020-01-01") == ["b"]
    assert found(lt="2021-06-01T14:30:00.250001+02:00") == ["a", "b"]
    assert found(lt="2021-06-01T14:30:00.25+02:00") == ["a"]
    assert found(gte="2021-06-01T12:30:00.25", lte="2021-06-01T12:30:00.25Z") == ["b"]
    assert found(lt="2020-01-01") == []


def hit_of(house: House, uri: str) -> str:
    (hit,) = house.hits("fox", where={"uri": uri})
    return hit.document_id


def test_where_a_document_comes_from_is_found_as_soon_as_it_is_put_again(house: House) -> None:
    house.put(document("a", "fox", source="folder"))
    house.catch_up()
    encoded = house.encoder.encoded
    (put,) = house.put(document("a", "fox", source="other"))
    assert put.outcome == "updated"
    work = house.catch_up()
    assert (house.encoder.encoded, work.repainted) == (encoded, 1)
    assert (by_source(house, "other"), by_source(house, "folder")) == ({"a"}, set())
    house.fail("a", source="third")  # what still answers is what came from the other one
    assert (by_source(house, "other"), by_source(house, "third")) == ({"a"}, set())


def test_ranks_do_not_count_what_nobody_may_read_and_painting_says_so_to_the_store(house: House) -> None:
    nobody = [document(f"none{n}", "fox fox fox", acl=[]) for n in range(3)]
    house.put(*nobody, document("ann", "fox fox and whale", acl=["ann"]), document("all", "fox and the whale and you"))
    as_the_release_before(house)
    visible = {ANYBODY: ["all"], Reader(principals=frozenset({"ann"})): ["ann", "all"]}

    def check_ranks() -> None:
        for reader, uris in visible.items():
            query = Query(text="fox", mode=Mode.HYBRID, reader=reader)
            hits = house.workspace.retriever.search(query).hits
            assert [(hit.uri, hit.dense_rank, hit.lexical_rank) for hit in hits] == [
                (uri, rank, rank) for rank, uri in enumerate(uris, start=1)
            ]

    def allowed() -> set[str]:
        """What the store itself takes for everybody's."""
        found = house.index.points.search_lexical(house.index.lexical.encode_query("fox"), 10, restriction(ANYBODY))
        return {str(point.payload["uri"]) for point in house.index.points.read([item.id for item in found]).values()}

    assert allowed() == {"all", "none0", "none1", "none2"}  # an empty list is like none
    check_ranks()
    while painting.step(house.database, house.index, Work()):
        pass
    assert house.row.painted
    assert allowed() == {"all"}
    check_ranks()
