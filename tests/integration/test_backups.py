"""Backups and what becomes of them: everything is there again, in either database, or nothing is changed."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, select, update

from nvr_rag import corpus, idempotency, jobs, uploads
from nvr_rag.access.callers import Scope
from nvr_rag.backups import manifest as manifests
from nvr_rag.backups import restoring, tables, taking
from nvr_rag.backups.restoring import restore
from nvr_rag.backups.taking import back_up
from nvr_rag.db import tables as t
from nvr_rag.db.session import Database
from nvr_rag.errors import ConfigurationError, Conflict, InvalidInput, NvrError
from nvr_rag.running import processes
from nvr_rag.settings import QdrantSettings, Settings
from nvr_rag.testing import HashEncoder, MemoryStore
from nvr_rag.types import Query
from nvr_rag.workspace import Workspace
from tests import engines
from tests.integration.key_support import make_key
from tests.integration.transfer_support import catch_up, fill, lines
from tests.support import House, document

FINGERPRINT = "f" * 64


@pytest.fixture(params=engines.ENGINES)
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Settings]:
    """The settings of an installation that has never been started, on each kind of database."""
    home = tmp_path / "restored"
    if request.param == "postgresql":
        engines.new_home(home)
    yield Settings(**{"database_url": None, **engines.options_of(home)})  # whatever the environment says
    engines.forget(tmp_path)


@pytest.fixture(scope="module")
def full_home(furnished_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A data folder with everything in it, a model and a finished lap; to be copied."""
    home = engines.copy_home(furnished_home, tmp_path_factory.mktemp("full") / "home")
    house = House(home)
    fill(house.workspace, "default", 1, count=12)
    _add_model(house)
    _add_laps(home)
    jobs.enqueue(house.database, "verify", {"index": 1})
    make_key(house.workspace, Scope.SEARCH, collections=["default"], principals=["group:sea"])
    house.close()
    yield home
    engines.forget(home)


