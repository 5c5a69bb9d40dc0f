"""A whole workspace on a Qdrant server: what an index is made with is recorded, and it is rebuilt the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from nvr_rag import indexes
from nvr_rag.settings import QdrantSettings, Settings
from nvr_rag.testing import HashEncoder
from nvr_rag.workspace import Workspace
from tests.qdrant_stand_in import StandIn

KEY = "a-key-that-nobody-may-see"


@pytest.fixture
def server() -> Iterator[StandIn]:
    with StandIn(api_key=KEY) as stand_in:
        yield stand_in


def workspace(home: Path, server: StandIn, **qdrant: Any) -> Workspace:
    settings = QdrantSettings(url=server.url, api_key=SecretStr(KEY), **qdrant)
    return Workspace(Settings(home=home, qdrant=settings), encoder=HashEncoder())


def row_of(opened: Workspace) -> indexes.IndexInfo:
    with opened.database.read() as connection:
        return indexes.all_infos(connection)[-1]


def collection(server: StandIn, info: indexes.IndexInfo) -> Any:
    return server.answer("GET", f"/collections/nvr-{info.name}", None)


def test_an_index_is_rebuilt_with_what_it_was_made_with(tmp_path: Path, server: StandIn) -> None:
    with workspace(tmp_path, server, shard_number=3, quantization="int8", metadata_indexes={"year": "number"}) as first:
        first.create_collection("default")
        info = row_of(first)
        assert info.store["shard_number"] == 3
        assert info.store["quantization"] == "int8"
        first.index(info.id)
        made = collection(server, info)
    assert made["config"]["params"]["shard_number"] == 3
    assert made["payload_schema"]["metadata.year"]["data_type"] == "float"
    server.lose(f"nvr-{info.name}")
    with workspace(tmp_path, server, shard_number=1) as later:  # other settings by now
        later.rebuild(info.id)
        assert row_of(later).store == info.store
    assert collection(server, info) == made


def test_an_edge_index_records_the_form_of_its_payload_alone(tmp_path: Path) -> None:
    with Workspace(Settings(home=tmp_path), encoder=HashEncoder()) as opened:
        opened.create_collection("default")
        assert set(row_of(opened).store) == {"payload"}


def test_no_row_of_the_database_has_the_key(tmp_path: Path, server: StandIn) -> None:
    with workspace(tmp_path, server) as opened:
        opened.create_collection("default")
        opened.index(row_of(opened).id)
        assert KEY not in repr(row_of(opened)) + repr(opened.settings)
        assert KEY not in str(collection(server, row_of(opened)))
