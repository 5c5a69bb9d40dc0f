"""What a search can be asked beside hits: groups, context, diversity, scores to reach, another order, reasons; on both
databases and with the store that people get."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nvr_rag import deployments
from nvr_rag.encoders.base import Encoder
from nvr_rag.errors import EncoderError, InvalidFilter, InvalidInput, NotFound, TimedOut
from nvr_rag.filters import Filter
from nvr_rag.fusion import FusionSettings
from nvr_rag.retriever import Retriever
from nvr_rag.stores.edge import EdgeStore
from nvr_rag.testing import MemoryStore
from nvr_rag.types import ANYBODY, OWNER, ChunkDraft, GroupBy, Hit, Mmr, Mode, ParsedText, Query, Reader, SearchResult
from nvr_rag.upkeep import indexing
from nvr_rag.upkeep.writing import Work
from tests.support import House, apply_round, document, paragraphs

ANN, BOB = Reader(principals=frozenset({"user:ann"})), Reader(principals=frozenset({"user:bob"}))
DENSE = Mode.DENSE


@pytest.fixture(params=["memory", "edge"])
def house(request: pytest.FixtureRequest, home: Path, tmp_path: Path) -> Iterator[House]:
    store = MemoryStore() if request.param == "memory" else EdgeStore(tmp_path / "shards")
    opened = House(home, store=store)
    yield opened
    opened.close()


def search(house: House, text: str, **options: Any) -> SearchResult:
    return house.workspace.retriever.search(Query(text=text, **options))


def hits(house: House, text: str, **options: Any) -> Sequence[Hit]:
    return search(house, text, **options).hits


def ids(found: Sequence[Hit]) -> list[str]:
    return [hit.chunk_id for hit in found]


def fill(house: House, *texts: str, **options: Any) -> None:
    """A document for each text, called a, b, c ..."""
    house.put(*(document("abcdefghijklmnopqrstuvwxyz"[i], text, **options) for i, text in enumerate(texts)))
    house.catch_up()


def serve(house: House, fusion: FusionSettings) -> None:
    with house.database.write() as connection:
        deployments.serve(connection, 1, house.index_id, Mode.HYBRID, fusion)


# -- groups ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", list(Mode))
def test_of_each_document_its_best(house: House, mode: Mode) -> None:
    fill(house, "fox den\n\nfox\n\nriver fox bank", "fox tea cup", "den den\n\nfox den mouse", "whale")
    every = hits(house, "fox den", k=100, mode=mode)
    best = {}
    for hit in every:
        best.setdefault(hit.uri, hit.chunk_id)
    for k in (1, 2, 4, 10):
        found = hits(house, "fox den", k=k, mode=mode, group_by=GroupBy.DOCUMENT)
        assert ids(found) == list(best.values())[:k]
        assert [hit.rank for hit in found] == list(range(1, len(found) + 1))


@pytest.mark.parametrize("mode", list(Mode))
def test_it_goes_deeper_until_there_are_k_documents(house: House, mode: Mode) -> None:
    """Hundreds of chunks of one document stand before all others."""
    house.put(document("a", "\n\n".join(f"fox x{i}" for i in range(450))))
    house.put(*(document(f"b{i}", f"fox and many other words {i}") for i in range(3)))
    house.catch_up()
    found = hits(house, "fox", k=3, mode=mode, group_by=GroupBy.DOCUMENT)
    assert len(found) == 3
    assert found[0].uri == "a"
    assert len({hit.uri for hit in found}) == 3
    assert len(hits(house, "fox", k=9, mode=mode, group_by=GroupBy.DOCUMENT)) == 4


@pytest.mark.parametrize("options", [{}, {"mmr": Mmr(diversity=0.5)}, {"rerank": True}], ids=str)
def test_long_documents_are_not_gone_through_when_there_are_no_others(
    house: House, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    rerank_by(house, lambda text: 1.0)
    house.put(document("a", "\n\n".join(f"fox x{i}" for i in range(300))), document("b", "fox"))
    house.catch_up()
    points, depths = house.index.points, list[int]()
    real = points.search_dense

    def spy(vector: Any, k: int, where: Filter | None = None) -> Any:
        depths.append(k)
        return real(vector, k, where)

    monkeypatch.setattr(points, "search_dense", spy)
    assert len(hits(house, "fox", k=2, mode=DENSE, group_by=GroupBy.DOCUMENT, **options)) == 2
    assert len(hits(house, "fox", k=5, mode=DENSE, group_by=GroupBy.DOCUMENT, **options)) == 2
    assert max(depths) < 301  # the second would have had to look at all of them
    assert 1 in depths


# -- context -----------------------------------------------------------------------------------------------------------

FIVE = "one fox\n\ntwo den\n\nthree tea\n\nfour cup\n\nfive whale"


def around(hit: Hit) -> tuple[str, str]:
    assert hit.context is not None
    return hit.context.before, hit.context.after


def test_context_by_hand(house: House) -> None:
    fill(house, FIVE)
    (tea,) = hits(house, "three tea", k=1, mode=DENSE, context=1)
    assert (tea.text, *around(tea)) == ("three tea", "two den\n\n", "\n\nfour cup")
    assert tea.context is not None
    assert (tea.context.start, tea.context.end) == (9, 37)
    (whale,) = hits(house, "five whale", k=1, mode=DENSE, context=10)
    assert around(whale) == (FIVE[: -len("five whale")], "")
    assert hits(house, "three tea", k=1, mode=DENSE)[0].context is None


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("k", [2, 4, 30])
def test_a_prompt_made_of_hits_and_context_has_nothing_twice(house: House, n: int, k: int) -> None:
    """Every word stands in one place only."""
    texts = {uri: "\n\n".join(f"fox {uri}{i} größer 𝔘" for i in range(7)) for uri in "abc"}
    fill(house, *texts.values())
    found = hits(house, "fox b3 a5", k=k, mode=DENSE, context=n)
    seen: list[tuple[str, int]] = []
    for hit in found:
        before, after = around(hit)
        assert hit.context is not None
        assert texts[hit.uri][hit.context.start : hit.context.end] == before + hit.text + after
        seen += [(hit.uri, i) for i in range(hit.context.start, hit.context.end)]
    assert len(seen) == len(set(seen))
    if k == 30:  # all chunks are hits: between them they have everything
        assert len(seen) == sum(map(len, texts.values()))


def test_spans_decide_where_a_chunk_repeats_the_head_of_a_table(house: House) -> None:
    text = "head\nrow fox\nrow tea\nrow cup"

    def rows(parsed: ParsedText, encoder: Encoder, *, overlap: int = 0) -> Sequence[ChunkDraft]:
        spans = [(0, 12), (13, 20), (21, 28)]
        return [
            ChunkDraft(text=f"head\n{parsed.text[a:b]}" if a else parsed.text[a:b], start=a, end=b) for a, b in spans
        ]

    house.put(document("a", text))
    indexing.catch_up(house.database, house.index, rows)
    (hit,) = hits(house, "tea", k=1, mode=Mode.LEXICAL, context=1)
    assert (hit.text, *around(hit)) == ("head\nrow tea", "head\nrow fox\n", "\nrow cup")


def test_context_is_of_the_version_that_is_shown(house: House) -> None:
    fill(house, "alpha old\n\nshared fox\n\nomega old")
    house.put(document("a", "alpha new\n\nshared fox\n\nomega new"))
    for age in ("old", "new"):  # the index lags, and then does not
        (hit,) = hits(house, "shared fox", k=1, mode=DENSE, context=1)
        assert around(hit) == (f"alpha {age}\n\n", f"\n\nomega {age}")
        house.catch_up()


def test_a_document_that_goes_while_it_is_searched_has_no_context(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between hydration and context there may be seconds of reranking."""
    fill(house, FIVE)
    rerank_by(house, lambda text: 1.0 if house.delete("a") else 0.0)
    (hit,) = hits(house, "three tea", k=1, mode=DENSE, context=1, rerank=True)
    assert around(hit) == ("", "")


