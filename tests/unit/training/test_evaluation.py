"""Exact search against brute force, hits as targets by hand, and evaluations that survive their file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nvr_rag.encoders.base import Vectors
from nvr_rag.encoders.spec import EncoderSpec
from nvr_rag.errors import Conflict, InvalidInput, StoreBusy
from nvr_rag.ids import sha256_text
from nvr_rag.testing import HashEncoder
from nvr_rag.types import DeploymentRef, Hit, Mode, SearchResult
from training import evaluation
from training.beir import Beir, BeirDocument
from training.data import JudgedQuery
from training.evaluation import Dataset, Evaluation, dataset, exact_search, rank_targets, run_deployment


class TableEncoder(HashEncoder):
    """Each text is the name of its vector."""

    def __init__(self, vectors: dict[str, Sequence[float]]) -> None:
        super().__init__()
        self.vectors = vectors
        self.batches: list[int] = []

    @property
    def spec(self) -> EncoderSpec:
        dimension = len(next(iter(self.vectors.values())))
        return EncoderSpec(dimension=dimension, max_tokens=64, pooling="mean", normalize=False)

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        return np.array([self.vectors[text] for text in texts], dtype=np.float32)

    def encode_documents(self, inputs: Sequence[str]) -> Vectors:
        self.batches.append(len(inputs))
        return self.encode_queries(inputs)


def document(id_: str, text: str, title: str = "") -> BeirDocument:
    return BeirDocument(id=id_, title=title, text=text)


# exact search


@pytest.mark.parametrize(("batch", "queries_at_once"), [(512, 2048), (7, 3), (1, 1), (64, 64)])
def test_exact_search_agrees_with_sorting_everything(
    batch: int, queries_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "_BATCH", batch)
    monkeypatch.setattr(evaluation, "_QUERIES", queries_at_once)
    rng = np.random.default_rng(0)
    # Small whole numbers: sums are exact in any order, and there are many ties, negative scores and zeros.
    vectors = {f"t{i}": rng.integers(-2, 3, size=4).tolist() for i in range(150)}
    documents = {f"d{i:03d}": f"t{i}" for i in rng.permutation(100)}
    queries = {f"q{i}": f"t{i}" for i in range(100, 150)}
    found = exact_search(
        TableEncoder(vectors), queries, [document(*pair) for pair in documents.items()], ids=list(documents), k=20
    )
    assert list(found) == list(queries)
    for query, name in queries.items():
        scores = {id_: np.dot(vectors[text], vectors[name]) for id_, text in documents.items()}
        assert found[query] == sorted(documents, key=lambda id_: (-scores[id_], id_))[:20]


def test_scores_that_differ_little_or_have_any_size_are_ordered() -> None:
    values = [1e-38, 3e38, -3e38, -1e-38, 0.0, -0.0, 0.5, np.nextafter(np.float32(0.5), 1), -0.5, 1e-45]
    vectors = {"q": [1.0], **{f"d{i}": [float(value)] for i, value in enumerate(values)}}
    documents = [document(f"d{i}", f"d{i}") for i in range(len(values))]
    found = exact_search(TableEncoder(vectors), {"q": "q"}, documents, ids=[one.id for one in documents])
    assert found["q"] == ["d1", "d7", "d6", "d0", "d9", "d4", "d5", "d3", "d8", "d2"]


def test_a_key_orders_as_score_and_place_do() -> None:
    scores = np.array([[0.0, -0.0, 1.0, -1.0, 1.0, -1e-45, 0.0]], dtype=np.float32)
    places = np.array([4, 0, 6, 2, 1, 3, 5])
    keys = evaluation._keys(scores, places)[0]
    assert places[np.argsort(-keys)].tolist() == [1, 6, 0, 4, 5, 3, 2]


def test_a_small_corpus_is_returned_whole() -> None:
    found = exact_search(
        HashEncoder(), {"q": "blue whale"}, [document("b", "tea"), document("a", "blue whale")], ids=["a", "b"]
    )
    assert found == {"q": ["a", "b"]}


def test_documents_are_read_with_their_title_as_the_encoder_says() -> None:
    vectors = {"q": [1.0], "Title\ntext": [2.0], "text": [1.0]}
    documents = [document("a", "text"), document("b", "text", "Title")]
    assert exact_search(TableEncoder(vectors), {"q": "q"}, documents, ids=["a", "b"]) == {"q": ["b", "a"]}


def test_queries_and_documents_are_encoded_in_their_roles() -> None:
    encoder = HashEncoder(query_prompt="fox ", dimension=512)
    found = exact_search(encoder, {"q": "tea"}, [document("a", "tea"), document("b", "tea fox")], ids=["a", "b"])
    assert found == {"q": ["b", "a"]}
    assert encoder.encoded == 2


def test_the_corpus_goes_through_in_batches_and_progress_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "_BATCH", 4)
    names = {f"{i}": f"{i}" for i in range(10)}
    encoder = TableEncoder({name: [1.0] for name in names})
    told: list[tuple[str, int, int]] = []
    exact_search(
        encoder,
        {"q": "0", "p": "1"},
        (document(*pair) for pair in names.items()),
        ids=list(names),
        report=lambda *progress: told.append(progress),
    )
    assert encoder.batches == [4, 4, 2]
    assert told == [("queries", 0, 2), ("queries", 2, 2), *(("documents", done, 10) for done in (0, 4, 8, 10))]


# hits as targets


def hit(text: str, chunk: str = "", of: str = "D") -> Hit:
    return Hit(
        rank=1,
        score=1.0,
        chunk_id=chunk or text,
        text=text,
        document_id=of,
        uri="",
        title="",
        media_type="text/plain",
        metadata={},
        headings=(),
        page=None,
        start=0,
        end=len(text),
    )


def judged(key: str = "q", text: str = "?", **judgments: dict[str, int]) -> JudgedQuery:
    return JudgedQuery(key=key, id=f"id of {key}", text=text, **judgments)


def test_documents_rank_where_their_best_chunk_does() -> None:
    hits = [hit("a", of="D2"), hit("b", of="D1"), hit("c", of="D2"), hit("d", of="D3")]
    query = judged(documents={"D1": 2, "D9": 1})
    assert rank_targets(query, hits, documents={}, digests={}) == ({"D1": 2, "D9": 1}, ["D2", "D1", "D3"])


def test_beside_a_judged_document_judged_chunks_stand_for_their_documents() -> None:
    query = judged(documents={"D1": 1, "D2": 3}, chunks={"c1": 2, "c2": 1, "c3": 0, "c4": 4, "lost": 1})
    where = {"c1": "D1", "c2": "D2", "c3": "D3", "c4": "D3"}
    grades, ranked = rank_targets(query, [hit("a", of="D3")], documents=where, digests={"c1": "digest"})
    assert grades == {"D1": 2, "D2": 3, "D3": 4, "lost": 1}
    assert ranked == ["D3"]


def test_a_judged_chunk_is_met_by_a_copy_and_copies_count_once() -> None:
    same, other = sha256_text("same"), sha256_text("other")
    hits = [hit("other", "c7"), hit("same", "c8", of="D2"), hit("other", "c9"), hit("same", "c1"), hit("new", "c5")]
    query = judged(chunks={"c1": 2, "c2": 0})
    grades, ranked = rank_targets(query, hits, documents={"c1": "D"}, digests={"c1": same, "c2": other})
    assert grades == {same: 2, other: 0}
    assert ranked == [other, same, sha256_text("new")]


def test_of_copies_that_were_judged_apart_the_best_grade_counts() -> None:
    query = judged(chunks={"c1": 1, "c2": 3, "c3": 0, "lost": 2})
    grades, _ = rank_targets(query, [], documents={}, digests={"c1": "x", "c2": "x", "c3": "x"})
    assert grades == {"x": 3, "lost": 2}


# asking a deployment


def answer(*hits: Hit, deployment: int = 1, mode: Mode = Mode.DENSE) -> SearchResult:
    ref = DeploymentRef(id=deployment, collection_id=1, index="i", encoder="e", mode=Mode.HYBRID, applied_seq=5)
    return SearchResult(hits=hits, deployment=ref, mode=mode, seconds={})


def test_each_query_is_asked_once_and_told() -> None:
    answers = {"tea?": answer(hit("a", of="D1")), "fox?": answer()}
    asked: list[str] = []
    told: list[tuple[str, int, int]] = []

    def search(text: str) -> SearchResult:
        asked.append(text)
        return answers[text]

    queries = [judged("k1", "tea?", documents={"D1": 1}), judged("k2", "fox?", chunks={"c": 1})]
    found = run_deployment(
        search, queries, documents={}, digests={"c": "x"}, report=lambda *progress: told.append(progress)
    )
    assert asked == ["tea?", "fox?"]
    assert found.qrels == {"k1": {"D1": 1}, "k2": {"x": 1}}
    assert found.run == {"k1": ["D1"], "k2": []}
    assert (found.deployment.id, found.mode) == (1, Mode.DENSE)
    assert found.seconds.keys() == {"k1", "k2"}
    assert told == [("queries", 0, 2), ("queries", 1, 2), ("queries", 2, 2)]


def test_a_query_that_cannot_be_asked_is_named() -> None:
    def refuse(text: str) -> SearchResult:
        raise InvalidInput("the query is empty; ask something")

    with pytest.raises(InvalidInput, match="query 'id of q' cannot be asked: the query is empty"):
        run_deployment(refuse, [judged()], documents={}, digests={})


def test_a_busy_store_stays_what_it_is() -> None:
    def busy(text: str) -> SearchResult:
        raise StoreBusy("owned")

    with pytest.raises(StoreBusy, match=r"\Aowned\Z"):
        run_deployment(busy, [judged()], documents={}, digests={})


def test_answers_of_two_deployments_are_not_mixed() -> None:
    answers = iter([answer(), answer(), answer(deployment=2)])
    with pytest.raises(Conflict, match="evaluate again"):
        run_deployment(lambda text: next(answers), [judged(key) for key in "abc"], documents={}, digests={})


def test_without_queries_there_is_nothing_to_evaluate() -> None:
    with pytest.raises(InvalidInput, match="no judged queries"):
        run_deployment(lambda text: answer(), [], documents={}, digests={})


# evaluations


DATA = Beir(
    folder=Path("/data/drinks"),
    split="dev",
    queries={"q1": "a", "q2": "b", "q3": "c"},
    qrels={"q1": {"d1": 2, "d2": 0}, "q2": {"d3": 1}, "q3": {"d1": 0}},
    sha256="f" * 64,
)


def made() -> Evaluation:
    found = dataset(DATA, documents=10, unknown=1)
    run = {"q1": ["d9", "d1"], "q3": ["d1"]}
    return evaluation.evaluation({"kind": "encoder", "fingerprint": "e"}, found, DATA.qrels, run, {"search": 0.5})


def test_a_dataset_says_what_was_asked() -> None:
    assert dataset(DATA, documents=10, unknown=1) == Dataset(
        name="drinks",
        split="dev",
        sha256="f" * 64,
        documents=10,
        queries=2,
        unanswerable=1,
        judgments=4,
        unknown=1,
    )


def test_a_split_where_nothing_is_relevant_is_refused() -> None:
    nothing = Beir(folder=Path("x"), split="dev", queries={"q": "a"}, qrels={"q": {"d": 0}}, sha256="")
    with pytest.raises(InvalidInput, match="split 'dev' of x has no grade above 0"):
        dataset(nothing, documents=1, unknown=0)


def test_an_evaluation_has_each_answerable_query_and_their_means() -> None:
    found = made()
    assert list(found.per_query) == ["q1", "q2"]
    assert found.per_query["q1"]["MRR@10"] == 0.5
    assert found.means["MRR@10"] == 0.25
    assert found.means["Judged@10"] == 0.25  # one of the two hits of q1, nothing for q2


def test_an_evaluation_survives_its_file(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    made().write(file)
    assert Evaluation.read(file) == made()
    assert json.loads(file.read_text())["data"]["queries"] == 2


def broken(**changes: Any) -> dict[str, Any]:
    return {name: value for name, value in {**made().as_json(), **changes}.items() if value is not None}


@pytest.mark.parametrize(
    "content",
    [
        [],
        {},
        broken(data=None),
        broken(data={"name": "x"}),
        broken(data={**made().as_json()["data"], "more": 1}),
        broken(per_query={"q": {"nDCG@10": "high"}}),
        broken(per_query={"q": 0.5}),
        broken(means=None),
    ],
)
def test_a_file_that_is_no_evaluation_is_refused(tmp_path: Path, content: Any) -> None:
    file = tmp_path / "a.json"
    file.write_text(json.dumps(content))
    with pytest.raises(InvalidInput, match=r"a\.json is not an evaluation .* nvr-rag evaluate --output"):
        Evaluation.read(file)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"none\.json cannot be read as an evaluation"):
        Evaluation.read(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(InvalidInput, match=r"bad\.json cannot be read as an evaluation"):
        Evaluation.read(tmp_path / "bad.json")
