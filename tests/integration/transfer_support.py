"""What tests of exports are built from: collections full of oddities, and exports as lists of lines."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

from sqlalchemy import insert, select

from nvr_rag import corpus
from nvr_rag.db import tables as t
from nvr_rag.db.session import Database
from nvr_rag.ids import document_id, new_id, sha256_text
from nvr_rag.query_log import record_feedback
from nvr_rag.transfer.exporting import export
from nvr_rag.transfer.records import Part
from nvr_rag.types import Feedback, FeedbackKind, NewDocument, ParsedText, TextFormat
from nvr_rag.upkeep import indexing
from nvr_rag.workspace import Workspace
from tests.support import paragraphs

ALL = tuple(Part)
_LETTERS = "abc XYZ0129 .,-_\t\n\r\"'\\/{}[]\x01\x1f\x7f\x85 äßéÅ文字العربية😀🇩🇪\u2028\u2029\ufeff\ufffd"


def lines(database: Database, *names: str, parts: tuple[Part, ...] = ALL) -> list[Any]:
    """An export of these collections, line by line, without the time at which it was made."""
    out = io.BytesIO()
    export(database, out, names, parts=parts)
    content = out.getvalue()
    assert content.endswith(b"\n")
    found = [json.loads(line) for line in content.decode("utf-8").removesuffix("\n").split("\n")]
    assert found[0].pop("created_at")
    return found


def write(database: Database, path: Path, *names: str, parts: tuple[Part, ...] = ALL) -> Path:
    with path.open("wb") as file:
        export(database, file, names, parts=parts)
    return path


def text(draw: random.Random, most: int) -> str:
    return "".join(draw.choice(_LETTERS) for _ in range(draw.randint(0, most)))


def value(draw: random.Random, depth: int = 0) -> Any:
    """A JSON value of any kind."""
    kind = draw.randint(0, 8 if depth < 3 else 6)
    if kind == 7:
        return [value(draw, depth + 1) for _ in range(draw.randint(0, 3))]
    if kind == 8:
        return {text(draw, 6): value(draw, depth + 1) for _ in range(draw.randint(0, 3))}
    return (None, True, False, draw.randint(-(10**18), 10**18), draw.uniform(-1e9, 1e-9), 1.0, text(draw, 12))[kind]


def some_document(draw: random.Random, uri: str) -> NewDocument:
    """Paragraphs, some of them several times, with everything that a document can have."""
    known = [text(draw, 40) or "x" for _ in range(3)]
    body = "\n\n".join(draw.choice([*known, text(draw, 60)]) for _ in range(draw.randint(0, 6)))
    starts = sorted({0, *(draw.randint(0, len(body)) for _ in range(2))}) if draw.random() < 0.5 else []
    return NewDocument(
        uri=uri,
        sha256=sha256_text(body + uri),
        parser=draw.choice(["", "text", "xberg-1.3 ✓"]),
        source=draw.choice(["", "file:///srv/ä"]),
        acl=draw.choice([None, [], ["user:anna", "grüße"]]),
        parsed=ParsedText(
            text=body,
            format=draw.choice(list(TextFormat)),
            media_type=draw.choice(["text/plain", "application/pdf", ""]),
            title=text(draw, 20),
            page_starts=starts,
            metadata={text(draw, 8): value(draw) for _ in range(draw.randint(0, 4))},
        ),
    )


def fill(workspace: Workspace, name: str, seed: int, count: int = 16) -> None:
    """Documents that were added, edited, deleted, brought back and that failed before and after; indexed in between;
    with judgments and feedback about the chunks of then and now."""
    draw, database = random.Random(seed), workspace.database
    uris = sorted({f"file:///{text(draw, 12).strip()}/{n}" for n in range(count)})
    with database.write() as connection:
        for uri in uris[::5]:
            corpus.fail(connection, name, uri=uri + "#never", source="", error="cannot be read: ☹")
        corpus.put(connection, name, [some_document(draw, uri) for uri in uris])
    catch_up(workspace, name)
    say(workspace, name, draw)
    with database.write() as connection:
        corpus.put(connection, name, [some_document(draw, uri) for uri in draw.sample(uris, count // 3)])
        gone = [document_id(name, uri) for uri in draw.sample(uris, count // 3)]
        corpus.delete_documents(connection, name, gone)
        for uri in draw.sample(uris, count // 4):
            corpus.fail(connection, name, uri=uri, source="file:///srv", error="broken")
    catch_up(workspace, name)
    say(workspace, name, draw)
    with database.write() as connection:
        corpus.put(connection, name, [some_document(draw, uri) for uri in draw.sample(uris, 4)])


def catch_up(workspace: Workspace, name: str) -> None:
    with workspace.database.read() as connection:
        i, c = t.SearchIndex, t.Collection
        ids = connection.scalars(select(i.id).join(c, c.id == i.collection_id).where(c.name == name)).all()
    for index_id in ids:
        indexing.catch_up(workspace.database, workspace.index(index_id), paragraphs)


def say(workspace: Workspace, name: str, draw: random.Random) -> None:
    """Ask, give feedback, and have judgments imported, about whatever is there now."""
    database = workspace.database
    with database.read() as connection:
        found = select(t.Chunk.id, t.Chunk.document_id, t.Collection.id.label("collection"))
        found = found.join(t.Document, t.Document.id == t.Chunk.document_id)
        found = found.join(t.Collection, t.Collection.id == t.Document.collection_id).where(t.Collection.name == name)
        rows = connection.execute(found.order_by(t.Chunk.id)).all()
    for row in draw.sample(rows, 4):
        query = text(draw, 20)
        said = {"origin": "desk", "query": query, "query_key": sha256_text(query), "grade": draw.randint(0, 3)}
        about = {"document_id": row.document_id, "chunk_id": draw.choice(["", row.id]), "created_at": t.now()}
        with database.write() as connection:
            connection.execute(insert(t.JudgmentRow).values(collection_id=row.collection, **said, **about))
        ask(workspace, name, text(draw, 10) or "?", [one.id for one in draw.sample(rows, 5)])


def ask(workspace: Workspace, name: str, question: str, chunk_ids: list[str]) -> str:
    """Log a query whose hits were these chunks, and feedback on the first and on the answer; the query's id."""
    key = new_id()
    with workspace.database.write() as connection:
        collection_id = connection.scalars(select(t.Collection.id).where(t.Collection.name == name)).one()
        deployment = connection.scalars(select(t.Deployment.id).where(t.Deployment.collection_id == collection_id))
        connection.execute(
            insert(t.QueryRow).values(
                id=key,
                collection_id=collection_id,
                deployment_id=deployment.first(),
                text=question,
                k=5,
                mode="hybrid",
                filter={"media_type": "text/plain"} if question < "m" else None,
                user="anna" if question < "n" else None,
                session=None,
                hits=[[one, 0.25 * n] for n, one in enumerate(chunk_ids)],
            )
        )
        words = [
            Feedback(query_id=key, chunk_id=chunk_ids[0], kind=FeedbackKind.RELEVANT, grade=2, user="anna"),
            Feedback(query_id=key, chunk_id=chunk_ids[0], kind=FeedbackKind.CLICK),
            Feedback(query_id=key, kind=FeedbackKind.ANSWER_BAD, user="bo"),
        ]
        record_feedback(connection, words)
    return key
