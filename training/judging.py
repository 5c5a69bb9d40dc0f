"""The last steps of a lap: the candidate's index is built, its weights are chosen, the gate decides, and what follows
from that is done. Each step returns what it came to. The holdout is read here, by `judge`, and nowhere else.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from nvr_rag import deployments, indexes, promotion, registry
from nvr_rag.chunkings import installed_chunker
from nvr_rag.deployments import Deployment
from nvr_rag.errors import Conflict, NotFound, StoreBusy
from nvr_rag.fusion import FusionSettings
from nvr_rag.retriever import MAX_K
from nvr_rag.types import Mode
from nvr_rag.upkeep.catching_up import Upkeep, settle
from nvr_rag.upkeep.progress import Progress
from nvr_rag.upkeep.verification import verify
from nvr_rag.upkeep.writing import Work
from training import collecting
from training.data import JudgedQuery
from training.evaluation import DeploymentRun, run_deployment
from training.gate import MEASURE, Evidence, Outcome, decide, too_few
from training.judgments import holdout_queries
from training.lap import Lap
from training.measures import means, measure
from training.report import changes, figures
from training.significance import PerQuery
from training.standing import ChunkFact, chunk_facts
from training.weighing import MIN_QUERIES, weigh

TIMED = 60  # queries whose answers are timed, on each side
TIMED_K = 10  # hits asked for then, as users do
LOOKS = 5  # at whether the candidate's index is level
PATHS = ("deployed", "dense")  # as users get it; the encoder alone


def build(lap: Lap) -> dict[str, Any]:
    """Build the candidate's index beside the one that serves."""
    lap.folder.forget_files()
    encoder, run = str(lap.results["register"]["encoder"]), lap.config.run
    candidate = lap.workspace.propose(lap.config.collection, encoder, run=run)
    if candidate.state not in deployments.WAITING:
        raise Conflict(
            f"the candidate of this lap, deployment {candidate.id}, is {candidate.state} already; begin another lap"
        )
    work = _catch_up(lap, candidate)
    return {
        "deployment": candidate.id,
        "index": candidate.index_id,
        "encoded": work.encoded,
        "mode": candidate.mode,
        "fusion": candidate.fusion.as_json(),
    }


def choose(lap: Lap) -> dict[str, Any]:
    """Choose mode and fusion weights of the candidate on the dev queries; with too few it answers as today."""
    candidate, dev = lap.candidate(), collecting.read_queries(lap.folder.dev)
    today = lap.results["build"]  # not the candidate's own: a step that died may have chosen already
    if len(dev) < MIN_QUERIES:
        return {"mode": today["mode"], "fusion": today["fusion"], "queries": len(dev), "tried": []}
    depth = min(int(today["fusion"]["depth"]), MAX_K)
    documents, digests = _targets(lap, dev)
    tried = weigh(
        lambda text, mode: lap.search(text, candidate.id, mode, k=depth).hits,
        dev,
        (Mode(today["mode"]), FusionSettings(**today["fusion"])),
        documents=documents,
        digests=digests,
        report=lambda done: lap.count(done, len(dev), "dev queries"),
    )
    best = tried[0]
    with lap.workspace.database.write() as connection:
        deployments.adjust(connection, candidate.id, best.mode, best.fusion)
    return {
        "mode": best.mode,
        "fusion": best.fusion.as_json(),
        "queries": len(dev),
        "tried": [way.as_json() for way in tried],
    }


def judge(lap: Lap) -> dict[str, Any]:
    """Ask both deployments the holdout queries, by the path that users get, and let the gate decide."""
    with lap.workspace.database.read() as connection:
        held_out = holdout_queries(connection, lap.config.collection)
        base = deployments.serving(connection, lap.config.collection)
    candidate, queries = lap.candidate(), held_out.queries
    told = {"judgments": asdict(held_out.counts), "hash": held_out.digest, "queries": len(queries)}
    if (few := too_few(len(queries), lap.gate)) is not None:  # documents went while the lap was at work
        return {**told, "base_deployment": base.id, "decision": few.as_json()}
    documents, digests = _targets(lap, queries)
    asked: dict[tuple[str, str], DeploymentRun] = {}
    for side, deployment in (("base", base), ("candidate", candidate)):
        for path in PATHS:
            before = len(asked) * len(queries)

            def report(_what: str, done: int, _total: int, before: int = before) -> None:
                lap.count(before + done, 2 * len(PATHS) * len(queries), "answers to holdout queries")

            asked[side, path] = run_deployment(
                _asker(lap, deployment, path), queries, documents=documents, digests=digests, report=report
            )
    measured = {key: measure(run.qrels, run.run) for key, run in asked.items()}
    trained = _trained(lap, asked["base", "deployed"])
    latency = _latency(lap, base, candidate, [query.text for query in queries[:TIMED]])
    evidence = Evidence(
        base=_values(measured["base", "deployed"]),
        candidate=_values(measured["candidate", "deployed"]),
        trained=trained,
        base_latency_ms=latency["base_ms"],
        candidate_latency_ms=latency["candidate_ms"],
        base_judged=means(measured["base", "deployed"]).get("Judged@10", 0.0),
        candidate_judged=means(measured["candidate", "deployed"]).get("Judged@10", 0.0),
        candidate_lag=_lag(lap, base, candidate),
        verified=verify(lap.workspace.database, lap.workspace.index(candidate.index_id)).clean,
    )
    decision = decide(evidence, lap.gate)
    result = {
        **told,
        "base_deployment": base.id,
        "figures": [
            one
            for path in PATHS
            for one in figures(
                measured["base", path], measured["candidate", path], trained, path=path, seed=lap.gate.seed
            )
        ],
        "latency": latency,
        "changes": changes(evidence.base, evidence.candidate, {query.key: query.id for query in queries}),
        "decision": decision.as_json(),
    }
    _record(lap, held_out.digest, measured, {"base": base, "candidate": candidate})
    return result


