"""Which files need not be read again, and what a run remembers of the documents."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from ingest.folders.ledger import Ledger
from ingest.folders.stamps import RACY_NS, FileState, Stamps
from nvr_rag.documents import Known
from nvr_rag.types import DocumentState

NOW = 10**18
STATE = FileState(device=1, inode=2, size=3, mtime_ns=NOW - 2 * RACY_NS, ctime_ns=NOW - 2 * RACY_NS)
PATH, HASH = Path("/srv/a.md"), "0" * 64


def test_what_is_kept_is_known_by_whoever_comes_next(tmp_path: Path) -> None:
    stamps = Stamps(tmp_path / "stamps", "file:///srv")
    assert not stamps.knows(PATH, STATE, HASH)
    stamps.keep(PATH, STATE, HASH, NOW)
    stamps.save(complete=True)
    again = Stamps(tmp_path / "stamps", "file:///srv")
    assert again.knows(PATH, STATE, HASH)
    assert not Stamps(tmp_path / "stamps", "file:///other").knows(PATH, STATE, HASH)


@pytest.mark.parametrize("field", FileState._fields)
def test_whatever_differs_makes_another_file_of_it(tmp_path: Path, field: str) -> None:
    stamps = Stamps(tmp_path, "file:///srv")
    stamps.keep(PATH, STATE, HASH, NOW)
    stamps.save(complete=True)
    again = Stamps(tmp_path, "file:///srv")
    assert not again.knows(PATH, STATE._replace(**{field: 7}), HASH)
    assert not again.knows(Path("/srv/b.md"), STATE, HASH)
    assert not again.knows(PATH, STATE, "1" * 64)


@pytest.mark.parametrize("field", ["mtime_ns", "ctime_ns"])
def test_what_was_written_just_before_it_was_read_is_not_kept(tmp_path: Path, field: str) -> None:
    for age, kept in ((RACY_NS + 1, True), (RACY_NS, False), (0, False), (-RACY_NS, False)):
        state = STATE._replace(**{field: NOW - age})
        stamps = Stamps(tmp_path / str(age), "file:///srv")
        stamps.keep(PATH, state, HASH, NOW)
        stamps.save(complete=True)
        assert Stamps(tmp_path / str(age), "file:///srv").knows(PATH, state, HASH) is kept


def test_a_complete_run_forgets_what_has_gone_and_one_that_was_stopped_does_not(tmp_path: Path) -> None:
    paths = [Path(f"/srv/{number}") for number in range(1000)]

    def known() -> list[bool]:
        stamps = Stamps(tmp_path, "file:///srv")
        return [stamps.knows(path, STATE, HASH) for path in paths]

    first = Stamps(tmp_path, "file:///srv")
    for path in paths[:900]:
        first.keep(path, STATE, HASH, NOW)
    first.save(complete=True)
    assert known() == [True] * 900 + [False] * 100
    stopped = Stamps(tmp_path, "file:///srv")
    stopped.keep(paths[950], STATE, HASH, NOW)
    stopped.save(complete=False)
    assert sum(known()) == 901
    last = Stamps(tmp_path, "file:///srv")
    assert all(last.knows(path, STATE, HASH) for path in paths[:10])
    last.save(complete=True)
    assert known() == [True] * 10 + [False] * 990


def test_a_file_of_stamps_that_is_damaged_is_no_file(tmp_path: Path) -> None:
    stamps = Stamps(tmp_path, "file:///srv")
    stamps.keep(PATH, STATE, HASH, NOW)
    stamps.save(complete=True)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-1])
    assert not Stamps(tmp_path, "file:///srv").knows(PATH, STATE, HASH)
    assert b"srv" not in file.read_bytes()


def known(name: str, acl: tuple[str, ...] | None = None) -> Known:
    return Known(
        uri=f"file:///srv/{name}",
        document_id=f"id of {name}",
        sha256=HASH,
        parser="p",
        state=DocumentState.FAILED,
        error="is empty",
        source="file:///srv",
        acl=acl,
    )


def test_a_ledger_gives_back_what_it_was_given_and_then_what_was_not_seen() -> None:
    stored = [known("b", ("x", "y")), known("a"), known("c", ()), known("a")]
    with closing(Ledger(stored)) as ledger:
        assert ledger.see("file:///srv/b") == stored[0]
        assert ledger.see("file:///srv/new") is None
        assert list(ledger.unseen()) == [stored[1], stored[2]]
