"""What can happen to the disk of a data folder: full, read-only, one folder unwritable."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tests.faults.clients import fair_or_none
from tests.faults.disks import MB, Disk, ext4, read_only, tmpfs
from tests.faults.outcomes import Outcome, begin, outcome
from tests.faults.stage import LOOPS, MOUNTS, Scenario, Stage
from tests.killing.life import Life
from tests.killing.oracle import text_of

SIZE = 250 * MB  # of a data folder's disk; an empty index takes 31 MB of a tmpfs
_BROKEN_SECONDS = 3.0


def _full(left: int, *, real: bool) -> Scenario:
    """Somebody else fills the disk but for so many bytes."""

    def play(stage: Stage, name: str) -> Outcome:
        disk = stage.opened((ext4 if real else tmpfs)(stage.folder / "disk", SIZE))
        life = stage.life(home=disk.folder / "home")
        return outcome(life, name, lambda: _filled(disk, left), _BROKEN_SECONDS)

    kind, amount = "ext4" if real else "tmpfs", f"but for {left // MB} MB" if left else "to the last byte"
    return Scenario(name=f"the disk is full {amount} ({kind})", play=play, needs=LOOPS if real else MOUNTS)


@contextmanager
def _filled(disk: Disk, left: int) -> Iterator[None]:
    disk.fill(left)
    try:
        yield
    finally:
        disk.make_room()


def _restarted_full(stage: Stage, name: str) -> Outcome:
    """A server that is started on a full disk ends with words; whoever starts it again and again has it once there is
    room."""
    said: list[str] = []
    disk = stage.opened(tmpfs(stage.folder / "disk", SIZE))
    life = stage.life(home=disk.folder / "home")

    @contextmanager
    def broken() -> Iterator[None]:
        with _filled(disk, 0):
            life.kill_server()
            said.append(_refused(life, "serve"))
            yield

    found = outcome(life, name, broken, 0.5, mend=life.serve, allowed=fair_or_none)
    return found.noted(f"nvr-rag serve {said[0]}")


def _ingested(stage: Stage, name: str) -> Outcome:
    """nvr-rag ingest fills the disk by itself: it ends with words, and goes on where it was once there is room."""
    disk = stage.opened(tmpfs(stage.folder / "disk", SIZE))
    life = stage.life(home=disk.folder / "home")
    begin(life)
    life.stop_server()
    files = stage.folder / "many"
    files.mkdir()
    for number in range(40):
        long = "\n\n".join(text_of(5000 + number, ("file", f"m{5000 + number}x{part:05d}")) for part in range(30))
        (files / f"{5000 + number}.txt").write_text(long, encoding="utf-8")
    said: list[str] = []

    @contextmanager
    def broken() -> Iterator[None]:
        with _filled(disk, 0):
            said.append(_refused(life, "ingest", str(files), "--collection", "files"))
            yield

    found = outcome(life, name, broken, 0.5)
    return found.noted(f"nvr-rag ingest {said[0]}")


def _read_only(stage: Stage, name: str) -> Outcome:
    """The kernel makes the disk read-only, as it does when it fails; it is checked and mounted again."""
    disk = stage.opened(ext4(stage.folder / "disk", SIZE))
    life = stage.life(home=disk.folder / "home")

    @contextmanager
    def failed() -> Iterator[None]:
        disk.fail()
        yield

    def mend() -> None:
        life.kill_server()
        disk.mend()
        life.serve()

    return outcome(life, name, failed, _BROKEN_SECONDS, mend=mend, allowed=fair_or_none, note="mended by a restart")


def _read_only_at_start(stage: Stage, name: str) -> Outcome:
    """A server that is started on a read-only folder ends with words."""
    disk = stage.opened(tmpfs(stage.folder / "disk", SIZE))
    life = stage.life(home=disk.folder / "home")
    said: list[str] = []

    @contextmanager
    def broken() -> Iterator[None]:
        life.stop_server()
        with read_only(disk.folder):
            said.append(_refused(life, "serve"))
            yield

    found = outcome(life, name, broken, 0.5, mend=life.serve, allowed=fair_or_none)
    return found.noted(f"nvr-rag serve {said[0]}")


def _models(stage: Stage, name: str) -> Outcome:
    """No model can be added, and everything else goes on."""
    disk = stage.opened(tmpfs(stage.folder / "disk", SIZE))
    life = stage.life(home=disk.folder / "home")
    begin(life)
    said: list[str] = []

    @contextmanager
    def broken() -> Iterator[None]:
        with read_only(disk.folder / "home" / "models"):
            said.append(_refused(life, "models", "add", str(life.place.model(1))))
            yield

    return outcome(life, name, broken, 0.5).noted(f"nvr-rag models add {said[0]}" if said else "")


def _refused(life: Life, *arguments: str) -> str:
    """Start a command that cannot do what it is asked; how it ended."""
    child = life.start(*arguments)
    return f"ended with {child.finish()}: {(child.said or {}).get('error', {}).get('message')}"


SCENARIOS = (
    _full(40 * MB, real=False),
    _full(0, real=False),
    _full(0, real=True),
    Scenario(name="the server is killed and started on a full disk", play=_restarted_full, needs=MOUNTS),
    Scenario(name="nvr-rag ingest meets a full disk", play=_ingested, needs=MOUNTS),
    Scenario(name="the disk becomes read-only", play=_read_only, needs=LOOPS),
    Scenario(name="the data folder is read-only at the start", play=_read_only_at_start, needs=MOUNTS),
    Scenario(name="the folder of models cannot be written to", play=_models, needs=MOUNTS),
)
