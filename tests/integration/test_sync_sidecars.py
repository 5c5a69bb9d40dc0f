"""Titles, metadata and permissions from files beside the documents: they count at once and cost no encoding, and what
cannot be understood never makes a document public."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ingest import reading
from nvr_rag.types import DocumentState
from nvr_rag.workspace import Workspace
from tests.integration.sync_support import InProcess, Share, counts


@pytest.fixture
def share(workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Share:
    monkeypatch.setattr(reading, "Sandbox", InProcess)
    monkeypatch.setattr(InProcess, "parsed", [])
    return Share(tmp_path / "share", workspace)


def say(share: Share, name: str, **said: Any) -> Path:
    return share.write(f"{name}.meta.json", json.dumps(said))


BOOK = "---\nauthor: Anna\nyear: 2001\n---\n# Leave\n\n" + "".join(
    f"## Part {n}\n\n" + f"Sentence {n} speaks of subject{n}. " * 20 for n in range(4)
)


def test_it_goes_before_what_the_document_says(share: Share) -> None:
    share.write("a.md", BOOK)
    say(share, "a.md", title="Days off", metadata={"year": 2024, "team": "hr"})
    report = share.sync()
    assert counts(report) == (1, 0, 0, 0, 0)
    assert report.skipped == {"is a sidecar": 1}
    stored = share.stored["a.md"]
    assert (stored.title, stored.metadata, stored.acl) == (
        "Days off",
        {"author": "Anna", "year": 2024, "team": "hr"},
        None,
    )
    assert share.texts("subject1", filter={"metadata.team": "hr"}) != []


def test_a_change_of_it_is_neither_parsed_nor_encoded(share: Share) -> None:
    share.write("a.md", BOOK)
    chunks = share.sync().work.chunks
    steps = (
        ({"metadata": {"year": 2024}}, {"author": "Anna", "year": 2024}, None),
        ({"metadata": {"year": 2025}}, {"author": "Anna", "year": 2025}, None),
        ({"metadata": {"year": 2025}, "acl": ["group:hr"]}, {"author": "Anna", "year": 2025}, ["group:hr"]),
        ({"metadata": {"year": 2025}, "acl": []}, {"author": "Anna", "year": 2025}, []),
    )
    for said, metadata, acl in steps:
        say(share, "a.md", **said)
        report = share.sync()
        assert (report.updated, report.restricted) == (1, int(acl is not None))
        assert (report.work.encoded, report.work.reused, report.work.repainted) == (0, 0, chunks)
        assert (share.stored["a.md"].metadata, share.stored["a.md"].acl) == (metadata, acl)
        assert counts(share.sync()) == (0, 0, 1, 0, 0)
    assert InProcess.parsed == ["a.md"]


def test_what_it_does_not_say_any_more_is_what_the_document_says(share: Share) -> None:
    share.write("a.md", BOOK)
    sidecar = say(share, "a.md", title="Days off", metadata={"year": 2024, "team": "hr"}, acl=["group:hr"])
    share.sync()
    say(share, "a.md", title="Days off", metadata={"team": "hr"}, acl=["group:hr"])
    report = share.sync()
    assert share.stored["a.md"].metadata == {"author": "Anna", "year": 2001, "team": "hr"}
    assert report.work.encoded == 0
    sidecar.unlink()
    share.sync()
    stored = share.stored["a.md"]
    assert (stored.title, stored.metadata, stored.acl) == ("Leave", {"author": "Anna", "year": 2001}, None)


def test_a_title_that_stays_the_same_costs_nothing(share: Share) -> None:
    share.write("a.md", BOOK)
    chunks = share.sync().work.chunks
    say(share, "a.md", title="Leave")
    assert share.sync().work.encoded == 0
    say(share, "a.md", title="Days off")
    report = share.sync()
    assert 0 < report.work.encoded <= chunks, "a title is a part of what is encoded"


def test_who_may_read_counts_at_once(share: Share) -> None:
    share.write("a.md", "# Pay\n\nSalaries of everybody.")
    share.write("b.md", "# Tea\n\nGreen tea.")
    share.sync()
    assert len(share.texts("salaries tea")) == 2
    say(share, "a.md", acl=["group:hr"])
    share.sync()
    assert share.texts("salaries") == ["Green tea."]
    say(share, "a.md", acl=None)
    share.sync()
    assert len(share.texts("salaries tea")) == 2


@pytest.mark.parametrize(
    "bad", ['{"acl": "group:hr"}', '{"acls": ["group:hr"]}', "{", '{"metadata": []}', '{"acl": ["x"], "metadata": 3}']
)
def test_one_that_is_not_as_it_should_be_never_makes_public(share: Share, bad: str) -> None:
    share.write("new.md", "Fresh secrets.")
    share.write("new.md.meta.json", bad)
    share.write("old.md", "Old secrets.")
    say(share, "old.md", acl=["group:hr"])
    share.write("good.md", "Good words.")
    assert counts(share.sync()) == (2, 0, 0, 0, 1)
    share.write("old.md.meta.json", bad)
    share.write("old.md", "New secrets.")
    report = share.sync()
    assert {one.uri.rsplit("/", 1)[1] for one in report.failed} == {"new.md", "old.md"}
    assert all("meta.json to go with it, which" in one.reason for one in report.failed)
    assert share.texts("secrets") == ["Good words."]
    stored = share.stored
    assert stored["new.md"].generation == 0
    assert (stored["old.md"].state, stored["old.md"].generation, stored["old.md"].acl) == (
        DocumentState.FAILED,
        1,
        ["group:hr"],
    )
    say(share, "new.md", acl=None)
    say(share, "old.md", acl=["group:hr"])
    assert counts(share.sync()) == (1, 1, 1, 0, 0)


def test_metadata_that_is_no_object_is_said_in_words(share: Share) -> None:
    share.write("a.md")
    say(share, "a.md", metadata=["x"])
    (failure,) = share.sync().failed
    assert failure.reason == 'has a.md.meta.json to go with it, which has "metadata" that is not an object'


def test_a_folder_says_it_for_everything_below(share: Share) -> None:
    share.write("a.md", "Open words.")
    share.write("hr/b.md", "Closed words.")
    share.write("hr/deep/c.md", "Deep words.")
    share.write("hr/.nvrmeta.yaml", "acl: [group:hr]\nmetadata: {team: hr}\n")
    say(share, "hr/deep/c.md", acl=None, metadata={"team": "all"})
    share.sync()
    stored = share.stored
    assert [stored[name].acl for name in ("a.md", "hr/b.md", "hr/deep/c.md")] == [None, ["group:hr"], None]
    assert stored["hr/deep/c.md"].metadata == {"team": "all"}
    assert set(share.texts("words")) == {"Open words.", "Deep words."}
    share.write("hr/.nvrmeta.yaml", "acl: group:hr\n")
    share.write("hr/new.md", "New words.")
    report = share.sync()
    assert counts(report) == (0, 0, 1, 0, 3)
    assert 'has .nvrmeta.yaml to go with it, which has an "acl" that is not a list' in report.failed[0].reason
    assert set(share.texts("words")) == {"Open words.", "Deep words."}


@pytest.mark.parametrize("path", ["hr", "hr/deep", "hr/deep/c.md"])
def test_it_holds_wherever_the_run_begins(share: Share, path: str) -> None:
    share.write("hr/deep/c.md", "Deep words.")
    share.write("hr/.nvrmeta.json", '{"acl": ["group:hr"]}')
    say(share, "hr/deep/c.md", metadata={"year": 1})
    share.sync(share.root / path)
    assert (share.stored["hr/deep/c.md"].acl, share.stored["hr/deep/c.md"].metadata) == (["group:hr"], {"year": 1})


def test_a_sidecar_without_its_document_is_no_document(share: Share) -> None:
    path = share.write("a.md")
    say(share, "a.md", acl=["group:hr"])
    share.write("b.md")
    share.sync()
    path.unlink()
    report = share.sync()
    assert (report.deleted, report.skipped) == (1, {"is a sidecar of nothing": 1})


def test_an_edit_keeps_what_is_said(share: Share) -> None:
    share.write("a.md", BOOK)
    say(share, "a.md", title="Days off", metadata={"team": "hr"}, acl=["group:hr"])
    share.sync()
    share.write("a.md", BOOK.replace("2001", "2002"))
    share.sync()
    stored = share.stored["a.md"]
    assert (stored.title, stored.metadata, stored.acl) == (
        "Days off",
        {"author": "Anna", "year": 2002, "team": "hr"},
        ["group:hr"],
    )


def test_lines_of_a_feed_say_it_themselves(share: Share, tmp_path: Path) -> None:
    feed = tmp_path / "feed.jsonl"
    records = [{"id": "a", "text": "Open."}, {"id": "b", "text": "Closed.", "acl": ["group:hr"]}]
    feed.write_text("\n".join(map(json.dumps, records)))
    report = share.sync(feed)
    assert (report.added, report.restricted) == (2, 1)
    assert share.texts("open closed") == ["Open."]
    assert share.stored["b"].acl == ["group:hr"]
    (tmp_path / "feed.jsonl.meta.json").write_text('{"acl": ["group:hr"]}')
    with pytest.raises(Exception, match=r"feed.jsonl.meta.json lies beside .*feed.jsonl, whose lines"):
        share.sync(feed)
