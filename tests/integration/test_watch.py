"""A watched folder: changes are found within moments, everything by the scan, and nothing ends it but the user."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ingest import reading, watch
from ingest.folders import changes as changes_module
from ingest.folders.changes import Changes
from ingest.report import IngestOptions, IngestReport, Watcher
from ingest.watch import Watch
from nvr_rag import collections, corpus
from nvr_rag.errors import DatabaseUnavailable
from nvr_rag.workspace import Workspace
from tests.integration.sync_support import InProcess, Share


class Keeper:
    """Watches a share in a thread."""

    def __init__(self, share: Share, *paths: Path, scan_seconds: float = 60.0) -> None:
        self.share, self.stop = share, threading.Event()
        self.reports: list[tuple[IngestReport, bool]] = []
        self.errors: list[str] = []
        what = Watch(
            paths=paths or [share.root],
            options=IngestOptions(),
            scan_seconds=scan_seconds,
            on_report=lambda report, whole: self.reports.append((report, whole)),
            on_error=self.errors.append,
            watcher=Watcher(),
        )
        self._thread = threading.Thread(target=watch.watch, args=(share.workspace, what, self.stop))

    def __enter__(self) -> Keeper:
        self._thread.start()
        self.until(lambda: self.reports or self.errors)
        time.sleep(0.3)  # until the system tells of changes
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self._thread.join(30)
        assert not self._thread.is_alive()

    def until(self, reached: Callable[[], object], seconds: float = 20.0) -> None:
        begun = time.monotonic()
        while not reached():
            assert time.monotonic() - begun < seconds, (self.reports, self.errors)
            time.sleep(0.02)

    def changed(self) -> list[tuple[int, int, int, bool]]:
        """Added, updated, deleted, and whether everything was looked at, of the runs that did anything."""
        found = [(one.added, one.updated, one.deleted, whole) for one, whole in self.reports]
        return [one for one in found if any(one[:3])]


@pytest.fixture
def share(workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Share:
    monkeypatch.setattr(reading, "Sandbox", InProcess)
    monkeypatch.setattr(InProcess, "parsed", [])
    monkeypatch.setattr(changes_module, "QUIET_MS", 100)
    return Share(tmp_path / "share", workspace)


def test_changes_are_taken_in_one_by_one(share: Share) -> None:
    share.write("a.txt", "one")
    share.write("sub/b.txt", "two")
    with Keeper(share) as keeper:
        assert keeper.changed() == [(2, 0, 0, True)]
        share.write("sub/c.txt", "three")
        keeper.until(lambda: len(share.stored) == 3)
        share.write("a.txt", "four")
        keeper.until(lambda: share.texts("four", k=1) == ["four"])
        (share.root / "sub" / "b.txt").unlink()
        keeper.until(lambda: len(share.stored) == 2)
        (share.root / "sub" / "c.txt").rename(share.root / "c.txt")
        keeper.until(lambda: set(share.stored) == {"a.txt", "c.txt"})
        share.write("c.txt.meta.json", '{"acl": ["group:hr"]}')
        keeper.until(lambda: share.stored["c.txt"].acl == ["group:hr"])
        share.write(".nvrignore", "a.txt\n")
        keeper.until(lambda: set(share.stored) == {"c.txt"})
    ran = keeper.changed()
    assert sum(added for added, _, _, _ in ran) == 4
    assert [whole for _, _, _, whole in ran[1:-1]] == [False] * (len(ran) - 2)
    assert keeper.errors == []


def test_what_the_system_does_not_tell_the_scan_finds(share: Share, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Changes, "add", lambda self, paths: None)
    share.write("a.txt", "one")
    with Keeper(share, scan_seconds=0.3) as keeper:
        share.write("b.txt", "two")
        keeper.until(lambda: len(share.stored) == 2)
        (share.root / "a.txt").unlink()
        keeper.until(lambda: len(share.stored) == 1)
    assert all(whole for _, whole in keeper.reports)


def test_without_a_way_to_watch_there_is_the_scan(share: Share, monkeypatch: pytest.MonkeyPatch) -> None:
    import watchfiles

    def broken(*paths: object, **options: object) -> Iterator[object]:
        raise OSError("no more watches")

    monkeypatch.setattr(watchfiles, "watch", broken)
    share.write("a.txt", "one")
    with Keeper(share, scan_seconds=0.3) as keeper:
        share.write("b.txt", "two")
        keeper.until(lambda: len(share.stored) == 2)


def test_a_folder_that_vanishes_deletes_nothing_and_is_taken_up_again(share: Share) -> None:
    other = share.root.with_name("other")
    other.mkdir()
    (other / "x.txt").write_text("other words")
    share.write("a.txt", "one")
    share.write("b.txt", "two")
    away = share.root.with_name("away")
    with Keeper(share, share.root, other, scan_seconds=0.3) as keeper:
        share.root.rename(away)
        keeper.until(lambda: keeper.errors)
        (other / "y.txt").write_text("others go on")
        keeper.until(lambda: len(share.stored) == 4)
        share.root.mkdir()  # as an empty mount point
        keeper.until(lambda: len(keeper.errors) == 2)
        share.root.rmdir()
        (away / "b.txt").unlink()
        away.rename(share.root)
        keeper.until(lambda: len(share.stored) == 3)
        share.write("c.txt", "three")
        keeper.until(lambda: len(share.stored) == 4)
    assert "there is no such file or folder" in keeper.errors[0]
    assert "nothing is deleted meanwhile" in keeper.errors[0]
    assert "holds no documents any more" in keeper.errors[1]


def test_trouble_is_told_once_and_does_not_end_it(share: Share, monkeypatch: pytest.MonkeyPatch) -> None:
    from ingest import pipeline

    monkeypatch.setattr(pipeline, "PATIENCE_SECONDS", 0.0)
    share.write("a.txt", "one")
    put, broken = corpus.put, threading.Event()

    def flaky(*arguments: object) -> object:
        if broken.is_set():
            raise DatabaseUnavailable("the database is away")
        return put(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(corpus, "put", flaky)
    with Keeper(share, scan_seconds=0.2) as keeper:
        broken.set()
        share.write("b.txt", "two")
        keeper.until(lambda: keeper.errors)
        time.sleep(0.5)
        broken.clear()
        keeper.until(lambda: len(share.stored) == 2)
    assert keeper.errors == ["the database is away"]


def test_a_file_that_fails_is_not_tried_again_with_every_scan(share: Share) -> None:
    share.write("bad.pdf", b"%PDF-1.7\nnothing of the kind")
    share.write("a.txt", "one")
    with Keeper(share, scan_seconds=0.2) as keeper:
        keeper.until(lambda: len(keeper.reports) >= 4)
    assert InProcess.parsed.count("bad.pdf") == 1
    assert all(len(report.failed) == 1 for report, whole in keeper.reports if whole)


def test_between_two_runs_the_index_is_free_for_a_server(share: Share) -> None:
    share.write("a.txt", "one")
    with Keeper(share) as keeper:
        keeper.until(lambda: not share.workspace.has_open(1))


class TestWhatToLookAt:
    @pytest.mark.parametrize(
        ("changed", "looked_at"),
        [
            (["a.md"], ["a.md"]),
            (["sub/b.md", "sub/b.md.meta.json"], ["sub/b.md"]),
            (["sub/b.md.meta.yaml"], ["sub/b.md"]),
            (["sub/.nvrignore"], ["sub"]),
            (["sub/.nvrmeta.yaml", "x.md"], ["sub", "x.md"]),
            ([".git/objects/x", "sub/.hidden"], []),
            ([".nvrignore"], None),
            ([""], None),
            (["../outside"], None),
            (["odd\ufffdname.md"], None),
            ([f"{n}.md" for n in range(1001)], None),
        ],
    )
    def test_of_what_has_changed(self, tmp_path: Path, changed: list[str], looked_at: list[str] | None) -> None:
        listening = Changes([tmp_path], threading.Event())
        listening.add(
            [str(tmp_path / name) if name != "../outside" else str(tmp_path.parent / "x") for name in changed]
        )
        taken = listening.take()
        assert (None if taken is None else [str(path.relative_to(tmp_path)) for path in taken]) == looked_at
        assert listening.take() == []

    def test_waiting_ends_with_news(self, tmp_path: Path) -> None:
        listening = Changes([tmp_path], threading.Event())
        threading.Timer(0.1, listening.add, [[str(tmp_path / "a")]]).start()
        begun = time.monotonic()
        listening.wait(30)
        assert time.monotonic() - begun < 10


def test_a_collection_that_is_deleted_is_not_made_again(share: Share) -> None:
    share.write("a.txt", "one")
    with Keeper(share, scan_seconds=0.2) as keeper:
        with share.workspace.database.write() as connection:
            collections.remove(connection, "default")
        keeper.until(lambda: keeper.errors)
        time.sleep(0.5)
    assert len(keeper.errors) == 1
    assert "no collection 'default'" in keeper.errors[0]
