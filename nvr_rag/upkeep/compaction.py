"""Compaction: an index written anew beside the one that serves, with the vectors it has, optimised, and switched in.

A collection enters; a deployment with the same answers on a smaller and faster index serves when it is over, and the
one before can be gone back to. It needs no gate: that both answer alike is looked at before the switch. Whatever is
begun is found again by the next run, so it may be killed at any point.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

from nvr_rag import collections, deployments, indexes, promotion
from nvr_rag.chunkings import Chunker
from nvr_rag.deployments import Deployment
from nvr_rag.errors import Conflict, Maintained, Stopped
from nvr_rag.indexes import IndexInfo, LiveIndex
from nvr_rag.stores.base import OpenIndex
from nvr_rag.upkeep import catching_up, indexing
from nvr_rag.upkeep.progress import Progress
from nvr_rag.upkeep.writing import Work
from nvr_rag.workspace import Workspace

KIND = "compact"  # of the job that asks an index's owner
ASKED, HITS = 64, 10  # searches that are compared, and hits of each
ALIKE = 0.99  # share of the hits that both must have: the graph of a large index may miss one now and then
LOOKS, LOOK_SECONDS = 5, 0.5  # at two indexes, to find them level
_TIE = 1e-5  # scores that differ by less are taken to be equal

Tell = Callable[[str], None]
Report = Callable[[Progress], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Compaction:
    """What a compaction came to."""

    collection: str
    index: int  # id of the new index
    copied_from: int
    deployment: int  # that serves now
    previous: int  # the deployment to go back to
    copied: int  # vectors
    encoded: int  # vectors that the old index did not have
    optimized: bool  # the store had something to build
    bytes_before: int | None  # on the disk; None where it cannot be known
    bytes_after: int | None
    seconds: float

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def compact(
    workspace: Workspace,
    collection: str,
    chunker: Chunker,
    *,
    stop: threading.Event | None = None,
    tell: Tell | None = None,
    report: Report | None = None,
) -> Compaction:
    """Compact the index that serves a collection. For the process that owns it.

    `tell` hears each step, `report` how far the copy is. Raises NotFound, StoreBusy while another process owns the
    index, Stopped, Conflict when the two do not answer alike or another deployment was promoted meanwhile.
    """
    started, tell, stop = time.monotonic(), tell or (lambda _words: None), stop or threading.Event()
    candidate, source = _begun(workspace, collection, tell)
    before = workspace.index(source.id)  # whose vectors are taken over: it must be open here
    workspace.rebuild_if_lost(candidate.index_id)  # killed while it was optimised it may be damaged
    tell(f"copying index {source.id} to index {candidate.index_id}")
    keeping = catching_up.Upkeep(
        workspace=workspace,
        collection_id=candidate.collection_id,
        chunker=chunker,
        stop=stop,
        only=candidate.index_id,
        report=report,
    )
    work = _catch_up(keeping)
    tell("optimising")
    after = workspace.index(candidate.index_id)
    with after.maintenance:
        optimized = after.points.optimize(stop)
    work.add(_catch_up(keeping))
    tell("comparing the answers of both")
    _check_alike(workspace, before, after, chunker, stop)
    sizes = [one.points.info().bytes_on_disk for one in (before, after)]
    _check_serves(workspace, collection, source)
    work.add(_catch_up(keeping))
    switch = promotion.promote(workspace, candidate.id, collection=collection, tell=tell)
    return Compaction(
        collection=collection,
        index=candidate.index_id,
        copied_from=source.id,
        deployment=candidate.id,
        previous=switch.previous,
        copied=work.reused,
        encoded=work.encoded,
        optimized=optimized,
        bytes_before=sizes[0],
        bytes_after=sizes[1],
        seconds=time.monotonic() - started,
    )


def gives_up(workspace: Workspace, collection: str) -> list[Deployment]:
    """Deployments that a compaction makes impossible to go back to: beside the index that serves one other is kept, and
    that will be the one before the compaction."""
    with workspace.database.read() as connection:
        now = deployments.serving(connection, collection)
        kept = deployments.all_of(connection, now.collection_id, ("previous",))
    return [one for one in kept if one.index_id != now.index_id]


def done_already(workspace: Workspace, collection: str, index_id: int) -> bool:
    """Whether the compaction of an index serves now: who asked for it may have died before he could say so."""
    with workspace.database.read() as connection:
        serving = indexes.get(connection, deployments.serving(connection, collection).index_id)
    return serving.copied_from == index_id


def _begun(workspace: Workspace, collection: str, tell: Tell) -> tuple[Deployment, IndexInfo]:
    """The compaction of the index that serves, begun now or before; those of other indexes are given up."""
    with workspace.database.write() as connection:
        collection_id = collections.find(connection, collection, lock=True)
        now = deployments.serving(connection, collection)
        source = indexes.get(connection, now.index_id)
        found: Deployment | None = None
        for one in deployments.all_of(connection, collection_id, deployments.WAITING):
            copied_from = indexes.get(connection, one.index_id).copied_from
            if copied_from == source.id and found is None:
                found = one
            elif copied_from is not None:
                deployments.reject(connection, one.id)
        if found is None:
            workspace.check_room(source.name)
            index_id = indexes.copy(connection, source)
            made = deployments.propose(connection, collection_id, index_id, now.mode, now.fusion)
        else:
            made = found.id
            deployments.unprepare(connection, made)
            deployments.adjust(connection, made, now.mode, now.fusion)  # it may answer in another way by now
        candidate = deployments.get(connection, made)
    if found is not None:
        tell(f"going on with index {candidate.index_id}, which was begun before")
    return candidate, source


def _catch_up(keeping: catching_up.Upkeep) -> Work:
    """Bring the copy up with the log, here or by its owner. Raises Stopped."""
    finished = threading.Event()
    finished.set()
    work = catching_up.settle(keeping, finished)
    if keeping.stop.is_set():
        raise Stopped("stopped; what is copied stays, and the next compaction goes on with it")
    return work


def _check_serves(workspace: Workspace, collection: str, source: IndexInfo) -> None:
    with workspace.database.read() as connection:
        now = deployments.serving(connection, collection)
    if now.index_id != source.id:
        raise Conflict(
            f"another index serves {collection} by now (deployment {now.id}); what was begun is given up by the next "
            "compaction: nvr-rag index compact"
        )


def _check_alike(
    workspace: Workspace, before: LiveIndex, after: LiveIndex, chunker: Chunker, stop: threading.Event
) -> None:
    """Raise Conflict when two indexes that are equally far answer differently. Where changes come in so fast that they
    never are, equal vectors have to do: promotion compares what they were made of."""
    share = 1.0
    for _ in range(LOOKS):
        for index in (before, after):
            with suppress(Maintained):  # then another process brings it up
                indexing.catch_up(workspace.database, index, chunker, stop=stop)
        with before.maintenance, after.maintenance:
            level = _level(workspace, before, after)
            share = _alike(before.points, after.points) if level else share
        if level and share >= ALIKE:
            return
        stop.wait(LOOK_SECONDS)
    if share < ALIKE:
        raise Conflict(
            f"the copy answers differently: {share:.1%} of the hits are the same, and {ALIKE:.0%} are needed; nvr-rag "
            "verify --repair shows whether the index that serves is right"
        )


def _level(workspace: Workspace, before: LiveIndex, after: LiveIndex) -> bool:
    with workspace.database.read() as connection:
        found = [indexes.get(connection, one.info.id) for one in (before, after)]
    seqs: set[Any] = {(one.applied_seq, one.purged_seq) for one in found}
    return len(seqs) == 1 and found[0].applied_seq == found[0].purged_seq


def _alike(before: OpenIndex, after: OpenIndex) -> float:
    """The share of the first hits of one index that the other has too; of those that share the last score, any may be
    missing. Asked are vectors of the index itself: ids have no order, so the first are a sample."""
    found = asked = 0
    for point in islice(after.scan(with_vectors=True, batch=ASKED), ASKED):
        assert point.dense is not None
        expected = before.search_dense(point.dense, HITS)
        there: Mapping[str, float] = {hit.id: hit.score for hit in after.search_dense(point.dense, HITS)}
        asked += len(expected)
        last = expected[-1].score + _TIE if expected else 0.0
        found += sum(hit.score <= last or abs(there.get(hit.id, -9e9) - hit.score) <= _TIE for hit in expected)
    return found / asked if asked else 1.0
