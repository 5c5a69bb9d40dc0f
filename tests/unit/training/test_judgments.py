"""Judgments: every rule of who counts, what is merged, what has gone, and who may see which query."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import insert, select, update

from nvr_rag import chunks, collections, corpus
from nvr_rag.db import tables as t
from nvr_rag.errors import NotFound
from nvr_rag.ids import document_id, new_id, sha256_text
from nvr_rag.placing import Cutting, place
from nvr_rag.types import ChunkDraft
from tests.support import House, document
from training.data import JudgedQuery
from training.judgments import JudgmentSet, OriginCount, holdout_queries, holdout_size, training_queries
from training.splits import Split, query_key, split_of
from training.standing import ChunkFact, chunk_facts

START = datetime(2024, 5, 1, tzinfo=UTC)
TEA, SKY = "What is tea?", "why is the sky blue"  # both are trained on: see test_splits
HELD_OUT = ".NET"


class Talk:
    """What people asked and said, row by row; every word comes a minute after the one before."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.minutes = 0

    def moment(self) -> datetime:
        self.minutes += 1
        return START + timedelta(minutes=self.minutes)

    def ask(self, text: str, *, user: str | None = None, collection: str = "default") -> str:
        key = new_id()
        row = {"id": key, "deployment_id": 1, "text": text, "k": 10, "mode": "dense", "hits": [], "user": user}
        with self.house.database.write() as connection:
            collection_id = collections.find(connection, collection)
            connection.execute(insert(t.QueryRow).values(**row, collection_id=collection_id, created_at=self.moment()))
        return key

    def say(self, query: str, chunk: str, *, kind: str = "relevant", grade: int | None = None, user: str = "") -> None:
        row = {"query_id": query, "chunk_id": chunk, "kind": kind, "grade": grade, "user": user}
        with self.house.database.write() as connection:
            connection.execute(insert(t.FeedbackRow).values(**row, created_at=self.moment()))

    def judge(
        self,
        query: str,
        uri: str,
        grade: int = 1,
        *,
        chunk: str = "",
        origin: str = "file",
        collection: str = "default",
    ) -> None:
        row = {"query": query, "query_key": query_key(query), "grade": grade, "chunk_id": chunk, "origin": origin}
        with self.house.database.write() as connection:
            collection_id = collections.find(connection, collection)
            document = document_id(collection, uri)
            connection.execute(insert(t.JudgmentRow).values(**row, collection_id=collection_id, document_id=document))

    def judged(self, collection: str = "default") -> JudgmentSet:
        with self.house.database.read() as connection:
            return training_queries(connection, collection)

    def only(self) -> JudgedQuery:
        (query,) = self.judged().queries
        return query

    def counts(self) -> dict[str, int]:
        """What was left out or changed, zeros left out."""
        return {name: count for name, count in asdict(self.judged().counts).items() if name != "origins" and count}

    def chunk(self, text: str) -> str:
        with self.house.database.read() as connection:
            return str(connection.scalars(select(t.Chunk.id).where(t.Chunk.text == text)).one())


@pytest.fixture
def talk(house: House) -> Talk:
    """A collection with two documents: a of the chunks one and two, b of the chunk three."""
    house.put(document("a", "one\n\ntwo"), document("b", "three"))
    house.catch_up()
    return Talk(house)


def cut_anew(house: House, drafts: dict[str, Sequence[str]]) -> None:
    """Let the serving index cut documents, by URI, into these chunks."""
    with house.database.write() as connection:
        added = insert(t.Chunking).values(hash="another", settings={}).returning(t.Chunking.id)
        chunking = connection.execute(added).scalar_one()
        connection.execute(update(t.SearchIndex).values(chunking_id=chunking))
        ids = {document_id("default", uri): uri for uri in drafts}
        for version in chunks.versions_at(connection, list(ids), 10**6):
            texts = drafts[ids[version.document_id]]
            pieces = [ChunkDraft(text=text, start=0, end=len(text)) for text in texts]
            place(connection, chunking, Cutting(version=version, drafts=pieces))


# what is trusted, and with which grade


@pytest.mark.parametrize(
    ("kind", "grade", "expected"),
    [
        ("relevant", None, 1),
        ("relevant", 3, 3),
        ("relevant", 0, 0),
        ("irrelevant", None, 0),
        ("irrelevant", 2, 0),
        ("click", None, None),
        ("cited", None, None),
        ("answer_good", None, None),
        ("answer_bad", None, None),
    ],
)
def test_only_explicit_words_count(talk: Talk, kind: str, grade: int | None, expected: int | None) -> None:
    query = talk.ask(TEA)
    talk.say(query, talk.chunk("three"), grade=2)
    talk.say(query, talk.chunk("one"), kind=kind, grade=grade)
    extra = {} if expected is None else {talk.chunk("one"): expected}
    assert talk.only().chunks == {talk.chunk("three"): 2, **extra}


