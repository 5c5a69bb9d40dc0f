"""What a build costs: its speed beside bare encoding, and memory that does not grow with the collection.

    python -m tests.bench.build [--chunks 1500] [--rounds 5] [--documents 1000 10000 100000] [--threads 1]

Speed: the real encoder, the same chunk inputs, in one process; in turn, encoded in one call, and written by a build of
an index on a real Edge store; medians. Memory: anonymous memory (RssAnon) of a process that ingests a folder of files
and then builds a second index of them, with an encoder without a model; sampled by a thread. What the open index has of
it, fields of filters, words and ids, is what the C library's heap is smaller by once it is closed. Every size has a
process of its own.
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import statistics
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ingest.chunking import chunk
from ingest.pipeline import ingest
from nvr_rag import corpus
from nvr_rag.encoders.base import Encoder, Vectors
from nvr_rag.running import memory
from nvr_rag.settings import Settings
from nvr_rag.testing import HashEncoder
from nvr_rag.upkeep import indexing
from nvr_rag.workspace import Workspace
from tests.bench.common import environment, run, table
from tests.heap import in_use
from tests.support import document, paragraphs

DIMENSION = 384
CHUNKS_A_DOCUMENT = 2
SENTENCE = "the retriever reads a query and finds those passages of the documents that answer it best"
SAMPLE_SECONDS = 0.02


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chunks", type=int, default=1500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--documents", type=int, nargs="*", default=[1_000, 10_000, 100_000])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--child", nargs=3, metavar=("WHAT", "WORK", "COUNT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        what, work, count = arguments.child
        memory.keep_less()  # as the command line does
        children = {"speed": child_speed, "memory": child_memory}
        children[what](Path(work), int(count), arguments.rounds, arguments.threads)
        return
    rows = _speed(arguments.chunks, arguments.rounds, arguments.threads)
    table(f"Build, {arguments.chunks} chunks, {arguments.threads} threads", ROW, rows) if rows else None
    rows = [_memory(count, arguments.threads) for count in arguments.documents]
    if rows:
        table("Anonymous memory, documents of two chunks, 384 dimensions", MEMORY_ROW, rows)


ROW = ("", "chunks/s", "of the encoder's speed, median", "lowest", "highest")
MEMORY_ROW = (
    "documents",
    "chunks",
    "at rest MB",
    "ingest, at most MB",
    "of that the index",
    "beyond",
    "build, at most MB",
    "of that the index",
    "beyond",
    "seconds",
)


def _child(what: str, count: int, rounds: int, threads: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as work:
        options = ["--rounds", str(rounds), "--threads", str(threads), "--child", what, work, str(count)]
        return run([sys.executable, "-m", "tests.bench.build", *options], environment(Path(work) / "home", threads))[0]


def _speed(chunks: int, rounds: int, threads: int) -> list[list[object]]:
    if not chunks:
        return []
    found: dict[str, list[float]] = _child("speed", chunks, rounds, threads)  # type: ignore[assignment]
    raw, built = found["raw"], found["built"]
    ratios = [one / other for one, other in zip(raw, built, strict=True)]
    return [
        ["encoder alone", chunks / statistics.median(raw), 1.0, 1.0, 1.0],
        ["build", chunks / statistics.median(built), statistics.median(ratios), min(ratios), max(ratios)],
    ]


def _memory(documents: int, threads: int) -> list[object]:
    found = _child("memory", documents, 1, threads)
    row: list[object] = [documents, documents * CHUNKS_A_DOCUMENT, f"{found['rest']:.0f}"]
    for name in ("ingest", "build"):
        index = found[f"{name} index"]
        row += [f"{part:.0f}" for part in (found[name], index, found[name] - found["rest"] - index)]
    return [*row, f"{found['seconds']:.0f}"]


def child_speed(work: Path, count: int, rounds: int, threads: int) -> None:
    """Raw encoding and a build of the same chunks, in turn."""
    with Workspace(Settings(home=work / "home", threads=threads)) as workspace:
        workspace.create_collection("default")
        _put(workspace, range(count // CHUNKS_A_DOCUMENT), words=60)
        encoder = _Listening(workspace.default_encoder())
        first = workspace.index(1)
        first.encoder = encoder
        indexing.catch_up(workspace.database, first, paragraphs)  # cuts the documents, and warms the encoder
        inputs = list(encoder.heard)
        workspace.close_index(1)
        seconds: dict[str, list[float]] = {"raw": [], "built": []}
        for number in range(rounds):
            begun = time.perf_counter()
            encoder.encoder.encode_documents(inputs)
            seconds["raw"].append(time.perf_counter() - begun)
            index_id = workspace.propose("default", encoder.fingerprint, run=f"round-{number}").index_id
            index = workspace.index(index_id)
            index.others = tuple  # or it would take the vectors of the rounds before
            begun = time.perf_counter()
            done = indexing.catch_up(workspace.database, index, paragraphs)
            seconds["built"].append(time.perf_counter() - begun)
            assert done.encoded == len(inputs), done
            workspace.close_index(index_id)
    print(json.dumps(seconds))


def child_memory(work: Path, count: int, _rounds: int, _threads: int) -> None:
    """Ingest and a build of so many documents; the most anonymous memory of each, and that before, in MB."""
    begun, encoder = time.perf_counter(), _Random(dimension=DIMENSION)
    with Workspace(Settings(home=work / "home"), encoder=encoder) as workspace:
        _write(work / "files", range(10))
        ingest(workspace, [work / "files"])  # everything is imported and warm
        _write(work / "files", range(10, count))
        found = {"rest": anonymous()}
        with _most(found, "ingest"):
            report = ingest(workspace, [work / "files"])
        assert report.added == count - 10, report
        found["ingest index"] = _closed(workspace, 1)
        candidate = workspace.propose("default", encoder.fingerprint, run="second")
        with _most(found, "build"):
            indexing.catch_up(workspace.database, workspace.index(candidate.index_id), chunk)
        found["build index"] = _closed(workspace, candidate.index_id)
    print(json.dumps({**found, "seconds": time.perf_counter() - begun}))


class _Random(HashEncoder):
    """Another direction for every text, which costs next to nothing and remembers nothing."""

    def _encode(self, texts: Sequence[str]) -> Vectors:
        drawn = [np.random.default_rng(zlib.crc32(text.encode())).standard_normal(DIMENSION) for text in texts]
        vectors = np.stack(drawn).astype(np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class _Listening:
    """An encoder that remembers what it was given."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder, self.heard = encoder, []
        self.spec, self.fingerprint, self.tokenizer_hash = encoder.spec, encoder.fingerprint, encoder.tokenizer_hash
        self.count_tokens, self.encode_queries = encoder.count_tokens, encoder.encode_queries

    def encode_documents(self, inputs: list[str]) -> object:
        self.heard += inputs
        return self.encoder.encode_documents(inputs)


