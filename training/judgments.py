"""Judged queries: what people said about hits, and what was imported, enter from the database; graded judgments leave.

Explicit words are trusted (`relevant`, `irrelevant`, imported judgments); clicks, citations and words about a whole
answer are not used. Queries of equal key (see training.splits) are one query. Of each person the last word counts,
among several people the lower median. The holdout's content leaves by `holdout_queries` alone. Knows no model.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import datetime
from statistics import median_low
from typing import NamedTuple

from sqlalchemy import Connection, select

from nvr_rag import collections, deployments, indexes
from nvr_rag.db import tables as t
from nvr_rag.ids import sha256_json
from nvr_rag.types import FeedbackKind
from training.data import JudgedQuery
from training.splits import Split, query_key, split_of
from training.standing import Found, Standing, chunks_found, documents_found

FEEDBACK = "feedback"  # the origin of what users said
IMPORTED = "import:"  # before the name of an import, in an origin
_TRUSTED = (FeedbackKind.RELEVANT, FeedbackKind.IRRELEVANT)


@dataclass(frozen=True, kw_only=True, slots=True)
class OriginCount:
    """What one origin contributes to one split; a judgment with several origins counts for each."""

    queries: int
    judgments: int  # chunks and documents that it judges, over all these queries


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgmentCounts:
    """What came of everything that was said; a judgment is about one query and one chunk or document."""

    origins: Mapping[Split, Mapping[str, OriginCount]]  # of the judged queries
    contested: int  # judgments that can be found where some said irrelevant and some did not
    lifted: int  # judgments of chunks that became judgments of their documents: the index cuts elsewhere now
    gone: int  # judgments of what is not there any more, left out
    forbidden: int  # judgments of documents that are not for everyone, left out
    without_positive: int  # queries of which nothing relevant is left, left out


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgmentSet:
    """Judged queries, each with at least one grade above 0."""

    queries: Sequence[JudgedQuery]  # by key
    counts: JudgmentCounts
    digest: str  # sha256 of the queries, everything about them

    def of(self, split: Split) -> list[JudgedQuery]:
        """The queries of one split, by key."""
        return [query for query in self.queries if split_of(query.key) is split]


class _Target(NamedTuple):
    """What was judged: a chunk, or a document where no chunk was named."""

    chunk_id: str  # or ""
    document_id: str  # or ""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Vote:
    """What one person said about one target, once."""

    key: str  # of the query
    text: str
    asked: tuple[datetime, str] | None  # when, and the id of the logged query; None = imported
    target: _Target
    origin: str
    person: tuple[str, str]
    when: tuple[datetime, int]
    grade: int


@dataclass(frozen=True, kw_only=True, slots=True)
class _Verdict:
    """What everyone together said about one target of one query, and whether that can still be found."""

    target: _Target
    found: Found
    grade: int
    votes: Sequence[_Vote]  # one a person

    @property
    def standing(self) -> Standing:
        # That one passage is irrelevant says nothing about the rest of its document: lifted, it would.
        lost = self.found.standing is Standing.LIFTED and self.grade == 0
        return Standing.GONE if lost else self.found.standing

    @property
    def usable(self) -> bool:
        return self.standing in (Standing.THERE, Standing.LIFTED)

    @property
    def contested(self) -> bool:
        return len({vote.grade > 0 for vote in self.votes}) > 1

    @property
    def origins(self) -> set[str]:
        return {vote.origin for vote in self.votes}


Said = Mapping[str, Mapping[_Target, Sequence[_Vote]]]  # by query key; one vote a person


def training_queries(connection: Connection, collection: str) -> JudgmentSet:
    """Every judged query of the collection that is not held out, those of the dev split among them.

    Raises NotFound for an unknown collection and for one that nothing serves.
    """
    return _collect(connection, collection, lambda key: split_of(key) is not Split.HOLDOUT)


def holdout_queries(connection: Connection, collection: str) -> JudgmentSet:
    """The judged queries that are held out, and no other. For the gate alone: whoever else reads them spoils them.

    Raises as `training_queries` does.
    """
    return _collect(connection, collection, lambda key: split_of(key) is Split.HOLDOUT)


def holdout_size(connection: Connection, collection: str) -> int:
    """How many queries `holdout_queries` would return. Raises as `training_queries` does."""
    return len(_collect(connection, collection, lambda key: split_of(key) is Split.HOLDOUT).queries)


def _collect(connection: Connection, collection: str, wanted: Callable[[str], bool]) -> JudgmentSet:
    collection_id = collections.find(connection, collection)
    index = indexes.get(connection, deployments.serving(connection, collection).index_id)
    said = _last_words(_votes(connection, collection_id, wanted))
    verdicts = _verdicts(said, _found(connection, index.chunking_id, said))
    queries = [query for key in sorted(verdicts) if (query := _judged(key, verdicts[key])) is not None]
    return JudgmentSet(
        queries=queries,
        counts=_counts(verdicts, {query.key for query in queries}),
        digest=sha256_json({"queries": [_content(query) for query in queries]}),
    )


def _votes(connection: Connection, collection_id: int, wanted: Callable[[str], bool]) -> Iterator[_Vote]:
    yield from _feedback(connection, collection_id, wanted)
    yield from _imported(connection, collection_id, wanted)


def _feedback(connection: Connection, collection_id: int, wanted: Callable[[str], bool]) -> Iterator[_Vote]:
    q, f = t.QueryRow, t.FeedbackRow
    statement = (
        select(q.id, q.text, q.user, q.created_at, f.id, f.chunk_id, f.user, f.kind, f.grade, f.created_at)
        .join(f, f.query_id == q.id)
        .where(q.collection_id == collection_id, f.kind.in_(_TRUSTED), f.chunk_id != "")
        .where(q.text != "")  # that of a user who was erased
    )
    keys: dict[str, str] = {}
    for query_id, text, asker, asked, row, chunk, user, kind, grade, created in connection.execute(statement):
        key = keys.get(text) or keys.setdefault(text, query_key(text))
        if wanted(key):
            name = user or asker
            yield _Vote(
                key=key,
                text=text,
                asked=(asked, query_id),
                target=_Target(chunk, ""),
                origin=FEEDBACK,
                person=("user", name) if name else ("query", query_id),
                when=(created, row),
                grade=0 if kind == FeedbackKind.IRRELEVANT else 1 if grade is None else grade,
            )


def _imported(connection: Connection, collection_id: int, wanted: Callable[[str], bool]) -> Iterator[_Vote]:
    j = t.JudgmentRow
    statement = select(*j.__table__.c).where(j.collection_id == collection_id)
    for row in connection.execute(statement):
        if wanted(row.query_key):
            yield _Vote(
                key=row.query_key,
                text=row.query,
                asked=None,
                target=_Target(row.chunk_id, "" if row.chunk_id else row.document_id),
                origin=IMPORTED + row.origin,
                person=("import", row.origin),
                when=(row.created_at, row.id),
                grade=row.grade,
            )


def _last_words(votes: Iterable[_Vote]) -> Said:
    last: dict[tuple[str, _Target, tuple[str, str]], _Vote] = {}
    for vote in votes:
        about = (vote.key, vote.target, vote.person)
        before = last.get(about)
        if before is None or before.when < vote.when:
            last[about] = vote
    said: dict[str, dict[_Target, list[_Vote]]] = defaultdict(lambda: defaultdict(list))
    for vote in last.values():
        said[vote.key][vote.target].append(vote)
    return said


def _found(connection: Connection, chunking_id: int, said: Said) -> dict[_Target, Found]:
    targets = {target for by_target in said.values() for target in by_target}
    chunk_ids = [target.chunk_id for target in targets if target.chunk_id]
    document_ids = [target.document_id for target in targets if target.document_id]
    chunks = chunks_found(connection, chunking_id, chunk_ids)
    documents = documents_found(connection, chunking_id, document_ids)
    return {target: chunks[target.chunk_id] if target.chunk_id else documents[target.document_id] for target in targets}


def _verdicts(said: Said, found: Mapping[_Target, Found]) -> dict[str, list[_Verdict]]:
    return {
        key: [
            _Verdict(target=target, found=found[target], grade=median_low(vote.grade for vote in votes), votes=votes)
            for target, votes in sorted(by_target.items())
        ]
        for key, by_target in said.items()
    }


def _judged(key: str, verdicts: Sequence[_Verdict]) -> JudgedQuery | None:
    """The query with everything that is usable; None when nothing relevant is left of it."""
    usable = [verdict for verdict in verdicts if verdict.usable]
    there = [verdict for verdict in usable if verdict.standing is Standing.THERE]
    chunks = {verdict.target.chunk_id: verdict.grade for verdict in there if verdict.target.chunk_id}
    documents = {verdict.target.document_id: verdict.grade for verdict in there if verdict.target.document_id}
    documents = _lifted(usable) | documents  # what was said about a document itself goes first
    if not any(chunks.values()) and not any(documents.values()):
        return None
    text, query_id = _asked_last([vote for verdict in usable for vote in verdict.votes])
    origins = {origin for verdict in usable for origin in verdict.origins}
    return JudgedQuery(
        key=key, id=query_id or key, text=text, chunks=chunks, documents=documents, origins=tuple(sorted(origins))
    )


def _lifted(verdicts: Sequence[_Verdict]) -> dict[str, int]:
    """A document is as relevant as its best chunk was."""
    grades: dict[str, int] = {}
    for verdict in verdicts:
        if verdict.standing is Standing.LIFTED:
            document_id = verdict.found.document_id
            grades[document_id] = max(verdict.grade, grades.get(document_id, 0))
    return grades


def _asked_last(votes: Sequence[_Vote]) -> tuple[str, str]:
    """The text as a user asked it last, with that query's id; where it was only imported, one text of it and ""."""
    asked = [(vote.asked, vote.text) for vote in votes if vote.asked is not None]
    if asked:
        (_, query_id), text = max(asked)
        return text, query_id
    return min((vote.origin, vote.text) for vote in votes)[1], ""


