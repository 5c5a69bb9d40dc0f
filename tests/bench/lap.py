"""One lap of the feedback loop on a BEIR set, through installed commands and HTTP only.

    python -m tests.bench.lap [--data ../shared/data/medquad] [--passages 6000] [--rule perc-pos] [--work DIR]

The corpus (or a seeded cut of it that keeps every judged passage of the queries in use) is ingested; train queries are
asked over HTTP and the right answers get explicit feedback; `nvr-rag retrain --yes` does the rest. The test queries are
asked before and after, dense and as deployed, and counted by document. Then documents are added, and the lap is rolled
back. With --work the folder is kept: a second run with another rule begins from the same ingested collection.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx

from tests.bench.common import BIN, environment, server, table
from training.beir import Beir, read_beir, read_corpus
from training.measures import MEASURES, means, measure
from training.significance import compare
from training.splits import Split, query_key, split_of

K = 100  # hits a user looks through for the right answer; also asked for test queries
SEED = 7
PerQuery = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is asked and what is searched."""

    data: Path
    train: Mapping[str, str]  # query id -> text: in the product's training or dev split
    held_out: Mapping[str, str]  # in its holdout
    answers: Mapping[str, Mapping[str, int]]  # of both: query id -> document -> grade
    test: Beir


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/medquad"))
    parser.add_argument("--passages", type=int, default=6000)
    parser.add_argument("--train", type=int, default=1500)
    parser.add_argument("--holdout", type=int, default=300)
    parser.add_argument("--test", type=int, help="Ask only so many test queries.")
    parser.add_argument("--min-queries", type=int, default=200)
    parser.add_argument("--rule", default="perc-pos")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        plan = make_plan(arguments.data, arguments.train, arguments.holdout, arguments.test)
        env = {
            **environment(work / "home", arguments.threads),
            "NVR_TRAINING__MIN_QUERIES": str(arguments.min_queries),
            "NVR_TRAINING__THREADS": str(arguments.threads),
        }
        before = prepare(plan, work, env, arguments.passages)
        home = work / f"home-{arguments.rule}"
        shutil.rmtree(home, ignore_errors=True)
        shutil.copytree(work / "home", home)
        result = run_lap(plan, {**env, "NVR_HOME": str(home)}, arguments.rule, before)
        (work / f"{arguments.data.name}-{arguments.rule}.json").write_text(json.dumps(result))
        show(plan, arguments.rule, before, result)


def make_plan(data: Path, train: int, held_out: int, test: int | None) -> Plan:
    """Seeded choices of queries; which of them are held out is the product's business."""
    learn = read_beir(data, "train")
    names = sorted(learn.qrels)
    random.Random(SEED).shuffle(names)
    sides: dict[bool, list[str]] = {True: [], False: []}
    for name in names:
        sides[split_of(query_key(learn.queries[name])) is Split.HOLDOUT].append(name)
    tested = read_beir(data, "test")
    asked = random.Random(SEED).sample(sorted(tested.qrels), test or len(tested.qrels))
    chosen = {side: sides[side][:count] for side, count in ((False, train), (True, held_out))}
    return Plan(
        data=data,
        train={name: learn.queries[name] for name in chosen[False]},
        held_out={name: learn.queries[name] for name in chosen[True]},
        answers={name: learn.qrels[name] for name in (*chosen[False], *chosen[True])},
        test=replace(tested, qrels={name: tested.qrels[name] for name in sorted(asked)}),
    )


def prepare(plan: Plan, work: Path, env: dict[str, str], passages: int) -> dict[str, Any]:
    """Ingest, ask, give feedback, and measure the test queries: once for all rules."""
    kept = work / "before.json"
    if kept.exists():
        return json.loads(kept.read_text())
    shutil.rmtree(work / "home", ignore_errors=True)
    documents = cut(plan, work / "corpus.jsonl", passages)
    seconds, memory = command(["ingest", str(work / "corpus.jsonl")], env)
    with server(env) as url, httpx.Client(base_url=url, timeout=60) as client:
        said = give_feedback(client, {**plan.train, **plan.held_out}, plan.answers)
        found = ask_test(client, plan)
    before = {"documents": documents, "ingest_seconds": seconds, "ingest_mb": memory, "feedback": said, "found": found}
    kept.write_text(json.dumps(before))
    return before


