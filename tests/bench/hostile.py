"""Hostile files: thousands of them, made by mutating valid files of every format, go through the real pipeline.

    python -m tests.bench.hostile [--count 3000] [--seed 1] [--output hostile.jsonl] [--folder FOLDER] [--data FOLDER]

They come a hundred at a time, good files among them, into one data folder: read, parsed in child processes with small
limits (5 s, 512 MB), cut, committed, indexed; only the encoder is a stand-in. Every file must end in a state with a
reason, the worker must neither die nor hang nor pass its memory limit, and every good file must be found. With --data,
real files below that folder are mutated, too.

Each hundred is a line of the output file, and a run goes on behind what the file has already; --count 0 prints the
table of what there is. What was wrong is told at once, and the files of that hundred are kept.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ingest.parsers.formats import not_a_document, suffix_of
from tests.bench.common import quantile, table
from tests.hostile.rounds import KINDS, Round, play
from tests.unit.ingest.documents import every

_SIZE = 100  # files a round
_ROUND_SECONDS = 900.0  # after which a round counts as hung
_ROUNDS_A_HOME = 5  # so that the index itself stays small
_STATES = ("ready", "failed", "passed over", "")
_REAL_BYTES = 1_000_000  # larger real files are not mutated


def main() -> None:
    options = _options()
    folder = Path(options.folder or tempfile.mkdtemp(prefix="nvr-hostile-"))
    output = Path(options.output or folder / "hostile.jsonl")
    bases = sorted(every().items())
    real = _real(Path(options.data)) if options.data else []
    bases = bases * max(1, len(real) // len(bases)) + real  # each half of what is mutated
    print(f"folder {folder}, output {output}, {len(every())} valid files and {len(real)} real ones", flush=True)
    first = len(_read(output))
    for number in range(first, -(-options.count // _SIZE)):
        faulthandler.dump_traceback_later(_ROUND_SECONDS, exit=True)
        home = folder / f"home-{number // _ROUNDS_A_HOME}"
        played = play(home, folder / f"round-{number:04}", bases, number=number, size=_SIZE, seed=options.seed)
        faulthandler.cancel_dump_traceback_later()
        with output.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"seed": options.seed, **played.as_json()}) + "\n")
        _tell(played)
    rounds = _read(output)
    _summarise(rounds)
    if any(one["faults"] or any(outcome["faults"] for outcome in one["outcomes"]) for one in rounds):
        sys.exit(1)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=3000, help="hostile files, with those in the output file")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", help="JSON Lines file, appended to; default: hostile.jsonl in the folder")
    parser.add_argument("--folder", help="where the files and the data folder lie; default: a temporary one")
    parser.add_argument("--data", help="a folder of real files to mutate, too")
    return parser.parse_args()


def _real(folder: Path) -> list[tuple[str, bytes]]:
    """Up to 40 files of each extension, in the order of their paths."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not not_a_document(path.name) and 0 < path.stat().st_size <= _REAL_BYTES:
            found.setdefault(suffix_of(path.name), []).append(path)
    return [(f"{path.stem[:40]}{path.suffix}", path.read_bytes()) for paths in found.values() for path in paths[:40]]


def _tell(played: Round) -> None:
    states = [outcome.state for outcome in played.outcomes]
    slowest = max(outcome.seconds for outcome in played.outcomes)
    print(
        f"round {played.round}: {states.count('ready')} ready, {states.count('failed')} failed, "
        f"{states.count('passed over')} passed over, {played.good} good ones, {played.seconds:.1f} s, slowest "
        f"{slowest:.1f} s, biggest child {max(outcome.child_mb for outcome in played.outcomes):.0f} MB, worker "
        f"{played.parent_mb:.0f} MB",
        flush=True,
    )
    for fault in played.faults:
        print(f"  WRONG: {fault}", flush=True)
    for outcome in played.outcomes:
        for fault in outcome.faults:
            print(f"  WRONG: {outcome.name} ({outcome.kind}): {fault}", flush=True)


def _read(output: Path) -> list[dict[str, Any]]:
    if not output.exists():
        return []
    return [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]


def _summarise(rounds: Sequence[dict[str, Any]]) -> None:
    outcomes = [outcome for one in rounds for outcome in one["outcomes"]]
    rows = [_row(kind, [one for one in outcomes if one["kind"] == kind]) for kind in KINDS]
    rows = [*(row for row in rows if row[1]), _row("all", outcomes)]
    header = ("mutation", "files", *(state or "no state" for state in _STATES), "median s", "slowest s", "child MB")
    table("Hostile files", header, rows)
    if rounds:
        faults = sum(len(one["faults"]) + sum(len(outcome["faults"]) for outcome in one["outcomes"]) for one in rounds)
        worker, minutes = max(one["parent_mb"] for one in rounds), sum(one["seconds"] for one in rounds) / 60
        print(f"\n{sum(one['good'] for one in rounds)} good files beside them, {faults} faults, {minutes:.1f} minutes")
        print(f"worker at most {worker:.0f} MB of its own, {rounds[-1]['parent_mb']:.0f} MB in the last round")


def _row(kind: str, outcomes: Sequence[dict[str, Any]]) -> list[object]:
    states = [one["state"] for one in outcomes]
    seconds = [one["seconds"] for one in outcomes] or [0.0]
    return [
        kind,
        len(outcomes),
        *(states.count(state) for state in _STATES),
        quantile(seconds, 0.5),
        f"{max(seconds):.1f}",
        f"{max((one['child_mb'] for one in outcomes), default=0):.0f}",
    ]


if __name__ == "__main__":
    main()
