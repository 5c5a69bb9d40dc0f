"""A folder through the real parser, chunker and Edge shard, with a quick encoder: what a person relies on when a folder
changes under the system."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ingest.handlers import HANDLERS
from ingest.indexer import Indexer
from ingest.pipeline import IngestReport, Watcher, ingest
from nvr_rag import documents, jobs
from nvr_rag.errors import Conflict, InvalidInput, StoreBusy
from nvr_rag.running.working import JobLoop
from nvr_rag.settings import IngestSettings, Settings
from nvr_rag.stores.edge import EdgeStore
from nvr_rag.testing import HashEncoder
from nvr_rag.types import DocumentState, Query
from nvr_rag.upkeep import catching_up, indexing
from nvr_rag.upkeep.catching_up import lags
from nvr_rag.workspace import Workspace


class Site:
    """A folder of documents, and a workspace over a real Edge shard that is opened anew for every run."""

    def __init__(self, tmp: Path, encoder: HashEncoder) -> None:
        self.root = tmp / "docs"
        self.root.mkdir()
        self.encoder = encoder
        self.settings = Settings(home=tmp / "home", ingest=IngestSettings(max_file_bytes=1_000_000))

    def open(self) -> Workspace:
        return Workspace(self.settings, encoder=self.encoder)

    def write(self, name: str, text: str | bytes) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    def ingest(self, *paths: Path, allow_empty: bool = False) -> IngestReport:
        with self.open() as workspace:
            return ingest(workspace, paths or [self.root], allow_empty=allow_empty)

    def texts(self, question: str, k: int = 10) -> list[str]:
        with self.open() as workspace:
            return [hit.text for hit in workspace.retriever.search(Query(text=question, k=k)).hits]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    return Site(tmp_path, HashEncoder())


def test_a_folder_is_found_and_a_second_run_does_nothing(site: Site) -> None:
    site.write("a.md", "# Travel\n\nBook the train early.\n")
    site.write("sub/b.txt", "Receipts are kept for seven years.")
    first = site.ingest()
    assert (first.added, first.unchanged, first.failed, first.work.encoded) == (2, 0, [], 2)
    assert "Book the train early." in site.texts("train")
    encoded = site.encoder.encoded
    second = site.ingest()
    assert (second.added, second.updated, second.unchanged, second.deleted) == (0, 0, 2, 0)
    assert site.encoder.encoded == encoded


def test_an_edit_encodes_only_what_changed(site: Site) -> None:
    sections = [f"# Part {n}\n\n" + f"Sentence about subject{n} goes here. " * 6 + "\n\n" for n in range(8)]
    site.write("book.md", "".join(sections))
    chunks = site.ingest().work.encoded
    assert chunks >= 8
    sections[3] = "# Part 3\n\n" + "A wholly different zebra story is told. " * 6 + "\n\n"
    site.write("book.md", "".join(sections))
    report = site.ingest()
    assert report.updated == 1
    assert 1 <= report.work.encoded <= chunks // 8 + 1
    assert report.work.repainted >= 7  # with the time of the edit
    assert any("zebra" in text for text in site.texts("zebra"))
    assert not any("subject3" in text for text in site.texts("subject3"))


def test_a_deleted_file_disappears_and_comes_back(site: Site) -> None:
    path = site.write("gone.md", "The password policy changes monthly.")
    site.write("stays.md", "The coffee machine is on the second floor.")
    site.ingest()
    path.unlink()
    report = site.ingest()
    assert report.deleted == 1
    assert site.texts("password policy") == ["The coffee machine is on the second floor."]
    site.write("gone.md", "The password policy changes monthly.")
    assert site.ingest().added == 1
    assert "The password policy changes monthly." in site.texts("password policy")


def test_a_rename_encodes_nothing(site: Site) -> None:
    path = site.write("old.md", "# Leave\n\nParental leave lasts twelve weeks.\n")
    site.ingest()
    encoded = site.encoder.encoded
    path.rename(site.root / "new.md")
    report = site.ingest()
    assert (report.added, report.deleted, report.work.reused) == (1, 1, 1)
    assert site.encoder.encoded == encoded


def test_bad_files_are_reported_and_the_rest_goes_on(site: Site) -> None:
    site.write("good.md", "Good words stay.")
    site.write("empty.md", "")
    site.write("binary.dat2", bytes(range(256)) * 40)
    site.write("huge.txt", b"words and more words " * 100_000)
    site.write("broken.pdf", b"%PDF-1.7\nnothing of the kind")
    locked = site.write("locked.md", "nobody may read this")
    locked.chmod(0)
    readable_by_root = os.access(locked, os.R_OK)
    report = site.ingest()
    reasons = {failure.uri.rsplit("/", 1)[1]: failure.reason for failure in report.failed}
    assert report.added == 1 + readable_by_root
    assert "empty" in reasons["empty.md"]
    assert "binary" in reasons["binary.dat2"]
    assert "larger" in reasons["huge.txt"]
    assert reasons["broken.pdf"]
    assert readable_by_root or "Permission denied" in reasons["locked.md"]
    assert "Good words stay." in site.texts("good words")
    with site.open() as workspace, workspace.database.read() as connection:
        failed = documents.list_documents(connection, "default", state=DocumentState.FAILED)
    assert {document.uri.rsplit("/", 1)[1] for document in failed} == set(reasons) - {"locked.md"}
    assert all(document.error for document in failed)


def test_a_file_that_breaks_keeps_its_last_good_version(site: Site) -> None:
    site.write("page.md", "The office opens at nine.")
    site.ingest()
    site.write("page.md", "")
    assert [failure.reason for failure in site.ingest().failed] != []
    assert site.texts("office opens") == ["The office opens at nine."]
    site.write("page.md", "The office opens at nine.")
    again = site.ingest()
    assert (again.unchanged, again.failed) == (1, [])


def test_a_missing_path_changes_nothing(site: Site) -> None:
    site.write("a.md", "Something worth keeping.")
    site.ingest()
    with pytest.raises(InvalidInput, match="no such file or folder"):
        site.ingest(site.root, site.root / "missing")
    assert site.texts("keeping") == ["Something worth keeping."]


def test_an_emptied_folder_is_not_taken_for_a_deletion(site: Site) -> None:
    path = site.write("a.md", "Something worth keeping.")
    site.ingest()
    path.unlink()
    with pytest.raises(Conflict, match="--allow-empty"):
        site.ingest()
    assert site.texts("keeping") == ["Something worth keeping."]
    assert site.ingest(allow_empty=True).deleted == 1
    assert site.texts("keeping") == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_cannot_be_looked_at_is_not_deleted(site: Site) -> None:
    site.write("sub/a.md", "Behind a closed door.")
    site.write("b.md", "In the open.")
    site.ingest()
    (site.root / "sub").chmod(0)
    try:
        report = site.ingest()
    finally:
        (site.root / "sub").chmod(0o755)
    assert report.deleted == 0
    assert len(report.failed) == 1
    assert "Behind a closed door." in site.texts("door")


def test_json_lines_are_ready_text_and_bad_lines_are_named(site: Site) -> None:
    path = site.root / "feed.jsonl"
    records = [
        {"id": "one", "text": "Alpha particles are heavy.", "title": "Physics", "metadata": {"year": 2020}},
        {"id": "two", "text": "Beta particles are light."},
    ]
    path.write_text("\n".join([json.dumps(records[0]), "{broken", json.dumps(records[1])]))
    report = site.ingest(path)
    assert report.added == 2
    assert [failure.uri.rsplit("#", 1)[1] for failure in report.failed] == ["L2"]
    with site.open() as workspace:
        hits = workspace.retriever.search(Query(text="particles", filter={"metadata.year": 2020})).hits
    assert [(hit.title, hit.text) for hit in hits] == [("Physics", "Alpha particles are heavy.")]
    path.write_text(json.dumps(records[0]))
    assert site.ingest(path).deleted == 0, "a feed is not a mirror: what it no longer mentions stays"


def test_sources_do_not_touch_each_other(site: Site) -> None:
    site.write("x/a.md", "Documents of team X.")
    other = site.write("y/b.md", "Documents of team Y.")
    site.ingest(site.root / "x")
    site.ingest(site.root / "y")
    assert site.ingest(site.root / "x").deleted == 0
    other.unlink()
    assert site.ingest(site.root).deleted == 1, "the folder above sees what the folder below has lost"
    assert site.texts("team") == ["Documents of team X."]


def test_a_single_file_is_a_source(site: Site) -> None:
    path = site.write("only.md", "One page only.")
    site.write("other.md", "Not asked for.")
    assert site.ingest(path).added == 1
    assert site.texts("page") == ["One page only."]


def test_stopping_and_going_on(site: Site) -> None:
    for number in range(30):
        site.write(f"{number:02}.md", f"Document number{number} speaks.")
    stop = threading.Event()

    def watch(seen: int) -> None:
        stop.set()

    with site.open() as workspace:
        first = ingest(workspace, [site.root], watcher=Watcher(documents=watch), stop=stop)
        assert first.deleted == 0
    second = site.ingest()
    assert first.added + second.added == 30
    assert second.deleted == 0
    assert len(site.texts("document", k=50)) == 30


def test_a_run_beside_the_owner_is_indexed_by_the_owner(site: Site) -> None:
    site.write("first.md", "Known from the start.")
    site.ingest()
    site.write("second.md", "Came while the server ran.")
    with site.open() as owner, site.open() as visitor:
        owner.index(1)  # the server has the shard
        done = threading.Event()
        own = Indexer(owner)

        def work() -> None:
            while not done.is_set():
                if not own.step():
                    time.sleep(0.01)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            report = ingest(visitor, [site.root])
        finally:
            done.set()
            thread.join()
        assert report.added == 1
        assert report.work.encoded == 0, "the visitor must not have touched the index"
        assert all(lag.caught_up for lag in lags(owner))
        texts = [hit.text for hit in owner.retriever.search(Query(text="server ran")).hits]
    assert texts[0] == "Came while the server ran."


def test_the_index_is_taken_over_when_its_owner_dies(site: Site, tmp_path: Path) -> None:
    site.write("a.md", "Words of the first document.")
    site.ingest()
    name = EdgeStore(site.settings.home / "indexes").names()[0]
    program = (
        "import sys, pathlib\nfrom nvr_rag.stores.edge import EdgeStore\n"
        f"index = EdgeStore(pathlib.Path({str(site.settings.home / 'indexes')!r})).open({name!r})\n"
        "print('owned', flush=True)\nsys.stdin.read()\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    assert owner.stdin is not None
    assert owner.stdout.readline() == "owned\n"
    threading.Timer(0.5, owner.kill).start()
    site.write("b.md", "Words of the second document.")
    report = site.ingest()
    owner.communicate()
    assert report.work.encoded == 1
    assert len(site.texts("words")) == 2


def test_the_owner_verifies_and_repairs_on_request(site: Site) -> None:
    site.write("a.md", "Alpha words.")
    site.write("b.md", "Beta words.")
    site.ingest()
    with site.open() as workspace:
        index = workspace.index(1)
        first = next(index.points.scan())
        index.points.delete([first.id])
        job = jobs.enqueue(workspace.database, "verify", {"index_id": 1, "repair": True})
        assert JobLoop("owner", HANDLERS).step(workspace)
        result = jobs.get(workspace.database, job).result
        assert result is not None
        assert (result["missing"], result["repaired"], result["clean"]) == (1, True, True)
        assert index.points.count() == 2


def test_a_lost_index_is_rebuilt_from_the_log(site: Site) -> None:
    site.write("a.md", "Alpha words.")
    site.ingest()
    store = EdgeStore(site.settings.home / "indexes")
    store.drop(store.names()[0])
    with site.open() as workspace:
        job = jobs.enqueue(workspace.database, "verify", {"index_id": 1, "repair": True})
        JobLoop("owner", HANDLERS).step(workspace)
        result = jobs.get(workspace.database, job).result
        assert result is not None
        assert result["rebuilt"]
    assert site.texts("alpha") == ["Alpha words."]


def test_a_deleted_collection_leaves_no_index_behind(site: Site) -> None:
    from nvr_rag import collections

    site.write("a.md", "Alpha words.")
    site.ingest()
    with site.open() as workspace:
        workspace.index(1)
        with workspace.database.write() as connection:
            collections.remove(connection, "default")
        assert Indexer(workspace).step()
        assert workspace.store.names() == []


def test_what_a_round_writes_is_counted(site: Site) -> None:
    site.write("a.md", "Alpha words.")
    seen: list[int] = []
    progress: list[indexing.Progress] = []
    with site.open() as workspace:
        ingest(workspace, [site.root], watcher=Watcher(documents=seen.append, index=progress.append))
    assert seen[-1] == 1
    assert progress[-1].applied_seq == progress[-1].head_seq == 1


def test_nobody_waits_for_ever_for_an_owner_that_is_stuck(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catching_up, "STALLED_SECONDS", 1.0)
    site.write("a.md", "Words of the first document.")
    site.ingest()
    site.write("b.md", "Words of the second document.")
    with site.open() as owner:
        owner.index(1)  # and never indexes
        with site.open() as visitor, pytest.raises(StoreBusy, match="are stored"):
            ingest(visitor, [site.root])
    assert len(site.texts("words")) == 1
    site.ingest()
    assert len(site.texts("words")) == 2
