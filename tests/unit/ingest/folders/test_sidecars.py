"""What is said of documents in files beside them: read strictly, because who may read a document depends on it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from ingest.folders.sidecars import (
    NOTHING,
    Description,
    described,
    document_of,
    folder_says,
    folders_above_say,
    sidecars_of,
)
from ingest.folders.small_files import Unusable


def said(tmp_path: Path, content: str | bytes | dict[str, Any], ending: str = ".meta.json") -> Description:
    if isinstance(content, dict):
        content = json.dumps(content)
    path = tmp_path / f"report.pdf{ending}"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return described(tmp_path / "report.pdf", sidecars_of("report.pdf", os.listdir(tmp_path)))


def test_everything_that_can_be_said(tmp_path: Path) -> None:
    full = {"title": " A \n title", "metadata": {"year": 2024, "tags": ["x"]}, "acl": ["b", "a", "b"]}
    expected = Description(title="A title", metadata={"year": 2024, "tags": ["x"]}, acl=("a", "b"), restricts=True)
    assert said(tmp_path, full) == expected
    (tmp_path / "report.pdf.meta.json").unlink()
    yaml = "title: A title\nmetadata:\n  year: 2024\n  tags: [x]\nacl:\n- b\n- a\n"
    assert said(tmp_path, yaml, ".meta.yaml") == expected
    (tmp_path / "report.pdf.meta.yaml").unlink()
    assert said(tmp_path, yaml, ".meta.yml") == expected


def test_little_may_be_said(tmp_path: Path) -> None:
    assert said(tmp_path, {}) == NOTHING
    assert said(tmp_path, {"acl": None}) == Description(restricts=True)
    assert said(tmp_path, {"acl": []}) == Description(acl=(), restricts=True)
    assert said(tmp_path, b'\xef\xbb\xbf{"title": null, "metadata": null}') == NOTHING


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "is not JSON as it should be: Expecting value at line 1"),
        ('{"acl": ["a"]', "is not JSON as it should be"),
        ("[]", "is not an object such as"),
        ("null", "is not an object such as"),
        (b"\xff{}", "is not UTF-8"),
        ("[" * 10_000, "is not JSON"),
        ({"ACL": ["a"]}, "has a field 'ACL'; it may have title, metadata, acl"),
        ({"acls": ["a"]}, "has a field 'acls'"),
        ({"acl": "a"}, 'has an "acl" that is not a list of names'),
        ({"acl": [1]}, 'has an "acl" that is not a list of names'),
        ({"acl": [""]}, 'has an "acl" that is not a list of names'),
        ({"acl": {"a": 1}}, 'has an "acl" that is not a list of names'),
        ({"acl": ["a\x00"]}, "control characters"),
        ({"acl": ["a" * 201]}, "or 200 characters in one"),
        ({"acl": [str(n) for n in range(1001)]}, "more than 1000 names"),
        ('{"acl": null, "acl": ["a"]}', "'acl' is there twice"),
        ({"metadata": ["a"]}, 'has "metadata" that is not an object'),
        ({"metadata": "a"}, 'has "metadata" that is not an object'),
        ({"metadata": {str(n): n for n in range(501)}}, 'has "metadata" that is too much'),
        ({"title": 3}, 'has a "title" that is not a text'),
        ({"title": " "}, 'has a "title" that is not a text'),
        ('{"metadata": {"x": NaN}}', "NaN is no number"),
        (b'{"title": "' + b"x" * 66_000 + b'"}', "is larger than 64 kB"),
    ],
)
def test_what_is_not_as_it_should_be(tmp_path: Path, content: Any, reason: str) -> None:
    with pytest.raises(Unusable) as refused:
        said(tmp_path, content)
    assert str(refused.value).startswith("has report.pdf.meta.json to go with it, which ")
    assert reason in str(refused.value)


@pytest.mark.parametrize(
    ("yaml", "reason"),
    [
        ("acl: [a\n", "is not YAML as it should be"),
        ("acl: [a]\nacl: null\n", "'acl' is there twice"),
        ("- a\n", "is not an object"),
        ("", "is not an object"),
        ("title: !!python/object/apply:os.system ['true']\n", "is not YAML as it should be: could not determine"),
        ("? [a]\n: b\n", "a field whose name is not a text"),
        ("[" * 20_000, "is not YAML as it should be"),
        ("title: 2024-13-45\n", "is not YAML as it should be"),
        ("a: &a {x: 1}\nmetadata: {<<: *a}\n", "merges other objects"),
        ("title: \x00", "characters that YAML does not know"),
        (
            "metadata:\n  a: &a [x,x,x,x,x,x,x,x,x]\n"
            + "".join(
                f"  {b}: &{b} [*{a},*{a},*{a},*{a},*{a},*{a},*{a},*{a}]\n"
                for a, b in zip("abcdefgh", "bcdefghi", strict=True)
            ),
            'has "metadata" that is too much',
        ),
    ],
)
def test_yaml_that_is_not_as_it_should_be(tmp_path: Path, yaml: str, reason: str) -> None:
    with pytest.raises(Unusable) as refused:
        said(tmp_path, yaml, ".meta.yaml")
    assert reason in str(refused.value)


def test_dates_are_kept_as_text(tmp_path: Path) -> None:
    assert said(tmp_path, "metadata: {day: 2024-02-03}", ".meta.yaml").metadata == {"day": "2024-02-03"}


def test_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "report.pdf.meta.json"
    for make, reason in (
        (lambda: path.mkdir(), "cannot be read: Is a directory"),
        (lambda: os.mkfifo(path), "is not a regular file"),
        (lambda: path.symlink_to("/etc/passwd"), "is a symbolic link"),
        (lambda: None, "cannot be read: No such file"),
    ):
        make()
        with pytest.raises(Unusable, match=reason):
            described(tmp_path / "report.pdf", ["report.pdf.meta.json"])
        if path.is_dir():
            path.rmdir()
        else:
            path.unlink(missing_ok=True)


def test_two_of_them_are_one_too_many(tmp_path: Path) -> None:
    said(tmp_path, {})
    with pytest.raises(Unusable, match=r"has report.pdf.meta.json and report.pdf.meta.yaml beside it; keep one"):
        said(tmp_path, "{}", ".meta.yaml")


def test_a_folder_speaks_for_what_is_below_and_what_is_nearer_goes_first(tmp_path: Path) -> None:
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    (tmp_path / ".nvrmeta.yaml").write_text("acl: [everybody here]\nmetadata: {team: all, year: 1}\n")
    (tmp_path / "a" / ".nvrmeta.json").write_text('{"metadata": {"team": "sales"}}')
    outer = folders_above_say(inner)
    assert outer == Description(acl=("everybody here",), metadata={"team": "sales", "year": 1}, restricts=True)
    assert Description(metadata={"year": 2}).within(outer).metadata == {"team": "sales", "year": 2}
    assert Description(metadata={"year": 2}).within(outer).acl == ("everybody here",)
    assert Description(acl=None, restricts=True).within(outer).acl is None
    (inner / ".nvrmeta.json").write_text('{"title": "x"}')
    with pytest.raises(Unusable, match="has a field 'title'; it may have metadata, acl"):
        folder_says(inner, os.listdir(inner))


def test_whose_sidecar_a_file_is() -> None:
    assert document_of("report.pdf.meta.json") == "report.pdf"
    assert document_of("a.meta.yml") == "a"
    assert document_of("report.meta.txt") is None
    assert document_of("meta.json") is None


def test_hashes_tell_fields_from_values() -> None:
    one, other = Description(metadata={"a": 1, "b": 2}), Description(metadata={"b": 3, "a": 1})
    assert one.fields_hash() == other.fields_hash()
    assert one.values_hash() != other.values_hash()
    assert one.fields_hash() != Description(metadata={"a": 1}).fields_hash()
    assert one.fields_hash() != Description(title="t", metadata={"a": 1, "b": 2}).fields_hash()
    assert NOTHING.fields_hash() == NOTHING.values_hash() == Description(acl=("x",), restricts=True).fields_hash() == ""
