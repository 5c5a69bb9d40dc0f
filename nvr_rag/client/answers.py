"""Answers as the server writes them, read into records. What a newer server says beyond them is left alone. Pure.

Each raises one of MISREAD for what is no such answer.
"""

from __future__ import annotations

import base64
import struct
from datetime import datetime
from typing import Any

from nvr_rag.client.records import (
    CollectionInfo,
    DocumentInfo,
    Embedded,
    FeedbackAnswer,
    JobStatus,
    PutAnswer,
    PutResult,
    Readiness,
    SearchAnswer,
    Uploaded,
)
from nvr_rag.types import Context, DocumentState, Explanation, Hit, Mode, Passage, Standing

MISREAD = (KeyError, TypeError, ValueError, IndexError, AttributeError)


def search_answer(content: Any) -> SearchAnswer:
    return SearchAnswer(
        query_id=str(content["query_id"]),
        collection=str(content["collection"]),
        mode=Mode(content["mode"]),
        deployment=dict(content["deployment"]),
        hits=[hit(one) for one in content["hits"]],
        took_ms=dict(content["took_ms"]),
    )


def search_answers(content: Any) -> list[SearchAnswer]:
    return [search_answer(one) for one in content["answers"]]


def hit(content: Any) -> Hit:
    dense, lexical = content["dense"] or {}, content["lexical"] or {}
    explained = content.get("explain")
    return Hit(
        rank=int(content["rank"]),
        score=float(content["score"]),
        explain=None if explained is None else _explanation(explained),
        dense_rank=dense.get("rank"),
        dense_score=dense.get("score"),
        lexical_rank=lexical.get("rank"),
        lexical_score=lexical.get("score"),
        **_passage(content),
    )


def passage(content: Any) -> Passage:
    return Passage(**_passage(content))


def _passage(content: Any) -> dict[str, Any]:
    document, around = content["document"], content.get("context")
    stored = document["updated_at"]
    return {
        "chunk_id": str(content["chunk_id"]),
        "text": str(content["text"]),
        "document_id": str(document["id"]),
        "metadata": dict(document["metadata"]),
        "headings": list(content["headings"]),
        "page": content["page"],
        "start": int(content["start"]),
        "end": int(content["end"]),
        "updated_at": None if stored is None else datetime.fromisoformat(stored),
        "context": None if around is None else _context(around),
        **{name: str(document[name]) for name in ("uri", "title", "media_type", "source", "sha256")},
    }


def _context(content: Any) -> Context:
    before, after = str(content["before"]), str(content["after"])
    return Context(before=before, after=after, start=int(content["start"]), end=int(content["end"]))


def _explanation(content: Any) -> Explanation:
    stages = {name: _standing(content.get(name)) for name in ("dense", "lexical", "fused", "rerank", "mmr")}
    return Explanation(weights=content.get("weights"), **stages)


def _standing(content: Any) -> Standing | None:
    return None if content is None else Standing(rank=content["rank"], score=content["score"])


def feedback_answer(content: Any) -> FeedbackAnswer:
    return FeedbackAnswer(accepted=int(content["accepted"]), new=int(content["new"]))


def put_answer(content: Any) -> PutAnswer:
    return PutAnswer(
        collection=str(content["collection"]),
        indexed=bool(content["indexed"]),
        documents=[
            PutResult(id=str(one["id"]), uri=str(one["uri"]), outcome=str(one["outcome"]), seq=one.get("seq"))
            for one in content["documents"]
        ],
    )


def uploaded(content: Any) -> Uploaded:
    (document,) = content["documents"]
    plain = {name: document[name] for name in ("id", "uri", "sha256", "outcome", "error")}
    return Uploaded(job=int(content["job"]), indexed=bool(content["indexed"]), **plain)


def document(content: Any) -> DocumentInfo:
    names = ("error", "title", "media_type", "source", "sha256", "generation", "characters")
    return DocumentInfo(
        id=str(content["id"]),
        uri=str(content["uri"]),
        state=DocumentState(content["state"]),
        metadata=dict(content["metadata"]),
        seq=content.get("seq"),
        updated_at=datetime.fromisoformat(content["updated_at"]),
        acl=content.get("acl"),
        text=content.get("text"),
        **{name: content[name] for name in names},
    )


def documents(content: Any) -> tuple[list[DocumentInfo], str | None]:
    """A page, and where the next one begins."""
    return [document(one) for one in content["documents"]], content["next"]


def deleted(content: Any) -> str:
    (one,) = content["deleted"]
    return str(one)


def collection(content: Any) -> CollectionInfo:
    return CollectionInfo(
        name=str(content["name"]),
        language=str(content["language"]),
        head_seq=content.get("head_seq"),
        created_at=datetime.fromisoformat(content["created_at"]),
        documents=dict(content["documents"]),
        deployment=content.get("deployment"),
        indexes=content.get("indexes", ()),
    )


def collections(content: Any) -> list[CollectionInfo]:
    return [collection(one) for one in content["collections"]]


def job_status(content: Any) -> JobStatus:
    plain = {name: content[name] for name in ("kind", "collection", "state", "error", "cancelled", "result")}
    return JobStatus(id=int(content["id"]), progress=dict(content["progress"]), **plain)


def not_ready(content: Any) -> Readiness:
    return Readiness(ready=False, reasons=[str(one) for one in content.get("reasons") or [content["detail"]]])


def embedded(content: Any) -> Embedded:
    ordered = sorted(content["data"], key=lambda one: int(one["index"]))
    return Embedded(
        vectors=[_vector(one["embedding"]) for one in ordered],
        encoder=str(content["encoder"]),
        truncated=[int(one) for one in content["truncated"]],
    )


def _vector(written: str) -> list[float]:
    data = base64.b64decode(written, validate=True)
    if len(data) % 4:
        raise ValueError("a vector of float32 has four bytes for each number")
    return list(struct.unpack(f"<{len(data) // 4}f", data))