def test_words_about_an_answer_as_a_whole_are_no_judgment(talk: Talk) -> None:
    talk.say(talk.ask(TEA), "", kind="answer_good")
    assert talk.judged().queries == []
    assert talk.counts() == {}


def test_a_query_without_anything_relevant_is_counted_and_left_out(talk: Talk) -> None:
    talk.say(talk.ask(TEA), talk.chunk("one"), kind="irrelevant")
    assert talk.judged().queries == []
    assert talk.counts() == {"without_positive": 1}


# queries of one key


def test_ways_to_ask_the_same_are_one_query_as_it_was_asked_last(talk: Talk) -> None:
    first, second, _ = (
        talk.ask("What is tea?"),
        talk.ask("what is TEA"),
        talk.ask("what is tea !"),
    )  # no word on the last
    talk.say(second, talk.chunk("two"), user="anna")
    talk.say(first, talk.chunk("one"), user="anna")
    assert talk.only() == JudgedQuery(
        key=sha256_text("what is tea"),
        id=second,
        text="what is TEA",
        chunks={talk.chunk("one"): 1, talk.chunk("two"): 1},
        documents={},
        origins=("feedback",),
    )


def test_queries_are_in_the_order_of_their_keys(talk: Talk) -> None:
    for text in (TEA, SKY, "roll back", "strasse"):
        talk.say(talk.ask(text), talk.chunk("one"))
    found = talk.judged().queries
    assert [query.text for query in found] == ["strasse", SKY, "roll back", TEA]  # 16d9, 4c21, be5c, d2a2


def test_another_collections_words_are_its_own(talk: Talk) -> None:
    talk.house.workspace.create_collection("other")
    with talk.house.database.write() as connection:
        (put,) = corpus.put(connection, "other", [document("c", "four")])
    talk.say(talk.ask(TEA), talk.chunk("one"))
    talk.say(talk.ask(SKY, collection="other"), "a chunk of theirs that has gone")
    talk.judge("roll back", "c", collection="other")
    assert [query.text for query in talk.judged().queries] == [TEA]
    assert talk.counts() == {}
    (query,) = talk.judged("other").queries
    assert (query.text, query.documents) == ("roll back", {put.document_id: 1})


# people


def test_the_last_word_of_a_person_counts(talk: Talk) -> None:
    query, again = talk.ask(TEA), talk.ask("what is tea")
    one, two = talk.chunk("one"), talk.chunk("two")
    talk.say(again, one, grade=1, user="anna")
    talk.say(query, one, grade=3, user="anna")
    talk.say(query, two, user="anna")
    talk.say(again, two, kind="irrelevant", user="anna")
    assert talk.only().chunks == {one: 3, two: 0}
    assert talk.counts() == {}  # changing one's mind is no disagreement


def test_saying_it_again_on_the_same_query_moves_to_the_end(talk: Talk) -> None:
    """Feedback is stored once for each kind, and a later word updates its row: the time decides, not the number."""
    query, one = talk.ask(TEA), talk.chunk("one")
    talk.say(query, one, grade=2, user="anna")
    talk.say(query, one, kind="irrelevant", user="anna")
    with talk.house.database.write() as connection:
        said = update(t.FeedbackRow).where(t.FeedbackRow.kind == "relevant")
        connection.execute(said.values(created_at=talk.moment()))
    assert talk.only().chunks == {one: 2}


@pytest.mark.parametrize(
    ("grades", "expected", "contested"),
    [([3, 1], 1, 0), ([1, 2, 3], 2, 0), ([0, 2, 2], 2, 1), ([0, 0, 3], 0, 1), ([0, 3], 0, 1), ([4, 1, 2, 3], 2, 0)],
)
def test_several_people_give_the_lower_median(talk: Talk, grades: list[int], expected: int, contested: int) -> None:
    query, one = talk.ask(TEA), talk.chunk("one")
    talk.say(query, talk.chunk("three"))
    for number, grade in enumerate(grades):
        talk.say(query, one, grade=grade, user=f"user {number}")
    assert talk.only().chunks[one] == expected
    assert talk.judged().counts.contested == contested


