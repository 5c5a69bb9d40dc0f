"""A laboratory for laps: a tiny real model that knows nothing yet, documents in words that no question has, questions
in the log, and what people say about the hits.

The first and the last word of a question stand for two words of the document that answers it. A random model finds
nothing by that; trained on right answers for a second it finds nearly all of them, and on answers at random it does
not. So the gate itself, unchanged, has something to accept and something to reject. The word between them is all that
lexical search finds, in documents that have nothing to do with the question: there is a mode to choose as well.
"""

from __future__ import annotations

import itertools
import json
import random
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from nvr_rag import corpus, deployments, documents, indexes
from nvr_rag.chunkings import installed_chunker
from nvr_rag.indexes import IndexInfo
from nvr_rag.query_log import QueryLog, record_feedback
from nvr_rag.settings import Settings, TrainingSettings
from nvr_rag.testing import MemoryStore
from nvr_rag.types import Feedback, FeedbackKind, Query
from nvr_rag.upkeep import indexing
from nvr_rag.workspace import Workspace
from tests.support import document
from training import child, judging, preparation
from training.lap import Lap, Progress
from training.loop import Request, run_lap
from training.runs import RunFolder, run_folder
from training.splits import Split, query_key, split_of

STEPS = ("collect", "mine", "train", "register", "build", "choose", "judge", "conclude")
TRAIN, DEV, HOLDOUT = 96, 12, 30  # questions
MIN_TRAIN, MIN_DEV, MIN_HOLDOUT = 50, 8, 20  # that laps here ask for
DOCUMENTS = 48  # of one chunk each
SEED = 3

RECIPE = """
[mining]
rule = "naive"
ratio = 0.95
margin = 0.05
depth = 20
negatives = 2
neighbours = 0

[training]
epochs = 4
min_steps = 0
batch_size = 16
learning_rate = 1e-2
warmup_ratio = 0.1
weight_decay = 0.0
temperature = 0.1
max_query_tokens = 16
max_document_tokens = 16
precision = "float32"
seed = 42
"""

_WORDS = 24
_TAUGHT = 40  # of the documents: the others answer only questions that are held out
_BETWEEN = ("zab", "zob", "zub")  # so that no question is a part of another


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """A question in the log."""

    text: str
    split: Split
    uri: str  # of the document that answers it
    query_id: str = ""


