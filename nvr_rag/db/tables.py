"""The tables: what is stored, which states it passes through, and the invariants that the database itself keeps.

Written for SQLite and PostgreSQL alike. Times are UTC. JSON columns hold JSON values only.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    CheckConstraint,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator


class UtcDateTime(TypeDecorator[datetime]):
    """A moment: always aware and in UTC, also where the database keeps no zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def now() -> datetime:
    """The present moment, in UTC."""
    return datetime.now(UTC)


class Base(DeclarativeBase):
    """Names constraints by rule, so that a migration can name them on every engine."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {str: Text, datetime: UtcDateTime, dict[str, Any]: JSON, list[Any]: JSON}


class Collection(Base):
    """A set of documents that is searched as one. `next_seq` is the number that its next change will get: it is taken
    by an update of this row inside the writing transaction, so that the order of numbers is the order of commits."""

    __tablename__ = "collection"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    language: Mapped[str] = mapped_column(String(32))
    next_seq: Mapped[int] = mapped_column(default=1)
    created_at: Mapped[datetime] = mapped_column(default=now)


class Document(Base):
    """A source document; its identity is its URI within the collection.

    ready    its newest version answers searches
    failed   the last attempt to read it failed with `error`; an older version, if there is one, still answers
    deleted  gone: no version with a seq up to `deleted_seq` may ever be shown

    new > ready | failed;  ready <> failed;  ready | failed > deleted > ready | failed (it came back)
    """

    __tablename__ = "document"
    __table_args__ = (
        UniqueConstraint("collection_id", "uri"),
        CheckConstraint("state IN ('ready', 'failed', 'deleted')", name="state"),
        CheckConstraint("(state = 'failed') = (error IS NOT NULL)", name="error"),
        CheckConstraint("state <> 'deleted' OR deleted_seq > 0", name="deleted"),
        Index("ix_document_collection_id_source", "collection_id", "source"),
        Index(
            "ix_document_restricted",
            "collection_id",
            sqlite_where=text("acl IS NOT NULL"),
            postgresql_where=text("acl IS NOT NULL"),
        ),
    )

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    collection_id: Mapped[int] = mapped_column(ForeignKey("collection.id", ondelete="CASCADE"))
    uri: Mapped[str]
    source: Mapped[str] = mapped_column(default="")
    state: Mapped[str] = mapped_column(String(16))
    error: Mapped[str | None]
    acl: Mapped[list[Any] | None] = mapped_column(JSON(none_as_null=True))
    generation: Mapped[int] = mapped_column(default=0)
    deleted_seq: Mapped[int] = mapped_column(default=0)
    updated_at: Mapped[datetime] = mapped_column(default=now)


class DocumentVersion(Base):
    """What a document said from its change `seq` on; never altered."""

    __tablename__ = "document_version"
    __table_args__ = (
        UniqueConstraint("document_id", "generation"),
        UniqueConstraint("document_id", "seq"),
        CheckConstraint("generation >= 1 AND seq >= 1", name="positive"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    document_id: Mapped[str] = mapped_column(String(36), ForeignKey("document.id", ondelete="CASCADE"))
    generation: Mapped[int]
    seq: Mapped[int]
    sha256: Mapped[str] = mapped_column(String(64))
    parser: Mapped[str]
    media_type: Mapped[str]
    title: Mapped[str]
    meta: Mapped[dict[str, Any]] = mapped_column("metadata", JSON)
    text: Mapped[str]
    text_format: Mapped[str] = mapped_column(String(16))
    page_starts: Mapped[list[Any]]
    # Who may read this version; the document's own `acl` is the newest one's, and a reader needs leave from both: an
    # index that lags still shows an old version after the document was opened to others.
    acl: Mapped[list[Any] | None] = mapped_column(JSON(none_as_null=True))
    created_at: Mapped[datetime] = mapped_column(default=now)


class Change(Base):
    """The change log of a collection: one row a change, in commit order. What a document looks like after it stands in
    the other tables; a reader that has seen a change needs only the document's newest state."""

    __tablename__ = "change"
    __table_args__ = (CheckConstraint("kind IN ('put', 'delete')", name="kind"),)

    collection_id: Mapped[int] = mapped_column(ForeignKey("collection.id", ondelete="CASCADE"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    document_id: Mapped[str] = mapped_column(String(36), ForeignKey("document.id", ondelete="CASCADE"), index=True)
    kind: Mapped[str] = mapped_column(String(16))


class Chunking(Base):
    """Settings that decide where texts are cut; shared by all indexes that use them."""

    __tablename__ = "chunking"

    id: Mapped[int] = mapped_column(primary_key=True)
    hash: Mapped[str] = mapped_column(String(64), unique=True)
    settings: Mapped[dict[str, Any]]


class Chunk(Base):
    """A piece of text of a document; never altered. The same text at another place is the same chunk."""

    __tablename__ = "chunk"

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    document_id: Mapped[str] = mapped_column(String(36), ForeignKey("document.id", ondelete="CASCADE"), index=True)
    sha256: Mapped[str] = mapped_column(String(64), index=True)
    text: Mapped[str]


class Placed(Base):
    """Says that a version has been cut by a chunking: a version without chunks is not a version not yet cut.

    With `error` it was tried and could not be done, and it has no chunks for that reason.
    """

    __tablename__ = "placed"

    version_id: Mapped[int] = mapped_column(ForeignKey("document_version.id", ondelete="CASCADE"), primary_key=True)
    chunking_id: Mapped[int] = mapped_column(ForeignKey("chunking.id", ondelete="CASCADE"), primary_key=True)
    error: Mapped[str | None]


class Placement(Base):
    """Where a chunk stands in a version: a half-open character span of the version's text."""

    __tablename__ = "placement"
    __table_args__ = (
        UniqueConstraint("version_id", "chunking_id", "chunk_id"),
        CheckConstraint('ordinal >= 0 AND start >= 0 AND "end" >= start', name="span"),
    )

    version_id: Mapped[int] = mapped_column(ForeignKey("document_version.id", ondelete="CASCADE"), primary_key=True)
    chunking_id: Mapped[int] = mapped_column(ForeignKey("chunking.id", ondelete="CASCADE"), primary_key=True)
    ordinal: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    chunk_id: Mapped[str] = mapped_column(String(36), ForeignKey("chunk.id", ondelete="CASCADE"), index=True)
    start: Mapped[int]
    end: Mapped[int]
    page: Mapped[int | None]
    headings: Mapped[list[Any]]


class EncoderVersion(Base):
    """An encoder that was registered: weights, tokenizer and spec, named by a fingerprint over all of them."""

    __tablename__ = "encoder_version"

    fingerprint: Mapped[str] = mapped_column(String(64), primary_key=True)
    source: Mapped[str]  # what to load: a directory, or bundled:<name>
    spec: Mapped[dict[str, Any]]
    tokenizer: Mapped[str] = mapped_column(String(64))
    parent: Mapped[str | None] = mapped_column(String(64), ForeignKey("encoder_version.fingerprint"))
    created_at: Mapped[datetime] = mapped_column(default=now)
    training: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))  # run, recipe, data hashes
    removed_at: Mapped[datetime | None]  # its files are gone; the row stays for what still names it