def test_an_anonymous_query_is_a_person_and_so_is_whoever_asked(talk: Talk) -> None:
    one = talk.chunk("one")
    for grade in (1, 4, 5):  # three people: without the rule below the last would speak for all
        talk.say(talk.ask(TEA), one, grade=grade)
    for grade in (9, 9, 9, 0):  # one person, who is known by the queries only
        talk.say(talk.ask(TEA, user="anna"), one, grade=grade)
    assert talk.only().chunks == {one: 1}  # of 0, 1, 4, 5
    talk.say(talk.ask(TEA, user="otto"), one, grade=7, user="anna")  # the one who says it counts, not who asked
    assert talk.only().chunks == {one: 4}  # of 1, 4, 5, 7


# imports


def test_imported_judgments_stand_beside_feedback(talk: Talk) -> None:
    talk.judge("What is tea", "a", 2)
    talk.judge("what is tea", "b", 0, origin="other")
    query = talk.only()
    assert (query.id, query.text) == (query.key, "What is tea")
    assert query.documents == {document_id("default", "a"): 2, document_id("default", "b"): 0}
    assert query.origins == ("import:file", "import:other")
    logged = talk.ask("WHAT IS TEA")
    talk.say(logged, talk.chunk("one"))
    query = talk.only()
    assert (query.id, query.text) == (logged, "WHAT IS TEA")
    assert query.chunks == {talk.chunk("one"): 1}
    assert len(query.documents) == 2
    assert query.origins == ("feedback", "import:file", "import:other")
    assert talk.judged().counts.origins == {
        Split.TRAIN: {
            "feedback": OriginCount(queries=1, judgments=1),
            "import:file": OriginCount(queries=1, judgments=1),
            "import:other": OriginCount(queries=1, judgments=1),
        },
        Split.DEV: {},
        Split.HOLDOUT: {},
    }


def test_each_origin_is_one_person(talk: Talk) -> None:
    one = talk.chunk("one")
    talk.judge(TEA, "a", 3, chunk=one)
    talk.judge(TEA, "a", 0, chunk=one, origin="other")
    talk.judge(TEA, "a", 2, chunk=one, origin="third")
    talk.judge(TEA, "b", 1)
    assert talk.only().chunks == {one: 2}
    talk.say(talk.ask(TEA), one, kind="irrelevant")
    assert talk.only().chunks == {one: 0}  # of 0, 0, 2, 3
    assert talk.counts() == {"contested": 1}
    assert talk.judged().counts.origins[Split.TRAIN]["import:file"] == OriginCount(queries=1, judgments=2)


# what has become of the chunks


def test_chunks_of_a_deleted_document_are_gone_until_it_comes_back(talk: Talk) -> None:
    query = talk.ask(TEA)
    for text in ("one", "three"):
        talk.say(query, talk.chunk(text))
    talk.judge(TEA, "a")
    talk.house.delete("a")
    assert (talk.only().chunks, talk.only().documents) == ({talk.chunk("three"): 1}, {})
    assert talk.only().origins == ("feedback",)
    assert talk.counts() == {"gone": 2}
    talk.house.put(document("a", "one\n\ntwo"))
    talk.house.catch_up()
    assert len(talk.only().chunks) == 2
    assert talk.counts() == {}


def test_nobody_disagrees_about_what_is_gone(talk: Talk) -> None:
    query = talk.ask(TEA)
    talk.say(query, talk.chunk("one"), user="anna")
    talk.say(query, talk.chunk("one"), user="otto", kind="irrelevant")
    assert talk.counts() == {"contested": 1, "without_positive": 1}
    talk.house.delete("a")
    assert talk.counts() == {"gone": 1, "without_positive": 1}


def test_a_chunk_that_was_edited_away_is_gone_and_the_others_stay(talk: Talk) -> None:
    query = talk.ask(TEA)
    for text in ("one", "two"):
        talk.say(query, talk.chunk(text))
    talk.house.put(document("a", "one\n\nTWO"))
    talk.house.catch_up()
    assert talk.only().chunks == {talk.chunk("one"): 1}
    assert talk.counts() == {"gone": 1}


def test_a_document_that_cannot_be_read_any_more_still_answers(talk: Talk) -> None:
    talk.say(talk.ask(TEA), talk.chunk("one"))
    talk.judge(TEA, "a")
    talk.house.fail("a")
    assert (len(talk.only().chunks), len(talk.only().documents)) == (1, 1)