def cut(plan: Plan, path: Path, passages: int) -> int:
    """Write the corpus, or a seeded part of it with every passage that an asked query is judged on."""
    needed = {one for grades in (*plan.answers.values(), *plan.test.qrels.values()) for one in grades}
    rest = sorted(document.id for document in read_corpus(plan.data) if document.id not in needed)
    random.Random(SEED).shuffle(rest)
    kept = needed | set(rest[: max(0, passages - len(needed))])
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for document in read_corpus(plan.data):
            if document.id in kept:
                row = {"_id": document.id, "title": document.title, "text": document.text}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                count += 1
    return count


def give_feedback(
    client: httpx.Client, queries: Mapping[str, str], answers: Mapping[str, Mapping[str, int]]
) -> dict[str, int]:
    """Ask each query and say of the first chunk of each right document that it is relevant."""
    said = {"queries": 0, "answered": 0, "feedback": 0}
    for name, text in queries.items():
        answer = client.post("/v1/search", json={"query": text, "k": K}).raise_for_status().json()
        first: dict[str, str] = {}
        for hit in answer["hits"]:
            first.setdefault(document_of(hit), hit["chunk_id"])
        items = [
            {"query_id": answer["query_id"], "chunk_id": first[document], "kind": "relevant", "grade": grade}
            for document, grade in answers[name].items()
            if document in first and grade > 0
        ]
        if items:
            client.post("/v1/feedback", json={"items": items}).raise_for_status()
        said["queries"] += 1
        said["answered"] += bool(items)
        said["feedback"] += len(items)
    return said


def ask_test(client: httpx.Client, plan: Plan) -> dict[str, dict[str, list[str]]]:
    """Documents by rank for every test query, dense and as deployed."""
    found: dict[str, dict[str, list[str]]] = {"dense": {}, "deployed": {}}
    for path, mode in (("dense", "dense"), ("deployed", None)):
        for name in plan.test.qrels:
            body = {"query": plan.test.queries[name], "k": K, "mode": mode}
            hits = client.post("/v1/search", json=body).raise_for_status().json()["hits"]
            found[path][name] = list(dict.fromkeys(map(document_of, hits)))
    return found


def document_of(hit: Mapping[str, Any]) -> str:
    return str(hit["document"]["uri"])  # of a line of JSON Lines: its _id


def run_lap(plan: Plan, env: dict[str, str], rule: str, before: Mapping[str, Any]) -> dict[str, Any]:
    """Retrain, ask the test queries again, then add documents and go back."""
    started = time.perf_counter()
    told, memory = json_command(["retrain", "--yes", "--rule", rule], env)
    seconds = time.perf_counter() - started
    report = json.loads(Path(told["report"]["json"]).read_text())
    found, rolled = before["found"], None
    if told["promoted"]:
        with server(env) as url, httpx.Client(base_url=url, timeout=60) as client:
            found = ask_test(client, plan)
            rolled = roll_back(client, env)
    positives = {document for name in plan.train for document in plan.answers[name]}
    return {
        "outcome": told["outcome"],
        "reasons": told["reasons"],
        "report": report,
        "seconds": seconds,
        "memory_mb": memory,
        "found": found,
        "rolled_back": rolled,
        "trained": sorted(
            name for name, grades in plan.test.qrels.items() if any(document in positives for document in grades)
        ),
    }


def roll_back(client: httpx.Client, env: dict[str, str]) -> dict[str, Any]:
    """Add documents after the promotion, go back, and see that all of them are found, and a deleted one is not."""
    texts = {f"test:new-{i}": f"Zyqtor number {i} is a drove of wandering quexils, seen at dawn." for i in range(20)}
    documents = [{"uri": uri, "text": text, "title": "Zyqtor"} for uri, text in texts.items()]
    body = {"documents": documents, "wait": True, "timeout_seconds": 60}
    client.post("/v1/documents", json=body).raise_for_status()
    newer = serving(client)
    started = time.perf_counter()
    command(["deploy", "rollback"], env)
    seconds = time.perf_counter() - started
    older = serving(client)
    gone = next(iter(texts))
    client.delete("/v1/documents", params={"uri": gone}).raise_for_status()
    hits = client.post("/v1/search", json={"query": "Zyqtor quexils at dawn", "k": 50}).json()["hits"]
    found = {hit["document"]["uri"] for hit in hits} & set(texts)
    return {
        "switched": older["index"] != newer["index"],
        "seconds": seconds,
        "added": len(texts),
        "found": len(found),
        "deleted_shown": gone in found,
    }


