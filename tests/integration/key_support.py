"""Keys for tests of who may do what."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from nvr_rag.access import keys
from nvr_rag.access.callers import Scope
from nvr_rag.access.keys import NewKey
from nvr_rag.ids import new_id
from nvr_rag.types import Reader
from nvr_rag.workspace import Workspace


def make_key(
    workspace: Workspace,
    *scopes: Scope,
    collections: Iterable[str] | None = None,
    principals: Iterable[str] = (),
    **options: Any,
) -> str:
    """A new key with these scopes; options are those of NewKey."""
    new = NewKey(
        name=new_id(),
        scopes=frozenset(scopes),
        collections=None if collections is None else frozenset(collections),
        reader=Reader(principals=frozenset(principals)),
        **options,
    )
    with workspace.database.write() as connection:
        return keys.create(connection, new)[1]
