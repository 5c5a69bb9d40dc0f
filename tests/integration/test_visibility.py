"""What a search shows while the log and the index move: of every document exactly one version, or none once deleted."""

from __future__ import annotations

import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from nvr_rag import chunks, deployments
from nvr_rag.errors import InvalidFilter, InvalidInput, NotFound
from nvr_rag.fusion import FusionSettings
from nvr_rag.ids import chunk_id, document_id, sha256_text
from nvr_rag.retriever import MAX_K, MAX_QUERY_CHARACTERS
from nvr_rag.testing import MemoryStore
from nvr_rag.types import Mode, Query
from nvr_rag.upkeep import indexing, rounds
from nvr_rag.upkeep.writing import Work
from tests import engines
from tests.support import House, apply_round, break_off_round, document, paragraphs

PARTS = 3


def version(number: int) -> list[str]:
    return ["word shared by all versions", *(f"word {part} of version {number}" for part in range(PARTS))]


def put_version(house: House, number: int, uri: str = "a") -> None:
    house.put(document(uri, "\n\n".join(version(number))))


def seen_version(house: House, mode: Mode, uri: str = "a") -> int | None:
    """The version that a search shows; None for nothing. Fails when it is not exactly one, whole."""
    texts = sorted(hit.text for hit in house.hits("word", k=50, mode=mode, where={"uri": uri}))
    if not texts:
        return None
    numbers = {int(text.split()[-1]) for text in texts if " of version " in text}
    assert len(numbers) == 1, texts
    (number,) = numbers
    assert texts == sorted(version(number))
    return number


