"""An index's life: its row in the log, the physical index in the store, and the guard that both belong together.

Rows enter; open indexes leave. What is written into them is the business of `indexing` and `verification`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import Connection, Select, bindparam, delete, exists, insert, select, update

from nvr_rag import collections
from nvr_rag.chunkings import ChunkingSettings, check_fits
from nvr_rag.chunks import BEGINNING, Place
from nvr_rag.db import tables as t
from nvr_rag.db.session import Database, insert_ignore
from nvr_rag.encoders.base import Encoder
from nvr_rag.errors import EncoderMismatch, IndexExists, IndexMismatch, IndexMissing, NotFound, StoreUnavailable
from nvr_rag.ids import new_id
from nvr_rag.running.turns import Turns
from nvr_rag.stores.base import OpenIndex, Store, StoreConfig
from nvr_rag.stores.lexical import LexicalEncoder
from nvr_rag.upkeep.leases import Lease

NOBODY = "00000000-0000-0000-0000-000000000000"  # no chunk's id: asking for it tells whether an index answers at all
PAYLOAD = 2  # how a point's payload is made, kept in the row's store settings: from 2 on with source and updated_at
_PAYLOAD, _PAINTED_TO = "payload", "painted_to"
_GONE = "the index is gone: its collection was deleted or another index has replaced it"


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexInfo:
    """The row of an index."""

    id: int
    name: str  # of the physical index
    collection_id: int | None  # None once its collection was deleted
    chunking_id: int
    encoder: str  # fingerprint
    dimension: int  # of the encoder's vectors
    lexical: Mapping[str, Any]
    store: Mapping[str, Any]
    applied_seq: int
    purged_seq: int
    state: str  # see the table search_index
    created_at: datetime
    rebuilt_to: int | None  # the head of the log when it was lost; until it is there it answers nothing
    copied_from: int | None  # the index that it is a compaction of
    progress: Mapping[str, Any] | None  # how a build goes, see nvr_rag.upkeep.pace; None while it is level with the log

    @property
    def painted(self) -> bool:
        """Every point has the payload that this release writes."""
        return is_painted(self.store)

    @property
    def painted_to(self) -> Place:
        """How far that is so, where it is not so everywhere."""
        seq, ordinal = self.store.get(_PAINTED_TO, BEGINNING)
        return seq, ordinal


@dataclass(kw_only=True, slots=True)
class LiveIndex:
    """An index that this process has open, with what reads and writes it."""

    info: IndexInfo  # as of opening: ask `state_of` for the sequence numbers of the moment
    points: OpenIndex
    encoder: Encoder
    lexical: LexicalEncoder
    others: Callable[[], Sequence[OpenIndex]] = tuple  # that are open here and have vectors of the same encoder
    maintenance: Turns = field(default_factory=Turns)  # one writer at a time
    lease: Lease | None = None  # where the store is shared: one writing process at a time

    def hold(self) -> None:
        """To be called before every write. Raises Maintained while another process brings the index up."""
        if self.lease is not None:
            self.lease.hold()

    def rest(self) -> None:
        """There is nothing to write at the moment: another process may."""
        if self.lease is not None:
            self.lease.release()

    def close(self) -> None:
        """Let go of it, so that another process may have it."""
        self.rest()
        self.points.close()


def create(
    connection: Connection,
    collection_id: int,
    chunking: ChunkingSettings,
    encoder: Encoder,
    lexical: LexicalEncoder,
    store: Mapping[str, Any] | None = None,
) -> int:
    """Add the row of an empty index and return its id; the physical one is made when it is first opened, with the
    settings `store`, now and whenever it is rebuilt.

    The encoder must be registered. Raises ChunkingMismatch when its input could be truncated.
    """
    check_fits(chunking, encoder)
    row = connection.execute(
        insert(t.SearchIndex)
        .values(
            collection_id=collection_id,
            chunking_id=chunking_id(connection, chunking),
            encoder=encoder.fingerprint,
            lexical=dict(lexical.settings),
            store=_painted(store or {}),
            name=f"ix-{new_id()}",
        )
        .returning(t.SearchIndex.id)
    )
    return int(row.scalar_one())


def copy(connection: Connection, source: IndexInfo) -> int:
    """Add the row of an empty index that is to hold what another one does, with its vectors; returns its id."""
    same = ("collection_id", "chunking_id", "encoder", "lexical")
    values = {name: getattr(source, name) for name in same} | {"store": _painted(source.store)}
    row = connection.execute(
        insert(t.SearchIndex).values(**values, copied_from=source.id, name=f"ix-{new_id()}").returning(t.SearchIndex.id)
    )
    return int(row.scalar_one())


def chunking_id(connection: Connection, settings: ChunkingSettings) -> int:
    """The id of a chunking, registered if it is new."""
    insert_ignore(connection, t.Chunking, [{"hash": settings.hash, "settings": settings.as_json()}])
    return int(connection.scalars(select(t.Chunking.id).where(t.Chunking.hash == settings.hash)).one())


def overlap(connection: Connection, chunking_id: int) -> int:
    """By how many tokens the chunks of a chunking may overlap."""
    settings = connection.scalar(select(t.Chunking.settings).where(t.Chunking.id == chunking_id)) or {}
    return int(settings.get("overlap", 0))


def get(connection: Connection, index_id: int) -> IndexInfo:
    """The row as it is now. Raises NotFound."""
    row = connection.execute(_info(), {"id": index_id}).first()
    if row is None:
        raise NotFound(_GONE)
    return IndexInfo(**row._mapping)


@cache
def _info() -> Any:
    """The statement of `get`, made once: every round of an index asks it several times."""
    return _infos().where(t.SearchIndex.id == bindparam("id"))


def applied_seq(connection: Connection, index_id: int) -> int:
    """How far the index has followed the log. Raises NotFound."""
    found = connection.scalar(_applied_seq(), {"id": index_id})
    if found is None:
        raise NotFound(_GONE)
    return int(found)


def answers_at(connection: Connection, index_id: int) -> int:
    """How far the index has followed the log, for a search. Raises NotFound, StoreUnavailable while an index that was
    lost has not yet what it had before: what it finds would be too little, and look like all there is."""
    row = connection.execute(_answers_at(), {"id": index_id}).first()
    if row is None:
        raise NotFound(_GONE)
    if row.rebuilt_to is not None and row.applied_seq < row.rebuilt_to:
        raise StoreUnavailable(
            f"the index was lost and is being built again from the documents: {row.applied_seq} of {row.rebuilt_to} "
            "changes are done; try again later (nvr-rag verify --repair goes on with it where nobody does)"
        )
    return int(row.applied_seq)


@cache
def _answers_at() -> Any:
    """The statement of `answers_at`, made once: every search asks it twice."""
    return select(t.SearchIndex.applied_seq, t.SearchIndex.rebuilt_to).where(t.SearchIndex.id == bindparam("id"))


@cache
def _applied_seq() -> Any:
    """The statement of `applied_seq`, made once: every search asks it twice."""
    return select(t.SearchIndex.applied_seq).where(t.SearchIndex.id == bindparam("id"))


def all_infos(connection: Connection, collection_id: int | None = None) -> list[IndexInfo]:
    """Every index, or those of one collection, oldest first."""
    statement = _infos().order_by(t.SearchIndex.id)
    if collection_id is not None:
        statement = statement.where(t.SearchIndex.collection_id == collection_id)
    return [IndexInfo(**row._mapping) for row in connection.execute(statement)]


def kept(connection: Connection, collection_id: int | None = None) -> list[IndexInfo]:
    """Indexes that the store may still have, or those of one collection, oldest first: live ones, and retired ones
    that nobody has dropped yet."""
    gone = set(connection.scalars(select(t.SearchIndex.id).where(t.SearchIndex.dropped_at.is_not(None))))
    return [info for info in all_infos(connection, collection_id) if info.id not in gone]


def open_index(
    store: Store, info: IndexInfo, load_encoder: Callable[[], Encoder], lexical: LexicalEncoder
) -> LiveIndex:
    """Open the physical index, made now if nothing was ever applied to it.

    The encoder, which takes seconds to load, is asked for only when the index is this process's. Raises EncoderMismatch
    unless encoder and lexical settings are those that built it (IndexMismatch where a rebuild mends that), StoreBusy
    when another process owns it, IndexMissing when the store has lost it, NotFound when it is retired.
    """
    if info.state == "retired":
        raise NotFound(_GONE)
    if dict(info.lexical) != dict(lexical.settings):
        raise IndexMismatch(
            f"the index {info.name} was built with other lexical settings ({dict(info.lexical)}) than this release "
            f"uses ({dict(lexical.settings)}); run nvr-rag verify --repair to rebuild it"
        )
    if info.applied_seq == 0:
        make(store, info)
    points = store.open(info.name)
    try:
        encoder = load_encoder()
        _check_pair(info, points, encoder)
    except BaseException:
        points.close()
        raise
    return LiveIndex(info=info, points=points, encoder=encoder, lexical=lexical)


def _check_pair(info: IndexInfo, points: OpenIndex, encoder: Encoder) -> None:
    """The guard: row, physical index and encoder carry one fingerprint, or nothing is searched."""
    if info.encoder != encoder.fingerprint:
        raise EncoderMismatch(
            f"the index {info.name} was built by the encoder {info.encoder[:12]}, not by {encoder.fingerprint[:12]}; "
            "search it with its own encoder, or build an index for the other one"
        )
    if points.config.encoder != encoder.fingerprint or points.config.dimension != encoder.spec.dimension:
        raise IndexMismatch(
            f"the physical index {info.name} holds vectors of the encoder {points.config.encoder[:12]}, not of "
            f"{encoder.fingerprint[:12]}; run nvr-rag verify --repair to rebuild it"
        )


def make(store: Store, info: IndexInfo) -> None:
    """Make the physical index if it is not there."""
    config = StoreConfig(dimension=info.dimension, encoder=info.encoder, settings=info.store)
    try:
        store.create(info.name, config)
    except IndexExists:
        return


def start_over(database: Database, store: Store, index_id: int, lexical: LexicalEncoder) -> None:
    """Drop what the store has and forget what was applied: the index is rebuilt from the log, with these settings.

    In this order: what a crash leaves behind is refused when it is opened, and never taken for the new index.
    """
    with database.read() as connection:
        info = get(connection, index_id)
    store.drop(info.name)
    with database.write() as connection:
        head = collections.head_seq(connection, info.collection_id) if info.collection_id is not None else 0
        seqs = {"applied_seq": 0, "purged_seq": 0, "rebuilt_to": head, "progress": None}
        made = {"lexical": dict(lexical.settings), "store": _painted(info.store)}
        connection.execute(update(t.SearchIndex).where(t.SearchIndex.id == index_id).values(**seqs, **made))


def is_painted(store: Mapping[str, Any]) -> bool:
    """Whether the store settings of an index's row say that every point has the payload that this release writes."""
    return int(store.get(_PAYLOAD, 1)) >= PAYLOAD


