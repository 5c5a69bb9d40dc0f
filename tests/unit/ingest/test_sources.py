from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.folders.stamps import FileState
from ingest.sources import Skipped, SourceFile, path_to_uri, uri_to_path, walk
from nvr_rag.errors import InvalidInput


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("words")


def found(root: Path) -> list[str]:
    return [str(entry.path.relative_to(root)) for entry in walk(root) if isinstance(entry, SourceFile)]


def skipped(root: Path) -> dict[str, str]:
    return {str(entry.path.relative_to(root)): entry.reason for entry in walk(root) if isinstance(entry, Skipped)}


class TestWalk:
    def test_files_come_in_the_order_of_their_bytes(self, tmp_path: Path) -> None:
        touch(tmp_path, "b.md", "a/z.md", "a/B.md", "a/b/c.txt", "é.md", "Z.md")
        assert found(tmp_path) == ["Z.md", "a/B.md", "a/b/c.txt", "a/z.md", "b.md", "é.md"]

    def test_a_file_says_what_it_is(self, tmp_path: Path) -> None:
        touch(tmp_path, "my notes.md")
        os.utime(tmp_path / "my notes.md", ns=(5, 1234567890123456789))
        expected = SourceFile(
            path=tmp_path / "my notes.md",
            uri=f"file://{tmp_path}/my%20notes.md",
            state=FileState.of(os.stat(tmp_path / "my notes.md")),
        )
        assert (expected.state.size, expected.state.mtime_ns) == (5, 1234567890123456789)
        assert list(walk(tmp_path)) == [expected]
        assert list(walk(tmp_path / "my notes.md")) == [expected]

    def test_an_empty_folder_yields_nothing_and_a_missing_one_is_an_error(self, tmp_path: Path) -> None:
        assert list(walk(tmp_path)) == []
        with pytest.raises(InvalidInput, match=r"nowhere: there is no such file or folder; give the path"):
            list(walk(tmp_path / "nowhere"))

    def test_what_is_passed_over_is_reported(self, tmp_path: Path) -> None:
        touch(
            tmp_path, ".git/config", ".env", "a.md", "b.PNG", "c.zip", "~$d.docx", "e.tmp", "f.md~", ".g.md.swp", "h.so"
        )
        assert found(tmp_path) == ["a.md"]
        assert skipped(tmp_path) == {
            ".git": "is hidden",
            ".env": "is hidden",
            ".g.md.swp": "is hidden",
            "b.PNG": "is an image",
            "c.zip": "is an archive",
            "~$d.docx": "is a temporary or backup file",
            "e.tmp": "is a temporary or backup file",
            "f.md~": "is a temporary or backup file",
            "h.so": "is a program or library",
        }

    def test_links_cannot_lead_out_or_into_a_loop(self, tmp_path: Path) -> None:
        root, outside = tmp_path / "root", tmp_path / "root-secret"
        touch(root, "sub/a.md")
        touch(outside, "secret.md")
        (root / "inner.md").symlink_to(root / "sub" / "a.md")
        (root / "outer.md").symlink_to(outside / "secret.md")
        (root / "broken.md").symlink_to(root / "nowhere.md")
        (root / "sub" / "loop").symlink_to(root)
        (root / "self.md").symlink_to(root / "self.md")
        assert found(root) == ["inner.md", "sub/a.md"]
        reasons = skipped(root)
        assert reasons.pop("self.md").startswith(("is a broken symbolic link", "cannot be read"))
        assert reasons == {
            "outer.md": "is a symbolic link that leads out of the folder",
            "broken.md": "is a broken symbolic link",
            "sub/loop": "is a symbolic link to a folder",
        }

    def test_a_root_behind_a_link_keeps_the_name_the_user_gave(self, tmp_path: Path) -> None:
        touch(tmp_path / "real", "a.md")
        (tmp_path / "link").symlink_to(tmp_path / "real")
        assert [entry.uri for entry in walk(tmp_path / "link") if isinstance(entry, SourceFile)] == [
            f"file://{tmp_path}/link/a.md"
        ]

    def test_a_relative_root_gives_absolute_uris(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        touch(tmp_path, "docs/a.md")
        monkeypatch.chdir(tmp_path / "docs")
        for root in (Path("."), Path("../docs")):
            assert [getattr(entry, "uri", "") for entry in walk(root)] == [f"file://{tmp_path}/docs/a.md"]

    def test_special_files_do_not_block(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe.md")
        assert skipped(tmp_path) == {"pipe.md": "is not a regular file (a pipe, socket or device)"}

    def test_unreadable_folders_and_files_are_reported_as_such(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        touch(tmp_path, "a.md", "locked/b.md", "z.md")
        listdir, access = os.listdir, os.access

        def refusing_listdir(path: str) -> object:  # root may read everything, so permissions alone prove nothing
            if Path(path).name == "locked":
                raise PermissionError(13, "Permission denied")
            return listdir(path)

        monkeypatch.setattr(os, "listdir", refusing_listdir)
        monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "a.md" and access(path, mode))
        entries = list(walk(tmp_path))
        denied = "cannot be read: Permission denied"
        assert entries[:2] == [
            Skipped(path=tmp_path / "a.md", reason=denied, unreadable=True),
            Skipped(path=tmp_path / "locked", reason=denied, unreadable=True),
        ]
        assert [entry.path.name for entry in entries[2:]] == ["z.md"]

    def test_odd_names(self, tmp_path: Path) -> None:
        folder = os.fsencode(tmp_path)
        for name in (b"new\nline.md", b"\xff\xfe.md", b"100% #1?.md"):
            with open(folder + b"/" + name, "wb") as file:
                file.write(b"x")
        entries = [entry for entry in walk(tmp_path) if isinstance(entry, SourceFile)]
        assert [entry.uri.rsplit("/", 1)[1] for entry in entries] == [
            "100%25%20%231%3F.md",
            "new%0Aline.md",
            "%FF%FE.md",
        ]
        assert [uri_to_path(entry.uri) for entry in entries] == [entry.path for entry in entries]

    def test_folders_deeper_than_the_recursion_limit(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        depth = sys.getrecursionlimit() + 10
        monkeypatch.chdir(tmp_path)
        for _ in range(depth):
            os.mkdir("d")
            os.chdir("d")
        Path("a.md").write_text("x")
        assert [entry.path for entry in walk(tmp_path)] == [tmp_path.joinpath(*["d"] * depth, "a.md")]
        os.unlink("a.md")
        for _ in range(depth):  # shutil, which cleans up for pytest, is recursive
            os.chdir("..")
            os.rmdir("d")


names = st.binary(min_size=1, max_size=20).filter(
    lambda name: b"/" not in name and b"\x00" not in name and name not in (b".", b"..")
)


class TestUris:
    @given(st.lists(names, max_size=4))
    def test_round_trip(self, parts: list[bytes]) -> None:
        path = Path(os.fsdecode(b"/" + b"/".join(parts)))
        uri = path_to_uri(path)
        assert uri.isascii()
        assert uri_to_path(uri) == path

    @pytest.mark.parametrize(
        "uri", ["https://a.example/b", "file://host/a", "relative", "file:a", "file:///a?b", "file:///%00"]
    )
    def test_other_uris_are_refused(self, uri: str) -> None:
        with pytest.raises(InvalidInput):
            uri_to_path(uri)