@contextmanager
def hasty_threads() -> Iterator[None]:
    """Threads take turns far more often than usual."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@contextmanager
def in_background(work: Callable[[threading.Event], None]) -> Iterator[threading.Event]:
    """Run `work` in a thread until the event it gets is set, or the block ends; its error is raised here."""
    stop, errors = threading.Event(), []

    def run() -> None:
        try:
            work(stop)
        except BaseException as error:
            errors.append(error)
        stop.set()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield stop
    finally:
        stop.set()
        thread.join()
    if errors:
        raise errors[0]


@pytest.mark.parametrize("mode", [Mode.DENSE, Mode.HYBRID])
def test_a_search_beside_hundreds_of_updates_shows_one_version_whole(
    house: House, monkeypatch: pytest.MonkeyPatch, mode: Mode
) -> None:
    monkeypatch.setattr(rounds, "CHUNKS_A_GROUP", 2)  # a version is written in two steps
    updates = 60
    put_version(house, 0)
    house.catch_up()

    def update(stop: threading.Event) -> None:
        for number in range(1, updates + 1):
            put_version(house, number)
            if number % 3:
                house.catch_up()
        house.catch_up()

    seen: list[int | None] = []
    with hasty_threads(), in_background(update) as done:
        while not done.is_set():
            seen.append(seen_version(house, mode))
    assert None not in seen
    assert seen == sorted(number for number in seen if number is not None)
    assert len(set(seen)) > 10
    assert seen_version(house, mode) == updates


def test_a_deletion_counts_at_once_beside_an_index_that_lags(house: House) -> None:
    """What was deleted before a search began is not in its answer, whatever the indexer does meanwhile."""
    put_version(house, 0)
    house.catch_up()

    def index(stop: threading.Event) -> None:
        while not stop.is_set():
            house.catch_up()

    with hasty_threads(), in_background(index):
        for number in range(1, 60):
            house.delete("a")
            assert seen_version(house, Mode.DENSE) is None
            put_version(house, number)
            assert seen_version(house, Mode.DENSE) in (None, number)


def during_search(
    house: House, monkeypatch: pytest.MonkeyPatch, event: Callable[[], Any], *, before: bool = False
) -> None:
    """Let something happen each time between the two times that the log is asked: after the store has answered, or
    before it."""
    points = house.index.points
    real = points.search_dense

    def search(*args: Any) -> Any:
        if before:
            event()
        answer = real(*args)
        if not before:
            event()
        return answer

    monkeypatch.setattr(points, "search_dense", search)


def test_an_index_that_moves_once_during_a_search(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    put_version(house, 0)
    house.catch_up()
    put_version(house, 1)
    during_search(house, monkeypatch, house.catch_up)
    result = house.workspace.retriever.search(Query(text="word", mode=Mode.DENSE))
    assert sorted(hit.text for hit in result.hits) == sorted(version(1))
    assert result.deployment.applied_seq == 2


@pytest.mark.parametrize("purging", [True, False])
@pytest.mark.parametrize("before", [True, False])
def test_an_index_that_never_stands_still(
    house: House, monkeypatch: pytest.MonkeyPatch, purging: bool, before: bool
) -> None:
    """When it moves before the store answers and nothing is purged, two versions are among the candidates."""
    put_version(house, 0)
    house.catch_up()
    numbers = iter(range(1, 100))

    def move() -> None:
        put_version(house, next(numbers))
        apply_round(house.database, house.index, paragraphs, work=Work())
        if purging:
            house.catch_up()

    during_search(house, monkeypatch, move, before=before)
    found = seen_version(house, Mode.DENSE)
    assert found is not None
    assert next(numbers) < 10  # it does not try for ever


def test_a_deletion_during_a_search_counts(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    put_version(house, 0)
    house.catch_up()
    during_search(house, monkeypatch, lambda: house.delete("a"))
    assert seen_version(house, Mode.DENSE) is None


def test_a_half_written_version_is_not_shown(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "CHUNKS_A_GROUP", 1)
    put_version(house, 0)
    house.catch_up()
    put_version(house, 1)
    points, seen = house.index.points, []
    real = points.upsert

    def upsert(group: Any) -> None:
        real(group)
        seen.append(seen_version(house, Mode.HYBRID))

    monkeypatch.setattr(points, "upsert", upsert)
    house.catch_up()
    assert seen == [0] * PARTS
    assert seen_version(house, Mode.HYBRID) == 1


@pytest.mark.parametrize("mode", list(Mode))
def test_the_visible_are_found_behind_hundreds_of_invisible(house: House, mode: Mode) -> None:
    house.put(*[document(f"doomed {i}", f"fox {i}") for i in range(350)])
    house.put(*[document(f"good {i}", f"fox and many other words {i}") for i in range(12)])
    house.catch_up()
    house.delete(*[f"doomed {i}" for i in range(350)])
    assert len(house.index.points.search_dense(house.encoder.encode_queries(["fox"])[0], 1000)) == 362
    uris = {hit.uri for hit in house.hits("fox", k=10, mode=mode)}
    assert len(uris) == 10
    assert all(uri.startswith("good") for uri in uris)
    assert len(house.hits("fox", k=100, mode=mode)) == 12


def test_filters_hold_for_what_is_shown_also_while_the_index_lags(house: House) -> None:
    house.put(document("a", "word", metadata={"year": 2020}))
    house.catch_up()
    house.put(document("a", "word", metadata={"year": 2021}))
    index = house.index
    with house.database.read() as connection:
        (chunk,) = chunks.all_chunks(connection, 1, house.row.chunking_id, 1)
    later = {**chunk.fields(), "metadata": {"year": 2021}, "acl": None, "input_hash": "", "payload_hash": ""}
    index.points.set_payload({chunk.chunk_id: later})  # as a round does before it advances
    for year in (2020, 2021):
        assert all(hit.metadata["year"] == year for hit in house.hits("word", where={"metadata.year": year}))
    house.catch_up()
    assert len(house.hits("word", where={"metadata.year": 2021})) == 1
    assert house.hits("word", where={"metadata.year": 2020}) == []


def test_hits_are_ranked_from_one_and_tell_both_sides(house: House) -> None:
    house.put(document("a", "red fox\n\nblue whale\n\ngreen tea", title="T", metadata={"n": 1}))
    house.catch_up()
    hits = house.hits("blue whale", k=2)
    assert [hit.rank for hit in hits] == [1, 2]
    best = hits[0]
    assert (best.text, best.start, best.end, best.title, best.uri) == ("blue whale", 9, 19, "T", "a")
    assert (best.dense_rank, best.lexical_rank) == (1, 1)
    assert best.score == pytest.approx(1 / 61 + 1 / 61)
    assert house.hits("blue whale", k=1, mode=Mode.LEXICAL)[0].dense_rank is None
    dense = house.hits("blue whale", k=1, mode=Mode.DENSE)[0]
    assert (dense.lexical_rank, dense.score) == (None, dense.dense_score)


@pytest.mark.parametrize(
    ("query", "error", "field"),
    [
        (Query(text=""), InvalidInput, "query"),
        (Query(text=" \n"), InvalidInput, "query"),
        (Query(text="x" * (MAX_QUERY_CHARACTERS + 1)), InvalidInput, "query"),
        (Query(text="x", k=0), InvalidInput, "k"),
        (Query(text="x", k=MAX_K + 1), InvalidInput, "k"),
        (Query(text="x", filter={"color": "red"}), InvalidFilter, "filter"),
        (Query(text="x", collection="none"), NotFound, None),
    ],
)
def test_a_query_outside_the_limits_is_refused(
    house: House, query: Query, error: type[Exception], field: str | None
) -> None:
    with pytest.raises(error) as caught:
        house.workspace.retriever.search(query)
    assert getattr(caught.value, "field", None) == field


def test_odd_queries_are_answered(house: House) -> None:
    house.put(document("a", "red fox"))
    house.catch_up()
    for text in ("x" * MAX_QUERY_CHARACTERS, "\x00", "fox \udc80", "?!", "🦊"):
        assert len(house.hits(text, k=MAX_K, mode=Mode.DENSE)) == 1
        assert len(house.hits(text)) == 1


class Life(RuleBasedStateMachine):
    """Random lives of a few documents beside an index that follows at its own pace, against a model in Python."""

    home: Path  # a data folder to begin with

    @initialize()
    def move_in(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.store = MemoryStore()
        self.house = House(engines.copy_home(self.home, Path(self.folder.name) / "home"), store=self.store)
        self.versions: dict[str, list[tuple[int, tuple[str, ...]]]] = {}  # by URI: (seq, texts), oldest first
        self.deleted: dict[str, int] = {}  # by URI: seq of the last deletion
        self.seq = 0

    def teardown(self) -> None:
        self.house.catch_up()
        expected = {uri: self._shown(uri, self.seq) for uri in self.versions}
        assert self.house.points() == {
            chunk_id(document_id("default", uri), sha256_text(text), texts[:i].count(text))
            for uri, texts in expected.items()
            for i, text in enumerate(texts)
        }
        assert self.house.verify().clean
        self.house.close()
        engines.forget(self.house.home)
        self.folder.cleanup()

    def _shown(self, uri: str, applied: int) -> tuple[str, ...]:
        """The rule: the newest version up to `applied`, unless a deletion came after it."""
        known = [entry for entry in self.versions.get(uri, []) if entry[0] <= applied]
        return known[-1][1] if known and known[-1][0] > self.deleted.get(uri, 0) else ()

    def _exists(self, uri: str) -> bool:
        return uri in self.versions and self.versions[uri][-1][0] > self.deleted.get(uri, 0)

    @rule(uri=st.sampled_from("abc"), texts=st.lists(st.sampled_from("PQRS"), max_size=4).map(tuple))
    def put(self, uri: str, texts: tuple[str, ...]) -> None:
        (put,) = self.house.put(document(uri, "\n\n".join(f"word {text}" for text in texts)))
        same = self._exists(uri) and self.versions[uri][-1][1] == tuple(f"word {text}" for text in texts)
        assert put.seq == (0 if same else self.seq + 1)
        if not same:
            self.seq += 1
            self.versions.setdefault(uri, []).append((self.seq, tuple(f"word {text}" for text in texts)))

    @precondition(lambda self: any(self._exists(uri) for uri in self.versions))
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        uri = data.draw(st.sampled_from(sorted(uri for uri in self.versions if self._exists(uri))))
        assert self.house.delete(uri) == [document_id("default", uri)]
        self.seq += 1
        self.deleted[uri] = self.seq

    @precondition(lambda self: bool(self.versions))
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        self.house.fail(data.draw(st.sampled_from(sorted(self.versions))))

    @rule()
    def apply(self) -> None:
        apply_round(self.house.database, self.house.index, paragraphs, work=Work())

    @rule()
    def apply_half(self) -> None:
        break_off_round(self.house)

    @rule()
    def purge(self) -> None:
        indexing.purge_round(self.house.database, self.house.index, work=Work())

    @rule(repair=st.booleans())
    def verify(self, repair: bool) -> None:
        found = self.house.verify(repair=repair)
        assert (found.missing, found.stale, found.foreign) == (0, 0, 0)

    @rule(power_cut=st.booleans())
    def die(self, power_cut: bool) -> None:
        self.house.close()
        self.store.kill(power_cut=power_cut)
        self.house = House(self.house.home, store=self.store)

    @invariant()
    def every_document_shows_what_the_rule_says(self) -> None:
        if not hasattr(self, "house"):
            return
        applied = self.house.row.applied_seq
        found: dict[str, list[tuple[int, str]]] = {}
        for hit in self.house.hits("word", k=100, mode=Mode.DENSE):
            found.setdefault(hit.uri, []).append((hit.start, hit.text))
        shown = {uri: tuple(text for _, text in sorted(hits)) for uri, hits in found.items()}
        expected = {uri: self._shown(uri, applied) for uri in self.versions}
        assert shown == {uri: texts for uri, texts in expected.items() if texts}


def test_random_lives(furnished_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "CHANGES_A_ROUND", 2)
    monkeypatch.setattr(rounds, "CHUNKS_A_GROUP", 2)
    monkeypatch.setattr("nvr_rag.workspace.migrate", lambda database: None)
    monkeypatch.setattr(Life, "home", furnished_home, raising=False)
    few = settings(max_examples=10, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(Life, settings=few)


def test_what_is_fused_does_not_depend_on_how_many_hits_are_asked_for(house: House) -> None:
    house.put(*(document(f"d{i}", f"fox {i} {'den ' * (i % 5)}{'river ' * (i % 3)}") for i in range(60)))
    house.catch_up()
    fusion = FusionSettings(method="weighted", dense_weight=0.6, lexical_weight=0.4, depth=24)
    with house.database.write() as connection:
        deployments.serve(connection, 1, house.index_id, Mode.HYBRID, fusion)

    def ids(k: int) -> list[str]:
        return [hit.chunk_id for hit in house.workspace.retriever.search(Query(text="fox den river", k=k)).hits]

    longest = ids(16)  # with the slack as many as are fused
    assert len(longest) == 16
    assert all(ids(k) == longest[:k] for k in (1, 3, 10, 15))