def _counts(verdicts: Mapping[str, Sequence[_Verdict]], kept: Set[str]) -> JudgmentCounts:
    every = [verdict for of_query in verdicts.values() for verdict in of_query]
    standings = Counter(verdict.standing for verdict in every)
    return JudgmentCounts(
        origins={split: _origins(verdicts, [key for key in kept if split_of(key) is split]) for split in Split},
        contested=sum(verdict.contested for verdict in every if verdict.usable),
        lifted=standings[Standing.LIFTED],
        gone=standings[Standing.GONE],
        forbidden=standings[Standing.FORBIDDEN],
        without_positive=len(verdicts) - len(kept),
    )


def _origins(verdicts: Mapping[str, Sequence[_Verdict]], keys: Iterable[str]) -> dict[str, OriginCount]:
    queries: Counter[str] = Counter()
    judgments: Counter[str] = Counter()
    for key in keys:
        origins = [origin for verdict in verdicts[key] if verdict.usable for origin in verdict.origins]
        judgments.update(origins)
        queries.update(set(origins))
    return {name: OriginCount(queries=queries[name], judgments=judgments[name]) for name in sorted(queries)}


def _content(query: JudgedQuery) -> dict[str, object]:
    return {
        "key": query.key,
        "id": query.id,
        "text": query.text,
        "chunks": dict(query.chunks),
        "documents": dict(query.documents),
        "origins": list(query.origins),
    }