def paint(connection: Connection, index_id: int, place: Place | None) -> None:
    """Keep up to where in the log every point has the payload of this release; None = everywhere."""
    store = get(connection, index_id).store
    painted = _painted(store) if place is None else {**store, _PAINTED_TO: list(place)}
    connection.execute(update(t.SearchIndex).where(t.SearchIndex.id == index_id).values(store=painted))


def _painted(store: Mapping[str, Any]) -> dict[str, Any]:
    """The store settings of an index all of whose points this release has written."""
    return {**{name: value for name, value in store.items() if name != _PAINTED_TO}, _PAYLOAD: PAYLOAD}


def advance(
    connection: Connection, index_id: int, *, applied: tuple[int, int], progress: Mapping[str, Any] | None = None
) -> None:
    """Move applied_seq from the first to the second number, and keep how the build goes. Raises IndexMissing when
    somebody else has moved it."""
    done = connection.execute(
        update(t.SearchIndex)
        .where(t.SearchIndex.id == index_id, t.SearchIndex.applied_seq == applied[0])
        .values(applied_seq=applied[1], progress=dict(progress) if progress else None)
    )
    if done.rowcount != 1:
        raise IndexMissing("the index was rebuilt or dropped by another process meanwhile; open it again")


def tell_progress(connection: Connection, index_id: int, progress: Mapping[str, Any]) -> None:
    """Keep how a build goes, between two steps of applied_seq."""
    connection.execute(update(t.SearchIndex).where(t.SearchIndex.id == index_id).values(progress=dict(progress)))


