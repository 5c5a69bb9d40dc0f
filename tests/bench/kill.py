"""Kills: servers and commands die by SIGKILL at random moments, are started again, and nothing is lost.

    python -m tests.bench.kill [--rounds 300] [--seed 1] [--database sqlite|postgresql|qdrant|both|all] [--keep]
                               [--output kills.jsonl] [--folder FOLDER]

Each round begins an operation, kills it, the server, or both after a random part of the time that it usually takes,
starts everything again (and kills every fourth restart, too) and compares what searches, deployments, feedback and
`verify` show with a model of what was acknowledged. Every twelve rounds begin with an empty data folder. A round takes
two to four seconds. PostgreSQL needs NVR_TEST_POSTGRES_URL, of a server on which databases may be made; `qdrant` is
PostgreSQL with a stand-in for a Qdrant server.

Each round is a line of the output file, and a run goes on behind what the file has already, so that one that was
stopped is resumed by the same command, and --rounds 0 prints the table of what there is. What was wrong is told at
once, and the folder of that life is kept.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from tests import engines
from tests.bench.common import table
from tests.killing.lives import rounds
from tests.killing.operations import OPERATIONS
from tests.killing.places import CONFIGURATIONS
from tests.killing.processes import Nursery
from tests.killing.rounds import Record

_SQLITE, _POSTGRESQL, _QDRANT = CONFIGURATIONS
_CHOICES = {
    "sqlite": (_SQLITE,),
    "postgresql": (_POSTGRESQL,),
    "qdrant": (_QDRANT,),
    "both": (_SQLITE, _POSTGRESQL),
    "all": CONFIGURATIONS,
}
_PHASES = ("nothing written", "building", "indexing", "purging", "settled", "unknown")


def main() -> None:
    options = _options()
    configurations = _CHOICES[options.database]
    if configurations != (_SQLITE,) and engines.SERVER is None:
        raise SystemExit("set NVR_TEST_POSTGRES_URL to a PostgreSQL server on which databases may be made")
    folder = Path(options.folder or tempfile.mkdtemp(prefix="nvr-kill-"))
    output = Path(options.output or folder / "kills.jsonl")
    print(f"folder {folder}, output {output}", flush=True)
    if options.rounds:
        with Nursery() as nursery:
            for configuration in configurations:
                _play(nursery, configuration, folder, output, options)
    _summarise([record for record in _read(output) if record["configuration"] in configurations])
    if any(record["faults"] for record in _read(output)):
        sys.exit(1)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=300, help="of each configuration, with those in the output file")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--database", choices=sorted(_CHOICES), default="both")
    parser.add_argument("--keep", action="store_true", help="keep the folders of all lives")
    parser.add_argument("--output", help="JSON Lines file, appended to; default: kills.jsonl in the folder")
    parser.add_argument("--folder", help="where the data folders lie; default: a temporary one")
    return parser.parse_args()


def _play(nursery: Nursery, configuration: str, folder: Path, output: Path, options: argparse.Namespace) -> None:
    there = [record for record in _read(output) if record["configuration"] == configuration]
    life = max((record["life"] for record in there), default=-1) + 1
    left = options.rounds - len(there)
    played = rounds(nursery, configuration, folder, count=left, seed=options.seed, first_life=life, keep=options.keep)
    for number, record in enumerate(played, start=len(there) + 1):
        with output.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"seed": options.seed, **record.as_json()}) + "\n")
        _tell(number, record, options.seed)


def _tell(number: int, record: Record, seed: int) -> None:
    restart = f", restarted in {record.restart_seconds:.2f} s" if record.restart_seconds is not None else ""
    print(
        f"{record.configuration} {number}: {record.operation}, killed {record.killed} after {record.delay:.2f} of "
        f"{record.usual:.2f} s ({record.phase}{', acknowledged' if record.acknowledged else ''}){restart}, verify "
        f"{record.verified}, {record.seconds:.1f} s",
        flush=True,
    )
    for fault in record.faults:
        print(f"  WRONG (seed {seed}, life {record.life}, round {record.round}, {record.kept}): {fault}", flush=True)


def _read(output: Path) -> list[dict[str, Any]]:
    if not output.exists():
        return []
    return [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]


def _summarise(records: Sequence[dict[str, Any]]) -> None:
    names = [operation.name for operation in OPERATIONS]
    groups = [
        [one for one in records if (one["configuration"], one["operation"]) == (configuration, name)]
        for configuration in CONFIGURATIONS
        for name in names
    ]
    groups += [[one for one in records if one["configuration"] == configuration] for configuration in CONFIGURATIONS]
    header = ("configuration", "operation", "rounds", "killed before / after its end", "acknowledged", *_COUNTED)
    header += ("verify clean / mended / failed", "median restart s")
    rows = [_row(group, whole=number >= len(groups) - 3) for number, group in enumerate(groups) if group]
    table("Kills", header, rows)
    phases = [
        [name, *(count[phase] for phase in _PHASES)]
        for name in names
        if (count := Counter(one["phase"] for one in records if one["operation"] == name))
    ]
    table("What the database said right after the kill, in rounds", ("operation", *_PHASES), phases)


_COUNTED = {
    "losses": "loss",
    "duplicates": "duplicate",
    "resurrections": "resurrection",
    "mixtures": "mixture",
    "unusable": "unusable",
    "other": "other",
}


def _row(group: Sequence[dict[str, Any]], *, whole: bool) -> list[object]:
    kinds = Counter(fault.partition(":")[0] for one in group for fault in one["faults"])
    verified = Counter(one["verified"] for one in group)
    restarts = [one["restart_seconds"] for one in group if one["restart_seconds"] is not None]
    ended = sum(one["ended"] for one in group)
    return [
        group[0]["configuration"],
        "all" if whole else group[0]["operation"],
        len(group),
        f"{len(group) - ended} / {ended}",
        sum(one["acknowledged"] for one in group),
        *(kinds[kind] for kind in _COUNTED.values()),
        " / ".join(str(verified[word]) for word in ("clean", "mended", "failed")),
        median(restarts) if restarts else "-",
    ]


if __name__ == "__main__":
    main()