# -- diversity ---------------------------------------------------------------------------------------------------------


def test_diverse_hits_against_a_reference(house: House) -> None:
    families = ("fox den river", "fox river bank", "den river tea", "fox whale")
    fill(house, *(f"{families[i // 5]} {'xyzuv'[i % 5]}" for i in range(20)))
    ranking = hits(house, "fox den river", k=12, mode=DENSE)
    vectors = {p.id: np.asarray(p.dense, float) for p in house.index.points.scan(with_vectors=True)}
    low, high = ranking[-1].score, ranking[0].score
    chosen: list[str] = []
    for _ in range(5):
        margins = {
            hit.chunk_id: 0.4 * (hit.score - low) / (high - low)
            - 0.6 * max((float(vectors[hit.chunk_id] @ vectors[one]) for one in chosen), default=0.0)
            for hit in ranking
            if hit.chunk_id not in chosen
        }
        chosen.append(max(margins, key=lambda key: margins[key]))
    found = hits(house, "fox den river", k=5, mode=DENSE, mmr=Mmr(diversity=0.6, candidates=12))
    assert ids(found) == chosen
    assert ids(found) != ids(ranking[:5])
    assert {hit.chunk_id: hit.score for hit in ranking}.items() >= {hit.chunk_id: hit.score for hit in found}.items()


