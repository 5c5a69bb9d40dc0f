"""What a person relies on when a folder is mirrored: renames cost nothing, what is not wanted goes, sources leave each
other alone, and whoever may not be served by a half-read file is not."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from ingest import reading
from ingest.folders import stamps
from ingest.pipeline import Stand, Watcher, ingest
from nvr_rag import collections, corpus
from nvr_rag.errors import Conflict, DatabaseUnavailable, InvalidInput, NotFound, StoreUnavailable
from nvr_rag.types import DocumentState
from nvr_rag.workspace import Workspace
from tests.integration.sync_support import InProcess, Share, counts
from tests.support import document


@pytest.fixture
def share(workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Share:
    monkeypatch.setattr(reading, "Sandbox", InProcess)
    monkeypatch.setattr(InProcess, "parsed", [])
    return Share(tmp_path / "share", workspace)


class TestRenames:
    BOOK = "# Leave\n\n" + "".join(f"## Part {n}\n\n" + f"Sentence {n} speaks of subject{n}. " * 20 for n in range(6))

    def test_a_document_with_a_title_of_its_own_is_not_encoded_again(self, share: Share) -> None:
        path = share.write("old.md", self.BOOK)
        chunks = share.sync().work.chunks
        assert chunks >= 12
        path.rename(share.root / "new.md")
        report = share.sync()
        assert counts(report) == (1, 0, 0, 1, 0)
        assert (report.work.encoded, report.work.reused, report.work.deleted) == (0, chunks, chunks)
        assert set(share.stored) == {"new.md"}

    def test_nor_is_one_that_is_named_after_its_file_when_it_is_moved(self, share: Share) -> None:
        path = share.write("a/notes.txt", "Green tea is hot.")
        share.sync()
        (share.root / "b").mkdir()
        path.rename(share.root / "b" / "notes.txt")
        report = share.sync()
        assert (report.work.encoded, report.work.reused) == (0, 1)

    def test_its_name_is_a_part_of_what_is_encoded(self, share: Share) -> None:
        """The one rename that costs something: a document without a title is found by its file's name."""
        path = share.write("notes.txt", "Green tea is hot.")
        share.sync()
        path.rename(share.root / "tea.txt")
        report = share.sync()
        assert (report.work.encoded, report.work.reused) == (1, 0)
        assert share.stored["tea.txt"].title == "tea"

    def test_a_folder_is_renamed(self, share: Share) -> None:
        for number in range(20):
            share.write(f"old/{number}.md", f"# Title {number}\n\nSubject{number}.")
        share.sync()
        (share.root / "old").rename(share.root / "new")
        report = share.sync()
        assert counts(report) == (20, 0, 0, 20, 0)
        assert (report.work.encoded, report.work.reused) == (0, 20)

    def test_what_moves_from_one_source_to_another_in_one_run(self, share: Share) -> None:
        path = share.write("x/a.md", "# A\n\nAlpha.")
        share.write("x/stays.md")
        share.write("y/b.md", "# B\n\nBeta.")
        share.sync(share.root / "x", share.root / "y")
        path.rename(share.root / "y" / "a.md")
        report = share.sync(share.root / "x", share.root / "y")
        assert (report.added, report.deleted, report.work.encoded, report.work.reused) == (1, 1, 0, 1)