def test_a_document_without_text_is_gone(talk: Talk) -> None:
    talk.say(talk.ask(TEA), talk.chunk("one"))
    talk.house.fail("never read")
    talk.judge(TEA, "never read")
    talk.house.delete("b")
    talk.house.fail("b")  # it came back, and cannot be read
    talk.judge(TEA, "b")
    talk.house.put(document("cannot be cut", "four"))
    talk.judge(TEA, "cannot be cut")
    assert len(talk.only().documents) == 1  # nobody has tried yet
    with talk.house.database.write() as connection:
        (version,) = chunks.versions_at(connection, [document_id("default", "cannot be cut")], 10**6)
        chunking = connection.scalars(select(t.SearchIndex.chunking_id)).one()
        place(connection, chunking, Cutting(version=version, drafts=[], error="cannot be cut"))
    assert talk.only().documents == {}
    assert talk.counts() == {"gone": 3}


def test_feedback_on_a_chunk_that_nobody_knows_is_gone(talk: Talk) -> None:
    talk.say(talk.ask(TEA), "no such chunk")
    assert talk.counts() == {"gone": 1, "without_positive": 1}


def test_a_text_that_is_cut_elsewhere_now_lifts_its_judgments_to_the_document(talk: Talk) -> None:
    query = talk.ask(TEA)
    talk.say(query, talk.chunk("one"), grade=2)
    talk.say(query, talk.chunk("two"), grade=3)
    talk.say(query, talk.chunk("three"), grade=1)
    cut_anew(talk.house, {"a": ["one two"], "b": ["three"]})
    assert talk.only().chunks == {talk.chunk("three"): 1}
    assert talk.only().documents == {document_id("default", "a"): 3}  # as relevant as its best chunk
    assert talk.counts() == {"lifted": 2}
    talk.judge(TEA, "a", 1)
    assert talk.only().documents == {document_id("default", "a"): 1}  # what was said about itself goes first


def test_a_chunk_that_both_chunkings_cut_is_there_under_either(talk: Talk) -> None:
    talk.say(talk.ask(TEA), talk.chunk("three"))
    with talk.house.database.read() as connection:
        before = connection.scalars(select(t.SearchIndex.chunking_id)).one()
    cut_anew(talk.house, {"b": ["three"]})
    assert talk.only().chunks == {talk.chunk("three"): 1}
    with talk.house.database.write() as connection:
        connection.execute(update(t.SearchIndex).values(chunking_id=before))
    assert talk.only().chunks == {talk.chunk("three"): 1}
    assert talk.counts() == {}


def test_that_a_passage_is_irrelevant_is_not_said_of_its_document(talk: Talk) -> None:
    query = talk.ask(TEA)
    talk.say(query, talk.chunk("one"), kind="irrelevant")
    talk.say(query, talk.chunk("three"))
    cut_anew(talk.house, {"a": ["one two"], "b": ["three"]})
    assert talk.only().documents == {}
    assert talk.counts() == {"gone": 1}


def test_a_new_chunking_and_an_edit_together_leave_nothing_to_lift(talk: Talk) -> None:
    talk.say(talk.ask(TEA), talk.chunk("one"))
    talk.house.put(document("a", "entirely new"))
    cut_anew(talk.house, {"a": ["entirely new"], "b": ["three"]})
    assert talk.counts() == {"gone": 1, "without_positive": 1}


def test_documents_that_are_not_for_everyone_are_left_out(talk: Talk) -> None:
    query = talk.ask(TEA)
    for text in ("one", "two", "three"):
        talk.say(query, talk.chunk(text))
    talk.judge(TEA, "a")
    talk.house.put(document("a", "one\n\ntwo", acl=["board"]))
    talk.house.catch_up()
    assert (talk.only().chunks, talk.only().documents) == ({talk.chunk("three"): 1}, {})
    assert talk.counts() == {"forbidden": 3}
    talk.house.put(document("b", "three", acl=[]))
    talk.house.catch_up()
    assert talk.judged().queries == []
    assert talk.counts() == {"forbidden": 4, "without_positive": 1}


def test_thousands_of_chunks_are_looked_up(house: House) -> None:
    house.put(document("long", "\n\n".join(f"line {i}" for i in range(2500))))
    house.catch_up()
    with house.database.write() as connection:
        ids = connection.scalars(select(t.Chunk.id)).all()
        collection_id = collections.find(connection, "default")
        row = {"collection_id": collection_id, "deployment_id": 1, "k": 10, "mode": "dense", "hits": []}
        connection.execute(insert(t.QueryRow).values(id="q", text=TEA, **row))
        feedback = [{"query_id": "q", "chunk_id": one, "kind": "relevant", "grade": 1} for one in ids]
        connection.execute(insert(t.FeedbackRow), feedback)
    assert Talk(house).only().chunks == dict.fromkeys(sorted(ids), 1)
    with house.database.read() as connection:
        facts = chunk_facts(connection, [*ids, "unknown"])
    assert facts.keys() == set(ids)


