"""JSON values enter, one a line of an export; records leave, or an InvalidInput that names the line.

Each is checked by itself and against the lines before it. Knows no file and no database.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from nvr_rag.chunkings import ChunkingSettings
from nvr_rag.collections import check_name
from nvr_rag.corpus import MAX_URI_CHARACTERS
from nvr_rag.errors import InvalidInput
from nvr_rag.fusion import FusionSettings
from nvr_rag.ids import document_id, sha256_text
from nvr_rag.query_log import MAX_GRADE
from nvr_rag.retriever import MAX_QUERY_CHARACTERS
from nvr_rag.transfer.fields import Fields
from nvr_rag.transfer.records import (
    COUNTED,
    FORMAT,
    MAX_OCCURRENCE,
    VERSION,
    ChunkingLine,
    ChunkLine,
    ChunkRef,
    CollectionLine,
    DocumentLine,
    FeedbackItem,
    Header,
    JudgmentLine,
    Line,
    Place,
    QueryLine,
    Trailer,
)
from nvr_rag.types import DocumentState, FeedbackKind, Mode, NewDocument, ParsedText, TextFormat


@dataclass(kw_only=True, slots=True)
class Context:
    """What the lines before say about the next one."""

    collection: str = ""
    document: DocumentLine | None = None
    chunkings: dict[str, Mapping[str, Any]] = field(default_factory=dict)  # settings by hash


def parse(where: str, value: Any, context: Context) -> Line:
    """The record of one line. Raises InvalidInput."""
    fields = Fields(where, value)
    kind = fields.text("type")
    if kind not in _KINDS:
        fields.refuse(f"the type is one of {', '.join(_KINDS)}, not {kind[:80]!r}", "type")
    line = _KINDS[kind](fields, context)
    fields.done()
    return line


def _header(fields: Fields, _context: Context) -> Header:
    if fields.text("format") != FORMAT:
        fields.refuse("not an export of nvr-rag; give a file that nvr-rag export has written", "format")
    version, release = fields.number("version", least=1), fields.text("release")
    if version > VERSION:
        fields.refuse(
            f"written by nvr-rag {release[:40]} in version {version} of the format, and this release reads up to "
            f"{VERSION}; upgrade nvr-rag",
            "version",
        )
    return Header(release=release, created_at=fields.moment("created_at"), parts=fields.texts("with"))


def _collection(fields: Fields, _context: Context) -> CollectionLine:
    name, language = fields.text("name"), fields.text("language", most=32)
    try:
        check_name(name)
    except InvalidInput as error:
        fields.refuse(str(error), "name")
    serving = fields.part("serving")
    mode, fusion = (None, None) if serving is None else (serving.one_of("mode", Mode), _fusion(serving))
    return CollectionLine(name=name, language=language, mode=mode, fusion=fusion)


def _fusion(serving: Fields) -> FusionSettings:
    values = _known(serving.mapping("fusion"), serving, FusionSettings)
    serving.done()
    try:
        return FusionSettings(**values)
    except (InvalidInput, TypeError) as error:
        serving.refuse(str(error), "fusion")


def _known(values: dict[str, Any], fields: Fields, kind: type) -> dict[str, Any]:
    strange = sorted(set(values) - set(kind.__dataclass_fields__))  # type: ignore[attr-defined]
    if strange:
        fields.refuse(f"unknown settings {', '.join(strange)[:80]}; upgrade nvr-rag, or remove them")
    return values


def _chunking(fields: Fields, _context: Context) -> ChunkingLine:
    key, settings = fields.hash("hash"), fields.mapping("settings")
    try:
        matches = ChunkingSettings(**_known(settings, fields, ChunkingSettings)).hash == key
    except TypeError as error:
        fields.refuse(f"the settings are incomplete ({error})", "settings")
    if not matches:
        fields.refuse("the hash is not that of the settings; do not edit them", "hash")
    return ChunkingLine(hash=key, settings=settings)


def _document(fields: Fields, context: Context) -> DocumentLine:
    _same_collection(fields, context)
    key, uri, source = fields.uuid("id"), fields.text("uri"), fields.text("source")
    if not 1 <= len(uri) <= MAX_URI_CHARACTERS:
        fields.refuse(f"a URI has 1 to {MAX_URI_CHARACTERS} characters, this one {len(uri)}", "uri")
    if key != document_id(context.collection, uri):
        fields.refuse(
            f"the id {key} is not that of this URI in the collection {context.collection!r}; to import under another "
            "name leave the file as it is and say --collection",
            "id",
        )
    state = fields.one_of("state", DocumentState)
    error = fields.optional_text("error")
    if state is DocumentState.DELETED or (state is DocumentState.FAILED) != (error is not None):
        fields.refuse("the state is ready, without an error, or failed, with one", "state")
    document = _new_document(fields, uri, source) if fields.has("text") else None
    if document is None:
        fields.drop("text")
        if error is None:
            fields.refuse("a document that is ready has a text", "text")
    return DocumentLine(id=key, uri=uri, source=source, error=error, document=document)


def _new_document(fields: Fields, uri: str, source: str) -> NewDocument:
    text = fields.text("text")
    return NewDocument(
        uri=uri,
        sha256=fields.hash("sha256"),
        source=source,
        parser=fields.text("parser"),
        acl=fields.texts("acl") if fields.has("acl") else fields.take("acl", "a list or null", type(None)),
        parsed=ParsedText(
            text=text,
            format=fields.one_of("text_format", TextFormat),
            media_type=fields.text("media_type"),
            title=fields.text("title"),
            page_starts=fields.offsets("page_starts", len(text)),
            metadata=fields.mapping("metadata"),
        ),
    )


def _chunk(fields: Fields, context: Context) -> ChunkLine:
    document = _needed(fields, context)
    text, digest = fields.text("text"), fields.hash("sha256")
    if sha256_text(text) != digest:
        fields.refuse("the text of the chunk is not the one that sha256 is of; do not edit it", "sha256")
    ref = _ref(fields, document.uri, digest, context)
    places = [_place(one, context) for one in fields.parts("places")]
    whole = document.document.parsed.text if document.document else None
    for place in places:
        if whole is None or not place.start <= place.end <= len(whole):
            fields.refuse("the chunk stands outside its document's text", "places")
        if not text.endswith(whole[place.start : place.end]):  # a repeated table header may be in front
            fields.refuse(
                "the chunk is not what its document says there; do not edit texts, or remove the chunks", "places"
            )
    return ChunkLine(ref=ref, text=text, places=places)


def _ref(fields: Fields, uri: str, digest: str, context: Context) -> ChunkRef:
    ref = ChunkRef(
        id=fields.uuid("id" if fields.has("id") else "chunk"),
        uri=uri,
        sha256=digest,
        occurrence=fields.number("occurrence", most=MAX_OCCURRENCE),
    )
    if ref.id_in(context.collection) != ref.id:
        fields.refuse(f"the id {ref.id} is not that of this chunk in the collection {context.collection!r}", "id")
    return ref


def _place(fields: Fields, context: Context) -> Place:
    place = Place(
        chunking=fields.hash("chunking"),
        ordinal=fields.number("ordinal"),
        start=fields.number("start"),
        end=fields.number("end"),
        page=fields.optional_number("page", least=1),
        headings=fields.texts("headings"),
    )
    if place.chunking not in context.chunkings:
        fields.refuse("this chunking is not described by a line before", "chunking")
    fields.done()
    return place


def _judgment(fields: Fields, context: Context) -> JudgmentLine:
    _needed(fields, context)
    return JudgmentLine(
        origin=fields.text("origin", most=64),
        query=fields.text("query", most=MAX_QUERY_CHARACTERS),
        query_key=fields.hash("query_key"),
        chunk=fields.uuid("chunk") if fields.has("chunk") else fields.take("chunk", "a chunk's id or null", type(None)),
        grade=fields.number("grade", most=MAX_GRADE),
        created_at=fields.moment("created_at"),
    )


def _needed(fields: Fields, context: Context) -> DocumentLine:
    """The document that a line is about: the last one before."""
    key = fields.uuid("document")
    if context.document is None or context.document.id != key:
        fields.refuse(f"the line of the document {key} is not before this one; leave the lines in their order")
    return context.document


def _same_collection(fields: Fields, context: Context) -> None:
    if not context.collection:
        fields.refuse("the line of a collection comes first")
    if fields.text("collection") != context.collection:
        fields.refuse(f"the line belongs below another collection than {context.collection!r}", "collection")


def _query(fields: Fields, context: Context) -> QueryLine:
    _same_collection(fields, context)
    return QueryLine(
        id=fields.uuid("id"),
        text=fields.text("text", most=MAX_QUERY_CHARACTERS),
        k=fields.number("k", least=1),
        mode=fields.one_of("mode", Mode),
        filter=fields.optional_mapping("filter"),
        user=fields.optional_text("user"),
        session=fields.optional_text("session"),
        created_at=fields.moment("created_at"),
        hits=[_hit(one, context) for one in fields.parts("hits")],
        feedback=[_feedback(one) for one in fields.parts("feedback")],
    )


def _hit(fields: Fields, context: Context) -> tuple[ChunkRef, float]:
    if fields.has("document"):
        uri = fields.text("document", most=MAX_URI_CHARACTERS)
        ref = _ref(fields, uri, fields.hash("sha256"), context)
    else:
        fields.drop("document")
        ref = ChunkRef(id=fields.uuid("chunk"), uri=None)
    score = fields.score("score")
    fields.done()
    return ref, score


def _feedback(fields: Fields) -> FeedbackItem:
    item = FeedbackItem(
        chunk=fields.uuid("chunk") if fields.has("chunk") else fields.take("chunk", "a chunk's id or null", type(None)),
        kind=fields.one_of("kind", FeedbackKind),
        grade=fields.optional_number("grade", most=MAX_GRADE),
        user=fields.optional_text("user") or "",
        created_at=fields.moment("created_at"),
    )
    fields.done()
    return item


def _trailer(fields: Fields, _context: Context) -> Trailer:
    counts = fields.part("counts")
    if counts is None:
        fields.refuse("the counts are missing", "counts")
    line = Trailer(counts={name: counts.number(name, most=2**63) for name in COUNTED})
    counts.done()
    return line


_KINDS: Mapping[str, Callable[[Fields, Context], Line]] = {
    "header": _header,
    "collection": _collection,
    "chunking": _chunking,
    "document": _document,
    "chunk": _chunk,
    "judgment": _judgment,
    "query": _query,
    "trailer": _trailer,
}
