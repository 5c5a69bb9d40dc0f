"""The child process of a lap: mines or trains in the lap's folder, at low priority and with a limit on threads.

    python -m training.child mine|train FOLDER

Files of the folder enter and leave (see training.runs). Progress goes to stdout, one JSON object a line, and so does an
error. stdin is the parent's life line: when it ends, the parent has died, and so does the child. Knows no database.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from nvr_rag.errors import NvrError

NICENESS = 10  # searches beside it come first
_FAILED = 1
_ORPHANED = 3

Tell = Callable[[Mapping[str, Any]], None]


def main() -> int:
    """The exit code: 0 done, 1 an error that was told."""
    tell = _take_stdout()
    threading.Thread(target=_die_with_parent, daemon=True).start()
    os.nice(NICENESS)
    step, folder = sys.argv[1], Path(sys.argv[2])
    try:
        result = {"mine": _mine, "train": _train}[step](folder, tell)
    except NvrError as error:
        tell({"error": str(error)})
        return _FAILED
    tell({"result": {**result, "peak_memory_bytes": peak_memory()}})
    return 0


def _take_stdout() -> Tell:
    """A function that writes a line to stdout; whatever else prints, libraries included, goes to stderr."""
    out: IO[str] = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    lock = threading.Lock()

    def tell(line: Mapping[str, Any]) -> None:
        with lock:
            out.write(json.dumps(line) + "\n")
            out.flush()

    return tell


def _die_with_parent() -> None:
    while os.read(0, 4096):  # not through sys.stdin: a thread that waits inside it would break the end of the program
        pass
    os._exit(_ORPHANED)  # nothing to put in order: files get their names when they are whole


def _mine(folder: Path, tell: Tell) -> dict[str, Any]:
    from dataclasses import fields

    from nvr_rag.encoders.torch import load_encoder
    from training.collecting import read_corpus, read_queries, write_pairs
    from training.data import write_json
    from training.mining.miner import mine
    from training.mining.records import MiningSettings
    from training.plots import bin_values
    from training.runs import RunFolder

    run = RunFolder(folder)
    config = run.config()
    assert config is not None
    queries = read_queries(run.queries)
    encoder = load_encoder(config.teacher_source, threads=config.threads)
    _check(encoder.fingerprint, config.teacher)
    vectors = encoder.encode_queries([query.text for query in queries])
    recipe = config.recipe.as_json()
    settings = MiningSettings(**{one.name: recipe[one.name] for one in fields(MiningSettings)})  # type: ignore[arg-type]
    mined = mine(
        queries,
        vectors,
        read_corpus(run.corpus, encoder.spec.dimension),
        settings,
        lambda done, total: tell({"done": done, "total": total}),
    )
    write_pairs(run.mined, mined.pairs)
    scores = {
        "positives": [pair.positive_score for pair in mined.pairs],
        "negatives": [one.score for pair in mined.pairs for one in pair.negatives],
    }
    write_json(run.mining, {"report": mined.report.as_json(), "scores": bin_values(scores)})
    return {"pairs": len(mined.pairs)}


def _train(folder: Path, tell: Tell) -> dict[str, Any]:
    from nvr_rag.encoders.torch import load_encoder
    from training.data import read_examples
    from training.runs import RunFolder
    from training.train import TrainingProgress, train

    run = RunFolder(folder)
    config = run.config()
    assert config is not None
    _check(load_encoder(config.base_source, threads=config.threads).fingerprint, config.base)
    run.forget_model()  # of a parent that died before it had noted the result

    def report(progress: TrainingProgress) -> None:
        tell({"done": progress.step, "total": progress.steps, "loss": progress.loss})

    made = train(
        read_examples(run.examples),
        config.base_source,
        config.recipe,
        run.model,
        seed=config.recipe.seed,
        threads=config.threads,
        report=report,
    )
    return {
        "encoder": made.fingerprint,
        "examples": made.examples,
        "steps": made.steps,
        "device": made.device,
        "precision": made.precision,
        "training_seconds": made.seconds,
        "curve": [list(one) for one in made.curve],
    }


def _check(found: str, wanted: str) -> None:
    if found != wanted:
        raise NvrError(
            f"the model is no longer the encoder version {wanted[:12]} that the lap was begun with; put its files back"
        )


def peak_memory() -> int:
    """Bytes of memory that this process has held at most; 0 where it cannot be known.

    Not ru_maxrss, which also counts what the parent held before this program was started."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:")), 0)


if __name__ == "__main__":
    sys.exit(main())
