"""A lap's folder: `<home>/runs/<run>/`. Settings, results of steps and files enter, and are found again after a crash.

    config.json          LapConfig, written once
    corpus/              the serving index as mining reads it (see training.collecting)
    queries.jsonl        judged queries to train on;  dev.jsonl  those that choices are made on
    mined.jsonl          (query, positive) pairs with hard negatives, by id;  mining.json  what was filtered, and why
    examples.jsonl       the same with texts
    model/               the new encoder, until it is registered
    steps/<step>.json    what a finished step came to: it is not done again
    report.json, report.html
    given-up             the lap was cancelled, and what it had made is gone: nobody can go on with it
    owner.lock           locked by the kernel for the process that works on the lap, as long as it lives

Every file appears whole or not at all. Knows no step.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from nvr_rag.errors import ConfigurationError, Conflict
from training.data import write_json
from training.recipe import Recipe

FOLDER = "runs"  # in the data folder


class LapBusy(Conflict):
    """Another process works on the lap."""

    retry = True
    elsewhere = True


@dataclass(frozen=True, kw_only=True, slots=True)
class LapConfig:
    """Everything that decides how a lap ends, frozen when it begins."""

    run: str  # id
    collection: str
    recipe: Recipe
    deployment: int  # that served when the lap began
    teacher: str  # fingerprint of its encoder
    teacher_source: str  # what to load it from
    base: str  # fingerprint of the encoder that training begins with
    base_source: str
    threads: int  # of mining and training: another number gives other rounding, and another encoder
    min_queries: int  # of the gate
    min_gain: float  # of the gate
    started_at: str  # ISO 8601

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The paths of one lap."""

    path: Path

    @property
    def corpus(self) -> Path:
        return self.path / "corpus"

    @property
    def queries(self) -> Path:
        return self.path / "queries.jsonl"

    @property
    def dev(self) -> Path:
        return self.path / "dev.jsonl"

    @property
    def mined(self) -> Path:
        return self.path / "mined.jsonl"

    @property
    def mining(self) -> Path:
        return self.path / "mining.json"

    @property
    def examples(self) -> Path:
        return self.path / "examples.jsonl"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    def make(self) -> None:
        """Make the folder if it is new."""
        (self.path / "steps").mkdir(parents=True, exist_ok=True)

    def config(self) -> LapConfig | None:
        """What the lap was begun with; None when it was not. Raises ConfigurationError for one of another release."""
        content = _read(self.path / "config.json")
        if content is None:
            return None
        try:
            values = {one.name: content[one.name] for one in fields(LapConfig)}
            return LapConfig(**{**values, "recipe": Recipe(**content["recipe"])})
        except (KeyError, TypeError) as error:
            raise ConfigurationError(
                f"the lap {self.path.name} was begun by another release ({error!r}); begin a new one: nvr-rag retrain"
            ) from error

    def begin(self, config: LapConfig) -> None:
        write_json(self.path / "config.json", config.as_json())

    def finished(self, step: str) -> dict[str, Any] | None:
        """What a step came to; None while it is not finished."""
        return _read(self.path / "steps" / f"{step}.json")

    def finish(self, step: str, result: Mapping[str, Any]) -> None:
        """Record what a step came to."""
        write_json(self.path / "steps" / f"{step}.json", result)

    @property
    def given_up(self) -> bool:
        """What the lap had made is gone."""
        return (self.path / "given-up").exists()

    def give_up(self) -> None:
        """Record that what the lap had made is about to go."""
        (self.path / "given-up").touch()

    def forget_model(self) -> None:
        """Remove the model, and what a training that was killed has left of one."""
        for found in (self.model, *self.path.glob(f".{self.model.name}.*")):
            shutil.rmtree(found, ignore_errors=True)

    def forget_files(self) -> None:
        """Remove what takes room and is not needed once the encoder is registered: the index can be read again."""
        self.forget_model()
        shutil.rmtree(self.corpus, ignore_errors=True)

    def forget_texts(self) -> None:
        """Remove queries and passages: documents may be deleted, and queries forgotten, that they come from."""
        for path in (self.queries, self.dev, self.examples):
            path.unlink(missing_ok=True)

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Keep other processes away from the lap. Raises LapBusy while another one works on it."""
        self.make()
        descriptor = os.open(self.path / "owner.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise LapBusy(
                    f"another process works on the lap {self.path.name}; wait until it has finished, or end it"
                ) from error
            yield
        finally:
            os.close(descriptor)

    def abandoned(self) -> bool:
        """Whether the lap was begun on this machine and no living process works on it."""
        if not (self.path / "owner.lock").exists():
            return False
        try:
            with self.owned():
                return True
        except LapBusy:
            return False


def run_folder(home: Path, run: str) -> RunFolder:
    """The folder of a lap in a data folder. Raises ConfigurationError for a name that is no id."""
    if not run or not all(letter.isalnum() or letter == "-" for letter in run):
        raise ConfigurationError(f"{run[:80]!r} is not the id of a lap")
    return RunFolder(home / FOLDER / run)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    assert isinstance(content, dict)
    return content
