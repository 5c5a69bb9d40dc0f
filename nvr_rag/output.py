"""What a command shows: one JSON document or text for people on stdout, everything else on stderr.

Strings of users enter and are made harmless here: no control character of a document reaches a terminal, and nothing
in it is taken for markup. rich is imported when it is needed: most of what runs in a script is JSON.
"""

from __future__ import annotations

import json
import os
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import Progress

# C0 and C1 controls but tab and newline, the marks that reorder text, and half surrogates, which no stream can write.
_HARMFUL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_ESCAPE_SEQUENCE = re.compile(  # none begins inside another one, or many beginnings would take time squared
    "(?:\x1b\\[|\x9b)[0-?]*[ -/]*[@-~]|(?:\x1b\\]|\x9d)[^\x07\x1b\x9c\x9d]*(?:\x07|\x1b\\\\|\x9c)"
)
_BREAKS = re.compile("\r\n?")
PIPED_WIDTH = 100
_UNITS = ("B", "kB", "MB", "GB", "TB")


def clean(text: str) -> str:
    """`text` without escape sequences and control characters; tabs and line breaks stay."""
    return _HARMFUL.sub("", _BREAKS.sub("\n", _ESCAPE_SEQUENCE.sub("", text)))


def one_line(text: str) -> str:
    """`text` cleaned, on one line, with single spaces."""
    return " ".join(clean(text).split())


def emit(document: Mapping[str, Any]) -> None:
    """Write the one JSON document of a command to stdout."""
    text = json.dumps(document, ensure_ascii=False, indent=2, default=str)
    # JSON leaves DEL and the C1 controls as they are, and a terminal may be behind stdout after all.
    text = _HARMFUL.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(document, indent=2, default=str)
    sys.stdout.write(text + "\n")


def note(message: str) -> None:
    """Tell a person something on stderr, on one line."""
    with suppress(OSError):  # nobody reads stderr: no reason to fail
        sys.stderr.write(_encodable(one_line(message), sys.stderr.encoding) + "\n")


def say(text: str = "") -> None:
    """Write text for a person to stdout, cleaned, lines as they are."""
    sys.stdout.write(_encodable(clean(text), sys.stdout.encoding) + "\n")


def flush() -> None:
    """Hand on what was written to stdout: whoever reads a pipe would wait for it."""
    sys.stdout.flush()


def show(renderable: RenderableType, *, wrap: bool = True) -> None:
    """Write something of rich's to stdout; strings in it are to be cleaned `Text`, never markup.

    Without `wrap` a long line is left to the terminal, so that it can be copied whole.
    """
    _console(sys.stdout.isatty(), stderr=False).print(renderable, soft_wrap=not wrap)


def paragraph(text: str, *, indent: int, lines: int) -> None:
    """Show the beginning of a text on stdout, wrapped to the terminal's width."""
    from rich.text import Text

    console = _console(sys.stdout.isatty(), stderr=False)
    width = max(20, console.width - indent)
    shortened = textwrap.shorten(one_line(text), lines * width, placeholder=" ...")
    for line in Text(shortened).wrap(console, width)[: lines + 1]:
        line.rstrip()
        console.print(Text(" " * indent) + line, soft_wrap=True)


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Show rows on stdout: a table as wide as the terminal, without columns that are empty throughout; or, when piped,
    all values, separated by tabs."""
    cells = [["" if value is None else one_line(str(value)) for value in row] for row in rows]
    if not sys.stdout.isatty():
        for row in (columns, *cells):
            say("\t".join(row))
        return
    from rich import box
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    filled = [i for i in range(len(columns)) if any(row[i] for row in cells)]
    for i in filled:
        right = all(re.fullmatch(r"[\d.,-]*", row[i]) for row in cells)
        drawn.add_column(columns[i], justify="right" if right else "left", overflow="fold")
    for row in cells:
        drawn.add_row(*(Text(row[i]) for i in filled))
    show(drawn)


def pairs(values: Mapping[str, object]) -> None:
    """Show names and values on stdout, a line each."""
    width = max((len(name) for name in values), default=0)
    for name, value in values.items():
        say(f"{name + ':':<{width + 1}}  {'' if value is None else one_line(str(value))}".rstrip())


@contextmanager
def progress() -> Iterator[Progress]:
    """Bars on stderr for as long as the block runs; nothing at all unless a person watches stderr.

    A task without a total shows a count: `bars.add_task("Checking", total=None)`, `bars.update(task, completed=n)`.
    """
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    watched = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(show_speed=False),
        TextColumn("{task.completed:,.0f}", markup=False),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=_console(watched, stderr=True), transient=True, disable=not watched) as bars:
        yield bars


def many(count: int, thing: str) -> str:
    """How many there are of something for a person: "1 document", "1,204 documents"."""
    return f"{count:,} {thing}" if count == 1 else f"{count:,} {thing}s"


def size(count: int | None) -> str:
    """A number of bytes for a person."""
    if count is None:
        return "?"
    value = float(count)
    for unit in _UNITS:
        if value < 1000 or unit == _UNITS[-1]:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    raise AssertionError("unreachable")


def pace(chunks_per_second: float, seconds_left: float | None) -> str:
    """How fast an index is built and how long it will still take, in words."""
    words = f"{chunks_per_second:,.1f} chunks a second"
    return words if seconds_left is None else f"{words}, {duration(seconds_left)} left"


def duration(seconds: float) -> str:
    """A time span for a person."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _console(terminal: bool, *, stderr: bool) -> Console:
    from rich.console import Console

    class Quiet(Console):
        """A console that leaves a closed pipe to the caller instead of ending the process."""

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    piped_width = None if terminal else PIPED_WIDTH
    return Quiet(stderr=stderr, markup=False, highlight=False, emoji=False, force_terminal=terminal, width=piped_width)


def _encodable(text: str, encoding: str | None) -> str:
    """`text` as the stream can write it: a person is better served by "?" than by an error."""
    name = encoding or "utf-8"
    return text.encode(name, "replace").decode(name)
