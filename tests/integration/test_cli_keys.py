"""nvr-rag keys: a secret is shown once and alone, and never again."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from nvr_rag.access import keys
from nvr_rag.commands import common
from tests.integration.command_line import CommandLine

SECRET = re.compile(r"nvr_[A-Za-z0-9]{12}_[A-Za-z0-9]{43}")


@pytest.fixture
def run(home: Path, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    """A command line on a data folder with an empty collection "default"."""
    line = CommandLine(home)
    monkeypatch.setattr(common, "open_workspace", line.open_workspace)
    return line


def test_create_list_rotate_revoke(run: CommandLine) -> None:
    made = run("keys", "create", "bot", "--scope", "search", "--scope", "feedback", "--principal", "group:sea")
    assert made.exit_code == 0, made.output
    assert SECRET.fullmatch(made.stdout.strip())  # and nothing else: it can be piped
    assert "first key" in made.stderr
    secret = made.stdout.strip()
    (listed,) = run.json("keys", "list")["keys"]
    assert listed["name"] == "bot"
    assert (listed["scopes"], listed["principals"]) == (["feedback", "search"], ["group:sea"])
    assert (listed["collections"], listed["everything"], listed["state"]) == (None, False, "usable")
    for output in (run("keys", "list").output, json.dumps(listed)):
        assert secret not in output
        assert secret.rpartition("_")[2] not in output
    rotated = run.json("keys", "rotate", "bot")
    assert rotated["secret"] != secret
    with run.house() as house, house.database.read() as connection:
        assert keys.find(connection, secret) is None
        found = keys.find(connection, rotated["secret"])
        assert found is not None
        assert found.usable
    assert run.json("keys", "revoke", "bot")["key"]["state"] == "revoked"
    again = run("keys", "create", "bot", "--scope", "admin", "--collection", "nope")
    assert "first key" not in again.stderr
    assert "no collection 'nope'" in again.stderr
    assert [one["state"] for one in run.json("keys", "list")["keys"]] == ["revoked", "usable"]
    assert "revoked" in run("keys", "list").stdout


def test_when_a_key_expires(run: CommandLine) -> None:
    run("keys", "create", "short", "--scope", "search", "--expires", "12h")
    run("keys", "create", "long", "--scope", "search", "--expires", "2096-02-03")
    short, long = run.json("keys", "list")["keys"]
    assert short["expires_at"] > short["created_at"]
    assert long["expires_at"] == "2096-02-03T00:00:00+00:00"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--scope", "search", "--expires", "yesterday"], "90d"),
        (["--scope", "search", "--expires", "2001-01-01"], "later than now"),
        (["--scope", "search", "--expires", "0d"], "later than now"),
        (["--scope", "search", "--expires", "999999w"], "100 years"),
        (["--scope", "search", "--per-minute", "0"], "at least 1"),
        (["--scope", "search", "--principal", ""], "printable"),
        (["--scope", "search", "--collection", "../x"], "collection's name"),
        (["--scope", "everything"], "everything"),
        ([], "--scope"),
    ],
)
def test_what_cannot_be_made(run: CommandLine, arguments: list[str], words: str) -> None:
    result = run("keys", "create", "bot", *arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert run.json("keys", "list")["keys"] == []


def test_a_key_that_is_not_there(run: CommandLine) -> None:
    for command in ("revoke", "rotate"):
        result = run("keys", command, "nobody")
        assert result.exit_code == 1
        assert "nvr-rag keys list" in result.stderr
