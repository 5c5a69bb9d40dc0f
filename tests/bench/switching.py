"""Switching under load: clients search without pause while deployments are built, promoted and rolled back.

    python -m tests.bench.switching [--rounds 10] [--clients 8] [--passages 400] [--data ../shared/data/medquad]
    python -m tests.bench.switching --shared postgresql://...      two servers, a worker, one database, one vector store

Each round builds an index with another encoder, promotes it, rolls back, promotes again and retires what is old, by
commands beside the server, while a set of documents gets one version after the other. Every answer is looked at: its
status, its encoder (the scores are computed again here), and that each document that is being updated is there exactly
once, and never in a version older than somebody has seen before.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from tests.bench.common import BIN, environment, quantile, server, table
from tests.qdrant_stand_in import StandIn
from training.beir import read_beir, read_corpus

SEED = 7
MOVING = 16  # documents that are updated all the time
CHECKED = 150  # answers whose scores are computed again
TOLERANCE = 2e-3  # between scores of one encoder; two encoders differ by more than ten times as much
ONE_IN = 3  # searches that ask for a moving document


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What one search came to."""

    phase: str
    begun: float  # monotonic seconds
    ended: float
    status: int
    query: str
    moving: int | None  # the document that it asked for
    body: Any


@dataclass(kw_only=True, slots=True)
class Load:
    """Clients that search, and a writer that updates documents, until `stop`."""

    urls: Sequence[str]
    queries: Sequence[str]
    phase: str = "at rest"
    answers: list[Answer] = field(default_factory=list)
    written: list[int] = field(default_factory=lambda: [0] * MOVING)  # versions acknowledged
    tried: list[int] = field(default_factory=lambda: [0] * MOVING)  # versions sent
    failures: list[str] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    @contextlib.contextmanager
    def running(self, clients: int) -> Iterator[None]:
        threads = [threading.Thread(target=self._search, args=(number,)) for number in range(clients)]
        threads.append(threading.Thread(target=self._write))
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.stop.set()
            for thread in threads:
                thread.join()

    def _search(self, number: int) -> None:
        chance = random.Random(number)
        with httpx.Client(base_url=self.urls[number % len(self.urls)], timeout=60) as client:
            while not self.stop.is_set():
                moving = chance.randrange(MOVING) if chance.randrange(ONE_IN) == 0 else None
                query = chance.choice(self.queries) if moving is None else question(moving)
                phase, begun = self.phase, time.monotonic()
                try:
                    answer = client.post("/v1/search", json={"query": query, "k": 10})
                except httpx.HTTPError as error:
                    self.failures.append(f"search: {error!r}")
                    continue
                ended = time.monotonic()
                self.answers.append(
                    Answer(
                        phase=phase,
                        begun=begun,
                        ended=ended,
                        status=answer.status_code,
                        query=query,
                        moving=moving,
                        body=answer.json(),
                    )
                )

    def _write(self) -> None:
        with httpx.Client(base_url=self.urls[0], timeout=60) as client:
            for number in cycle(range(MOVING)):
                if self.stop.wait(0.1):
                    return
                self.put(client, number, wait=True)  # as fast as the index takes them: it never lags for good

    def put(self, client: httpx.Client, number: int, *, wait: bool = False) -> None:
        """The next version of a moving document."""
        self.tried[number] += 1
        body = {"documents": [moving_document(number, self.tried[number])], "wait": wait, "timeout_seconds": 60}
        answer = client.post("/v1/documents", json=body)
        if answer.is_success:
            self.written[number] = self.tried[number]
        else:
            self.failures.append(f"put: {answer.status_code} {answer.text[:200]}")


def name_of(number: int) -> str:
    return "quexil" + "abcdefghijklmnop"[number]


def question(number: int) -> str:
    return f"where does the {name_of(number)} graze?"


def moving_document(number: int, version: int) -> dict[str, str]:
    text = f"The {name_of(number)} grazes on meadow {version}. It was seen there by shepherds at dawn."
    return {"uri": f"moving-{number}", "title": f"On the {name_of(number)}", "text": text}


