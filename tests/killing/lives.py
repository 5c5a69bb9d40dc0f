"""Many rounds, a dozen in a life; a life in which something was wrong is kept as it is, and another one begins."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random

from tests.killing.life import Life
from tests.killing.places import Place
from tests.killing.processes import Nursery
from tests.killing.rounds import Pace, Record, choose, play
from tests.qdrant_stand_in import StandIn

ROUNDS_A_LIFE = 12


def rounds(
    nursery: Nursery,
    configuration: str,
    folder: Path,
    *,
    count: int,
    seed: int,
    first_life: int = 0,
    keep: bool = False,
) -> Iterator[Record]:
    """Play so many rounds in lives below `folder`, and delete those that nothing was wrong with, unless `keep`."""
    pace, played, number = Pace(), 0, first_life
    while played < count:
        with _life(nursery, configuration, folder / f"{configuration}-{number}", keep=keep) as life:
            rng = Random(f"{seed}, {configuration}, {number}")
            for turn in range(min(ROUNDS_A_LIFE, count - played)):
                record = play(life, rng, pace, choose(rng, first=not life.begun), place=(number, turn))
                played += 1
                yield record
                if record.faults:
                    life.place.keep = True
                    break
        number += 1


@contextmanager
def _life(nursery: Nursery, configuration: str, folder: Path, *, keep: bool) -> Iterator[Life]:
    with ExitStack() as open_things:
        qdrant = open_things.enter_context(StandIn()).url if configuration.endswith("qdrant") else None
        place = Place(folder, configuration, qdrant)
        place.keep = keep
        life = Life(nursery, place)
        try:
            yield life
        finally:
            life.end()
            if not place.keep:
                place.remove()
