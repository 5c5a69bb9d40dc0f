"""scifact as a folder of files, through the real pipeline, asked over HTTP: is search as good as it should be?

    python -m tests.bench.scifact [--data ../shared/data/scifact] [--threads 2] [--work DIR]

Each abstract becomes a Markdown file. Chunks are asked for and counted by document: a document's rank is that of its
best chunk. With --work the data folder is kept, and a second run only asks.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import httpx
import ir_measures as ir
from ir_measures import R, nDCG

from tests.bench.common import BIN, environment, server, table

MODES = ("dense", "lexical", "hybrid")
CHUNKS = 400  # asked for, so that there are 100 documents among them


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/scifact"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or Path(temporary)
        env = environment(work / "home", arguments.threads)
        documents, seconds = ingest(arguments.data, work, env)
        with server(env) as url:
            measure(arguments.data, url, documents, seconds)


def ingest(data: Path, work: Path, env: dict[str, str]) -> tuple[int, float]:
    """Write the corpus as files and ingest them; how many, and in how many seconds."""
    folder = work / "scifact"
    folder.mkdir(parents=True, exist_ok=True)
    documents = 0
    with (data / "corpus.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            path = folder / f"{record['_id']}.md"
            path.write_text(f"# {record['title']}\n\n{record['text']}\n", encoding="utf-8")
            documents += 1
    started = time.perf_counter()
    subprocess.run([str(BIN / "nvr-rag"), "ingest", str(folder)], env=env, check=True)
    return documents, time.perf_counter() - started


def measure(data: Path, url: str, documents: int, seconds: float) -> None:
    queries = {}
    with (data / "queries.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            queries[record["_id"]] = record["text"]
    with (data / "qrels" / "test.tsv").open(encoding="utf-8") as lines:
        qrels = [ir.Qrel(row[0], row[1], int(row[2])) for row in list(csv.reader(lines, delimiter="\t"))[1:]]
    asked = {key: queries[key] for key in sorted({qrel.query_id for qrel in qrels})}
    rows = []
    for mode in MODES:
        found = ir.calc_aggregate([nDCG @ 10, R @ 100], qrels, ask(url, asked, mode))
        rows.append([mode, found[nDCG @ 10], found[R @ 100]])
    title = f"scifact by document over HTTP: {documents} files in {seconds:.0f} s, {len(asked)} queries"
    table(title, ["mode", "nDCG@10", "recall@100"], rows)


def ask(url: str, queries: Mapping[str, str], mode: str) -> list[ir.ScoredDoc]:
    run = []
    with httpx.Client(base_url=url, timeout=60) as client:
        for key, text in queries.items():
            answer = client.post("/v1/search", json={"query": text, "mode": mode, "k": CHUNKS})
            answer.raise_for_status()
            ranked = by_document([hit["document"]["uri"] for hit in answer.json()["hits"]])
            # Strictly falling scores: the measure would break ties by name.
            run += [ir.ScoredDoc(key, document, -float(rank)) for rank, document in enumerate(ranked[:100])]
    return run


def by_document(uris: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(uri.rsplit("/", 1)[1].removesuffix(".md") for uri in uris))


if __name__ == "__main__":
    main()