@pytest.mark.parametrize("mode", list(Mode))
def test_no_diversity_is_the_ranking_itself(house: House, mode: Mode) -> None:
    fill(house, *(f"fox {'den ' * (i % 3)} {i}" for i in range(20)))
    assert ids(hits(house, "fox den", k=9, mode=mode, mmr=Mmr(diversity=0.0))) == ids(
        hits(house, "fox den", k=9, mode=mode)
    )


def test_copies_do_not_fill_an_answer(house: House) -> None:
    fill(house, "red fox", "red fox", "red fox", "red fox jumps over tea", "whale song")
    found = hits(house, "red fox", k=3, mmr=Mmr(diversity=0.7))
    assert len({hit.text for hit in found}) == 3
    assert len(hits(house, "red fox", k=3, mmr=Mmr(diversity=0.7, candidates=1))) == 3  # k of them at least


# -- scores to reach ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", list(Mode))
def test_hits_below_the_score_are_left_out(house: House, mode: Mode) -> None:
    fill(house, "fox den", "fox tea", "fox cup whale", "den")
    every = hits(house, "fox den", k=10, mode=mode)
    for least in [hit.score for hit in every]:
        expected = [hit.chunk_id for hit in every if hit.score >= least]
        assert ids(hits(house, "fox den", k=10, mode=mode, min_score=least)) == expected
    assert hits(house, "fox den", mode=mode, min_score=1e9) == []


# -- reranking ---------------------------------------------------------------------------------------------------------


class Judge:
    """A reranker that scores by a function of the text, and remembers what it was asked."""

    fingerprint = "judge"

    def __init__(self, score: Callable[[str], float]) -> None:
        self._score, self.asked = score, list[tuple[str, list[str]]]()

    def score(self, query: str, texts: Sequence[str]) -> list[float]:
        self.asked.append((query, list(texts)))
        return [self._score(text) for text in texts]


def rerank_by(house: House, score: Callable[[str], Any], *, depth: int = 50) -> Judge:
    judge = Judge(score)
    house.workspace.retriever = Retriever(
        house.database, house.workspace.index, reranker=lambda: judge, rerank_depth=depth
    )
    return judge


def test_a_reranker_decides_among_the_best(house: House) -> None:
    fill(house, *(f"fox {'den ' * i}" for i in range(6)))
    ranking = hits(house, "fox", k=6, mode=DENSE)
    assert [hit.text.count("den") for hit in ranking] == [0, 1, 2, 3, 4, 5]
    judge = rerank_by(house, lambda text: float(text.count("den") % 3), depth=4)
    result = search(house, "fox", k=2, mode=DENSE, rerank=True, explain=True)
    # Of the first four, by remainder and then as before: 2 (2), 1 (1), 0 and 3 (0).
    assert [(hit.text.count("den"), hit.score) for hit in result.hits] == [(2, 2.0), (1, 1.0)]
    assert judge.asked == [("fox", [hit.text for hit in ranking[:4]])]
    assert result.seconds["rerank"] > 0
    first = result.hits[0].explain
    assert first is not None
    assert first.rerank is not None
    assert (first.rerank.rank, first.rerank.score) == (1, 2.0)
    assert result.hits[0].dense_rank == 3
    every = hits(house, "fox", k=5, mode=DENSE, rerank=True)  # never fewer than k
    assert [hit.text.count("den") for hit in every] == [2, 1, 4, 0, 3]
    six = hits(house, "fox", k=6, mode=DENSE, rerank=True, min_score=1.0)
    assert [hit.text.count("den") for hit in six] == [2, 5, 1, 4]


