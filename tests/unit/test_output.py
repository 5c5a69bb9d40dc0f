"""What reaches stdout and stderr: harmless text, one JSON document, bars only for a person."""

from __future__ import annotations

import io
import json
import time

import pytest

from nvr_rag import output


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("raw", "harmless"),
    [
        ("plain \u00e4\u4e2d\U0001f600", "plain \u00e4\u4e2d\U0001f600"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x9b31mred", "red"),
        ("\x1b]0;title\x07text", "text"),
        ("\x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("a\x1bc\x00\x07\x08\x7fb", "acb"),
        ("tab\tline\r\nnext\rlast\n", "tab\tline\nnext\nlast\n"),
        ("abc\u202edcba\u2066x", "abcdcbax"),
        ("half \ud800 pair", "half  pair"),
    ],
)
def test_clean(raw: str, harmless: str) -> None:
    assert output.clean(raw) == harmless


@pytest.mark.parametrize("begun", ["\x9d", "\x1b]", "\x9b", "\x1b[", "\x9d\x1b"])
def test_sequences_that_only_begin_take_no_time(begun: str) -> None:
    started = time.thread_time()
    assert output.clean(begun * 100_000).strip("][") == ""
    assert time.thread_time() - started < 3  # each looked at to its end: minutes


def test_one_line() -> None:
    assert output.one_line("  two\nlines\t and\x1b[1m more ") == "two lines and more"


def test_json_keeps_every_character_and_sends_no_control(capsys: pytest.CaptureFixture[str]) -> None:
    document = {"text": "\x1b[31m \x9b \x7f \u202e \u4e2d \ud800", "list": [1, None]}
    output.emit(document)
    written = capsys.readouterr().out
    assert json.loads(written) == document
    assert not set(written) & {"\x1b", "\x9b", "\x7f", "\u202e", "\ud800"}
    assert "\u4e2d" in written


def test_a_stream_that_lacks_a_character_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", stream)
    output.say("caf\u00e9")
    output.emit({"text": "caf\u00e9"})
    stream.seek(0)
    first, rest = stream.read().split("\n", 1)
    assert first == "caf?"
    assert json.loads(rest) == {"text": "caf\u00e9"}


def test_a_piped_table_is_values_separated_by_tabs(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(("name", "empty"), [["a\tb\x1b[1m", None], ["x" * 500, None]])
    assert capsys.readouterr().out == f"name\tempty\na b\t\n{'x' * 500}\t\n"


def test_a_table_at_a_terminal_holds_all_values_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", terminal := Terminal())
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "60")
    output.table(("name", "empty"), [["[red]markup[/red]", None]])
    assert "[red]markup[/red]" in terminal.getvalue()
    assert "empty" not in terminal.getvalue()


def test_a_paragraph_is_cut_to_the_lines_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    output.paragraph("word " * 1000, indent=5, lines=3)
    lines = capsys.readouterr().out.splitlines()
    assert 3 <= len(lines) <= 4
    assert all(line.startswith("     word") and len(line) <= 100 for line in lines[:-1])
    assert lines[-1].endswith("...")


@pytest.mark.parametrize(("stream", "drawn"), [(Terminal, True), (io.StringIO, False)])
def test_progress_is_for_people_only(
    monkeypatch: pytest.MonkeyPatch, stream: type[io.StringIO], drawn: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # colour that somebody wants is not a person that looks on
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stderr", watched := stream())
    with output.progress() as bars:
        bars.update(bars.add_task("Working", total=10), completed=3)
    assert bool(watched.getvalue()) is drawn
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("count", "words"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (1_500_000, "1.5 MB"), (None, "?")]
)
def test_size(count: int | None, words: str) -> None:
    assert output.size(count) == words


@pytest.mark.parametrize(
    ("rate", "left", "words"),
    [
        (40.0, 150.0, "40.0 chunks a second, 2 min 30 s left"),
        (1234.56, 49.6, "1,234.6 chunks a second, 50 s left"),
        (0.01, 12000.0, "0.0 chunks a second, 3 h 20 min left"),
        (64.0, 0.0, "64.0 chunks a second, 0 s left"),
        (8.25, None, "8.2 chunks a second"),
    ],
)
def test_pace(rate: float, left: float | None, words: str) -> None:
    assert output.pace(rate, left) == words