@pytest.fixture(scope="module")
def good(full_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backup of it; to be copied by whoever changes it."""
    house = House(full_home)
    folder = tmp_path_factory.mktemp("good") / "backup"
    back_up(house.workspace, folder)
    house.close()
    return folder


@pytest.fixture
def full(full_home: Path, tmp_path: Path) -> Iterator[House]:
    house = House(engines.copy_home(full_home, tmp_path / "full"))
    yield house
    house.close()
    engines.forget(tmp_path)


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    """A backup of this test's own."""
    return Path(shutil.copytree(good, tmp_path / "backup"))


def _add_model(house: House) -> None:
    model = house.home / "models" / FINGERPRINT
    (model / "1_Pooling").mkdir(parents=True)
    (model / "model.safetensors").write_bytes(os.urandom(5000))
    (model / "1_Pooling" / "config.json").write_text("{}")
    with house.database.write() as connection:
        [base] = connection.scalars(select(t.EncoderVersion.fingerprint)).all()
        row = {"source": f"models/{FINGERPRINT}", "spec": {"dimension": 8}, "tokenizer": "t", "parent": base}
        connection.execute(insert(t.EncoderVersion).values(fingerprint=FINGERPRINT, **row))
        connection.execute(insert(t.Evaluation).values(encoder=FINGERPRINT, data={"ü": 1}, measures={"ndcg": 0.5}))


def _add_laps(home: Path) -> None:
    (home / "runs" / "lap-1" / "steps").mkdir(parents=True)
    for name in ("report.json", "report.html", "config.json", "steps/judge.json", "queries.jsonl"):
        (home / "runs" / "lap-1" / name).write_text(f"{name} of lap-1")
    (home / "runs" / "lap-2").mkdir()
    (home / "runs" / "lap-2" / "config.json").write_text("at work")


def rows(database: Database) -> dict[str, list[dict[str, Any]]]:
    """All rows of all tables that a backup has, in one order."""
    with database.read() as connection:
        return {
            table.name: sorted((dict(row) for row in connection.execute(select(table)).mappings()), key=repr)
            for table in tables.kept_tables()
        }


def opened(settings: Settings) -> Workspace:
    return Workspace(settings, store=MemoryStore(), encoder=HashEncoder())


def test_every_row_and_file_is_there_again(full: House, empty: Settings, folder: Path, tmp_path: Path) -> None:
    before, exported = rows(full.database), lines(full.database)
    assert [name for name, found in before.items() if not found] == ["erasure"]

    restore(empty, folder)

    with opened(empty) as workspace:
        after = rows(workspace.database)
        [index] = after.pop("search_index")
        [old] = before.pop("search_index")
        assert after == before
        assert lines(workspace.database) == exported
    head = before["collection"][0]["next_seq"] - 1
    changed = {"name": index["name"], "applied_seq": 0, "purged_seq": 0, "rebuilt_to": head}
    assert index == {**old, **changed}
    assert index["name"] != old["name"]
    for name in ("model.safetensors", "1_Pooling/config.json"):
        restored = (empty.home / "models" / FINGERPRINT / name).read_bytes()
        assert restored == (full.home / "models" / FINGERPRINT / name).read_bytes()
    kept = sorted(str(path.relative_to(empty.home)) for path in (empty.home / "runs").rglob("*") if path.is_file())
    names = ("config.json", "report.html", "report.json", "steps/judge.json")
    assert kept == [f"runs/lap-1/{name}" for name in names]
    assert not list(empty.home.glob(".*"))


def test_what_was_restored_is_found_once_it_is_indexed(house: House, empty: Settings, tmp_path: Path) -> None:
    house.put(document("tea", "green tea is hot\n\nblue whale"), document("sea", "blue sea"))
    house.catch_up()
    found = [(hit.chunk_id, hit.score) for hit in house.hits("green tea")]
    back_up(house.workspace, tmp_path / "backup")
    restore(empty, tmp_path / "backup")
    with opened(empty) as workspace:
        with pytest.raises(NvrError, match="being built again"):
            workspace.retriever.search(Query(text="green tea"))
        catch_up(workspace, "default")
        again = workspace.retriever.search(Query(text="green tea")).hits
        assert [(hit.chunk_id, hit.score) for hit in again] == found


def test_uploads_that_wait_are_not_in_a_backup_and_their_jobs_say_so(
    house: House, empty: Settings, tmp_path: Path
) -> None:
    new = {"file": "f", "name": "a.txt", "media_type": "", "sha256": "0" * 64, "metadata": {}}
    with house.database.write() as connection:
        waits = uploads.accept(connection, "default", "mark", [uploads.NewUpload(uri="a", **new)])
        runs = uploads.accept(connection, "default", "mark", [uploads.NewUpload(uri="b", **new)])
        idempotency.begin(connection, "k", "f")
    assert jobs.claim(house.database, "worker", [uploads.KIND], job_id=runs) is not None
    back_up(house.workspace, tmp_path / "backup")
    restore(empty, tmp_path / "backup")
    with opened(empty) as workspace:
        for job_id in (waits, runs):
            job = jobs.get(workspace.database, job_id)
            assert (job.state, "upload it again" in str(job.error)) == ("failed", True)
        with workspace.database.read() as connection:
            assert connection.scalars(select(t.Upload)).all() == connection.scalars(select(t.Idempotency)).all() == []


def test_numbers_go_on_after_those_that_were_restored(
    full: House, empty: Settings, folder: Path, tmp_path: Path
) -> None:
    restore(empty, folder)
    before = rows(full.database)
    with opened(empty) as workspace:
        made = workspace.create_collection("second")
        with workspace.database.write() as connection:
            corpus.put(connection, "default", [document("new", "new text")])
            corpus.put(connection, "second", [document("new", "new text")])
            connection.execute(insert(t.Evaluation).values(encoder=FINGERPRINT, data={}, measures={}))
            judged = {"origin": "o", "query_key": "k", "query": "q", "grade": 1}
            key = before["document"][0]["id"]
            connection.execute(insert(t.JudgmentRow).values(collection_id=1, document_id=key, **judged))
            said = {"kind": "click", "user": "new"}
            connection.execute(insert(t.FeedbackRow).values(query_id=before["query"][0]["id"], **said))
        jobs.enqueue(workspace.database, "verify", {"index": 2})
        after = rows(workspace.database)
    assert made == 2
    for name in ("document_version", "evaluation", "judgment", "feedback", "job", "search_index", "deployment"):
        old, new = ({row["id"] for row in found[name]} for found in (before, after))
        assert old < new, name
        assert min(new - old) == max(old) + 1, name


def test_there_and_back_again(full: House, empty: Settings, folder: Path, tmp_path: Path) -> None:
    exported = lines(full.database)
    restore(empty, folder)
    home = tmp_path / "third"
    if engines.url_of(full.home) is not None:
        engines.new_home(home)
    settings = Settings(**{"database_url": None, **engines.options_of(home)})
    with opened(empty) as workspace:
        back_up(workspace, tmp_path / "second")
    restore(settings, tmp_path / "second")
    with opened(settings) as workspace:
        assert lines(workspace.database) == exported
        names = {"search_index"}
        mine, theirs = rows(workspace.database), rows(full.database)
        assert {k: v for k, v in mine.items() if k not in names} == {k: v for k, v in theirs.items() if k not in names}


def test_a_backup_while_documents_come_and_go(house: House, empty: Settings, tmp_path: Path) -> None:
    house.put(*(document(f"old/{n}", f"old text {n}") for n in range(50)))
    house.catch_up()
    stop, errors = threading.Event(), list[BaseException]()
    acknowledged: list[str] = []

    def work(act: Any) -> threading.Thread:
        def forever() -> None:
            n = 0
            while not stop.is_set():
                try:
                    act(n)
                except BaseException as error:
                    errors.append(error)
                    return
                n += 1

        thread = threading.Thread(target=forever)
        thread.start()
        return thread

    def put(n: int) -> None:
        house.put(document(f"new/{n}a", f"first of {n}"), document(f"new/{n}b", f"second of {n}"))
        acknowledged.append(f"new/{n}a")

    def delete(n: int) -> None:
        if n < 20:
            house.delete(f"old/{n}")
        stop.wait(0.005)

    def search(_n: int) -> None:
        assert house.hits("old text")

    def index(_n: int) -> None:
        house.catch_up()

    threads = [work(act) for act in (put, delete, search, index)]
    try:
        while len(acknowledged) < 3:
            stop.wait(0.01)
        before = list(acknowledged)
        back_up(house.workspace, tmp_path / "backup")
        while len(acknowledged) < len(before) + 2:
            stop.wait(0.01)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert errors == []

    restore(empty, tmp_path / "backup")

    with opened(empty) as workspace:
        catch_up(workspace, "default")
        with workspace.database.read() as connection:
            live = {row.uri for row in connection.execute(select(t.Document.uri).where(t.Document.state == "ready"))}
            head = connection.scalar(select(t.Collection.next_seq))
            seqs = connection.scalars(select(t.Change.seq).order_by(t.Change.seq)).all()
        assert set(before) <= live
        assert seqs == list(range(1, head or 0))  # no change is missing, and none is half
        assert {
            f"{uri[:-1]}b" for uri in live if uri.startswith("new/")
        } <= live  # what was put together is there together
        assert {f"old/{n}" for n in range(20, 50)} <= live
        for uri in before[:3]:
            number = uri.removeprefix("new/").removesuffix("a")
            hits = workspace.retriever.search(Query(text=f"first of {number}", k=1)).hits
            assert hits[0].uri == uri


def test_work_that_somebody_was_at_waits_again(full: House, empty: Settings, tmp_path: Path) -> None:
    with full.database.write() as connection:
        lease = {"state": "running", "worker": "w", "lease_until": t.now(), "attempts": 1}
        connection.execute(update(t.Job).values(**lease))
    back_up(full.workspace, tmp_path / "made")
    restore(empty, tmp_path / "made")
    with opened(empty) as workspace:
        [job] = rows(workspace.database)["job"]
    assert (job["state"], job["worker"], job["lease_until"], job["attempts"]) == ("queued", None, None, 1)


def test_nothing_is_restored_over_something(full: House, empty: Settings, folder: Path, tmp_path: Path) -> None:
    with opened(empty) as workspace:
        workspace.create_collection("mine")
        before = rows(workspace.database)
    with pytest.raises(Conflict, match="data here already"):
        restore(empty, folder)
    with opened(empty) as workspace:
        assert rows(workspace.database) == before
    assert not (empty.home / "models").exists()


def test_an_installation_that_was_started_and_never_used_is_empty(
    full: House, empty: Settings, folder: Path, tmp_path: Path
) -> None:
    opened(empty).close()
    restore(empty, folder)
    with opened(empty) as workspace:
        assert len(rows(workspace.database)["collection"]) == 1


def test_not_below_a_running_server(full: House, empty: Settings, folder: Path, tmp_path: Path) -> None:
    with opened(empty) as workspace:
        processes.announce(workspace.database, "serve")
        with pytest.raises(Conflict, match="stop it"):
            restore(empty, folder)
        assert not any(rows(workspace.database).values())


def test_a_backup_that_was_never_finished(
    full: House, empty: Settings, folder: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    unfinished = tmp_path / "unfinished"

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(taking, "_copy", killed)
    with pytest.raises(KeyboardInterrupt):
        back_up(full.workspace, unfinished)
    assert (unfinished / "tables").exists()
    with pytest.raises(InvalidInput, match="never finished"):
        restore(empty, unfinished)
    with pytest.raises(ConfigurationError, match="never finished"):
        back_up(full.workspace, unfinished)
    assert not empty.home.exists()


@pytest.mark.parametrize(
    "file", ["tables/document.jsonl.gz", f"models/{FINGERPRINT}/model.safetensors", "manifest.json"]
)
@pytest.mark.parametrize("how", ["flipped", "cut", "gone"])
def test_a_damaged_backup_changes_nothing(folder: Path, tmp_path: Path, file: str, how: str) -> None:
    path = folder / file
    content = bytearray(path.read_bytes())
    if how == "flipped":
        at = content.index(b'"rows": 1') + 8 if file == "manifest.json" else len(content) // 2
        content[at] ^= 1
        path.write_bytes(content)
    elif how == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        path.unlink()
    settings = Settings(home=tmp_path / "restored")
    with pytest.raises(InvalidInput, match=r"damaged|never finished"):
        restore(settings, folder)
    assert not settings.home.exists()


def test_a_backup_of_a_newer_release(full: House, empty: Settings, folder: Path, tmp_path: Path) -> None:
    _rewrite(folder, version=2)
    with pytest.raises(InvalidInput, match="upgrade"):
        restore(empty, folder)
    _rewrite(folder, version=1, schema="9999")
    with pytest.raises(InvalidInput, match="upgrade"):
        restore(empty, folder)
    assert not empty.home.exists()


def _rewrite(folder: Path, **changes: Any) -> None:
    """Change a manifest as another release would have written it."""
    content = json.loads((folder / "manifest.json").read_text())
    del content["sha256"]
    content |= changes
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    content["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(content))


@pytest.mark.parametrize("path", ["../evil", "/etc/evil", "models/../../evil", "other/evil"])
def test_a_manifest_cannot_write_elsewhere(
    full: House, empty: Settings, folder: Path, tmp_path: Path, path: str
) -> None:
    _rewrite(folder, files=[{"path": path, "bytes": 1, "sha256": "0" * 64}])
    with pytest.raises(InvalidInput, match="no part of a backup"):
        restore(empty, folder)


def test_a_row_that_is_refused_leaves_nothing_and_the_next_try_succeeds(
    full: House, empty: Settings, folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "good")
    path = folder / "tables/judgment.jsonl.gz"
    content = gzip.decompress(path.read_bytes()).decode().split("\n")
    row = json.loads(content[1])
    row[json.loads(content[0]).index("grade")] = -1
    path.write_bytes(gzip.compress("\n".join([content[0], json.dumps(row), *content[2:]]).encode()))
    entry = json.loads((folder / "manifest.json").read_text())["tables"]
    entry["judgment"]["file"]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    _rewrite(folder, tables=entry)
    with pytest.raises(ConfigurationError, match="judgment"):
        restore(empty, folder)
    with opened(empty) as workspace:
        assert not any(rows(workspace.database).values())
    assert not (empty.home / "models").exists()
    assert not list(empty.home.glob(".*"))

    restore(empty, tmp_path / "good")

    with opened(empty) as workspace:
        assert lines(workspace.database) == lines(full.database)


def test_a_crash_before_the_commit_leaves_an_empty_database_and_the_next_try_succeeds(
    full: House, empty: Settings, folder: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    give = restoring._give_names

    def crash(*arguments: Any) -> None:
        give(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(restoring, "_give_names", crash)
    with pytest.raises(KeyboardInterrupt):
        restore(empty, folder)
    monkeypatch.setattr(restoring, "_give_names", give)
    with opened(empty) as workspace:
        assert not any(rows(workspace.database).values())
    restore(empty, folder)
    assert (empty.home / "models" / FINGERPRINT / "model.safetensors").exists()


def test_a_folder_that_is_not_empty(full: House, folder: Path, tmp_path: Path) -> None:
    before = (folder / "manifest.json").read_bytes()
    with pytest.raises(ConfigurationError, match="not empty"):
        back_up(full.workspace, folder)
    assert (folder / "manifest.json").read_bytes() == before
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError):
        back_up(full.workspace, tmp_path / "file")


def test_a_disk_that_is_too_small(full: House, empty: Settings, folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("nvr_rag.disk.free", lambda _folder: 1000)
    with pytest.raises(ConfigurationError, match="are free"):
        back_up(full.workspace, tmp_path / "second")
    with pytest.raises(ConfigurationError, match="are free"):
        restore(empty, folder)
    assert not empty.home.exists()


def test_a_disk_that_is_full(full: House, tmp_path: Path, monkeypatch: Any) -> None:
    def no_room(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nvr_rag.backups.taking.os.fsync", no_room)
    with pytest.raises(ConfigurationError, match="No space left"):
        back_up(full.workspace, tmp_path / "made")
    assert not (tmp_path / "made" / "manifest.json").exists()


def test_only_this_user_can_read_it_and_no_secret_is_in_it(full: House, tmp_path: Path) -> None:
    qdrant = QdrantSettings(url="http://127.0.0.1:1", api_key="a-secret-key")  # type: ignore[arg-type]
    settings = Settings(**engines.options_of(full.home), qdrant=qdrant)
    with Workspace(settings, store=MemoryStore(), encoder=HashEncoder()) as workspace:
        back_up(workspace, tmp_path / "made")
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "made").rglob("*") if path.is_file()}
    folders = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "made").rglob("*") if path.is_dir()}
    assert (modes, folders) == ({0o600}, {0o700})
    for path in (tmp_path / "made").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            content = gzip.decompress(content) if path.suffix == ".gz" else content
            assert b"a-secret-key" not in content
            assert b"postgresql://" not in content


def test_a_model_whose_files_are_gone_is_told_of(full: House, empty: Settings, folder: Path, tmp_path: Path) -> None:
    shutil.rmtree(full.home / "models")
    made = back_up(full.workspace, tmp_path / "made")
    assert made.missing == (FINGERPRINT,)
    assert manifests.read(tmp_path / "made").missing == [FINGERPRINT]
    restore(empty, tmp_path / "made")