def _word(number: int, ending: str) -> str:
    return "bdfgklmnprtv"[number % 12] + "aeiou"[number % 5] + "bdgkmnprtvz"[number // 5] + "lmnrx"[number % 5] + ending


_ASKED = [_word(number, "o") for number in range(_WORDS)]
_TOLD = [_word(number, "ub") for number in range(_WORDS)]


def _pairs() -> list[tuple[int, int]]:
    pairs = list(itertools.combinations(range(_WORDS), 2))
    random.Random(SEED).shuffle(pairs)
    return pairs[:DOCUMENTS]


def _texts() -> dict[str, str]:
    return {
        f"doc:{number:02}": f"{_TOLD[a]} {_BETWEEN[number % 3]} {_TOLD[b]}" for number, (a, b) in enumerate(_pairs())
    }


def _questions() -> list[Question]:
    """So many of each split, in an order of chance."""
    found: dict[Split, list[Question]] = {split: [] for split in Split}
    for number, words in enumerate(_pairs()):
        for (one, other), between in itertools.product(itertools.permutations(words), _BETWEEN):
            text = f"{_ASKED[one]} {between} {_ASKED[other]}"
            split = split_of(query_key(text))
            if split is Split.HOLDOUT or number < _TAUGHT:
                found[split].append(Question(text=text, split=split, uri=f"doc:{number:02}"))
    chosen = []
    for split, count in ((Split.TRAIN, TRAIN), (Split.DEV, DEV), (Split.HOLDOUT, HOLDOUT)):
        random.Random(SEED).shuffle(found[split])
        assert len(found[split]) >= count, (split, len(found[split]))
        chosen += found[split][:count]
    return chosen


def make_model(directory: Path, *, seed: int = 7) -> Path:
    """A model of one layer with random weights, as sentence-transformers saves it."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *_BETWEEN, *_ASKED, *_TOLD]
    plain, width = directory / "plain", 32
    torch.manual_seed(seed)
    sizes = {"hidden_size": width, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = BertConfig(vocab_size=len(words), max_position_embeddings=24, **sizes)
    BertModel(config).save_pretrained(plain)  # type: ignore[no-untyped-call]
    BertTokenizer(vocab={word: i for i, word in enumerate(words)}).save_pretrained(plain)
    modules = [Transformer(str(plain)), Pooling(width, "mean"), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save(str(directory / "model"))
    return directory / "model"


@dataclass(kw_only=True)
class Laboratory:
    """A data folder and a store, worked on by one process after the other."""

    home: Path
    store: MemoryStore
    recipe: Path
    model: Path
    questions: Sequence[Question] = ()
    chunks: Mapping[str, str] = field(default_factory=dict)  # URI -> id of its one chunk

    @classmethod
    def found(cls, folder: Path) -> Laboratory:
        """A new one: documents are indexed, questions asked, and nobody has said anything."""
        recipe = folder / "recipe.toml"
        recipe.write_text(RECIPE)
        made = cls(home=folder / "home", store=MemoryStore(), recipe=recipe, model=make_model(folder / "models"))
        with made.open() as workspace:
            workspace.create_collection("default")
        made.put(_texts())
        with made.open() as workspace:
            made.questions = _asked(workspace)
            hits = workspace.retriever.search(Query(text="zab", k=2 * DOCUMENTS)).hits
        made.chunks = {hit.uri: hit.chunk_id for hit in hits}
        assert len(hits) == len(made.chunks) == DOCUMENTS
        return made

    def copy(self, home: Path) -> Laboratory:
        """The same as it is at this moment."""
        store = MemoryStore()
        store._held = {
            name: replace(held, points=dict(held.points), flushed=dict(held.flushed), owner=None)
            for name, held in self.store._held.items()
        }
        return replace(self, home=Path(shutil.copytree(self.home, home)), store=store)

    @property
    def settings(self) -> Settings:
        training = TrainingSettings(recipe=str(self.recipe), threads=1, min_queries=MIN_HOLDOUT)
        return Settings(home=self.home, encoder=str(self.model), threads=1, training=training)

    def open(self) -> Workspace:
        return Workspace(self.settings, store=self.store)

    def of(self, split: Split) -> list[Question]:
        return [question for question in self.questions if question.split is split]

    def say(
        self,
        answer: Callable[[Question], str | None] = lambda question: question.uri,
        kind: FeedbackKind = FeedbackKind.RELEVANT,
    ) -> None:
        """Feedback on the document that `answer` names, for every question for which it names one."""
        items = [
            Feedback(query_id=question.query_id, chunk_id=self.chunks[uri], kind=kind)
            for question in self.questions
            if (uri := answer(question)) is not None
        ]
        with self.open() as workspace, workspace.database.write() as connection:
            record_feedback(connection, items)

    def lap(
        self,
        run: str = "lap",
        *,
        tell: Callable[[Progress], None] = lambda _progress: None,
        stop: threading.Event | None = None,
        advanced: Callable[[], None] = lambda: None,
        inside: Workspace | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """Run a lap in a process of its own, or `inside` a server that is at work already; its report. Options are
        those of Request."""
        request = Request(collection="default", run=run, **options)
        with nullcontext(inside) if inside else self.open() as workspace:
            serves = inside is not None
            return run_lap(
                workspace, request, tell=tell, stop=stop or threading.Event(), advanced=advanced, serves=serves
            )

    def folder(self, run: str = "lap") -> RunFolder:
        return run_folder(self.home, run)

    def finished(self, run: str = "lap") -> list[str]:
        """The steps of a lap that are finished."""
        return [step for step in STEPS if self.folder(run).finished(step) is not None]

    def result(self, step: str, run: str = "lap") -> dict[str, Any]:
        found = self.folder(run).finished(step)
        assert found is not None, f"{step} is not finished"
        return found

    def report(self, run: str = "lap") -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.folder(run).path / "report.json").read_text())
        return content

    def states(self) -> dict[int, str]:
        """The state of every deployment."""
        with self.open() as workspace, workspace.database.read() as connection:
            return {one.id: one.state for one in deployments.all_of(connection, 1)}

    def indexes(self) -> list[IndexInfo]:
        with self.open() as workspace, workspace.database.read() as connection:
            return indexes.all_infos(connection)

    def put(self, texts: Mapping[str, str]) -> None:
        """Store documents; the first index follows."""
        with self.open() as workspace:
            with workspace.database.write() as connection:
                corpus.put(connection, "default", [document(uri, text) for uri, text in texts.items()])
            indexing.catch_up(workspace.database, workspace.index(1), installed_chunker())

    def delete(self, *uris: str) -> None:
        with self.open() as workspace, workspace.database.write() as connection:
            ids = [documents.get(connection, "default", uri).id for uri in uris]
            corpus.delete_documents(connection, "default", ids)


def _asked(workspace: Workspace) -> list[Question]:
    log = QueryLog(workspace.database)
    try:
        asked = [(one, Query(text=one.text, k=DOCUMENTS)) for one in _questions()]
        return [replace(one, query_id=log.record(query, workspace.retriever.search(query))) for one, query in asked]
    finally:
        log.close()


def in_process(
    step: str, folder: RunFolder, *, threads: int, report: Callable[[Mapping[str, Any]], None], stop: threading.Event
) -> dict[str, Any]:
    """What `run_child` does, without a process of its own; what is told goes through JSON all the same."""
    work = {"mine": child._mine, "train": child._train}[step]
    result = work(folder.path, lambda line: report(json.loads(json.dumps(line))))
    return {**json.loads(json.dumps(result)), "peak_memory_bytes": 1}


@contextmanager
def _small_laps() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparation, "run_child", in_process)
        patch.setattr(preparation, "MIN_QUERIES", MIN_TRAIN)
        patch.setattr(judging, "MIN_QUERIES", MIN_DEV)
        patch.setattr(judging, "_latency", _equally_fast)
        yield patch


def _equally_fast(_lap: Lap, *_: Any) -> dict[str, float]:
    return {"base_ms": 2.0, "candidate_ms": 2.0}


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A lap that nothing has disturbed, asked to promote."""

    lab: Laboratory
    report: Mapping[str, Any]
    before: Mapping[str, Laboratory]  # each step: as it all was when that began


@cache
def _ground(folder: Path) -> Laboratory:
    folder.mkdir()
    return Laboratory.found(folder)


@cache
def _undisturbed(folder: Path) -> Finished:
    folder.mkdir()
    lab = _ground(folder.with_name("laboratory")).copy(folder / "lab")
    lab.say()
    before: dict[str, Laboratory] = {}

    def keep(progress: Progress) -> None:
        if progress.step not in before:
            before[progress.step] = lab.copy(folder / progress.step)

    with _small_laps():
        report = lab.lap(tell=keep, promote=True)
    return Finished(lab=lab, report=report, before=before)


@pytest.fixture
def small_laps() -> Iterator[pytest.MonkeyPatch]:
    """Laps of a few questions, without child processes, and with latencies that do not depend on who else works."""
    with _small_laps() as patch:
        yield patch


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Shared by all tests: copy what is to be changed."""
    return _undisturbed(tmp_path_factory.getbasetemp() / "undisturbed")


@pytest.fixture
def lab(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Laboratory:
    """A laboratory of this test's own, in which nobody has said anything yet."""
    return _ground(tmp_path_factory.getbasetemp() / "laboratory").copy(tmp_path / "lab")