class SearchIndex(Base):
    """A materialised view of a collection: derived, disposable, rebuildable.

    live     an indexer keeps it up with the log; everything up to `applied_seq` is in it, durably, and everything that
             went stale up to `purged_seq` is out of it
    retired  nobody uses it; its owner drops the physical index, then this row goes, or, where an old deployment still
             names it, says when that was (`dropped_at`)

    live > retired > (gone)
    """

    __tablename__ = "search_index"
    __table_args__ = (
        CheckConstraint("state IN ('live', 'retired')", name="state"),
        CheckConstraint("purged_seq <= applied_seq", name="seqs"),
        CheckConstraint("state = 'retired' OR collection_id IS NOT NULL", name="orphan"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    collection_id: Mapped[int | None] = mapped_column(ForeignKey("collection.id", ondelete="SET NULL"), index=True)
    chunking_id: Mapped[int] = mapped_column(ForeignKey("chunking.id"))
    encoder: Mapped[str] = mapped_column(String(64), ForeignKey("encoder_version.fingerprint"))
    lexical: Mapped[dict[str, Any]]
    store: Mapped[dict[str, Any]]
    name: Mapped[str] = mapped_column(String(64), unique=True)
    applied_seq: Mapped[int] = mapped_column(default=0)
    purged_seq: Mapped[int] = mapped_column(default=0)
    state: Mapped[str] = mapped_column(String(16), default="live")
    created_at: Mapped[datetime] = mapped_column(default=now)
    dropped_at: Mapped[datetime | None]
    rebuilt_to: Mapped[int | None]  # it was lost with this as head of the log: nothing is answered from it before that
    copied_from: Mapped[int | None]  # the index whose vectors it takes over while it is built: it is its compaction
    # Who brings it up with the log, and until when nobody else may; null where the store itself knows one owner.
    maintainer: Mapped[str | None] = mapped_column(String(36))
    maintained_until: Mapped[datetime | None]
    # How a build goes: {"since": ISO time, "seq": applied_seq then, "chunks": written since, "at": ISO time}
    progress: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))