def set_purged(connection: Connection, index_id: int, seq: int) -> None:
    """Record that what went stale up to `seq` is out of the index."""
    connection.execute(
        update(t.SearchIndex)
        .where(t.SearchIndex.id == index_id, t.SearchIndex.applied_seq >= seq)
        .values(purged_seq=seq)
    )


def retired(connection: Connection) -> list[IndexInfo]:
    """Indexes that nobody uses and that are still in the store."""
    statement = _infos().where(t.SearchIndex.state == "retired", t.SearchIndex.dropped_at.is_(None))
    return [IndexInfo(**row._mapping) for row in connection.execute(statement.order_by(t.SearchIndex.id))]


def drop_retired(database: Database, store: Store, index_id: int) -> None:
    """Drop a retired index, and its row unless an old deployment names it. Raises StoreBusy while it is open."""
    with database.read() as connection:
        info = get(connection, index_id)
    if info.state == "retired":
        store.drop(info.name)
        with database.write() as connection:
            i, named = t.SearchIndex, exists().where(t.Deployment.index_id == index_id)
            connection.execute(delete(i).where(i.id == index_id, ~named))
            connection.execute(update(i).where(i.id == index_id).values(dropped_at=t.now()))


def _infos() -> Select[Any]:
    i = t.SearchIndex
    return select(
        i.id,
        i.name,
        i.collection_id,
        i.chunking_id,
        i.encoder,
        t.EncoderVersion.spec["dimension"].as_integer().label("dimension"),
        i.lexical,
        i.store,
        i.applied_seq,
        i.purged_seq,
        i.state,
        i.created_at,
        i.rebuilt_to,
        i.copied_from,
        i.progress,
    ).join(t.EncoderVersion, t.EncoderVersion.fingerprint == i.encoder)