class TestSelection:
    def test_what_is_excluded_later_is_deleted(self, share: Share) -> None:
        for name in ("a.md", "b.log", "drafts/c.md", "drafts/deep/d.md"):
            share.write(name)
        assert share.sync().added == 4
        report = share.sync(exclude=["*.log", "drafts/"])
        assert counts(report) == (0, 0, 1, 3, 0)
        assert report.skipped == {"is excluded": 2}
        assert set(share.stored) == {"a.md"}
        assert share.sync().added == 3

    def test_include(self, share: Share) -> None:
        for name in ("a.md", "b.txt", "sub/c.md", "sub/d.txt"):
            share.write(name)
        share.sync(include=["*.md"])
        assert set(share.stored) == {"a.md", "sub/c.md"}
        report = share.sync(include=["sub/", "!d.txt"])
        assert (report.deleted, set(share.stored)) == (1, {"sub/c.md"})

    def test_an_ignore_file_is_obeyed_like_an_option(self, share: Share) -> None:
        for name in ("a.md", "sub/a.md", "sub/b.md", "sub/keep.log", "x.log"):
            share.write(name)
        share.sync()
        share.write(".nvrignore", "*.log\n/a.md\n# a comment\n\n")
        share.write("sub/.nvrignore", "!keep.log\nb.md\n")
        report = share.sync()
        assert (report.deleted, set(share.stored)) == (3, {"sub/a.md", "sub/keep.log"})
        assert report.skipped == {"is hidden": 2, "is ignored by .nvrignore": 3}

    def test_one_that_cannot_be_read_leaves_its_folder_as_it_is(self, share: Share) -> None:
        share.write("a.md")
        share.write("sub/b.md", "Old words.")
        share.sync()
        (share.root / "sub" / ".nvrignore").symlink_to("/etc/passwd")
        share.write("sub/b.md", "New words.")
        report = share.sync()
        assert counts(report) == (0, 0, 1, 0, 1)
        assert "its .nvrignore is a symbolic link" in report.failed[0].reason
        assert "Old words." in share.texts("words")

    @pytest.mark.parametrize("pattern", ["!", "", "  ", "# no", "\\"])
    def test_what_is_no_pattern_is_refused_before_anything_is_made(self, share: Share, pattern: str) -> None:
        share.write("a.md")
        with pytest.raises(InvalidInput, match="is no pattern") as refused:
            share.sync(exclude=[pattern])
        assert refused.value.field == "exclude"
        with pytest.raises(NotFound), share.workspace.database.read() as connection:
            collections.find(connection, "default")

    def test_excluding_everything_is_not_taken_for_a_wish(self, share: Share) -> None:
        share.write("a.md")
        share.sync()
        with pytest.raises(Conflict, match="--allow-empty"):
            share.sync(exclude=["*"])
        assert share.sync(exclude=["*"], allow_empty=True).deleted == 1


class TestSources:
    def test_an_outer_one_does_not_delete_what_it_excludes_of_an_inner_one(self, share: Share) -> None:
        share.write("a.md")
        share.write("hr/b.md")
        share.sync(share.root / "hr")
        report = share.sync(exclude=["hr/"])
        assert counts(report) == (1, 0, 0, 0, 0)
        assert set(share.stored) == {"a.md", "hr/b.md"}

    def test_an_inner_one_does_not_delete_what_it_excludes_of_an_outer_one(self, share: Share) -> None:
        share.write("a.md")
        share.write("hr/b.md")
        share.write("hr/c.txt")
        share.sync()
        report = share.sync(share.root / "hr", include=["*.md"])
        assert counts(report) == (0, 0, 1, 0, 0)
        assert set(share.stored) == {"a.md", "hr/b.md", "hr/c.txt"}

    def test_what_is_gone_from_the_disk_is_deleted_by_either(self, share: Share) -> None:
        paths = [share.write("hr/b.md"), share.write("hr/c.md"), share.write("hr/d.md")]
        share.sync(share.root / "hr")
        paths[0].unlink()
        assert share.sync().deleted == 1
        paths[1].unlink()
        assert share.sync(share.root / "hr").deleted == 1

    def test_a_document_stays_its_source_s_when_another_one_sees_an_edit(self, share: Share) -> None:
        path = share.write("hr/b.md", "Old words.")
        share.sync(path)
        share.write("hr/b.md", "New words.")
        share.write("a.md")
        assert counts(share.sync()) == (1, 1, 0, 0, 0)
        assert share.texts("new", k=1) == ["New words."]
        assert share.stored["hr/b.md"].source == f"file://{path}"
        assert share.sync(exclude=["hr/"]).deleted == 0

    def test_a_failure_does_not_change_whose_it_is_either(self, share: Share) -> None:
        path = share.write("hr/b.md")
        share.sync(path)
        share.write("hr/b.md", "")
        share.write("a.md")
        assert len(share.sync().failed) == 1
        assert share.stored["hr/b.md"].source == f"file://{path}"

    def test_a_folder_leaves_a_feed_alone_and_a_feed_leaves_files_alone(self, share: Share, tmp_path: Path) -> None:
        share.write("a.md", "Alpha.")
        feed = tmp_path / "feed.jsonl"
        mine, its = f"file://{share.root}/x.md", f"file://{share.root}/a.md"
        feed.write_text(f'{{"uri": "{mine}", "text": "Of the feed."}}\n')
        share.sync(feed)
        share.sync()
        share.write("x.md", "Of the folder.")
        report = share.sync()
        assert (report.updated, report.deleted) == (0, 0)
        assert report.skipped == {"has the uri of a document that another source holds": 1}
        (share.root / "x.md").unlink()
        assert share.sync().deleted == 0
        feed.write_text(f'{{"uri": "{its}", "text": "Of the feed."}}\n')
        assert "another source" in share.sync(feed).failed[0].reason
        assert set(share.texts("alpha feed folder")) == {"Alpha.", "Of the feed."}

    def test_equal_content_is_two_documents(self, share: Share) -> None:
        share.write("a.md", "# Same\n\nThe same words.")
        share.write("b.md", "# Same\n\nThe same words.")
        report = share.sync()
        assert (report.added, report.work.encoded, report.work.reused) == (2, 1, 1)
        assert len(share.texts("same words")) == 2
        (share.root / "a.md").unlink()
        share.sync()
        assert len(share.texts("same words")) == 1