def test_the_score_to_reach_is_the_rerankers(house: House) -> None:
    fill(house, "fox", "fox den", "fox den den")
    rerank_by(house, lambda text: text.count("den") - 1.0)
    assert [hit.score for hit in hits(house, "fox", rerank=True, min_score=0.0)] == [1.0, 0.0]


def test_headings_go_before_the_text(house: House) -> None:
    def under_headings(parsed: ParsedText, encoder: Encoder, *, overlap: int = 0) -> Sequence[ChunkDraft]:
        return [ChunkDraft(text=parsed.text, start=0, end=len(parsed.text), headings=["Animals", "Foxes"])]

    house.put(document("a", "they live in dens"))
    indexing.catch_up(house.database, house.index, under_headings)
    judge = rerank_by(house, lambda text: 1.0)
    hits(house, "fox", rerank=True)
    assert judge.asked == [("fox", ["Animals > Foxes\nthey live in dens"])]


def test_reranked_documents_and_diverse_ones(house: House) -> None:
    """Groups first, so that there are k documents; then the reranker, whose order is made diverse."""
    fill(house, "fox\n\nfox den", "fox tea", "fox cup", "whale")
    rerank_by(house, lambda text: float(len(text)))
    found = hits(house, "fox", k=3, mode=DENSE, rerank=True, group_by=GroupBy.DOCUMENT)
    assert len({hit.uri for hit in found}) == 3
    assert [hit.score for hit in found] == sorted((hit.score for hit in found), reverse=True)
    plain = hits(house, "fox", k=3, mode=DENSE, rerank=True)
    assert ids(hits(house, "fox", k=3, mode=DENSE, rerank=True, mmr=Mmr(diversity=0))) == ids(plain)


def test_without_a_reranker_it_is_said_what_to_do(house: House) -> None:
    with pytest.raises(InvalidInput, match="NVR_RERANKER") as caught:
        search(house, "fox", rerank=True)
    assert caught.value.field == "rerank"


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_scores_that_are_none_are_not_shown(house: House, bad: float) -> None:
    fill(house, "fox")
    rerank_by(house, lambda text: bad)
    with pytest.raises(EncoderError, match="NVR_RERANKER"):
        search(house, "fox", rerank=True)


# -- reasons -----------------------------------------------------------------------------------------------------------


def test_reasons_by_hand(house: House) -> None:
    fill(house, "blue whale", "red fox", "green tea")
    found = hits(house, "blue whale", explain=True)
    why = found[0].explain
    assert why is not None
    assert (why.dense, why.lexical) is not None
    assert why.fused is not None
    assert (why.fused.rank, why.fused.score) == (1, pytest.approx(2 / 61))
    assert (why.rerank, why.mmr) == (None, None)
    assert why.weights == FusionSettings().as_json()
    other = found[1].explain
    assert other is not None
    assert other.lexical is not None
    assert (other.lexical.rank, other.lexical.score) == (None, 0.0)  # shares no word
    one_side = hits(house, "blue whale", mode=DENSE, explain=True)[0].explain
    assert one_side is not None
    assert (one_side.lexical, one_side.fused, one_side.weights) == (None, None, None)
    assert hits(house, "blue whale")[0].explain is None


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0)])
def test_both_sides_score_also_what_they_did_not_propose(house: House, weights: tuple[float, float]) -> None:
    """One side alone decides, and the other one has not all of it among its eighteen candidates."""
    fusion = FusionSettings(depth=1, dense_weight=weights[0], lexical_weight=weights[1])
    texts = [f"fox {'den ' * (i % 5)}{'river ' * (i % 7)}{'tea ' * (i % 3)}w{i % 11} v{i % 13}" for i in range(40)]
    house.put(*(document(f"d{i:02}", text) for i, text in enumerate(texts)))
    house.catch_up()
    serve(house, fusion)
    query = "fox tea river"
    found = hits(house, query, k=10, explain=True)
    vector = house.encoder.encode_queries([query])[0]
    stored = {point.id: point.dense for point in house.index.points.scan(with_vectors=True)}
    lexical = {
        item.id: item.score for item in house.index.points.search_lexical(house.index.lexical.encode_query(query), 1000)
    }
    beyond = 0
    for hit in found:
        why = hit.explain
        assert why is not None
        assert why.dense is not None
        assert why.lexical is not None
        assert (why.dense.rank, why.lexical.rank) == (hit.dense_rank, hit.lexical_rank)
        dense = stored[hit.chunk_id]
        assert dense is not None
        assert why.dense.score == pytest.approx(float(np.dot(vector, dense)), abs=1e-5)
        assert why.lexical.score == pytest.approx(lexical[hit.chunk_id], rel=1e-4)
        beyond += (hit.dense_rank is None) + (hit.lexical_rank is None)
    assert beyond > 0