def test_chunk_facts_say_document_and_digest(talk: Talk) -> None:
    with talk.house.database.read() as connection:
        assert chunk_facts(connection, [talk.chunk("two"), "unknown"]) == {
            talk.chunk("two"): ChunkFact(document_id=document_id("default", "a"), sha256=sha256_text("two"))
        }


# the holdout


def random_talk(talk: Talk, rng: random.Random) -> set[str]:
    """Judgments of 200 queries, most with something relevant; their keys."""
    keys = set()
    for number in range(200):
        text = f"{rng.choice(['how', 'why', 'when'])} {rng.getrandbits(32):x} {number}"
        keys.add(query_key(text))
        if rng.random() < 0.3:
            talk.judge(text, rng.choice("ab"), rng.randint(0, 2))
        else:
            talk.say(talk.ask(text), talk.chunk(rng.choice(["one", "two", "three"])), grade=rng.randint(0, 2))
    return keys


@pytest.mark.parametrize("seed", [1, 2])
def test_the_holdout_is_read_by_one_function_and_everything_else_by_the_other(talk: Talk, seed: int) -> None:
    asked = random_talk(talk, random.Random(seed))
    with talk.house.database.read() as connection:
        training, holdout = training_queries(connection, "default"), holdout_queries(connection, "default")
        size = holdout_size(connection, "default")
    assert {split_of(query.key) for query in training.queries} == {Split.TRAIN, Split.DEV}
    assert {split_of(query.key) for query in holdout.queries} == {Split.HOLDOUT}
    assert size == len(holdout.queries) > 10
    left_out = training.counts.without_positive + holdout.counts.without_positive
    assert len(training.queries) + len(holdout.queries) + left_out == len(asked)
    assert {query.key for query in (*training.queries, *holdout.queries)} < asked
    assert training.of(Split.HOLDOUT) == []
    assert sorted((*training.of(Split.TRAIN), *training.of(Split.DEV)), key=lambda query: query.key) == training.queries


def test_the_holdout_counts_queries_with_something_relevant_only(talk: Talk) -> None:
    query = talk.ask(HELD_OUT)
    talk.say(query, talk.chunk("one"), kind="irrelevant")
    with talk.house.database.read() as connection:
        assert holdout_size(connection, "default") == 0
    talk.say(query, talk.chunk("two"))
    with talk.house.database.read() as connection:
        assert holdout_size(connection, "default") == 1
        (found,) = holdout_queries(connection, "default").queries
    assert (found.text, found.chunks) == (HELD_OUT, {talk.chunk("one"): 0, talk.chunk("two"): 1})
    assert talk.judged().queries == []
    assert talk.counts() == {}  # nor do the counts tell


# the digest


def digest_of(talk: Talk, words: Sequence[tuple[str, str, int]]) -> str:
    """The digest after these words (query id, text, grade) about chunk one, said in this order by one person each."""
    with talk.house.database.write() as connection:
        collection_id = collections.find(connection, "default")
        connection.execute(t.QueryRow.__table__.delete())
        for key, text, grade in words:
            row: dict[str, Any] = {"deployment_id": 1, "k": 10, "mode": "dense", "hits": [], "created_at": START}
            connection.execute(insert(t.QueryRow).values(id=key, text=text, collection_id=collection_id, **row))
            said = {"query_id": key, "chunk_id": talk.chunk("one"), "kind": "relevant", "created_at": START}
            connection.execute(insert(t.FeedbackRow).values(**said, grade=grade))
    return talk.judged().digest


def test_the_digest_tells_contents_apart_and_nothing_else(talk: Talk) -> None:
    words = [("1", TEA, 1), ("2", "what is tea", 3), ("3", SKY, 2), ("4", "roll back", 1)]
    expected = digest_of(talk, words)
    rng = random.Random(3)
    assert {digest_of(talk, rng.sample(words, len(words))) for _ in range(5)} == {expected}
    assert digest_of(talk, [*words[:3], ("4", "roll back", 2)]) != expected
    assert digest_of(talk, [*words[:3], ("4", "Roll back", 1)]) != expected
    assert digest_of(talk, words[:3]) != expected
    assert digest_of(talk, [*words, ("5", HELD_OUT, 1)]) == expected


def test_an_unknown_collection_is_named(house: House) -> None:
    with house.database.read() as connection:
        for read in (training_queries, holdout_queries, holdout_size):
            with pytest.raises(NotFound, match="no collection 'nope'; there are: default"):
                read(connection, "nope")
        assert training_queries(connection, "default").queries == []
