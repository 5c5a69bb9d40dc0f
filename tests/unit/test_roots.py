"""Which paths may be ingested: what lies outside is refused in one way, however it is written and whatever is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from nvr_rag import roots
from nvr_rag.errors import Conflict, InvalidInput


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "inside" / "handbook").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.txt").write_text("secret", encoding="utf-8")
    (tmp_path / "inside" / "out").symlink_to(tmp_path / "outside")
    (tmp_path / "inside" / "in").symlink_to(tmp_path / "inside" / "handbook")
    (tmp_path / "inside" / "loop").symlink_to(tmp_path / "inside" / "loop")
    (tmp_path / "inside-not").mkdir()
    (tmp_path / "door").symlink_to(tmp_path / "inside")
    return tmp_path


@pytest.mark.parametrize("path", ["", "/", "/handbook", "/in", "/missing", "/handbook/../handbook", "/in/../handbook"])
def test_what_lies_inside_is_allowed(place: Path, path: str) -> None:
    found = roots.allowed(f"{place}/inside{path}", [place / "elsewhere", place / "inside"])
    assert found.is_relative_to(place / "inside")
    assert ".." not in found.parts


def test_links_are_kept_in_the_name_where_nothing_has_to_be_resolved(place: Path) -> None:
    assert roots.allowed(f"{place}/door//handbook/.", [place / "door"]) == place / "door" / "handbook"
    assert roots.allowed(f"{place}/inside/in", [place / "door"]) == place / "inside" / "in"  # the root is a link itself
    # A link and a step back lead to where the link leads.
    assert roots.allowed(f"{place}/door/in/../handbook", [place / "inside"]) == place / "inside" / "handbook"


@pytest.mark.parametrize(
    "path",
    [
        "/outside",
        "/outside/secret.txt",
        "/outside/missing.txt",
        "/inside/../outside/secret.txt",
        "/inside/out",
        "/inside/out/secret.txt",
        "/inside/out/missing.txt",
        "/inside-not",
        "",
        "/..",
        "/inside/\x00",
        "/outside/" + "x" * 5000,
        "/outside/\ud800",
    ],
)
def test_what_lies_outside_is_refused_in_the_same_words(place: Path, path: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        roots.allowed(f"{place}{path}", [place / "inside"])
    assert refused.value.field == "path"
    assert str(refused.value) == (
        "path is not inside a folder that may be ingested (NVR_INGEST__ROOTS on the server says which)"
    )


@pytest.mark.parametrize("path", ["handbook", "./handbook", "../x", "~/handbook"])
def test_a_relative_path_is_refused(place: Path, path: str) -> None:
    with pytest.raises(InvalidInput, match="absolute path"):
        roots.allowed(path, [place / "inside"])


def test_without_a_root_nothing_is_allowed_and_how_to_allow_something_is_said(place: Path) -> None:
    with pytest.raises(Conflict, match=r"NVR_INGEST__ROOTS=/srv/documents"):
        roots.allowed(f"{place}/inside", [])
