"""`nvr-rag judgments`: import, show and remove over a real data folder."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from nvr_rag import cli
from nvr_rag.commands import common
from nvr_rag.query_log import record_feedback
from nvr_rag.types import Feedback, FeedbackKind
from tests.integration.command_line import CommandLine
from tests.support import document
from training import judgments as judged

# Normalised: train, train, dev, held out, held out (see tests/unit/training/test_splits.py).
QUERIES = ("What is tea?", "why is the sky blue", "parental leave", ".NET", "VPN")


@pytest.fixture
def run(bare_home: Path, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    """A command line on a collection with the documents tea.md and sea.md."""
    line = CommandLine(bare_home)
    monkeypatch.setattr(common, "open_workspace", line.open_workspace)
    entry = EntryPoint("training", "training.cli:register", cli.GROUP)
    monkeypatch.setattr(cli, "entry_points", lambda **_: [entry])
    with line.house() as house:
        house.put(document("file:///tea.md", "green tea is hot"), document("file:///sea.md", "blue whale"))
        house.catch_up()
    return line


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A judgment of each query: tea is relevant, the sea is not; and one of what nobody has."""
    path = tmp_path / "judged.csv"
    rows = [f"{query},{name},{grade}" for query in QUERIES for name, grade in (("tea", 2), ("sea", 0))]
    path.write_text("\n".join(["query,document,grade", *rows, "What is tea?,mars,1"]), encoding="utf-8")
    return path


def give_feedback(run: CommandLine) -> None:
    answer = run.json("search", "what is TEA", "-k", "1")
    word = Feedback(
        query_id=answer["query_id"], chunk_id=answer["hits"][0]["chunk_id"], kind=FeedbackKind.IRRELEVANT, user="anna"
    )
    with run.house() as house, house.database.write() as connection:
        record_feedback(connection, [word])


def test_import_tells_what_it_came_to(run: CommandLine, path: Path) -> None:
    report = run.json("judgments", "import", str(path), "--origin", "desk")
    assert report == {
        "collection": "default",
        "origin": "desk",
        "queries": 5,
        "judgments": 10,
        "replaced": 0,
        "repeated": 0,
        "skipped": 1,
        "unknown": ["mars"],
    }
    result = run("judgments", "import", str(path), "--origin", "desk")
    assert result.stdout == "Imported 10 judgments of 5 queries as desk; they replace 10.\n"
    assert "Left out, as the collection does not have what they judge: 1 (mars)" in result.stderr


def test_show_counts_by_split_and_origin_and_of_the_holdout_queries_only(run: CommandLine, path: Path) -> None:
    run.json("judgments", "import", str(path), "--origin", "desk")
    give_feedback(run)
    shown = run.json("judgments", "show")
    assert len(shown.pop("digest")) == 64
    assert shown == {
        "collection": "default",
        "splits": {
            "train": {
                "queries": 2,
                "judgments": 5,
                "origins": {
                    "feedback": {"queries": 1, "judgments": 1},
                    "import:desk": {"queries": 2, "judgments": 4},
                },
            },
            "dev": {"queries": 1, "judgments": 2, "origins": {"import:desk": {"queries": 1, "judgments": 2}}},
            "holdout": {"queries": 2},
        },
        "contested": 0,
        "lifted": 0,
        "gone": 0,
        "forbidden": 0,
        "without_positive": 0,
    }
    lines = run("judgments", "show").stdout.splitlines()
    assert lines[0].split("\t") == ["split", "origin", "queries", "judgments"]
    assert "train\timport:desk\t2\t4" in lines
    assert "holdout\t\t2\t" in lines


def test_show_says_what_was_left_out(run: CommandLine, path: Path) -> None:
    run.json("judgments", "import", str(path), "--origin", "desk")
    with run.house() as house:
        house.delete("file:///tea.md")
    lines = run("judgments", "show").stdout.splitlines()
    assert "3 judgments of what is not there any more, left out" in lines
    assert "3 queries without anything relevant, left out" in lines


def test_show_does_without_the_content_of_the_holdout(
    run: CommandLine, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object) -> None:
        raise AssertionError("only the gate reads the holdout")

    monkeypatch.setattr(judged, "holdout_queries", forbidden)
    run.json("judgments", "import", str(path), "--origin", "desk")
    text = run("judgments", "show").stdout + run("judgments", "show", "--json").stdout
    assert ".NET" not in text
    assert run.json("judgments", "show")["splits"]["holdout"] == {"queries": 2}


def test_without_judgments_it_says_how_to_get_some(run: CommandLine) -> None:
    error = run.json("judgments", "show", code=1)["error"]
    assert error["type"] == "NotFound"
    assert "/v1/feedback" in error["message"]
    assert "nvr-rag judgments import" in error["message"]


def test_remove_forgets_one_origin(run: CommandLine, path: Path) -> None:
    for origin in ("desk", "other"):
        run.json("judgments", "import", str(path), "--origin", origin)
    assert run.json("judgments", "remove", "desk", "--yes") == {
        "collection": "default",
        "origin": "desk",
        "removed": 10,
    }
    assert list(run.json("judgments", "show")["splits"]["train"]["origins"]) == ["import:other"]
    assert run("judgments", "remove", "import:other", "--yes").stdout == "Removed 10 judgments of other.\n"
    run.json("judgments", "show", code=1)


@pytest.mark.parametrize(("answer", "code", "shown"), [("y\n", 0, 1), ("n\n", 1, 0), ("", 1, 0)])
def test_remove_asks_at_a_terminal(
    run: CommandLine, path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, code: int, shown: int
) -> None:
    run.json("judgments", "import", str(path), "--origin", "desk")
    monkeypatch.setattr(common, "is_watched", lambda: True)
    assert run("judgments", "remove", "desk", stdin=answer).exit_code == code
    run.json("judgments", "show", code=shown)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["show", "-c", "nope"], 1, "no collection 'nope'; there are: default"),
        (["import", "PATH", "--origin", "desk", "-c", "nope"], 1, "no collection 'nope'"),
        (["import", "PATH"], 2, "--origin"),
        (["import", "none.csv", "--origin", "desk"], 2, "none.csv cannot be read"),
        (["import", "PATH", "--origin", "desk", "--split", "test"], 2, "leave out --split"),
        (["remove", "desk", "--yes"], 1, "nothing was imported"),
        (["remove", "desk"], 2, "--yes"),  # nobody there to ask
    ],
)
def test_what_it_refuses(run: CommandLine, path: Path, arguments: list[str], code: int, words: str) -> None:
    given = [str(path) if argument == "PATH" else argument for argument in arguments]
    assert words in run.json("judgments", *given, code=code)["error"]["message"]
