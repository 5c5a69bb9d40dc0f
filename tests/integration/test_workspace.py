"""A workspace opens what belongs together, refuses what does not, and rebuilds what is lost."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from nvr_rag import chunkings, collections, corpus, indexes, registry
from nvr_rag.chunkings import check_fits, settings_for
from nvr_rag.db import tables as t
from nvr_rag.errors import (
    ChunkingMismatch,
    ConfigurationError,
    EncoderMismatch,
    IndexMismatch,
    IndexMissing,
    NotFound,
    StoreBusy,
    StoreUnavailable,
)
from nvr_rag.settings import Settings
from nvr_rag.stores.base import SparseVector, StoreConfig
from nvr_rag.stores.lexical import LexicalEncoder
from nvr_rag.testing import Crash, Fault, FaultyStore, HashEncoder, MemoryStore
from nvr_rag.upkeep import verification
from nvr_rag.workspace import Workspace
from tests.support import House, document, paragraphs


@pytest.fixture
def full(house: House) -> House:
    house.put(document("a", "red fox\n\nblue whale"))
    house.catch_up()
    return house


def reopened(house: House, *, encoder: HashEncoder | None = None) -> House:
    house.close()
    return House(house.home, store=house.store, encoder=encoder)


def test_what_was_stored_is_there_after_closing(full: House) -> None:
    again = reopened(full)
    assert again.texts("whale", k=1) == ["blue whale"]
    assert again.encoder.encoded == 0
    again.close()


def test_closing_twice_is_fine(full: House) -> None:
    full.close()
    full.close()


def test_an_index_is_opened_once_and_has_one_owner(full: House) -> None:
    assert full.workspace.index(full.index_id) is full.index
    other = House(full.home, store=full.store)
    with pytest.raises(StoreBusy):
        other.hits("fox")
    full.workspace.close_index(full.index_id)
    assert other.texts("fox", k=1) == ["red fox"]
    other.close()


def test_an_unknown_index_is_not_found(house: House) -> None:
    with pytest.raises(NotFound):
        house.workspace.index(99)


def test_an_encoder_that_is_no_longer_itself_is_refused(full: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files behind a registered encoder were changed: whatever they hold now, it does not answer."""
    again = reopened(full, encoder=HashEncoder(seed=1))
    monkeypatch.setattr(again.workspace, "_load", lambda source: HashEncoder(seed=2))
    with pytest.raises(EncoderMismatch, match="no longer"):
        again.hits("fox")
    monkeypatch.setattr(again.workspace, "_load", lambda source: HashEncoder())
    assert again.texts("fox", k=1) == ["red fox"]
    again.close()


def test_an_encoder_that_did_not_build_the_index_is_refused(full: House) -> None:
    info, store = full.row, full.store
    full.close()
    for other in (HashEncoder(seed=1), HashEncoder(max_tokens=32), HashEncoder(query_prompt="q: ")):
        with pytest.raises(EncoderMismatch):
            indexes.open_index(store, info, lambda other=other: other, LexicalEncoder("english"))  # type: ignore[misc]
    store.open(info.name).close()  # nobody was left holding it


@pytest.mark.parametrize("wrong", [{"encoder": HashEncoder(seed=1).fingerprint}, {"dimension": 32}])
def test_a_physical_index_of_another_encoder_is_refused_and_rebuilt(full: House, wrong: Mapping[str, Any]) -> None:
    info = full.row
    again = reopened(full)
    again.store.drop(info.name)
    right = {"encoder": info.encoder, "dimension": again.encoder.spec.dimension}
    again.store.create(info.name, StoreConfig(**{**right, **wrong}))
    for _ in range(2):
        with pytest.raises(IndexMismatch, match="repair"):
            again.hits("fox")
    found = verification.verify_or_rebuild(again.workspace, info.id, paragraphs, repair=True)
    assert (found.rebuilt, found.checked, found.missing) == (True, 2, 0)
    assert again.texts("fox", k=1) == ["red fox"]
    again.close()


def other_lexical_settings(house: House) -> None:
    with house.database.write() as connection:
        old = {**house.row.lexical, "method": "bm25-0"}
        connection.execute(update(t.SearchIndex).values(lexical=old))


def test_an_index_with_other_lexical_settings_is_refused_and_rebuilt(full: House) -> None:
    other_lexical_settings(full)
    again = reopened(full)
    with pytest.raises(IndexMismatch, match="lexical"):
        again.hits("fox")
    assert verification.verify_or_rebuild(again.workspace, again.index_id, paragraphs, repair=True).rebuilt
    assert again.row.lexical == LexicalEncoder("english").settings
    assert again.texts("fox", k=1) == ["red fox"]
    again.close()


def lexical_vectors(house: House) -> dict[str, SparseVector]:
    points = house.store._held[house.row.name].points  # type: ignore[attr-defined]
    return {key: point.lexical for key, point in points.items()}


