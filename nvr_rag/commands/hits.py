"""How an answer of a search is shown: as the JSON document that the HTTP API answers, and for a person."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from nvr_rag import output
from nvr_rag.types import Explanation, Hit, Standing

if TYPE_CHECKING:
    from nvr_rag.client import SearchAnswer

_SNIPPET_LINES = 4
_CONTEXT_LINES = 16


def as_json(answer: SearchAnswer) -> dict[str, Any]:
    """The document that POST /v1/search answers."""
    return {
        "query_id": answer.query_id,
        "collection": answer.collection,
        "mode": answer.mode,
        "deployment": answer.deployment,
        "hits": [_hit_as_json(hit) for hit in answer.hits],
        "took_ms": answer.took_ms,
    }


def _hit_as_json(hit: Hit) -> dict[str, Any]:
    own = ("rank", "score", "chunk_id", "text", "headings", "page", "start", "end")
    of_document = ("uri", "source", "title", "media_type", "metadata", "sha256")
    stored = None if hit.updated_at is None else hit.updated_at.isoformat().replace("+00:00", "Z")
    document = {"id": hit.document_id, **{name: getattr(hit, name) for name in of_document}, "updated_at": stored}
    return {
        **{name: getattr(hit, name) for name in own},
        "document": document,
        "context": None if hit.context is None else asdict(hit.context),
        "dense": _side(hit.dense_rank, hit.dense_score),
        "lexical": _side(hit.lexical_rank, hit.lexical_score),
        "explain": None if hit.explain is None else asdict(hit.explain),
    }


def _side(rank: int | None, score: float | None) -> dict[str, Any] | None:
    return None if rank is None else {"rank": rank, "score": score}


def show(answer: SearchAnswer) -> None:
    """Hits for a person, and what feedback has to name."""
    for hit in answer.hits:
        _show_hit(hit)
    count = f"{len(answer.hits)} hit{'' if len(answer.hits) == 1 else 's'}" if answer.hits else "Nothing found"
    output.say(f"{count} ({answer.mode}, {sum(answer.took_ms.values()):.0f} ms), query {answer.query_id}")


def _show_hit(hit: Hit) -> None:
    """Rank, place and score; the URI; why it ranks; the beginning of the text, or what stands around it as well."""
    from rich.text import Text

    title, *headings = (output.one_line(part) for part in (hit.title or hit.uri, *hit.headings))
    place = " > ".join([title, *(part for part in headings if part and part != title)])
    page = f", page {hit.page}" if hit.page is not None else ""
    output.show(Text.assemble(f"{hit.rank:>3}. ", (place, "bold"), page, (f"  {hit.score:.4f}", "dim")), wrap=False)
    output.show(Text(f"     {output.one_line(hit.uri)}", style="dim"), wrap=False)
    if hit.explain is not None:
        output.show(Text(f"     {_reasons(hit.explain)}", style="dim"), wrap=False)
    if hit.context is None:
        output.paragraph(hit.text, indent=5, lines=_SNIPPET_LINES)
    else:
        output.paragraph(hit.context.before + hit.text + hit.context.after, indent=5, lines=_CONTEXT_LINES)
    output.say()


def _reasons(why: Explanation) -> str:
    """Rank and score at each stage."""
    stages = {name: getattr(why, name) for name in ("dense", "lexical", "fused", "rerank", "mmr")}
    return ", ".join(f"{name} {_standing(standing)}" for name, standing in stages.items() if standing is not None)


def _standing(standing: Standing) -> str:
    rank = "-" if standing.rank is None else f"{standing.rank}."
    return rank if standing.score is None else f"{rank} ({standing.score:.4f})"