class TestChanges:
    """Files that change or vanish while they are read."""

    def test_a_torn_read_is_not_stored(self, share: Share, monkeypatch: pytest.MonkeyPatch) -> None:
        path = share.write("a.txt", "one two three")
        writes = iter(range(100))

        def write_on(_path: Path) -> None:
            with path.open("a") as file:
                file.write(f" {next(writes)}")

        monkeypatch.setattr(InProcess, "after", staticmethod(write_on))
        share.write("b.txt", "calm")
        monkeypatch.setattr(InProcess, "after", staticmethod(lambda p: write_on(p) if p == path else None))
        report = share.sync()
        assert counts(report) == (1, 0, 0, 0, 1)
        assert report.failed[0].reason.startswith("changes while it is read")
        assert next(writes) == 3
        monkeypatch.setattr(InProcess, "after", staticmethod(lambda _path: None))
        assert counts(share.sync()) == (1, 0, 1, 0, 0)
        assert share.texts("one", k=1) == ["one two three 0 1 2"]

    def test_one_change_is_read_again(self, share: Share, monkeypatch: pytest.MonkeyPatch) -> None:
        path = share.write("a.txt", "old")
        todo = ["new words"]
        monkeypatch.setattr(
            InProcess, "after", staticmethod(lambda _path: path.write_text(todo.pop()) if todo else None)
        )
        assert counts(share.sync()) == (1, 0, 0, 0, 0)
        assert share.texts("words") == ["new words"]

    def test_a_file_that_vanishes(self, share: Share, monkeypatch: pytest.MonkeyPatch) -> None:
        share.write("a.txt")
        share.write("b.txt", "calm")
        monkeypatch.setattr(InProcess, "before", staticmethod(lambda p: p.unlink() if p.name == "a.txt" else None))
        report = share.sync()
        assert [(one.uri.rsplit("/", 1)[1], one.reason) for one in report.failed] == [("a.txt", "is gone")]
        monkeypatch.setattr(InProcess, "before", staticmethod(lambda _path: None))
        assert counts(share.sync()) == (0, 0, 1, 1, 0)

    def test_a_link_that_takes_a_file_s_place_is_not_followed(
        self, share: Share, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        secret = tmp_path / "secret.txt"
        secret.write_text("password")
        path = share.write("sub/a.txt")
        kept = share.root / "kept"

        def swap(_path: Path) -> None:
            path.rename(kept)
            path.symlink_to(secret)

        def swap_back(_path: Path) -> None:
            path.unlink()
            kept.rename(path)

        monkeypatch.setattr(InProcess, "before", staticmethod(swap))
        monkeypatch.setattr(InProcess, "after", staticmethod(swap_back))
        assert counts(share.sync()) == (0, 0, 0, 0, 1)
        assert share.texts("password") == []

    def test_a_folder_that_a_link_takes_the_place_of(
        self, share: Share, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "b.txt").write_text("password")
        share.write("sub/a.txt")
        share.write("sub/b.txt")
        taken = []

        def swap(path: Path) -> None:
            if path.name == "a.txt" and not taken:
                taken.append(path)
                (share.root / "sub").rename(tmp_path / "kept")
                (share.root / "sub").symlink_to(outside)

        monkeypatch.setattr(InProcess, "after", staticmethod(swap))
        share.sync()
        assert share.texts("password") == []

    def test_a_root_that_is_unmounted_meanwhile_deletes_nothing(
        self, share: Share, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        share.write("a.txt", "one")
        gone = share.write("b.txt", "two")
        share.sync()
        gone.unlink()
        share.write("a.txt", "three")

        def unmount(_path: Path) -> None:
            share.root.rename(share.root.with_name("elsewhere"))
            share.root.mkdir()

        monkeypatch.setattr(InProcess, "after", staticmethod(unmount))
        with pytest.raises(Conflict, match="went away while it was read"):
            share.sync()
        assert set(share.stored) == {"a.txt", "b.txt"}

    def test_what_nobody_has_foreseen_about_one_file(self, share: Share, monkeypatch: pytest.MonkeyPatch) -> None:
        share.write("a.txt")
        share.write("b.txt", "calm")

        def fail(path: Path) -> None:
            if path.name == "a.txt":
                raise RuntimeError("who would have thought")

        monkeypatch.setattr(InProcess, "before", staticmethod(fail))
        report = share.sync()
        assert counts(report) == (1, 0, 0, 0, 1)
        assert report.failed[0].reason == "could not be read: unexpected RuntimeError: who would have thought"


class TestStamps:
    """What has not changed is not read again, and what may have is."""

    def hashes(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        read: list[str] = []
        digest = hashlib.file_digest

        def hashed(file: Any, name: str) -> Any:
            read.append(Path(file.name).name)
            return digest(file, name)

        monkeypatch.setattr(hashlib, "file_digest", hashed)
        return read

    def test_a_settled_file_is_read_once(self, share: Share, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(stamps, "RACY_NS", 0)
        path = share.write("a.txt", "one")
        time.sleep(0.01)
        share.sync()
        read = self.hashes(monkeypatch)
        assert share.sync().unchanged == 1
        assert read == []
        status = path.stat()
        path.write_text("two")
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert share.sync().updated == 1, "the same size and times, but for the one that nobody can set"
        assert share.sync(reread=True).unchanged == 1
        assert read == ["a.txt", "a.txt"]

    def test_a_file_that_was_written_just_now_is_read_again(
        self, share: Share, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        share.write("a.txt", "one")
        share.sync()
        read = self.hashes(monkeypatch)
        share.sync()
        share.sync()
        assert read == ["a.txt", "a.txt"]

    def test_another_database_is_not_misled(self, share: Share, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(stamps, "RACY_NS", 0)
        path = share.write("a.txt", "one")
        time.sleep(0.01)
        share.sync()
        with share.workspace.database.write() as connection:
            other = document(f"file://{path}", "other", source=f"file://{share.root}", parser=reading.PARSER)
            corpus.put(connection, "default", [other])
        assert share.sync().updated == 1
        assert share.texts("one") == ["one"]


class TestOutages:
    def test_a_database_that_is_away_for_a_moment_is_waited_for(
        self, share: Share, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        share.write("a.txt", "one")
        put, failures = corpus.put, [DatabaseUnavailable("away"), DatabaseUnavailable("still away")]

        def flaky(*arguments: object) -> object:
            if failures:
                raise failures.pop()
            return put(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(corpus, "put", flaky)
        assert counts(share.sync()) == (1, 0, 0, 0, 0)

    def test_a_store_that_is_away_for_a_moment_is_waited_for(
        self, share: Share, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        share.write("b.txt", "two")
        share.sync()
        share.write("a.txt", "one")
        points = share.workspace.index(1).points
        upsert, failures = points.upsert, [StoreUnavailable("away")]

        def flaky(*arguments: object) -> None:
            if failures:
                raise failures.pop()
            upsert(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(points, "upsert", flaky)
        assert share.sync().added == 1
        assert not failures
        assert share.texts("one", k=1) == ["one"]

    def test_a_collection_that_is_deleted_meanwhile(self, share: Share, monkeypatch: pytest.MonkeyPatch) -> None:
        for number in range(3):
            share.write(f"{number}.txt", f"number{number}")

        def remove(path: Path) -> None:
            if path.name == "1.txt":
                with share.workspace.database.write() as connection:
                    collections.remove(connection, "default")

        monkeypatch.setattr(InProcess, "after", staticmethod(remove))
        with pytest.raises(NotFound, match="'default' was deleted while documents came in"):
            share.sync()
        monkeypatch.setattr(InProcess, "after", staticmethod(lambda _path: None))
        assert share.sync().added == 3

    def test_a_collection_that_is_deleted_and_made_anew_gets_no_half(
        self, share: Share, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        share.write("0.txt")
        share.write("1.txt")

        def replace(path: Path) -> None:
            if path.name == "1.txt":
                with share.workspace.database.write() as connection:
                    collections.remove(connection, "default")
                share.workspace.create_collection("default")

        monkeypatch.setattr(InProcess, "after", staticmethod(replace))
        with pytest.raises(NotFound, match="was deleted while"):
            share.sync()
        assert share.stored == {}


class TestOddities:
    def test_names_that_are_no_text(self, share: Share) -> None:
        for name in (b"new\nline.txt", b"\xff\xfe.txt", b"100% #1?.txt"):
            with open(os.fsencode(share.root) + b"/" + name, "wb") as file:
                file.write(b"odd words")
        assert share.sync().added == 3
        assert set(share.stored) == {"new%0Aline.txt", "%FF%FE.txt", "100%25%20%231%3F.txt"}
        assert {document.title for document in share.stored.values()} == {"new\nline", "??", "100% #1?"}
        assert share.sync().unchanged == 3
        os.unlink(os.fsencode(share.root) + b"/\xff\xfe.txt")
        assert share.sync().deleted == 1

    def test_a_path_that_is_too_long_to_be_stored_stops_nothing(self, share: Share) -> None:
        share.write("a.txt", "calm")
        folder = share.root
        for _ in range(8):
            folder = folder / ("ü" * 100)
        folder.mkdir(parents=True)
        (folder / "b.txt").write_text("deep")
        report = share.sync()
        assert counts(report) == (1, 0, 0, 0, 1)
        assert "too long" in report.failed[0].reason

    def test_links_in_circles(self, share: Share, tmp_path: Path) -> None:
        share.write("a.txt")
        (share.root / "loop").symlink_to(share.root)
        assert share.sync().added == 1
        one, other = tmp_path / "one", tmp_path / "other"
        one.symlink_to(other)
        other.symlink_to(one)
        with pytest.raises(InvalidInput, match="one/x: Too many levels of symbolic links"):
            share.sync(one / "x")

    def test_a_path_with_a_zero_byte(self, share: Share) -> None:
        with pytest.raises(InvalidInput):
            share.sync(Path("a\x00b"))

    def test_one_source_that_is_empty_does_not_keep_the_others(self, share: Share) -> None:
        share.write("x/a.txt")
        old = share.write("y/b.txt")
        share.write("y/c.txt")
        share.sync(share.root / "x", share.root / "y")
        (share.root / "x" / "a.txt").unlink()
        old.unlink()
        with pytest.raises(Conflict, match="/x holds no documents"):
            share.sync(share.root / "x", share.root / "y")
        assert set(share.stored) == {"x/a.txt", "y/c.txt"}


def test_interrupting_while_it_indexes_leaves_nothing_running(share: Share, monkeypatch: pytest.MonkeyPatch) -> None:
    share.write("a.txt", "one")
    share.sync()
    share.write("b.txt", "two")
    points, main = share.workspace.index(1).points, threading.main_thread()
    upsert, join = points.upsert, threading.Thread.join
    interrupts = [KeyboardInterrupt()]

    def slow(*arguments: Any) -> None:
        time.sleep(0.3)
        upsert(*arguments)

    def interrupted(thread: threading.Thread, timeout: float | None = None) -> None:
        if thread.name == "indexing" and threading.current_thread() is main and interrupts:
            raise interrupts.pop()
        join(thread, timeout)

    monkeypatch.setattr(points, "upsert", slow)
    monkeypatch.setattr(threading.Thread, "join", interrupted)
    with pytest.raises(KeyboardInterrupt):
        share.sync()
    assert "indexing" not in {thread.name for thread in threading.enumerate()}


def test_a_failed_document_is_tried_again_unless_told_otherwise(share: Share) -> None:
    share.write("bad.pdf", b"%PDF-1.7\nnothing of the kind")
    failed_before: dict[str, object] = {}
    first = share.sync(failed_before=failed_before)
    again = share.sync(failed_before=failed_before)
    assert again.failed == first.failed != []
    assert InProcess.parsed == ["bad.pdf"]
    share.sync()
    assert InProcess.parsed == ["bad.pdf", "bad.pdf"]
    share.write("bad.pdf", b"%PDF-1.7\nnothing of the kind either")
    share.sync(failed_before=failed_before)
    assert len(InProcess.parsed) == 3
    assert share.stored["bad.pdf"].state is DocumentState.FAILED


def test_whoever_looks_on_is_told_how_far_it_is(share: Share, tmp_path: Path) -> None:
    for number in range(5):
        share.write(f"{number}.txt", f"number{number}")
    share.sync()
    share.write("3.txt", "other")
    share.write("empty.txt", "")
    feed = tmp_path / "feed.jsonl"
    feed.write_text('{"id": 1, "text": "a"}\n{"id": 2, "text": "b"}\n')
    stands: list[Stand] = []
    report = ingest(share.workspace, [share.root, feed], watcher=Watcher(stand=stands.append))
    assert counts(report) == (2, 1, 4, 0, 1)
    last = stands[-1]
    assert (last.seen, last.done, last.encoded) == (8, 8, 3)
    assert last.total in (8, None)
    assert [stand.done for stand in stands] == sorted(stand.done for stand in stands)
    assert set(report.seconds) >= {"walk", "parse", "commit", "read", "total"}


def test_only_some_of_a_source(share: Share) -> None:
    for name in ("a.txt", "b.txt", "sub/c.txt", "sub/d.txt", ".hidden/e.txt", "log/f.txt"):
        share.write(name)
    share.write(".nvrignore", "log/")
    share.sync()
    for name in ("a.txt", "sub/c.txt"):
        share.write(name, "new")
    for name in ("b.txt", "sub/d.txt"):
        (share.root / name).unlink()
    only = [share.root / name for name in ("a.txt", "sub", ".hidden/e.txt", "log/f.txt", "nowhere.txt")]
    report = share.sync(only=only)
    assert counts(report) == (0, 2, 0, 1, 0)
    assert set(share.stored) == {"a.txt", "b.txt", "sub/c.txt"}
    assert counts(share.sync()) == (0, 0, 2, 1, 0)