def version_in(hit: Mapping[str, Any]) -> int:
    return int(str(hit["text"]).split("meadow ")[1].split(".")[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/medquad"))
    parser.add_argument("--passages", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--rest", type=float, default=30.0, help="Seconds at rest, for comparison.")
    parser.add_argument("--shared", metavar="URL", help="An empty PostgreSQL database.")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, site(Path(folder), arguments.shared) as (urls, env):
        second = perturbed(Path(folder) / "second")
        queries = prepare(urls[0], arguments.data, arguments.passages)
        load = Load(urls=urls, queries=queries)
        with httpx.Client(base_url=urls[0], timeout=200) as client:
            for number in range(MOVING):
                load.put(client, number, wait=True)
        with load.running(arguments.clients):
            time.sleep(arguments.rest)
            seconds = [lap(load, env, str(second)) for _ in range(arguments.rounds)]
        clean = command(["verify"], env)["clean"]
        show(load, seconds, clean, scores_off(load, second))


@contextlib.contextmanager
def site(folder: Path, database: str | None) -> Iterator[tuple[list[str], dict[str, str]]]:
    """A server on a data folder, or two servers and a worker that share database and vector store."""
    env = environment(folder / "home", 1)
    if database is None:
        with server(env) as url:
            yield [url], env
        return
    with StandIn() as store, contextlib.ExitStack() as stack:
        env |= {"NVR_DATABASE_URL": database, "NVR_QDRANT__URL": store.url}
        urls = [stack.enter_context(server(env)) for _ in range(2)]
        worker = subprocess.Popen([str(BIN / "nvr-rag"), "worker"], env=env, stdout=subprocess.DEVNULL)
        stack.callback(worker.wait, 60)
        stack.callback(worker.terminate)
        yield urls, env


def perturbed(folder: Path) -> Path:
    """A second encoder: the bundled one with a little noise on its weights."""
    from safetensors.numpy import load_file, save_file

    from nvr_rag.encoders.torch import export, load_encoder

    export(load_encoder(), folder)
    chance = np.random.default_rng(SEED)
    for path in folder.rglob("*.safetensors"):
        weights = load_file(path)
        noisy = {
            name: (values + 0.1 * values.std() * chance.standard_normal(values.shape)).astype(values.dtype)
            if np.issubdtype(values.dtype, np.floating)
            else values
            for name, values in weights.items()
        }
        save_file(noisy, path, metadata={"format": "pt"})
    return folder


def prepare(url: str, data: Path, passages: int) -> list[str]:
    """Put passages; queries to ask of them."""
    documents = [{"uri": one.id, "title": one.title, "text": one.text} for one in islice(read_corpus(data), passages)]
    with httpx.Client(base_url=url, timeout=600) as client:
        client.post("/v1/collections", json={"name": "default"})
        for start in range(0, len(documents), 50):
            body = {"documents": documents[start : start + 50], "wait": True, "timeout_seconds": 60}
            answer = client.post("/v1/documents", json=body)
            if not answer.is_success:
                raise SystemExit(f"the passages were refused: {answer.text[:500]}")
    return list(islice(read_beir(data, "test").queries.values(), 200))


def command(arguments: Sequence[str], env: Mapping[str, str]) -> dict[str, Any]:
    done = subprocess.run([str(BIN / "nvr-rag"), *arguments, "--json"], env=dict(env), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"nvr-rag {' '.join(arguments)} ended with {done.returncode}: {done.stdout}{done.stderr}")
    return dict(json.loads(done.stdout))


def lap(load: Load, env: Mapping[str, str], model: str) -> dict[str, float]:
    """Build, promote, roll back, promote, retire; seconds by step."""
    spent: dict[str, float] = {}

    def timed(phase: str, *arguments: str) -> dict[str, Any]:
        load.phase, started = phase, time.monotonic()
        told = command(arguments, env)
        spent[phase] = spent.get(phase, 0.0) + time.monotonic() - started
        load.phase = "between"
        time.sleep(1.0)
        return told

    before = command(["deploy", "list"], env)["deployments"]
    now = next(one for one in before if one["state"] == "serving")
    known = [one["fingerprint"] for one in command(["models", "list"], env)["models"]]
    added = command(["models", "add", model], env)["model"]["fingerprint"]
    wanted = added if now["encoder"] != added else next(one for one in known if one != added)
    built = timed("build", "index", "build", "--model", wanted)["index"]
    candidate = str(built["deployments"][-1]["id"])
    timed("promote", "deploy", "promote", candidate)
    timed("roll back", "deploy", "rollback")
    timed("promote", "deploy", "promote", candidate)
    timed("retire", "index", "retire", str(now["index"]), "--yes")
    return spent


def moving_faults(load: Load) -> Counter[str]:
    """What is wrong with the answers about documents that were being updated."""
    faults: Counter[str] = Counter()
    seen: list[list[tuple[float, int]]] = [[] for _ in range(MOVING)]  # (when it was shown, version)
    asked = [answer for answer in load.answers if answer.moving is not None and answer.status == 200]
    for answer in sorted(asked, key=lambda one: one.ended):
        assert answer.moving is not None
        hits = [hit for hit in answer.body["hits"] if hit["document"]["uri"] == f"moving-{answer.moving}"]
        if len(hits) != 1:
            faults["missing" if not hits else "twice"] += 1
            continue
        version = version_in(hits[0])
        earlier = [old for when, old in seen[answer.moving] if when < answer.begun]
        faults["went back"] += bool(earlier) and version < max(earlier[-50:])
        faults["not written"] += version > load.tried[answer.moving]
        seen[answer.moving].append((answer.ended, version))
    return +faults


def scores_off(load: Load, second: Path) -> tuple[int, int]:
    """How many answers were computed again, and in how many a score is not what their encoder gives."""
    from nvr_rag.encoders.torch import load_encoder

    encoders = {one.fingerprint: one for one in (load_encoder(), load_encoder(str(second)))}
    good = [answer for answer in load.answers if answer.status == 200 and answer.body["hits"]]
    wrong = 0
    chosen = random.Random(SEED).sample(good, min(CHECKED, len(good)))
    for answer in chosen:
        encoder = encoders[answer.body["deployment"]["encoder"]]
        hits = [hit for hit in answer.body["hits"] if hit["dense"]][:3]
        texts = [
            encoder.spec.render(title=hit["document"]["title"], headings=hit["headings"], text=hit["text"])
            for hit in hits
        ]
        expected = encoder.encode_documents(texts) @ encoder.encode_queries([answer.query])[0]  # (N,)
        wrong += not np.allclose([hit["dense"]["score"] for hit in hits], expected, atol=TOLERANCE)
    return len(chosen), wrong


def show(load: Load, seconds: Sequence[Mapping[str, float]], clean: bool, scores: tuple[int, int]) -> None:
    rows = []
    rest: float | None = None
    for phase in ("at rest", "build", "promote", "roll back", "retire", "between"):
        took = [1000 * (one.ended - one.begun) for one in load.answers if one.phase == phase]
        if took:
            p99 = quantile(took, 0.99)
            rest = rest or p99
            rows.append([phase, len(took), quantile(took, 0.5), quantile(took, 0.95), p99, p99 / rest])
    table("Searches, ms", ["while", "searches", "p50", "p95", "p99", "p99 over rest"], rows)
    statuses = Counter(answer.status for answer in load.answers)
    medians = {
        phase: sorted(one[phase] for one in seconds)[len(seconds) // 2] for phase in (seconds[0] if seconds else ())
    }
    facts = [
        ["searches by status", json.dumps(statuses)],
        ["failures", f"{len(load.failures)} {load.failures[:2] or ''}"],
        ["deployments that answered", len({one.body["deployment"]["id"] for one in load.answers if one.status == 200})],
        ["answers with scores computed again, of another encoder", f"{scores[0]}, {scores[1]}"],
        ["versions written", sum(load.written)],
        ["answers about documents being updated", sum(one.moving is not None for one in load.answers)],
        ["of these wrong", json.dumps(moving_faults(load) or "none")],
        ["rounds; median seconds by step", f"{len(seconds)}; " + ", ".join(f"{k} {v:.1f}" for k, v in medians.items())],
        ["verify", "clean" if clean else "NOT clean"],
    ]
    table("Switching under load", ["what", "figure"], facts)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