def test_marginal_relevance_is_told(house: House) -> None:
    fill(house, "fox", "fox den", "whale")
    found = hits(house, "fox", k=2, mode=DENSE, mmr=Mmr(diversity=0.5), explain=True)
    first, second = (hit.explain for hit in found)
    assert first is not None
    assert second is not None
    assert first.mmr is not None
    assert second.mmr is not None
    assert (first.mmr.rank, first.mmr.score) == (1, pytest.approx(0.5))  # half of the relevance, which is 1
    assert second.mmr.rank == 2


# -- who may read ------------------------------------------------------------------------------------------------------


def restricted(house: House) -> None:
    house.put(
        document("open", "fox in the open"),
        document("anns", "fox of ann", acl=["user:ann"]),
        document("both", "fox of both", acl=["user:ann", "user:bob"]),
        document("nobodys", "fox of nobody", acl=[]),
    )
    house.catch_up()


@pytest.mark.parametrize("mode", list(Mode))
def test_each_reader_sees_what_is_for_him(house: House, mode: Mode) -> None:
    restricted(house)

    def uris(reader: Reader, **options: Any) -> set[str]:
        return {hit.uri for hit in hits(house, "fox", mode=mode, reader=reader, **options)}

    for options in ({}, {"group_by": GroupBy.DOCUMENT}, {"mmr": Mmr(diversity=0.5)}, {"context": 2}, {"explain": True}):
        assert uris(ANYBODY, **options) == {"open"}
        assert uris(ANN, **options) == {"open", "anns", "both"}
        assert uris(BOB, **options) == {"open", "both"}
        assert uris(OWNER, **options) == {"open", "anns", "both", "nobodys"}
    assert uris(BOB, filter={"not": {"uri": "open"}}) == {"both"}
    assert uris(BOB, filter={"or": [{"uri": "anns"}, {"uri": "both"}]}) == {"both"}


