"""Encoder versions: registered once, named by fingerprint, never altered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, select

from nvr_rag.db import tables as t
from nvr_rag.db.session import insert_ignore
from nvr_rag.encoders.base import Encoder
from nvr_rag.errors import NotFound


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderVersion:
    """A registered encoder version."""

    fingerprint: str
    source: str  # what to load: a directory, or bundled:<name>
    spec: Mapping[str, Any]
    tokenizer: str
    parent: str | None  # fingerprint of what it was fine-tuned from
    created_at: datetime


def register(connection: Connection, encoder: Encoder, source: str, *, parent: str | None = None) -> None:
    """Make an encoder known; one that is known already stays as it was first registered."""
    row = {
        "fingerprint": encoder.fingerprint,
        "source": source,
        "spec": asdict(encoder.spec),
        "tokenizer": encoder.tokenizer_hash,
        "parent": parent,
        "created_at": t.now(),
    }
    insert_ignore(connection, t.EncoderVersion, [row])


def get(connection: Connection, fingerprint: str) -> EncoderVersion:
    """One version. Raises NotFound."""
    row = connection.execute(
        select(*t.EncoderVersion.__table__.c).where(t.EncoderVersion.fingerprint == fingerprint)
    ).first()
    if row is None:
        raise NotFound(f"no encoder version {fingerprint[:12]!r} is registered")
    return EncoderVersion(**row._mapping)
