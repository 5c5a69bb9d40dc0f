"""How good is an encoder, or a deployment? Queries with judgments enter; rankings and their measures leave.

Two paths: an encoder alone, by exact search over a corpus (`exact_search`), and whatever answers searches, the way
users get it (`run_deployment`). A judgment is met by what users get out of a hit: its document, where that is all a
judgment names, and otherwise its text, so that exact copies count as one. Knows no database and no index.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nvr_rag.encoders.base import Encoder, Vectors
from nvr_rag.errors import Conflict, InvalidInput
from nvr_rag.ids import sha256_text
from nvr_rag.types import DeploymentRef, Hit, Mode, SearchResult
from training.beir import Beir, BeirDocument
from training.data import JudgedQuery, write_json
from training.measures import Qrels, Run, answerable, means, measure

DEPTH = 100  # ranked ids a query: as deep as the deepest measure looks

_BATCH = 512  # texts encoded at a time, and documents compared with all queries
_QUERIES = 2048  # queries compared with a batch at a time
_LOW = 2**32 - 1

Report = Callable[[str, int, int], None]  # what is being done, how many are done (0 first), of how many
Keys = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Dataset:
    """What an evaluation asked."""

    name: str
    split: str
    sha256: str  # of queries and judgments: only evaluations that share it can be compared
    documents: int  # searched
    queries: int  # measured: judged, with at least one grade above 0
    unanswerable: int  # judged without any grade above 0: left out
    judgments: int  # of all judged queries
    unknown: int  # judged ids that are not among the documents: nothing can find them, which costs


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What an encoder or a deployment was measured at, as it is kept in a file."""

    what: Mapping[str, Any]  # "kind" is "encoder" or "deployment"; the rest says which
    data: Dataset
    means: Mapping[str, float]  # name of the measure -> mean over the queries
    per_query: Mapping[str, Mapping[str, float]]
    seconds: Mapping[str, float]  # by what was being done

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, content: Any, where: str) -> Evaluation:
        """What `as_json` made. Raises InvalidInput that names `where` it comes from."""
        try:
            per_query = {query: _numbers(values) for query, values in content["per_query"].items()}
            return cls(
                what=dict(content["what"]),
                data=Dataset(**content["data"]),
                means=_numbers(content["means"]),
                per_query=per_query,
                seconds=_numbers(content["seconds"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InvalidInput(
                f"{where} is not an evaluation ({type(error).__name__}: {error}); "
                "write one with nvr-rag evaluate --output"
            ) from error

    def write(self, path: Path) -> None:
        write_json(path, self.as_json())

    @classmethod
    def read(cls, path: Path) -> Evaluation:
        """Raises InvalidInput that names the file."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InvalidInput(f"{path} cannot be read as an evaluation: {error}") from error
        return cls.from_json(content, str(path))


@dataclass(frozen=True, kw_only=True, slots=True)
class DeploymentRun:
    """What a deployment answered, in terms of what the judgments name."""

    qrels: Qrels  # query key -> target -> grade
    run: Run  # query key -> targets, best first, each once
    deployment: DeploymentRef  # who answered, all of it
    mode: Mode  # how
    seconds: Mapping[str, float]  # query key -> how long the answer took


def exact_search(
    encoder: Encoder,
    queries: Mapping[str, str],
    documents: Iterable[BeirDocument],
    *,
    ids: Sequence[str],
    k: int = DEPTH,
    report: Report | None = None,
) -> dict[str, list[str]]:
    """The ids of the k documents with the largest inner product, best first, ties by id, for each query.

    `ids` are those of all documents, in any order. No document's vector is kept: memory holds a batch of them, and the
    k best of each query.
    """
    tell = report or _silent
    names = sorted(ids)
    position = {id_: place for place, id_ in enumerate(names)}
    asked = _encode_queries(encoder, list(queries.values()), tell)  # (Q, D)
    best = np.full((len(queries), k), np.iinfo(np.int64).min)  # (Q, k)
    done = 0
    tell("documents", done, len(names))
    for batch in _batches(documents, _BATCH):
        inputs = [encoder.spec.render(title=one.title, headings=(), text=one.text) for one in batch]
        places = np.array([position[one.id] for one in batch], dtype=np.int64)  # (B,)
        _keep_best(best, asked, encoder.encode_documents(inputs), places)
        done += len(batch)
        tell("documents", done, len(names))
    best.sort(axis=1)
    ranked = _LOW - (best[:, ::-1] & _LOW)  # (Q, k), places of documents, best first
    found = min(k, done)
    return {query: [names[place] for place in row[:found]] for query, row in zip(queries, ranked, strict=True)}


def run_deployment(
    search: Callable[[str], SearchResult],
    queries: Sequence[JudgedQuery],
    *,
    documents: Mapping[str, str],
    digests: Mapping[str, str],
    report: Report | None = None,
) -> DeploymentRun:
    """Ask each query and see which of the judged targets come back; `documents` and `digests` as for `rank_targets`.

    Raises what `search` raises, naming the query where it is at fault; Conflict when another deployment began to serve
    meanwhile; InvalidInput without any query.
    """
    tell = report or _silent
    qrels, run, seconds = {}, {}, {}
    answer: SearchResult | None = None
    tell("queries", 0, len(queries))
    for done, query in enumerate(queries, start=1):
        before, started = answer, time.perf_counter()
        answer = _ask(search, query)
        seconds[query.key] = time.perf_counter() - started
        if before is not None and before.deployment.id != answer.deployment.id:
            raise Conflict("another deployment began to serve during the evaluation; evaluate again")
        qrels[query.key], run[query.key] = rank_targets(query, answer.hits, documents=documents, digests=digests)
        tell("queries", done, len(queries))
    if answer is None:
        raise InvalidInput("there are no judged queries; collect or import judgments first")
    return DeploymentRun(qrels=qrels, run=run, deployment=answer.deployment, mode=answer.mode, seconds=seconds)


def rank_targets(
    query: JudgedQuery, hits: Iterable[Hit], *, documents: Mapping[str, str], digests: Mapping[str, str]
) -> tuple[dict[str, int], list[str]]:
    """The judgments of a query and its hits in one vocabulary: grades by target, and targets best first, each once.

    Where a judgment names only a document, the targets of the query are documents: one ranks where its best chunk does,
    and judged chunks stand for their documents (`documents`: chunk id -> document id). Otherwise the targets are the
    digests of texts: a judged chunk (`digests`: chunk id -> sha256 of its text) is met by any copy of it. Of several
    judgments of one target the highest grade counts. A judged chunk that a mapping lacks stays as it is, to be missed.
    """
    grades: dict[str, int] = {}
    of_chunk = documents if query.documents else digests
    judged_chunks = [(of_chunk.get(chunk, chunk), grade) for chunk, grade in query.chunks.items()]
    for target, grade in [*query.documents.items(), *judged_chunks]:
        grades[target] = max(grade, grades.get(target, 0))
    found = (hit.document_id if query.documents else sha256_text(hit.text) for hit in hits)
    return grades, list(dict.fromkeys(found))


def dataset(data: Beir, *, documents: int, unknown: int) -> Dataset:
    """What asking a split of a folder comes to, when so many documents are searched and so many judged ids are unknown.

    Raises InvalidInput when no query of it has an answer.
    """
    measured = answerable(data.qrels)
    if not measured:
        raise InvalidInput(
            f"the split {data.split!r} of {data.folder} has no grade above 0, so there is nothing to find"
        )
    return Dataset(
        name=data.name,
        split=data.split,
        sha256=data.sha256,
        documents=documents,
        queries=len(measured),
        unanswerable=len(data.qrels) - len(measured),
        judgments=sum(map(len, data.qrels.values())),
        unknown=unknown,
    )


def evaluation(
    what: Mapping[str, Any], data: Dataset, qrels: Qrels, run: Run, seconds: Mapping[str, float]
) -> Evaluation:
    """Measure a run and put the evaluation together. Raises as `measure` does."""
    per_query = measure(qrels, run)
    return Evaluation(what=what, data=data, means=means(per_query), per_query=per_query, seconds=seconds)


def _encode_queries(encoder: Encoder, texts: Sequence[str], tell: Report) -> Vectors:
    vectors = np.empty((len(texts), encoder.spec.dimension), dtype=np.float32)  # (Q, D)
    tell("queries", 0, len(texts))
    for start in range(0, len(texts), _BATCH):
        part = texts[start : start + _BATCH]
        vectors[start : start + len(part)] = encoder.encode_queries(part)
        tell("queries", start + len(part), len(texts))
    return vectors


def _batches(documents: Iterable[BeirDocument], size: int) -> Iterator[list[BeirDocument]]:
    remaining = iter(documents)
    while batch := list(islice(remaining, size)):
        yield batch


def _keep_best(best: Keys, queries: Vectors, documents: Vectors, places: Keys) -> None:
    """Let a batch of documents (B, D) compete for the rows of `best` (Q, k), which come out in no order."""
    for start in range(0, len(queries), _QUERIES):
        part = best[start : start + _QUERIES]  # (q, k), a view
        scores = queries[start : start + _QUERIES] @ documents.T  # (q, B)
        rivals = np.concatenate([part, _keys(scores, places)], axis=1)  # (q, k + B)
        part[:] = np.partition(rivals, rivals.shape[1] - part.shape[1], axis=1)[:, -part.shape[1] :]


def _keys(scores: NDArray[np.float32], places: Keys) -> Keys:
    """Score and place in one number that orders as both do: a higher score is larger, and of equal scores the lower
    place is. A float's bits order like an integer; those of negative ones backwards, which is undone here."""
    bits = (scores + np.float32(0)).view(np.int32).astype(np.int64)  # (q, B); + 0 makes -0 and 0 one score
    ordered = np.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    keys: Keys = ordered * 2**32 + (_LOW - places)
    return keys


def _ask(search: Callable[[str], SearchResult], query: JudgedQuery) -> SearchResult:
    try:
        return search(query.text)
    except InvalidInput as error:
        raise InvalidInput(f"query {query.id!r} cannot be asked: {error}") from error


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {str(name): float(value) for name, value in values.items()}


def _silent(what: str, done: int, total: int) -> None:
    """Reports to nobody."""
