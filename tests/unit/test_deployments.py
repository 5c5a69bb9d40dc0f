"""Deployments: one serves, and the one before it stays at hand. Transitions and retention, worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest
from sqlalchemy import Connection, select, update
from sqlalchemy.exc import IntegrityError

from nvr_rag import deployments, indexes, registry
from nvr_rag.chunkings import settings_for
from nvr_rag.db import tables as t
from nvr_rag.errors import Conflict, NotFound
from nvr_rag.fusion import FusionSettings
from nvr_rag.stores.lexical import LexicalEncoder
from nvr_rag.testing import HashEncoder
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


# transitions


CONFLICT = "Conflict"
STATES = ("candidate", "prepared", "serving", "previous", "retired", "rejected")
TABLE = {
    #           candidate    prepared     serving    previous   retired    rejected
    "adjust": ["candidate", CONFLICT, CONFLICT, CONFLICT, CONFLICT, CONFLICT],
    "prepare": ["prepared", "prepared", CONFLICT, CONFLICT, CONFLICT, CONFLICT],
    "unprepare": ["candidate", "candidate", "serving", "previous", "retired", "rejected"],
    "reject": ["rejected", "rejected", CONFLICT, CONFLICT, CONFLICT, CONFLICT],
    "retire": [CONFLICT, CONFLICT, CONFLICT, "retired", CONFLICT, CONFLICT],
    "switch": [CONFLICT, "serving", CONFLICT, "serving", CONFLICT, CONFLICT],
}
STEPS: dict[str, Callable[[Connection, int], object]] = {
    "adjust": lambda connection, id_: deployments.adjust(connection, id_, Mode.DENSE, FusionSettings()),
    "prepare": deployments.prepare,
    "unprepare": deployments.unprepare,
    "reject": deployments.reject,
    "retire": deployments.retire,
    "switch": deployments.switch,
}


def new_index(house: House, seed: int) -> int:
    """An index of "default" with another encoder version."""
    encoder = HashEncoder(seed=seed)
    with house.database.write() as connection:
        registry.register(connection, encoder, f"double:{seed}")
        return indexes.create(connection, 1, settings_for(encoder), encoder, LexicalEncoder("english"))


def propose(house: House, index_id: int, run: str | None = None) -> int:
    with house.database.write() as connection:
        return deployments.propose(connection, 1, index_id, Mode.HYBRID, FusionSettings(), run=run)


def step(house: House, name: str, deployment_id: int) -> object:
    with house.database.write() as connection:
        return STEPS[name](connection, deployment_id)


def promoted(house: House, index_id: int) -> int:
    """A new deployment on an index, serving."""
    deployment_id = propose(house, index_id)
    step(house, "prepare", deployment_id)
    step(house, "switch", deployment_id)
    return deployment_id


def force(house: House, deployment_id: int, **values: object) -> None:
    with house.database.write() as connection:
        connection.execute(update(t.Deployment).where(t.Deployment.id == deployment_id).values(**values))


def apply(house: House, index_id: int, seq: int) -> None:
    with house.database.write() as connection:
        connection.execute(update(t.SearchIndex).where(t.SearchIndex.id == index_id).values(applied_seq=seq))


def live(house: House) -> list[int]:
    with house.database.read() as connection:
        return [info.id for info in indexes.all_infos(connection) if info.state == "live"]


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("name", TABLE)
def test_every_step_from_every_state(house: House, name: str, state: str) -> None:
    deployment_id = propose(house, new_index(house, 1))
    if state == "serving":
        force(house, 1, state="previous")
    force(house, deployment_id, state=state)
    before = states(house)
    wanted = TABLE[name][STATES.index(state)]
    if wanted == CONFLICT:
        with pytest.raises(Conflict, match=f"deployment {deployment_id} is {state}; this needs one that is "):
            step(house, name, deployment_id)
        assert states(house) == before
    else:
        step(house, name, deployment_id)
        assert dict(states(house))[deployment_id] == wanted


@pytest.mark.parametrize("name", sorted(set(STEPS) - {"unprepare"}))
def test_no_step_without_a_deployment(house: House, name: str) -> None:
    with pytest.raises(NotFound, match="no deployment 99; nvr-rag deploy list"):
        step(house, name, 99)


def test_a_candidate_may_change_how_it_would_answer(house: House) -> None:
    deployment_id = propose(house, house.index_id)
    wanted = FusionSettings(method="weighted", dense_weight=0.75, lexical_weight=0.25)
    with house.database.write() as connection:
        deployments.adjust(connection, deployment_id, Mode.LEXICAL, wanted)
        found = deployments.get(connection, deployment_id)
    assert (found.mode, found.fusion, found.state) == (Mode.LEXICAL, wanted, "candidate")


def test_a_switch_tells_what_served_before_and_when_it_stopped(house: House) -> None:
    deployment_id = propose(house, new_index(house, 1))
    step(house, "prepare", deployment_id)
    begun = t.now()
    before = step(house, "switch", deployment_id)
    assert isinstance(before, deployments.Deployment)
    assert (before.id, before.state) == (1, "previous")
    assert before.stopped_at is not None
    assert begun <= before.stopped_at <= t.now()
    with house.database.read() as connection:
        assert deployments.serving(connection, "default").id == deployment_id


@pytest.mark.parametrize(("applied", "behind"), [(2, 1), (0, 3), (3, 0), (4, 0)])
def test_what_lags_further_than_what_serves_is_not_switched_to(house: House, applied: int, behind: int) -> None:
    index_id = new_index(house, 1)
    deployment_id = propose(house, index_id)
    step(house, "prepare", deployment_id)
    apply(house, house.index_id, 3)
    apply(house, index_id, applied)
    if behind:
        with pytest.raises(Conflict, match=f"is {behind} changes behind .*--resume {index_id}"):
            step(house, "switch", deployment_id)
        assert states(house) == [(1, "serving"), (deployment_id, "prepared")]
    else:
        step(house, "switch", deployment_id)
        assert states(house) == [(1, "previous"), (deployment_id, "serving")]


def test_a_lap_has_one_deployment(house: House) -> None:
    deployment_id = propose(house, house.index_id, "lap-1")
    assert propose(house, house.index_id, "lap-2") != deployment_id
    propose(house, house.index_id), propose(house, house.index_id)  # those of nobody are as many as one likes
    with pytest.raises(IntegrityError):
        propose(house, house.index_id, "lap-1")
    with house.database.read() as connection:
        found = deployments.of_run(connection, "lap-1")
        assert found is not None
        assert found.id == deployment_id
        assert deployments.of_run(connection, "lap-3") is None


def test_servers_load_what_serves_what_served_and_what_is_about_to(house: House) -> None:
    ids = [propose(house, house.index_id) for _ in range(5)]
    for deployment_id, state in zip(ids, ("candidate", "prepared", "previous", "retired", "rejected"), strict=True):
        force(house, deployment_id, state=state)
    house.workspace.create_collection("other")
    with house.database.read() as connection:
        other = deployments.serving(connection, "other").id
        assert [one.id for one in deployments.to_load(connection)] == [1, ids[1], ids[2], other]
        assert [one.id for one in deployments.all_of(connection, 1)] == [1, *ids]
        assert [one.id for one in deployments.all_of(connection, 1, ("candidate", "retired"))] == [ids[0], ids[3]]
        assert {name: one.id for name, one in deployments.all_serving(connection).items()} == {
            "default": 1,
            "other": other,
        }


# what is kept ready: of each index the newest previous deployment, of indexes beside the serving one the newest


def test_promoted_twice_keeps_the_one_before(house: House) -> None:
    first, second, third = house.index_id, new_index(house, 1), new_index(house, 2)
    b, c = promoted(house, second), promoted(house, third)
    assert states(house) == [(1, "retired"), (b, "previous"), (c, "serving")]
    assert live(house) == [second, third]
    assert first not in live(house)


def test_configured_after_a_promotion_the_old_encoder_stays_in_reach(house: House) -> None:
    first, second = house.index_id, new_index(house, 1)
    b = promoted(house, second)
    with house.database.write() as connection:
        c = deployments.serve(connection, 1, second, Mode.DENSE, FusionSettings())
    assert states(house) == [(1, "previous"), (b, "previous"), (c, "serving")]
    with house.database.write() as connection:
        d = deployments.serve(connection, 1, second, Mode.LEXICAL, FusionSettings())
    assert states(house) == [(1, "previous"), (b, "retired"), (c, "previous"), (d, "serving")]
    assert live(house) == [first, second]
    step(house, "switch", 1)
    assert states(house) == [(1, "serving"), (b, "retired"), (c, "retired"), (d, "previous")]
    assert live(house) == [first, second]


def test_rolling_back_twice_is_where_one_was(house: House) -> None:
    first, second = house.index_id, new_index(house, 1)
    b = promoted(house, second)

    def last() -> int:
        with house.database.read() as connection:
            return deployments.last(connection, 1).id

    assert last() == 1
    step(house, "switch", 1)
    assert states(house) == [(1, "serving"), (b, "previous")]
    assert last() == b
    with house.database.read() as connection:
        assert deployments.get(connection, 1).stopped_at is None  # it serves
    step(house, "switch", b)
    assert states(house) == [(1, "previous"), (b, "serving")]
    assert live(house) == [first, second]


def test_the_first_of_a_collection_has_nothing_to_go_back_to(house: House) -> None:
    with house.database.read() as connection, pytest.raises(NotFound, match="no previous deployment"):
        deployments.last(connection, 1)


def test_the_last_is_the_one_that_stopped_last_and_then_the_newer(house: House) -> None:
    ids = [propose(house, house.index_id) for _ in range(3)]
    early, late = t.now() - timedelta(hours=2), t.now() - timedelta(hours=1)
    for deployment_id, stopped in zip(ids, (late, late, early), strict=True):
        force(house, deployment_id, state="previous", stopped_at=stopped)
    with house.database.read() as connection:
        assert deployments.last(connection, 1).id == ids[1]


def test_a_rejected_candidate_frees_its_index_unless_another_needs_it(house: House) -> None:
    first, second = house.index_id, new_index(house, 1)
    b, c, d = propose(house, second), propose(house, second), propose(house, first)
    step(house, "reject", b)
    assert live(house) == [first, second]
    step(house, "reject", c)
    assert live(house) == [first]
    step(house, "reject", d)
    assert live(house) == [first]  # it serves


def test_candidates_are_no_reason_to_let_go_of_what_can_be_gone_back_to(house: House) -> None:
    indexes_ = [new_index(house, seed) for seed in (1, 2, 3)]
    b = promoted(house, indexes_[0])
    waiting = [propose(house, index_id) for index_id in indexes_[1:]]
    step(house, "prepare", waiting[0])
    step(house, "unprepare", waiting[0])
    assert states(house) == [(1, "previous"), (b, "serving"), (waiting[0], "candidate"), (waiting[1], "candidate")]
    assert live(house) == [house.index_id, *indexes_]


def test_a_retired_previous_one_frees_its_index(house: House) -> None:
    second = new_index(house, 1)
    b = promoted(house, second)
    step(house, "retire", 1)
    assert states(house) == [(1, "retired"), (b, "serving")]
    assert live(house) == [second]


def test_collections_are_kept_apart(house: House) -> None:
    other = house.workspace.create_collection("other")
    promoted(house, new_index(house, 1)), promoted(house, new_index(house, 2))
    with house.database.read() as connection:
        assert [one.state for one in deployments.all_of(connection, other)] == ["serving"]
        (info,) = indexes.all_infos(connection, other)
    assert info.state == "live"