def _put(workspace: Workspace, numbers: range, *, words: int) -> None:
    with workspace.database.write() as connection:
        corpus.put(connection, "default", [document(f"d{number}", _text(number, words)) for number in numbers])


def _write(folder: Path, numbers: range) -> None:
    """Files of two sections, a thousand in a folder."""
    for number in numbers:
        path = folder / f"{number // 1000:03d}" / f"{number:06d}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        parts = _text(number, words=60).split("\n\n")
        path.write_text("\n\n".join(f"# Section {at}\n\n{part}" for at, part in enumerate(parts)), encoding="utf-8")


def _text(number: int, words: int) -> str:
    """Two paragraphs that no other document has."""
    parts = []
    for part in range(CHUNKS_A_DOCUMENT):
        known = SENTENCE.split()
        chosen = (known[(number * 7 + part * 3 + at * (1 + number % 5)) % len(known)] for at in range(words))
        parts.append(f"Passage {number}-{part}: {' '.join(chosen)}")
    return "\n\n".join(parts)


def anonymous() -> float:
    """Anonymous memory of this process that is in RAM, in MB."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    found = re.search(r"RssAnon:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) / 1024


def _closed(workspace: Workspace, index_id: int) -> float:
    """Close an index; the MB that it had on the C library's heap."""
    gc.collect()
    before = in_use()
    workspace.close_index(index_id)
    gc.collect()
    return before - in_use()


@contextmanager
def _most(found: dict[str, float], name: str) -> Iterator[None]:
    """Note the most anonymous memory while the block runs."""
    done = threading.Event()
    found[name] = anonymous()

    def watch() -> None:
        while not done.wait(SAMPLE_SECONDS):
            found[name] = max(found[name], anonymous())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


if __name__ == "__main__":
    main()
