"""The first steps of a lap: judgments and the index are collected, mined, and made into training examples; the encoder
is trained and registered. Each step returns what it came to; one with a "decision" ends the lap.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from nvr_rag import deployments
from nvr_rag.indexes import LiveIndex
from training import collecting
from training.children import run_child
from training.data import write_examples
from training.gate import GateDecision, Outcome, too_few
from training.judgments import JudgmentSet, holdout_size, training_queries
from training.lap import Lap, early
from training.splits import Split

MIN_QUERIES = 50  # to train on; fewer teach their own words


def collect(lap: Lap) -> dict[str, Any]:
    """Freeze the judgments to train on and the index as it is."""
    folder, database = lap.folder, lap.workspace.database
    lap.count(0, None, "reading judgments")
    with database.read() as connection:
        judged = training_queries(connection, lap.config.collection)
        held_out = holdout_size(connection, lap.config.collection)
    train, dev = judged.of(Split.TRAIN), judged.of(Split.DEV)
    collecting.write_queries(folder.queries, train)
    collecting.write_queries(folder.dev, dev)
    result: dict[str, Any] = {
        "splits": {"train": len(train), "dev": len(dev), "holdout": held_out},
        "judgments": asdict(judged.counts),
        "hashes": {"judgments": judged.digest},
    }
    decision = _enough(judged, len(train), held_out, lap)
    if train:  # a dry run mines also what is too little for a lap
        with _index(lap) as index:
            result["chunks"] = collecting.export_index(
                database, index, folder.corpus, lambda done: lap.count(done, None, "reading the index")
            )
    return {**result, "decision": decision} if decision else result


def _enough(judged: JudgmentSet, train: int, held_out: int, lap: Lap) -> Mapping[str, Any] | None:
    """The decision when there is too little to begin with."""
    if not judged.queries and not held_out:
        words = (
            "there are no judgments yet; send feedback on hits (POST /v1/feedback, kind relevant or irrelevant), or "
            f"import judgments: nvr-rag judgments import PATH --origin NAME --collection {lap.config.collection}"
        )
        return early("training", words)
    if train < MIN_QUERIES:
        words = (
            f"{train} judged queries are too few to train on: {MIN_QUERIES} are needed, beside those that are held out"
        )
        return early("training", words)
    decision: GateDecision | None = too_few(held_out, lap.gate)
    return decision.as_json() if decision else None


def mine(lap: Lap) -> dict[str, Any]:
    """Find hard negatives in a child process, then put texts to the ids."""
    folder = lap.folder
    told = run_child(
        "mine",
        folder,
        threads=lap.config.threads,
        report=lambda line: lap.count(line["done"], line["total"], "queries"),
        stop=lap.stop,
    )
    pairs = list(collecting.read_pairs(folder.mined))
    queries = {query.key: query for query in collecting.read_queries(folder.queries)}
    with _index(lap) as index:
        examples = collecting.with_texts(lap.workspace.database, index, pairs, queries, index.encoder.spec)
    write_examples(folder.examples, examples)
    result = {"pairs": len(pairs), "examples": len(examples), "peak_memory_bytes": told["peak_memory_bytes"]}
    if not examples:
        words = "nothing that was judged relevant can be found in the index; judge hits of the collection as it is now"
        return {**result, "decision": early("training", words)}
    return result


def train(lap: Lap) -> dict[str, Any]:
    """Train the new encoder in a child process, so that search goes on beside it."""
    return run_child(
        "train",
        lap.folder,
        threads=lap.config.threads,
        report=lambda line: lap.count(line["done"], line["total"], f"steps, loss {line['loss']:.3f}"),
        stop=lap.stop,
    )


def register(lap: Lap) -> dict[str, Any]:
    """Take the new encoder into the data folder."""
    config = lap.config
    made = {
        "run": config.run,
        "collection": config.collection,
        "recipe": config.recipe.as_json(),
        "hashes": lap.results["collect"]["hashes"],
        "teacher": config.teacher,
    }
    version = lap.workspace.adopt(str(lap.folder.model), parent=config.base, training=made)
    result = {"encoder": version.fingerprint}
    if version.fingerprint == config.teacher:
        words = "training gave the very encoder that serves already: there are no new judgments since it was made"
        return {**result, "decision": early("gain", words, Outcome.REJECT)}
    return result


@contextmanager
def _index(lap: Lap) -> Iterator[LiveIndex]:
    """The index that served when the lap began. A command lets go of it again: others may search while it trains."""
    with lap.workspace.database.read() as connection:
        index_id = deployments.get(connection, lap.config.deployment).index_id
    try:
        yield lap.workspace.index(index_id)
    finally:
        if not lap.serves:
            lap.workspace.close_index(index_id)
