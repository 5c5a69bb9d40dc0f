"""Faults: databases, stores and disks fail under real processes and clients at work; what they saw, and what was left.

    python -m tests.bench.faults [--only TEXT] [--list] [--output faults.jsonl] [--folder FOLDER]

Each scenario begins with an empty data folder, lets clients put, delete, search and send feedback, breaks something,
mends it, and compares what searches, feedback and `verify` show with what was acknowledged. It prints a row as soon as
there is one; all of them take about four minutes. Those on PostgreSQL start a server of their own where one is
installed; those about disks mount some, and need root for it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path

from tests.bench.common import table
from tests.faults.cluster import Cluster
from tests.faults.outcomes import Outcome
from tests.faults.scenarios import SCENARIOS
from tests.faults.stage import Scenario, Stage
from tests.killing.processes import Nursery

_HEADER = (
    "fault",
    "configuration",
    "answers by status",
    "longest s",
    "recovered after s",
    "acknowledged",
    "wrong answers",
    "lost or wrong",
    "verify",
)


def main() -> None:
    options = _options()
    wanted = [scenario for scenario in SCENARIOS if options.only.lower() in scenario.name.lower()]
    if options.list:
        for scenario in wanted:
            print(scenario.name if scenario.possible else f"{scenario.name} (not possible here)")
        return
    folder = Path(options.folder or tempfile.mkdtemp(prefix="nvr-faults-"))
    folder.mkdir(parents=True, exist_ok=True)
    output = Path(options.output or folder / "faults.jsonl")
    print(f"folder {folder}, output {output}", flush=True)
    outcomes = []
    for found in _played(wanted, folder):
        outcomes.append(found)
        with output.open("a", encoding="utf-8") as file:
            file.write(json.dumps(found.as_json()) + "\n")
        _tell(found)
    table("Faults", _HEADER, [_row(found) for found in outcomes])
    if not all(found.good for found in outcomes):
        sys.exit(1)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="play the scenarios whose name has this text")
    parser.add_argument("--list", action="store_true", help="only name them")
    parser.add_argument("--output", help="JSON Lines file, appended to; default: faults.jsonl in the folder")
    parser.add_argument("--folder", help="where the data folders lie; default: a temporary one")
    return parser.parse_args()


def _played(wanted: list[Scenario], folder: Path) -> Iterator[Outcome]:
    with ExitStack() as running:
        nursery = running.enter_context(Nursery())
        cluster = cache(lambda: running.enter_context(Cluster()))
        for number, scenario in enumerate(wanted):
            if not scenario.possible:
                print(f"{scenario.name}: not possible here", flush=True)
                continue
            with Stage(nursery, folder / f"{number:02d}", cluster) as stage:
                yield scenario.play(stage, scenario.name)


def _tell(found: Outcome) -> None:
    print(" | ".join(_row(found)), flush=True)
    for name, words in (("WRONG", found.wrong), ("LOST OR WRONG", found.faults), ("/readyz said", found.said)):
        for text in words:
            print(f"    {name}: {text}", flush=True)
    if found.note:
        print(f"    {found.note}", flush=True)


def _row(found: Outcome) -> list[str]:
    return [
        found.fault,
        found.configuration,
        "; ".join(f"{what} {_counted(answers)}" for what, answers in found.answers.items() if what != "livez"),
        f"{found.longest_seconds:.1f}",
        "never" if found.recovered_seconds is None else f"{found.recovered_seconds:.1f}",
        str(found.acknowledged),
        str(len(found.wrong)),
        str(len(found.faults)),
        found.verified,
    ]


def _counted(answers: dict[str, int]) -> str:
    return ", ".join(f"{times} x {status}" for status, times in answers.items())


if __name__ == "__main__":
    main()