def serving(client: httpx.Client) -> dict[str, Any]:
    answer = client.post("/v1/search", json={"query": "who serves?", "k": 1}).raise_for_status().json()
    return dict(answer["deployment"])


def show(plan: Plan, rule: str, before: Mapping[str, Any], result: Mapping[str, Any]) -> None:
    name, test, rows = plan.data.name, plan.test.qrels, []
    for path in ("dense", "deployed"):
        old, new = (measure(test, one["found"][path]) for one in (before, result))
        groups: dict[str, Iterable[str]] = {"all": old}
        if result["trained"]:
            trained = set(result["trained"])
            groups["positives trained on"] = [key for key in old if key in trained]
            groups["positives not trained on"] = [key for key in old if key not in trained]
        rows += [_row(path, group, old, new, list(keys)) for group, keys in groups.items()]
    header = ["path", "test queries", "number", "before", "after", "gain (95 % interval)", "p", "recall@100"]
    table(f"{name}, nDCG@10 by document, {before['documents']:,} passages, rule {rule}", header, rows)
    report = result["report"]
    spent = {step["name"]: step["seconds"] for step in report["steps"]}
    steps = ", ".join(f"{step} {seconds:.0f}" for step, seconds in spent.items())
    rolled = result["rolled_back"]
    facts = [
        ["feedback", json.dumps(before["feedback"])],
        ["gate", f"{result['outcome']}: {result['reasons'][1] if len(result['reasons']) > 1 else result['reasons']}"],
        ["answers with", f"{report['choice']['mode']} {json.dumps(report['choice']['fusion'])}"],
        ["minutes", f"{result['seconds'] / 60:.1f} (seconds by step: {steps})"],
        ["peak MB", f"lap {result['memory_mb']:.0f}, trainer {report['training']['peak_memory_bytes'] / 1e6:.0f}"],
    ]
    if rolled:
        back = f"{rolled['seconds']:.1f} s; {rolled['found']} of {rolled['added'] - 1} later documents found"
        facts.append(["rolled back in", back])
    for one in report["figures"]:
        what = f"holdout, {one['path']}, {one['group']} ({one['queries']})"
        facts.append([what, f"nDCG@10 {one['base']['nDCG@10']:.3f} to {one['candidate']['nDCG@10']:.3f}"])
    table("The lap", ["what", "figure"], facts)


def _row(path: str, group: str, old: PerQuery, new: PerQuery, keys: Sequence[str]) -> list[object]:
    before, after = ({key: one[key] for key in keys} for one in (old, new))
    found = compare(before, after, MEASURES[0], seed=0)
    gain = found.difference
    interval = f"{gain.mean:+.3f} ({gain.low:+.3f} to {gain.high:+.3f})"
    recall = f"{means(before)['R@100']:.3f} to {means(after)['R@100']:.3f}"
    p = f"{found.p:.4f}" if found.p >= 0.0002 else "< 0.0002"
    return [path, group, len(keys), means(before)["nDCG@10"], means(after)["nDCG@10"], interval, p, recall]


def command(arguments: Sequence[str], env: dict[str, str]) -> tuple[float, float]:
    """Run a command of nvr-rag; its seconds and its peak memory with its children's, in MB."""
    started = time.perf_counter()
    process = subprocess.Popen([str(BIN / "nvr-rag"), *arguments], env=env)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"nvr-rag {' '.join(arguments)} ended with {process.returncode}")
    return time.perf_counter() - started, usage.ru_maxrss / 1024


def json_command(arguments: Sequence[str], env: dict[str, str]) -> tuple[dict[str, Any], float]:
    from tests.bench.common import run

    return run([str(BIN / "nvr-rag"), *arguments, "--json"], env)


if __name__ == "__main__":
    main()
