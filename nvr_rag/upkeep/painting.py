"""Indexes of an earlier release learn what filters may ask for by now. An open index enters; steps of bounded size
leave every point as this release writes it, without encoding anything, while searches go on.

How far an index is stands in its row, so that it goes on where it was after a restart. Until it has everything, a
filter on a field that it may lack is refused: what it finds would be too little, and look like all there is.
"""

from __future__ import annotations

from nvr_rag import chunks, indexes
from nvr_rag.db.session import Database
from nvr_rag.errors import StoreUnavailable
from nvr_rag.filters import TIME, Filter, fields_of
from nvr_rag.indexes import LiveIndex
from nvr_rag.upkeep.writing import Work, collection_of, write_group

NEW_FIELDS = {"source", TIME}  # that the format before the present one has not
_CHUNKS_A_GROUP = 256


def step(database: Database, index: LiveIndex, work: Work) -> bool:
    """Repaint the next chunks of an index, a thousand at most; False when it has everything.

    What changes meanwhile is written as this release does anyway, so one walk along the log is enough.
    """
    with index.maintenance:
        with database.read() as connection:
            info = indexes.get(connection, index.info.id)
            if info.painted:
                return False
            page, place = chunks.next_chunks(
                connection, collection_of(info), info.chunking_id, info.applied_seq, info.painted_to
            )
        index.hold()
        for start in range(0, len(page), _CHUNKS_A_GROUP):
            write_group(database, index, page[start : start + _CHUNKS_A_GROUP], work)
        index.points.flush()
        with database.write() as connection:
            indexes.paint(connection, info.id, place)
        if place is None:
            index.rest()
    return place is not None


def check(database: Database, index: LiveIndex, where: Filter | None) -> None:
    """Raise StoreUnavailable for a filter on what the index does not have of every chunk yet."""
    missing = NEW_FIELDS & fields_of(where)
    if not missing or index.info.painted:
        return
    with database.read() as connection:
        info = indexes.get(connection, index.info.id)
    if not info.painted:
        raise StoreUnavailable(
            f"the index was made by an earlier release, and {' and '.join(sorted(missing))} are still being written "
            f"into it: {info.painted_to[0]} of {info.applied_seq} changes are done. Try again later, or ask without "
            "them. A server or a worker goes on with it by itself; where none runs, nvr-rag verify --repair does it"
        )
