"""Deployments: one serves, and the one before it stays at hand."""

from __future__ import annotations

import pytest
from sqlalchemy import select

from nvr_rag import deployments
from nvr_rag.db import tables as t
from nvr_rag.errors import NotFound
from nvr_rag.fusion import FusionSettings
from nvr_rag.types import Mode, Query
from tests.support import House, document


def states(house: House) -> list[tuple[int, str]]:
    with house.database.read() as connection:
        rows = connection.execute(select(t.Deployment.id, t.Deployment.state).order_by(t.Deployment.id))
        return [(row.id, row.state) for row in rows]


def serve(house: House, mode: Mode, fusion: FusionSettings | None = None) -> int:
    with house.database.write() as connection:
        return deployments.serve(connection, 1, house.index_id, mode, fusion or FusionSettings())


def test_a_new_collection_is_served(house: House) -> None:
    with house.database.read() as connection:
        found = deployments.serving(connection, "default")
    assert (found.index_id, found.mode, found.fusion) == (house.index_id, Mode.HYBRID, FusionSettings())


def test_switching_keeps_one_serving_and_one_previous(house: House) -> None:
    second, third = serve(house, Mode.DENSE), serve(house, Mode.LEXICAL)
    assert states(house) == [(1, "retired"), (second, "previous"), (third, "serving")]


def test_searches_follow_the_switch(house: House) -> None:
    house.put(document("a", "red fox"))
    house.catch_up()
    seen = []
    for mode in (Mode.DENSE, Mode.LEXICAL):
        deployment = serve(house, mode)
        result = house.workspace.retriever.search(Query(text="fox"))
        seen.append((result.mode, result.deployment.id == deployment, result.deployment.mode))
    assert seen == [(Mode.DENSE, True, Mode.DENSE), (Mode.LEXICAL, True, Mode.LEXICAL)]


def test_fusion_settings_are_those_of_the_deployment(house: House) -> None:
    wanted = FusionSettings(method="weighted", dense_weight=0.25, lexical_weight=0.75, depth=7)
    serve(house, Mode.HYBRID, wanted)
    with house.database.read() as connection:
        assert deployments.serving(connection, "default").fusion == wanted


def test_a_collection_that_nothing_serves_is_not_found(house: House) -> None:
    with house.database.write() as connection:
        connection.execute(t.Deployment.__table__.update().values(state="retired"))  # type: ignore[attr-defined]
    with house.database.read() as connection, pytest.raises(NotFound, match="default"):
        deployments.serving(connection, "default")