def conclude(lap: Lap) -> dict[str, Any]:
    """Do what the decision says: promote when asked to, or keep the candidate for a person; give up a rejected one."""
    candidate, outcome = lap.candidate(), lap.results["judge"]["decision"]["outcome"]
    if outcome != Outcome.ACCEPT:
        _give_up(lap, candidate)
    elif lap.promote and candidate.state in deployments.WAITING and _serves_still(lap):
        _catch_up(lap, candidate)
        lap.let_go()
        promotion.promote(
            lap.workspace,
            candidate.id,
            collection=lap.config.collection,
            tell=lambda words: lap.count(0, None, words),
        )
    return {"promoted": lap.candidate().state == "serving"}


def _catch_up(lap: Lap, candidate: Deployment) -> Work:
    """Bring the candidate's index up with the documents, or wait for the process that does."""
    finished = threading.Event()
    finished.set()

    def report(progress: Progress) -> None:
        lap.count(progress.applied_seq, progress.head_seq, f"changes, {progress.work.encoded} chunks encoded")

    upkeep = Upkeep(
        workspace=lap.workspace,
        collection_id=candidate.collection_id,
        chunker=installed_chunker(),
        stop=lap.stop,
        only=candidate.index_id,
        report=report,
    )
    work = settle(upkeep, finished)
    lap.check_stop()
    return work


def _give_up(lap: Lap, candidate: Deployment) -> None:
    """Reject a candidate, unless somebody has let it serve meanwhile, and drop its index."""
    if candidate.state in deployments.WAITING:
        with lap.workspace.database.write() as connection:
            deployments.reject(connection, candidate.id)
    elif candidate.state != "rejected":
        return
    lap.workspace.close_index(candidate.index_id)
    with suppress(StoreBusy, NotFound):  # the indexer beside us may be at it already
        indexes.drop_retired(lap.workspace.database, lap.workspace.store, candidate.index_id)


def _serves_still(lap: Lap) -> bool:
    """Whether what the candidate was compared with is still what serves: of anything else it is not known to be
    better, and whoever has changed that may promote it."""
    with lap.workspace.database.read() as connection:
        base = deployments.serving(connection, lap.config.collection)
    return base.id == int(lap.results["judge"]["base_deployment"])


def _asker(lap: Lap, deployment: Deployment, path: str) -> Any:
    mode = Mode.DENSE if path == "dense" else None
    return lambda text: lap.search(text, deployment.id, mode)


def _targets(lap: Lap, queries: Sequence[JudgedQuery]) -> tuple[dict[str, str], dict[str, str]]:
    """Document ids and digests by chunk id, for all judged chunks."""
    facts = _facts(lap, sorted({chunk for query in queries for chunk in query.chunks}))
    return (
        {key: fact.document_id for key, fact in facts.items()},
        {key: fact.sha256 for key, fact in facts.items()},
    )


def _facts(lap: Lap, chunk_ids: Sequence[str]) -> Mapping[str, ChunkFact]:
    with lap.workspace.database.read() as connection:
        return chunk_facts(connection, chunk_ids)


def _trained(lap: Lap, run: DeploymentRun) -> frozenset[str]:
    """The queries all of whose positives were positives in training."""
    positives = sorted({pair.positive for pair in collecting.read_pairs(lap.folder.mined)})
    facts = _facts(lap, positives).values()
    known = {fact.sha256 for fact in facts} | {fact.document_id for fact in facts}
    return frozenset(
        key
        for key, grades in run.qrels.items()
        if all(target in known for target, grade in grades.items() if grade > 0)
    )


def _latency(lap: Lap, base: Deployment, candidate: Deployment, texts: Sequence[str]) -> dict[str, float]:
    """Median milliseconds of an answer, the two asked in turn."""
    seconds: dict[int, list[float]] = {base.id: [], candidate.id: []}
    for text in texts:
        for deployment in (base, candidate):
            started = time.perf_counter()
            lap.search(text, deployment.id, k=TIMED_K)
            seconds[deployment.id].append(time.perf_counter() - started)
    medians = {key: 1000 * statistics.median(values) for key, values in seconds.items()}
    return {"base_ms": medians[base.id], "candidate_ms": medians[candidate.id]}


def _lag(lap: Lap, base: Deployment, candidate: Deployment) -> int:
    """Changes that the candidate is behind once it has followed what came in while it was judged. Between its catching
    up and our looking more may come in, and be nobody's fault."""
    lag = 0
    for _ in range(LOOKS):
        _catch_up(lap, candidate)
        with lap.workspace.database.read() as connection:
            lag = indexes.applied_seq(connection, base.index_id) - indexes.applied_seq(connection, candidate.index_id)
        if lag <= 0:
            break
    return lag


def _values(per_query: PerQuery) -> dict[str, float]:
    return {key: values[MEASURE] for key, values in per_query.items()}


def _record(
    lap: Lap, digest: str, measured: Mapping[tuple[str, str], PerQuery], sides: Mapping[str, Deployment]
) -> None:
    name, run = f"holdout of {lap.config.collection}", lap.config.run
    with lap.workspace.database.write() as connection:
        for side, deployment in sides.items():
            per_query = measured[side, "deployed"]
            data = {"name": name, "run": run, "queries": len(per_query), "hash": digest}
            encoder = indexes.get(connection, deployment.index_id).encoder
            there = {(one.data.get("run"), one.deployment_id) for one in registry.measured(connection, encoder)}
            if (run, deployment.id) not in there:  # it is when this step died before
                registry.record(connection, encoder, data, means(per_query), deployment_id=deployment.id)