class Deployment(Base):
    """How a collection answers.

    candidate  made beside the serving one; its index catches up with the log
    prepared   every API process is asked to load it, and says in its row when it has
    serving    answers; at most one in a collection
    previous   has served and is kept ready, by its index and in every API process; going back is one step
    retired    has served, and nothing keeps it ready any more
    rejected   never served, and will not

    candidate > prepared > serving > previous > retired;  candidate | prepared > rejected;  prepared > candidate (not
    every process could load it);  previous > serving (rollback)
    """

    __tablename__ = "deployment"
    __table_args__ = (
        CheckConstraint(
            "state IN ('candidate', 'prepared', 'serving', 'previous', 'retired', 'rejected')", name="state"
        ),
        CheckConstraint("mode IN ('dense', 'lexical', 'hybrid')", name="mode"),
        Index(
            "uq_deployment_serving",
            "collection_id",
            unique=True,
            sqlite_where=text("state = 'serving'"),
            postgresql_where=text("state = 'serving'"),
        ),
        Index("uq_deployment_run", "run", unique=True),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    collection_id: Mapped[int] = mapped_column(ForeignKey("collection.id", ondelete="CASCADE"), index=True)
    index_id: Mapped[int] = mapped_column(ForeignKey("search_index.id"))
    mode: Mapped[str] = mapped_column(String(16))
    fusion: Mapped[dict[str, Any]]
    state: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[datetime] = mapped_column(default=now)
    stopped_at: Mapped[datetime | None]  # when it last stopped serving
    run: Mapped[str | None] = mapped_column(String(36))  # the lap that made it, at most one each


class Evaluation(Base):
    """What an encoder version or a deployment was measured at."""

    __tablename__ = "evaluation"

    id: Mapped[int] = mapped_column(primary_key=True)
    encoder: Mapped[str] = mapped_column(String(64), ForeignKey("encoder_version.fingerprint"), index=True)
    deployment_id: Mapped[int | None]
    data: Mapped[dict[str, Any]]  # what was asked: name, number of queries, hash
    measures: Mapped[dict[str, Any]]  # name -> mean over the queries
    created_at: Mapped[datetime] = mapped_column(default=now)


class QueryRow(Base):
    """What was asked and what was shown. `hits` is [[chunk id, score], ...] in the order shown."""

    __tablename__ = "query"

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    collection_id: Mapped[int] = mapped_column(ForeignKey("collection.id", ondelete="CASCADE"), index=True)
    deployment_id: Mapped[int]
    text: Mapped[str]
    k: Mapped[int]
    mode: Mapped[str] = mapped_column(String(16))
    filter: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    user: Mapped[str | None] = mapped_column(index=True)
    session: Mapped[str | None]
    hits: Mapped[list[Any]]
    # Who may judge what was shown, see nvr_rag.access.callers; "" = it was asked without a key
    asker: Mapped[str] = mapped_column(String(64), default="", server_default="")
    created_at: Mapped[datetime] = mapped_column(default=now, index=True)


class FeedbackRow(Base):
    """What somebody said about a hit. The key makes saying it twice the same as saying it once."""

    __tablename__ = "feedback"
    __table_args__ = (
        CheckConstraint("grade IS NULL OR grade >= 0", name="grade"),
        CheckConstraint(
            "kind IN ('relevant', 'irrelevant', 'click', 'cited', 'answer_good', 'answer_bad')", name="kind"
        ),
        UniqueConstraint("query_id", "chunk_id", "kind", "user"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    query_id: Mapped[str] = mapped_column(String(36), ForeignKey("query.id", ondelete="CASCADE"))
    # "" rather than null where there is none: nulls would not collide in the unique key.
    chunk_id: Mapped[str] = mapped_column(String(36), default="")
    user: Mapped[str] = mapped_column(default="", index=True)
    session: Mapped[str | None]
    kind: Mapped[str] = mapped_column(String(16))
    grade: Mapped[int | None]
    created_at: Mapped[datetime] = mapped_column(default=now)


class JudgmentRow(Base):
    """An imported judgment: what somebody outside says about how well a document, or one chunk of it, answers a query.
    Judgments from feedback are not copied here: they are read from the feedback itself."""

    __tablename__ = "judgment"
    __table_args__ = (
        CheckConstraint("grade >= 0", name="grade"),
        UniqueConstraint("collection_id", "origin", "query_key", "document_id", "chunk_id", name="uq_judgment"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    collection_id: Mapped[int] = mapped_column(ForeignKey("collection.id", ondelete="CASCADE"))
    origin: Mapped[str]  # the name that the import was given
    query_key: Mapped[str] = mapped_column(String(64))  # sha256 of the normalised query
    query: Mapped[str]
    document_id: Mapped[str] = mapped_column(String(36), ForeignKey("document.id", ondelete="CASCADE"), index=True)
    chunk_id: Mapped[str] = mapped_column(String(36), default="")  # "" = the document as a whole
    grade: Mapped[int]
    created_at: Mapped[datetime] = mapped_column(default=now)


class Job(Base):
    """Work that one process does for another. At least once: a job whose worker died is done by somebody else.

    queued   waits, until `due_at` if that is set
    running  a worker has it, and keeps its lease as long as it lives
    done     ended with `result`
    failed   ended without one: the dead letter. `error` says why, `failures` what went wrong before; cancelled where
             `cancel_at` is set

    queued > running > done | failed;  running > queued when it failed and is to be tried again, or its worker died;
    failed > queued when somebody asks for it;  queued > failed when it is cancelled
    """

    __tablename__ = "job"
    __table_args__ = (
        CheckConstraint("state IN ('queued', 'running', 'done', 'failed')", name="state"),
        CheckConstraint("(state = 'running') = (lease_until IS NOT NULL)", name="lease"),
        Index("ix_job_state_id", "state", "id"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(32))
    payload: Mapped[dict[str, Any]]
    state: Mapped[str] = mapped_column(String(16), default="queued")
    worker: Mapped[str | None] = mapped_column(String(36))
    lease_until: Mapped[datetime | None]
    attempts: Mapped[int] = mapped_column(default=0)
    progress: Mapped[dict[str, Any]] = mapped_column(default=dict)
    result: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    error: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(default=now)
    due_at: Mapped[datetime | None]  # not before; null = at once
    cancel_at: Mapped[datetime | None]  # when somebody asked to cancel it
    finished_at: Mapped[datetime | None]
    key_id: Mapped[str | None] = mapped_column(String(16))  # of who asked for it; null = without a key
    # Who may see what became of it, see nvr_rag.access.callers; null = whoever is on the machine
    asker: Mapped[str | None] = mapped_column(String(64))
    # [{"attempt": number, "at": ISO time, "error": words}, ...], oldest first
    failures: Mapped[list[Any]] = mapped_column(default=list, server_default=text("'[]'"))


class Upload(Base):
    """A file in the folder of uploads that waits to be parsed: the one that was accepted last for its document.

    Whoever parses it deletes the row in the transaction that stores the document. A file without its row is of no use
    any more: its document was stored, or deleted, or something newer was accepted for it. The document need not be
    there yet.
    """

    __tablename__ = "upload"

    document_id: Mapped[str] = mapped_column(String(36), primary_key=True)
    collection_id: Mapped[int] = mapped_column(ForeignKey("collection.id", ondelete="CASCADE"), index=True)
    job_id: Mapped[int] = mapped_column(index=True)
    uri: Mapped[str]
    file: Mapped[str] = mapped_column(String(64))  # its name in the folder
    name: Mapped[str]  # what the client calls it: tells the format
    media_type: Mapped[str]  # what the client says that it is; "" = nothing
    title: Mapped[str]  # "" = the document's own
    meta: Mapped[dict[str, Any]] = mapped_column("metadata", JSON)
    acl: Mapped[list[Any] | None] = mapped_column(JSON(none_as_null=True))
    created_at: Mapped[datetime] = mapped_column(default=now)


class Idempotency(Base):
    """What a request was answered that may be sent again under the same key; see nvr_rag.idempotency."""

    __tablename__ = "idempotency"

    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(String(64))  # of what was asked
    answer: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(default=now, index=True)


class Erasure(Base):
    """The record of an erasure: that it was done and what it removed, without saying what it was.

    Everything in the database goes in the transaction that adds the row; `pending` names what is still to be removed
    from indexes and files, and is null from the moment at which nothing is (`finished_at`).
    """

    __tablename__ = "erasure"
    __table_args__ = (CheckConstraint("kind IN ('document', 'user')", name="kind"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    subject: Mapped[str] = mapped_column(String(64))  # sha256 of the document id or of the user
    collection: Mapped[str | None] = mapped_column(String(64))
    pending: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    removed: Mapped[dict[str, Any]]  # what -> how many
    created_at: Mapped[datetime] = mapped_column(default=now)
    finished_at: Mapped[datetime | None]


class ApiKeyRow(Base):
    """A key that lets somebody in, kept as a hash. While there is no row, users of this machine need none; once there
    is one, revoked or not, everybody does."""

    __tablename__ = "api_key"
    __table_args__ = (CheckConstraint("per_minute IS NULL OR per_minute > 0", name="per_minute"),)

    id: Mapped[str] = mapped_column(String(16), primary_key=True)  # stands in the key, to find it by
    name: Mapped[str]
    sha256: Mapped[str] = mapped_column(String(64))  # of the whole key
    scopes: Mapped[list[Any]]
    collections: Mapped[list[Any] | None] = mapped_column(JSON(none_as_null=True))  # null = all
    principals: Mapped[list[Any]]
    everything: Mapped[bool] = mapped_column(default=False)  # reads every document, whatever its acl says
    per_minute: Mapped[int | None]  # requests; null = what the settings say
    created_at: Mapped[datetime] = mapped_column(default=now)
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


class SchemaInfo(Base):
    """One row: the oldest schema revision whose release may still work on this database."""

    __tablename__ = "schema_info"
    __table_args__ = (CheckConstraint("id = 1", name="one"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    oldest: Mapped[str] = mapped_column(String(32))


class Process(Base):
    """A server or a worker that is running, by its heartbeat: how a command finds it."""

    __tablename__ = "process"

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    pid: Mapped[int] = mapped_column(Integer)
    host: Mapped[str]
    url: Mapped[str | None]
    heartbeat_at: Mapped[datetime] = mapped_column(default=now)
    # deployment id -> null once it answers from it at once, or why it cannot
    prepared: Mapped[dict[str, Any]] = mapped_column(default=dict, server_default=text("'{}'"))
    # the kinds of jobs that it takes; null where the release before has written the row, and does not say
    job_kinds: Mapped[list[Any] | None] = mapped_column(JSON(none_as_null=True))
