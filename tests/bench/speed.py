"""How far from the floor: ingest over bare encoding, search over encoding plus one Edge search.

    python -m tests.bench.speed [--data ../shared/data/scifact] [--documents 800] [--rounds 3] [--threads 2]

Ingest: the whole pipeline over a folder of files, against the same encoder called on the same chunk inputs in one call,
ours and that of the library (`SentenceTransformer.encode`, as it comes); in turn, each in a process of its own that has
loaded the encoder before the clock starts. Search: 300 queries, each
asked in every way in turn, in one process; HTTP against a server of its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from ingest.pipeline import ingest
from nvr_rag import chunks
from nvr_rag.running import memory
from nvr_rag.settings import Settings
from nvr_rag.types import Mode, Query
from nvr_rag.upkeep.writing import want
from nvr_rag.workspace import Workspace
from tests.bench.common import environment, quantile, run, server, table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/scifact"))
    parser.add_argument("--documents", type=int, default=800)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--child", nargs=2, metavar=("WHAT", "WORK"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        memory.keep_less()  # as the command line does
        CHILDREN[arguments.child[0]](Path(arguments.child[1]), arguments.threads)
        return
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        _write_files(arguments.data, work, arguments.documents)
        _ingest_table(work, arguments.rounds, arguments.threads)
        _search_table(work, arguments.threads)


def _write_files(data: Path, work: Path, count: int) -> None:
    (work / "docs").mkdir()
    with (data / "corpus.jsonl").open(encoding="utf-8") as lines:
        for _, line in zip(range(count), lines, strict=False):
            record = json.loads(line)
            text = f"# {record['title']}\n\n{record['text']}\n"
            (work / "docs" / f"{record['_id']}.md").write_text(text, encoding="utf-8")
    with (data / "queries.jsonl").open(encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for _, line in zip(range(300), lines, strict=False)]
    (work / "queries.json").write_text(json.dumps(texts), encoding="utf-8")


def _child(what: str, work: Path, threads: int) -> tuple[dict[str, float], float]:
    command = [sys.executable, "-m", "tests.bench.speed", "--threads", str(threads), "--child", what, str(work)]
    return run(command, environment(work / "home", threads))


def _ingest_table(work: Path, rounds: int, threads: int) -> None:
    _child("ingest", work, threads)  # the chunk inputs for the bare encoder, and warm file caches
    ways = {"raw": "encoder alone", "library": "encode() of sentence-transformers", "ingest": "ingest"}
    seconds: dict[str, list[float]] = {what: [] for what in ways}
    peaks = dict.fromkeys(ways, 0.0)
    for _ in range(rounds):
        for what in ways:
            result, peak = _child(what, work, threads)
            seconds[what].append(result["seconds"])
            peaks[what] = max(peaks[what], peak)
    inputs = json.loads((work / "inputs.json").read_text(encoding="utf-8"))
    rows = []
    for what, name in ways.items():
        took = statistics.median(seconds[what])
        ratios = [
            statistics.median(one / other for one, other in zip(seconds[base], seconds[what], strict=True))
            for base in ("raw", "library")
        ]
        rows.append([name, took, len(inputs) / took, *ratios, f"{peaks[what]:.0f}"])
    header = ["", "seconds", "chunks/s", "of the encoder's speed", "of the library's", "peak MB"]
    table(f"Ingest, {len(inputs)} chunks, {threads} threads, median of {rounds}", header, rows)


def _search_table(work: Path, threads: int) -> None:
    inside, peak = _child("search", work, threads)
    over_http, resident = _ask_http(work, threads)
    latencies: dict[str, list[float]] = {**inside["latencies"], **over_http}  # type: ignore[dict-item]
    floor = latencies["encode + one Edge search"]
    rows = []
    for name, seconds in latencies.items():
        p50, p95 = quantile(seconds, 0.5) * 1000, quantile(seconds, 0.95) * 1000
        ratio = statistics.median(one / other for one, other in zip(seconds, floor, strict=True))
        rows.append([name, p50, p95, ratio, f"{resident if name.startswith('HTTP') else peak:.0f}"])
    header = ["k = 10", "p50 ms", "p95 ms", "over the floor", "peak MB of the process"]
    table(f"Search, {len(floor)} queries, {threads} threads", header, rows)


def _ask_http(work: Path, threads: int) -> tuple[dict[str, list[float]], float]:
    queries = json.loads((work / "queries.json").read_text(encoding="utf-8"))
    latencies: dict[str, list[float]] = {"HTTP dense": [], "HTTP hybrid": []}
    with server(environment(work / "home", threads)) as url, httpx.Client(base_url=url, timeout=60) as client:
        for text in queries[:20]:
            client.post("/v1/search", json={"query": text}).raise_for_status()
        for text in queries:
            for name, seconds in latencies.items():
                body = {"query": text, "mode": name.split()[1]}
                seconds.append(_timed(lambda body=body: client.post("/v1/search", json=body).raise_for_status()))
        with Workspace(Settings(home=work / "home")) as workspace:
            from nvr_rag.running.processes import alive

            status = Path(f"/proc/{alive(workspace.database, 'serve')[0].pid}/status").read_text(encoding="utf-8")
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return latencies, int(peak.split()[1]) / 1024


def _timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def child_raw(work: Path, threads: int) -> None:
    inputs = json.loads((work / "inputs.json").read_text(encoding="utf-8"))
    with Workspace(Settings(home=work / "unused", threads=threads)) as workspace:
        encoder = workspace.default_encoder()
        encoder.encode_documents(inputs[:32])
        print(json.dumps({"seconds": _timed(lambda: encoder.encode_documents(inputs))}))


def child_library(work: Path, threads: int) -> None:
    import torch
    from sentence_transformers import SentenceTransformer

    from nvr_rag.encoders.bundled import bundled_directory

    inputs = json.loads((work / "inputs.json").read_text(encoding="utf-8"))
    torch.set_num_threads(threads)
    model = SentenceTransformer(str(bundled_directory()), device="cpu")
    model.encode(inputs[:32])
    print(json.dumps({"seconds": _timed(lambda: model.encode(inputs))}))


def child_ingest(work: Path, threads: int) -> None:
    import shutil

    shutil.rmtree(work / "home", ignore_errors=True)
    with Workspace(Settings(home=work / "home", threads=threads)) as workspace:
        workspace.create_collection("default")
        workspace.default_encoder().encode_documents(["warm"] * 32)
        seconds = _timed(lambda: ingest(workspace, [work / "docs"]))
        index = workspace.index(1)
        with workspace.database.read() as connection:
            every = chunks.all_chunks(connection, 1, index.info.chunking_id, 1 << 60)
            inputs = [want(index, chunk).text for chunk in every]
    (work / "inputs.json").write_text(json.dumps(inputs), encoding="utf-8")
    print(json.dumps({"seconds": seconds}))


def child_search(work: Path, threads: int) -> None:
    queries = json.loads((work / "queries.json").read_text(encoding="utf-8"))
    latencies: dict[str, list[float]] = {}
    with Workspace(Settings(home=work / "home", threads=threads)) as workspace:
        index = workspace.index(1)
        ways: dict[str, Callable[[str], object]] = {
            "encode + one Edge search": lambda text: index.points.search_dense(
                index.encoder.encode_queries([text])[0], 10
            ),
            "retriever, dense": lambda text: workspace.retriever.search(Query(text=text, mode=Mode.DENSE)),
            "retriever, lexical": lambda text: workspace.retriever.search(Query(text=text, mode=Mode.LEXICAL)),
            "retriever, hybrid": lambda text: workspace.retriever.search(Query(text=text, mode=Mode.HYBRID)),
        }
        for text in queries[:20]:
            for way in ways.values():
                way(text)
        for text in queries:
            for name, way in ways.items():
                latencies.setdefault(name, []).append(_timed(lambda way=way, text=text: way(text)))
    print(json.dumps({"latencies": latencies}))


CHILDREN = {"raw": child_raw, "library": child_library, "ingest": child_ingest, "search": child_search}

if __name__ == "__main__":
    main()
