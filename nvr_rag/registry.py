"""Encoder versions: registered once, named by fingerprint, never altered; and what they were measured at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, insert, select, update

from nvr_rag.db import tables as t
from nvr_rag.db.session import insert_ignore
from nvr_rag.encoders.base import Encoder
from nvr_rag.errors import Conflict, InvalidInput, NotFound

SHORT = 12  # characters of a fingerprint that a person is shown
_FEWEST = 4  # characters of a fingerprint that name a version, when they name only one


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderVersion:
    """A registered encoder version."""

    fingerprint: str
    source: str  # what to load: a directory, or bundled:<name>
    spec: Mapping[str, Any]
    tokenizer: str
    parent: str | None  # fingerprint of what it was fine-tuned from
    created_at: datetime
    training: Mapping[str, Any] | None  # how it was made: run, recipe, data hashes; or `added_from`: directory, hub id
    removed_at: datetime | None  # its files are gone


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What an encoder version, or a deployment with it, came to on some data."""

    encoder: str  # fingerprint
    deployment_id: int | None
    data: Mapping[str, Any]  # name, number of queries, hash
    measures: Mapping[str, float]  # mean over the queries, by name
    created_at: datetime


def register(
    connection: Connection,
    encoder: Encoder,
    source: str,
    *,
    parent: str | None = None,
    training: Mapping[str, Any] | None = None,
) -> None:
    """Make an encoder known; one that is known already stays as it was first registered, and is there again if it had
    been removed."""
    row = {
        "fingerprint": encoder.fingerprint,
        "source": source,
        "spec": asdict(encoder.spec),
        "tokenizer": encoder.tokenizer_hash,
        "parent": parent,
        "training": dict(training) if training else None,
        "created_at": t.now(),
    }
    insert_ignore(connection, t.EncoderVersion, [row])
    e = t.EncoderVersion
    connection.execute(
        update(e)
        .where(e.fingerprint == encoder.fingerprint, e.removed_at.is_not(None))
        .values(removed_at=None, source=source)
    )


def get(connection: Connection, fingerprint: str) -> EncoderVersion:
    """One version. Raises NotFound."""
    row = connection.execute(
        select(*t.EncoderVersion.__table__.c).where(t.EncoderVersion.fingerprint == fingerprint)
    ).first()
    if row is None:
        raise NotFound(f"no encoder version {fingerprint[:SHORT]!r} is registered")
    return EncoderVersion(**row._mapping)


def usable(connection: Connection, fingerprint: str) -> EncoderVersion:
    """One version whose files are there. Raises NotFound, also for one that was removed."""
    version = get(connection, fingerprint)
    if version.removed_at is not None:
        raise NotFound(
            f"the encoder version {fingerprint[:SHORT]} was removed; nvr-rag models add brings it back from the "
            "directory or the hub that it came from"
        )
    return version


def find(connection: Connection, name: str) -> EncoderVersion:
    """The version that a person names: by fingerprint, its beginning, the name of a bundled model, or what it was
    added from.

    Raises NotFound, InvalidInput for a name that several share.
    """
    found = [one for one in all_versions(connection) if _is_called(one, name)]
    if not found:
        raise NotFound(
            f"no encoder version {name[:80]!r}; nvr-rag models list shows what there is, and the first {_FEWEST} "
            "characters of a fingerprint name it"
        )
    if len(found) > 1:
        shown = ", ".join(one.fingerprint[:SHORT] for one in found)
        raise InvalidInput(f"{name[:80]!r} names several encoder versions; give one of {shown}", field="model")
    return found[0]


def all_versions(connection: Connection) -> list[EncoderVersion]:
    """Every version whose files are there, oldest first."""
    e = t.EncoderVersion
    rows = connection.execute(
        select(*e.__table__.c).where(e.removed_at.is_(None)).order_by(e.created_at, e.fingerprint)
    )
    return [EncoderVersion(**row._mapping) for row in rows]


def root(connection: Connection, fingerprint: str) -> EncoderVersion:
    """The version at the beginning of a line of fine-tuned ones, as far as its files are there. Raises NotFound."""
    version = get(connection, fingerprint)
    while version.parent is not None and (parent := get(connection, version.parent)).removed_at is None:
        version = parent
    return version


def remove(connection: Connection, fingerprint: str) -> None:
    """Forget a version whose files are about to go. Raises Conflict while an index needs it."""
    i = t.SearchIndex
    needed = connection.scalars(select(i.id).where(i.encoder == fingerprint, i.dropped_at.is_(None)).order_by(i.id))
    users = ", ".join(str(one) for one in needed)
    if users:
        raise Conflict(
            f"the encoder version {fingerprint[:SHORT]} is needed by index {users}; retire that first "
            "(nvr-rag index retire), and wait until its owner has dropped it"
        )
    connection.execute(
        update(t.EncoderVersion).where(t.EncoderVersion.fingerprint == fingerprint).values(removed_at=t.now())
    )


def record(
    connection: Connection,
    encoder: str,
    data: Mapping[str, Any],
    measures: Mapping[str, float],
    *,
    deployment_id: int | None = None,
) -> None:
    """Keep what an encoder version, or a deployment with it, was measured at."""
    connection.execute(
        insert(t.Evaluation).values(
            encoder=encoder, deployment_id=deployment_id, data=dict(data), measures=dict(measures)
        )
    )


def measured(connection: Connection, encoder: str) -> list[Measured]:
    """Everything that a version was measured at, oldest first."""
    e = t.Evaluation
    rows = connection.execute(
        select(e.encoder, e.deployment_id, e.data, e.measures, e.created_at).where(e.encoder == encoder).order_by(e.id)
    )
    return [Measured(**row._mapping) for row in rows]


def _is_called(version: EncoderVersion, name: str) -> bool:
    begins = len(name) >= _FEWEST and version.fingerprint.startswith(name.lower())
    return begins or name in (version.source, (version.training or {}).get("added_from"))