def test_the_store_is_asked_for_what_the_reader_may_see(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only where something is restricted, and never for who reads everything."""
    fill(house, "fox")
    points, asked = house.index.points, list[Filter | None]()
    real = points.search_dense

    def spy(vector: Any, k: int, where: Filter | None = None) -> Any:
        asked.append(where)
        return real(vector, k, where)

    monkeypatch.setattr(points, "search_dense", spy)
    hits(house, "fox", mode=DENSE)
    assert asked == [None]
    restricted(house)
    for reader in (ANYBODY, ANN):
        hits(house, "fox", mode=DENSE, reader=reader)
        assert asked[-1] is not None
        assert len(real(house.encoder.encode_queries(["fox"])[0], 10, asked[-1])) == (2 if reader is ANYBODY else 4)
    hits(house, "fox", mode=DENSE, reader=OWNER)
    assert asked[-1] is None


def test_no_filter_names_permissions(house: House) -> None:
    restricted(house)
    for bad in ({"acl": "user:ann"}, {"acl": {"exists": False}}, {"not": {"acl": "user:bob"}}):
        with pytest.raises(InvalidFilter):
            search(house, "fox", filter=bad)


@pytest.mark.parametrize("mode", [Mode.DENSE, Mode.HYBRID])
def test_ranks_do_not_count_what_may_not_be_seen_while_the_index_lags(house: House, mode: Mode) -> None:
    """The index still has it for everybody: ranks and scores are as if it were not there."""
    fill(house, "fox fox", "fox den", "fox tea den", "fox fox fox")
    house.put(document("other", "x", acl=[]))
    house.catch_up()
    house.put(document("a", "fox fox", acl=["user:ann"]), document("d", "fox fox fox", acl=[]))
    found = hits(house, "fox", mode=mode, explain=True)
    assert [hit.uri for hit in found] == ["b", "c"]
    assert [hit.dense_rank for hit in found] == [1, 2]
    if mode == Mode.HYBRID:
        assert [hit.lexical_rank for hit in found] == [1, 2]
        assert [hit.score for hit in found] == pytest.approx([2 / 61, 2 / 62])


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("options", [{}, {"context": 1}, {"mmr": Mmr(diversity=0.5), "explain": True}], ids=str)
def test_what_opens_and_closes_while_the_index_never_stands_still(
    house: House, monkeypatch: pytest.MonkeyPatch, before: bool, options: dict[str, Any]
) -> None:
    """Versions of odd numbers are for ann: bob sees nothing of them, whatever the one after is."""
    house.put(document("a", two_parts(0)), document("b", "fox for all"))
    house.catch_up()
    points, numbers = house.index.points, iter(range(1, 1000))
    real = points.search_dense

    def move() -> None:
        number = next(numbers)
        house.put(document("a", two_parts(number), title=str(number), acl=["user:ann"] if number % 2 else None))
        apply_round(house.database, house.index, paragraphs, work=Work())

    def step(*args: Any) -> Any:
        if before:
            move()
        answer = real(*args)
        if not before:
            move()
        return answer

    monkeypatch.setattr(points, "search_dense", step)
    for _ in range(3):
        found = hits(house, "fox", mode=DENSE, reader=BOB, **options)
        shown = [hit.text for hit in found if hit.uri == "a"]
        shown += [hit.title for hit in found if hit.title]
        shown += [part for hit in found if hit.context for part in around(hit) if part.strip()]
        assert all(int(text.split()[-1]) % 2 == 0 for text in shown)
        assert len({text.split()[-1] for text in shown}) <= 1
        assert [hit.dense_rank for hit in found] == list(range(1, len(found) + 1)) or "mmr" in options
        move()


# -- time --------------------------------------------------------------------------------------------------------------


def test_a_search_ends_when_its_time_is_over(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(house, "fox")
    with pytest.raises(TimedOut):
        house.workspace.retriever.search(Query(text="fox"), deadline=time.monotonic() - 1)
    assert house.workspace.retriever.search(Query(text="fox"), deadline=time.monotonic() + 60).hits
    judge = rerank_by(house, lambda text: time.sleep(0.02) or 1.0)
    house.put(*(document(f"m{i}", f"fox {i}") for i in range(49)))
    house.catch_up()
    with pytest.raises(TimedOut, match="smaller k"):
        house.workspace.retriever.search(Query(text="fox", rerank=True), deadline=time.monotonic() + 0.4)
    assert len(judge.asked) == 1  # the rest was not begun


# -- an index that moves -----------------------------------------------------------------------------------------------


def two_parts(number: int) -> str:
    return f"fox one of version {number}\n\nfox two of version {number}"


@pytest.mark.parametrize(
    "options", [{"mmr": Mmr(diversity=0.5)}, {"explain": True}, {"group_by": GroupBy.DOCUMENT}, {"context": 1}], ids=str
)
@pytest.mark.parametrize("call", ["search_dense", "get"])
def test_an_index_that_moves_during_a_search_gives_the_exact_answer(
    house: House, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], call: str
) -> None:
    """It is brought up between two steps, and what it has proposed is gone from it."""
    house.put(document("a", two_parts(0)))
    house.catch_up()
    house.put(document("a", two_parts(1)))
    points, moved = house.index.points, list[bool]()
    real = getattr(points, call)

    def step(*args: Any, **named: Any) -> Any:
        if call == "get" and not named.get("with_vectors"):
            return real(*args, **named)
        if moved:
            return real(*args, **named)
        moved.append(True)
        answer = real(*args, **named) if call == "search_dense" else None
        house.catch_up()
        return answer if call == "search_dense" else real(*args, **named)

    monkeypatch.setattr(points, call, step)
    result = search(house, "fox", mode=DENSE, **options)
    version = 1 if moved else 0
    assert result.deployment.applied_seq == version + 1
    expected = set(two_parts(version).split("\n\n"))
    assert {hit.text for hit in result.hits} == (
        expected if "group_by" not in options else expected & {result.hits[0].text}
    )
    for hit in result.hits:
        if hit.context is not None:
            before, after = around(hit)
            assert before + hit.text + after in two_parts(version)
        if hit.explain is not None:
            assert hit.explain.dense is not None
            assert hit.explain.dense.score is not None


# -- several at once ---------------------------------------------------------------------------------------------------


def test_several_searches_are_encoded_in_one_call(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(house, "blue whale", "red fox", "green tea")
    queries = [
        Query(text="whale"),
        Query(text="fox", mode=DENSE, k=1),
        Query(text="tea", mode=Mode.LEXICAL),
        Query(text="red", filter={"uri": "b"}, context=1),
    ]
    alone = [house.workspace.retriever.search(query).hits for query in queries]
    calls, real = list[list[str]](), house.encoder.encode_queries
    monkeypatch.setattr(house.encoder, "encode_queries", lambda texts: calls.append(list(texts)) or real(texts))
    together = house.workspace.retriever.search_many(queries)
    assert calls == [["whale", "fox", "red"]]
    assert [result.hits for result in together] == alone
    assert [result.mode for result in together] == ["hybrid", "dense", "lexical", "hybrid"]
    assert house.workspace.retriever.search_many([]) == []


def test_what_is_wrong_with_one_of_several_names_it(house: House) -> None:
    fill(house, "fox")
    for bad, field in [
        (Query(text="fox", k=0), "searches[1].k"),
        (Query(text=" "), "searches[1].query"),
        (Query(text="fox", filter={"colour": 1}), "searches[1].filter"),
        (Query(text="fox", rerank=True), "searches[1].rerank"),
    ]:
        with pytest.raises(InvalidInput) as caught:
            house.workspace.retriever.search_many([Query(text="fox"), bad])
        assert caught.value.field == field
    with pytest.raises(NotFound):
        house.workspace.retriever.search_many([Query(text="fox"), Query(text="fox", collection="none")])


def test_the_lists_of_all_filters_together_are_bounded(house: House) -> None:
    fill(house, "fox")
    full = Query(text="fox", filter={"or": [{"uri": {"in": ["u"] * 1000}}] * 10})
    one = Query(text="fox", filter={"not": {"uri": {"in": ["v"]}}})
    assert house.workspace.retriever.search_many([full, Query(text="fox", filter={"uri": "v"})])
    with pytest.raises(InvalidFilter, match="10000 values") as caught:
        house.workspace.retriever.search_many([Query(text="fox"), full, one])
    assert caught.value.field == "searches[2].filter"


# -- one chunk ---------------------------------------------------------------------------------------------------------


def test_a_chunk_as_it_stands_now(house: House) -> None:
    fill(house, FIVE, title="T", source="s", metadata={"n": 1})
    hit = hits(house, "three tea", k=1, mode=DENSE, context=1)[0]
    retriever = house.workspace.retriever
    found = retriever.passage("default", hit.chunk_id, reader=ANYBODY, context=1)
    for name in ("chunk_id", "text", "uri", "title", "source", "metadata", "sha256", "start", "end", "context"):
        assert getattr(found, name) == getattr(hit, name)
    assert found.updated_at is not None
    assert retriever.passage("default", hit.chunk_id, reader=ANYBODY).context is None
    with pytest.raises(InvalidInput):
        retriever.passage("default", hit.chunk_id, reader=ANYBODY, context=11)
    house.put(document("a", "something else"))
    house.catch_up()
    with pytest.raises(NotFound):
        retriever.passage("default", hit.chunk_id, reader=ANYBODY)


def test_a_chunk_that_is_not_for_the_reader_is_none(house: House) -> None:
    """In the same words as one that there never was; nor is one in another collection."""
    restricted(house)
    retriever = house.workspace.retriever
    (secret,) = [hit.chunk_id for hit in hits(house, "fox", reader=OWNER) if hit.uri == "anns"]
    assert retriever.passage("default", secret, reader=ANN).text == "fox of ann"
    house.workspace.create_collection("second")
    for collection, chunk_id, reader in [
        ("default", secret, ANYBODY),
        ("default", secret, BOB),
        ("second", secret, OWNER),
        ("default", "nonsense", OWNER),
        ("default", "5f0c0c9e-8a52-4b8e-9c55-0d8b7a4e2f10", OWNER),
    ]:
        with pytest.raises(NotFound) as caught:
            retriever.passage(collection, chunk_id, reader=reader)
        assert str(caught.value).replace(chunk_id, "X") == (
            "no chunk 'X' in the collection; its document may have changed: search again"
        )