@pytest.mark.parametrize("after", [False, True])
def test_a_crash_while_an_index_is_started_over_never_leaves_an_old_vector(full: House, after: bool) -> None:
    """Nothing in a point says which lexical settings made it: whatever is taken for the new index must be new."""
    right = lexical_vectors(full)
    held = full.store._held[full.row.name]  # type: ignore[attr-defined]
    old = {key: replace(point, lexical=SparseVector(indices=(1,), values=(9.0,))) for key, point in held.points.items()}
    name = full.row.name
    full.close()
    for call in range(1, 12):
        held = full.store._held.setdefault(name, held)  # type: ignore[attr-defined]
        held.points, held.flushed = dict(old), dict(old)
        house = House(full.home, store=full.store)
        other_lexical_settings(house)
        with house.database.write() as connection:
            connection.execute(update(t.SearchIndex).values(applied_seq=1, purged_seq=1))
        house.close()
        dying = House(full.home, store=FaultyStore(full.store, Fault(call=call, after=after)))
        with suppress(Crash):
            verification.verify_or_rebuild(dying.workspace, dying.index_id, paragraphs, repair=True)
        dying.close()
        full.store.kill()  # type: ignore[attr-defined]
        again = House(full.home, store=full.store)
        verification.verify_or_rebuild(again.workspace, again.index_id, paragraphs, repair=True)
        again.catch_up()
        assert lexical_vectors(again) == right
        again.close()


def test_a_lost_index_is_missed_and_rebuilt_from_the_log(full: House) -> None:
    again = reopened(full)
    again.store.drop(again.row.name)
    with pytest.raises(IndexMissing):
        again.hits("fox")
    assert again.workspace.rebuild_if_lost(again.index_id)
    with pytest.raises(StoreUnavailable, match="0 of 1 changes"):  # nothing found would look like all there is
        again.hits("fox")
    assert again.row.applied_seq == 0
    assert again.catch_up().encoded == 2
    assert again.texts("fox", k=1) == ["red fox"]
    assert again.verify().clean
    assert not again.workspace.rebuild_if_lost(again.index_id)
    again.close()


def test_an_index_is_made_when_it_is_first_opened(house: House) -> None:
    assert house.store.names() == []
    assert house.hits("fox") == []
    assert house.store.names() == [house.row.name]


def test_the_index_of_a_deleted_collection_is_dropped_by_its_owner(full: House) -> None:
    info = full.row
    with full.database.write() as connection:
        collections.remove(connection, "default")
    with pytest.raises(StoreBusy):
        indexes.drop_retired(full.database, full.store, info.id)
    full.workspace.close_index(info.id)
    indexes.drop_retired(full.database, full.store, info.id)
    assert full.store.names() == []
    with full.database.read() as connection:
        assert connection.scalars(select(t.SearchIndex.id)).all() == []


def test_a_live_index_is_not_dropped(full: House) -> None:
    full.workspace.close_index(full.index_id)
    indexes.drop_retired(full.database, full.store, full.index_id)
    assert full.texts("fox", k=1) == ["red fox"]


@pytest.mark.parametrize(
    "smaller",
    [HashEncoder(max_tokens=63), HashEncoder(document_prompt="passage: ")],
    ids=["a smaller budget", "a prompt that takes tokens"],
)
def test_a_chunking_that_an_encoder_would_truncate_is_refused(house: House, smaller: HashEncoder) -> None:
    chunking = settings_for(house.encoder)
    with pytest.raises(ChunkingMismatch, match="chunking made for this encoder"):
        check_fits(chunking, smaller)
    with house.database.write() as connection:
        registry.register(connection, smaller, "x")
        with pytest.raises(ChunkingMismatch):
            indexes.create(connection, 1, chunking, smaller, LexicalEncoder("english"))
        assert len(indexes.all_infos(connection)) == 1


def test_a_chunking_fits_an_encoder_with_more_room(house: House) -> None:
    check_fits(settings_for(HashEncoder(max_tokens=32)), HashEncoder(max_tokens=64, seed=3, dimension=8))


def test_a_chunking_is_named_by_everything_in_it(house: House) -> None:
    chunking = settings_for(house.encoder)
    same = chunkings.ChunkingSettings(**chunking.as_json())
    other = settings_for(HashEncoder(max_tokens=63))
    assert same.hash == chunking.hash != other.hash
    with house.database.write() as connection:
        ids = [indexes.chunking_id(connection, each) for each in (chunking, same, other)]
    assert ids[0] == ids[1] != ids[2]


def test_an_encoder_is_registered_once(house: House) -> None:
    with house.database.write() as connection:
        registry.register(connection, house.encoder, "somewhere else")
        first = registry.get(connection, house.encoder.fingerprint)
        with pytest.raises(NotFound, match="abc"):
            registry.get(connection, "abc")
    assert (first.source, first.tokenizer) == ("bundled:all-MiniLM-L6-v2", house.encoder.tokenizer_hash)


def test_two_collections_of_one_house_do_not_mix(full: House) -> None:
    full.workspace.create_collection("other", language="german")
    with full.database.write() as connection:
        corpus.put(connection, "other", [document("a", "red fox elsewhere")])
    full.catch_up()
    assert len(full.hits("fox")) == 2
    assert len(full.store.names()) == 1


def test_a_home_that_cannot_be_made_is_said_to_be(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ConfigurationError, match="NVR_HOME"):
        Workspace(Settings(home=file / "home"), store=MemoryStore(), encoder=HashEncoder())


def test_a_home_is_for_its_owner_alone(workspace: Workspace, tmp_path: Path) -> None:
    with Workspace(Settings(home=tmp_path / "new"), store=MemoryStore(), encoder=HashEncoder()) as new:
        assert new.home.stat().st_mode & 0o077 == 0
