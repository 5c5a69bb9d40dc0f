"""Small drawings for the report of a lap: numbers in, one SVG string out.

No library, no script, nothing from outside: colours follow the reader's light or dark scheme, every text is escaped,
and where there is nothing to draw the drawing says so. They are narrow, so that their text stays readable on a phone.
Nothing here knows what a lap is.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from html import escape
from itertools import pairwise
from typing import TypedDict

from nvr_rag.output import one_line

WIDTH, HEIGHT = 380, 250
LEFT, RIGHT, TOP, BOTTOM = 66, 356, 34, 202  # the rectangle of the data, in the units of the drawing
MOST_POINTS = 300  # more cannot be told apart at this width
ROW_HEIGHT = 52  # of the interval chart
LONGEST_LABEL = 36  # characters

STYLE = """
.plot{--paper:#fff;--ink:#1f2328;--soft:#59636e;--grid:#d8dee4;--first:#6e7781;--second:#0969da;--third:#bc4c00;
width:100%;max-width:30rem;height:auto;background:var(--paper);border-radius:6px;font:12px system-ui,sans-serif}
@media (prefers-color-scheme:dark){.plot{--paper:#161b22;--ink:#e6edf3;--soft:#9aa4af;--grid:#30363d;
--first:#9aa4af;--second:#4c9bff;--third:#f0883e}}
.plot text{fill:var(--ink);paint-order:stroke;stroke:var(--paper);stroke-width:3px}
.plot .soft{fill:var(--soft)}.plot .end{text-anchor:end}
.plot .middle{text-anchor:middle}.plot .grid{stroke:var(--grid)}.plot .zero{stroke:var(--soft)}
.plot .line{fill:none;stroke-width:2;stroke-linejoin:round}.plot .hollow{fill:var(--paper)}
.plot .first{stroke:var(--first)}.plot .second{stroke:var(--second)}.plot .third{stroke:var(--third)}
.plot .first.fill{fill:var(--first)}.plot .second.fill{fill:var(--second)}.plot .third.fill{fill:var(--third)}
.plot .area{fill-opacity:.35;stroke-width:1.5}
""".strip()


class Histogram(TypedDict):
    """Counts of several groups of values over the same bins."""

    edges: Sequence[float]  # ascending, one more than bins; a bin holds its lower edge, the last one both
    counts: Mapping[str, Sequence[int]]  # group -> how many values in each bin


@dataclass(frozen=True, kw_only=True, slots=True)
class IntervalRow:
    """Two means, each with its interval, to be compared."""

    label: str
    base: tuple[float, float, float]  # mean, low, high
    candidate: tuple[float, float, float]  # mean, low, high


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """Where values land between two borders of the drawing."""

    ticks: Sequence[float]  # ascending; the first and the last are the ends
    start: float  # where the first tick lies
    end: float  # where the last tick lies
    decimals: int = 0  # of the labels

    def at(self, value: float) -> float:
        share = (value - self.ticks[0]) / (self.ticks[-1] - self.ticks[0])
        return self.start + share * (self.end - self.start)

    def label(self, tick: float) -> str:
        large = max(map(abs, self.ticks)) >= 1e6
        return (f"{tick:g}" if large or self.decimals > 5 else f"{tick:,.{self.decimals}f}").replace("-", "−")


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers at even distances, the first <= low and the last >= high, with about `count` steps between them.

    The distance is 1, 2 or 5 times a power of ten. Ends that are all but equal are moved apart first.
    """
    if high - low <= max(1e-9 * max(abs(low), abs(high)), 1e-12):
        low, high = low - (abs(low) / 10 or 1), high + (abs(high) / 10 or 1)
    step = _nice_step((high - low) / count)
    first = math.floor(low / float(step) + 1e-9)  # the slack: 0.6 / 0.2 is a little less than 3
    last = math.ceil(high / float(step) - 1e-9)
    return [float(step * number) for number in range(first, last + 1)]


def bin_values(groups: Mapping[str, Sequence[float]], bins: int = 25) -> Histogram:
    """Count the values of every group over common bins, about `bins` of them, with round edges."""
    found = {name: _finite(values) for name, values in groups.items()}
    every = [value for values in found.values() for value in values]
    if not every:
        return Histogram(edges=[], counts={name: [] for name in groups})
    edges = nice_ticks(min(every), max(every), bins)
    return Histogram(edges=edges, counts={name: _counts(values, edges) for name, values in found.items()})


def line_chart(points: Sequence[tuple[float, float]], *, title: str, x_label: str, y_label: str) -> str:
    """A line through (x, y), x ascending; of many points the means of equal shares. Values that are not finite are left
    out, and their number is told."""
    good = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    if not good:
        return _nothing(title)
    missing = len(points) - len(good)
    thin = _thinned(good)
    x = _axis([x for x, _ in thin], LEFT, RIGHT)
    y = _axis([y for _, y in thin], BOTTOM, TOP)
    line = " ".join(_pair(x.at(one), y.at(other)) for one, other in thin)
    marks = [f'<polyline class="line second" points="{line}"/>']
    if len(thin) == 1:
        marks = [f'<circle class="second fill" cx="{_n(x.at(thin[0][0]))}" cy="{_n(y.at(thin[0][1]))}" r="3"/>']
    note = [_text(RIGHT, 20, f"values that are not finite: {missing}", "soft end")] if missing else []
    return _svg(title, [*note, *_grid(x, y, x_label, y_label), *marks])


def difference_chart(differences: Sequence[float], *, title: str, x_label: str, y_label: str) -> str:
    """Differences in descending order: who gained on the left, who lost on the right."""
    ordered = sorted(_finite(differences), reverse=True)
    if not ordered:
        return _nothing(title)
    better, worse = sum(one > 0 for one in ordered), sum(one < 0 for one in ordered)
    legend = _legend(
        [("second", f"{better} better"), ("third", f"{worse} worse")], rest=f"{len(ordered) - better - worse} unchanged"
    )
    x = Axis(ticks=(0, len(ordered)), start=LEFT, end=RIGHT)
    y = _axis([0.0, *ordered], BOTTOM, TOP)
    picked = _picked(ordered)
    marks = [
        _steps(picked, x, y, "second fill area", lambda value: max(value, 0.0)),
        _steps(picked, x, y, "third fill area", lambda value: min(value, 0.0)),
    ]
    return _svg(title, [*legend, *_grid(x, y, x_label, y_label), *marks, _level(y.at(0))])


def interval_chart(rows: Sequence[IntervalRow], *, title: str, x_label: str) -> str:
    """For each row two means with their intervals: the base hollow and above, the candidate filled and below."""
    good = [row for row in rows if all(map(math.isfinite, (*row.base, *row.candidate)))]
    if not good:
        return _nothing(title)
    x = _axis([end for row in good for end in (*row.base, *row.candidate)], 16, RIGHT - 8)
    bottom = TOP + ROW_HEIGHT * len(good)
    marks = [line for i, row in enumerate(good) for line in _interval_row(row, x, TOP + ROW_HEIGHT * i)]
    legend = _legend([("first", "before"), ("second", "candidate")])
    return _svg(title, [*legend, *_upright(x, x_label, TOP, bottom), *marks], height=bottom + 48)


def histogram(data: Histogram, *, title: str, x_label: str) -> str:
    """Up to three groups over common bins, each as shares of its own total: groups of unlike size can be compared."""
    totals = {name: sum(counts) for name, counts in data["counts"].items() if sum(counts)}
    if len(data["edges"]) < 2 or not totals:
        return _nothing(title)
    shares = {name: [100 * one / total for one in data["counts"][name]] for name, total in totals.items()}
    colours = dict(zip(shares, ("second", "third", "first"), strict=False))
    x = _axis(data["edges"], LEFT, RIGHT)
    y = _axis([0.0, *(share for group in shares.values() for share in group)], BOTTOM, TOP)
    legend = _legend([(colour, f"{name} ({totals[name]:,})") for name, colour in colours.items()])
    marks = [_bins(data["edges"], shares[name], x, y, colour) for name, colour in colours.items()]
    return _svg(title, [*legend, *_grid(x, y, x_label, "% of the group"), *marks])


def _nice_step(least: float) -> Decimal:
    """The smallest of 1, 2, 5 times a power of ten not below `least`; decimal, so that its multiples are round."""
    exponent = math.floor(math.log10(least))
    mantissa = next(one for one in (1, 2, 5, 10) if one * 10.0**exponent >= least * (1 - 1e-9))
    return Decimal(mantissa).scaleb(exponent)


def _axis(values: Iterable[float], start: float, end: float) -> Axis:
    found = list(values)
    ticks = nice_ticks(min(found), max(found))
    decimals = next(n for n in range(17) if n == 16 or all(math.isclose(round(t, n), t, abs_tol=1e-15) for t in ticks))
    return Axis(ticks=ticks, start=start, end=end, decimals=decimals)


def _finite(values: Iterable[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)]


def _counts(values: Sequence[float], edges: Sequence[float]) -> list[int]:
    counts = [0] * (len(edges) - 1)
    for value in values:
        counts[min(bisect_right(edges, value) - 1, len(counts) - 1)] += 1
    return counts


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most MOST_POINTS: the means of equal shares of the points."""
    shares = min(len(points), MOST_POINTS)
    cuts = [i * len(points) // shares for i in range(shares + 1)]
    parts = [points[start:end] for start, end in pairwise(cuts)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def _picked(ordered: Sequence[float]) -> list[float]:
    """At most MOST_POINTS of the values, evenly, the first and the last always."""
    if len(ordered) <= MOST_POINTS:
        return list(ordered)
    return [ordered[round(i * (len(ordered) - 1) / (MOST_POINTS - 1))] for i in range(MOST_POINTS)]


def _svg(title: str, parts: Iterable[str], *, height: int = HEIGHT) -> str:
    name = escape(one_line(title))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="plot" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{name}"><title>{name}</title><style>{STYLE}</style>{"".join(parts)}</svg>'
    )


def _nothing(title: str) -> str:
    return _svg(title, [_text(WIDTH / 2, 36, "Nothing to show: no values", "soft middle")], height=64)


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    return f'<text x="{_n(x)}" y="{_n(y)}" class="{kind}">{escape(one_line(text))}</text>'


def _legend(entries: Sequence[tuple[str, str]], rest: str = "") -> list[str]:
    """A coloured square and a text for each entry, side by side above the data; then a text without a square."""
    parts = []
    for i, (colour, text) in enumerate(entries):
        x = 10 + i * 130
        parts += [f'<rect class="{colour} fill" x="{x}" y="11" width="9" height="9"/>', _text(x + 14, 20, text)]
    return [*parts, _text(RIGHT, 20, rest, "soft end")] if rest else parts


def _grid(x: Axis, y: Axis, x_label: str, y_label: str) -> list[str]:
    """Level lines with their values on the left, and the values of x below; the labels of both beside them."""
    lines = []
    for tick in y.ticks:
        height = y.at(tick)
        lines.append(f'<line class="grid" x1="{LEFT}" x2="{RIGHT}" y1="{_n(height)}" y2="{_n(height)}"/>')
        lines.append(_text(LEFT - 6, height + 4, y.label(tick), "soft end"))
    lines += [_text(x.at(tick), BOTTOM + 18, x.label(tick), "soft middle") for tick in x.ticks]
    upright = _text(0, 0, y_label, "middle")
    return [
        *lines,
        _text((LEFT + RIGHT) / 2, BOTTOM + 38, x_label, "middle"),
        f'<g transform="translate(16 {(TOP + BOTTOM) // 2}) rotate(-90)">{upright}</g>',
    ]


def _upright(x: Axis, x_label: str, top: float, bottom: float) -> list[str]:
    """Upright lines with their values below."""
    lines = [
        f'<line class="grid" x1="{_n(x.at(tick))}" x2="{_n(x.at(tick))}" y1="{_n(top)}" y2="{_n(bottom)}"/>'
        for tick in x.ticks
    ]
    lines += [_text(x.at(tick), bottom + 18, x.label(tick), "soft middle") for tick in x.ticks]
    return [*lines, _text(WIDTH / 2, bottom + 38, x_label, "middle")]


def _level(height: float) -> str:
    return f'<line class="zero" x1="{LEFT}" x2="{RIGHT}" y1="{_n(height)}" y2="{_n(height)}"/>'


def _steps(values: Sequence[float], x: Axis, y: Axis, kind: str, part: Callable[[float], float]) -> str:
    """The area between zero and `part` of the values, each as wide as the others."""
    width = (x.end - x.start) / len(values)
    path = [f"M{_n(x.start)} {_n(y.at(0))}"]
    for i, value in enumerate(values, start=1):
        path.append(f"V{_n(y.at(part(value)))}H{_n(x.start + i * width)}")
    return f'<path class="{kind}" d="{"".join(path)}V{_n(y.at(0))}Z"/>'


def _bins(edges: Sequence[float], shares: Sequence[float], x: Axis, y: Axis, colour: str) -> str:
    path = [f"M{_n(x.at(edges[0]))} {_n(y.at(0))}"]
    for edge, share in zip(edges[1:], shares, strict=True):
        path.append(f"V{_n(y.at(share))}H{_n(x.at(edge))}")
    return f'<path class="{colour} fill area" d="{"".join(path)}V{_n(y.at(0))}Z"/>'


def _interval_row(row: IntervalRow, x: Axis, top: float) -> list[str]:
    label = row.label if len(row.label) <= LONGEST_LABEL else row.label[: LONGEST_LABEL - 1] + "…"
    values = f"{row.base[0]:.3f} → {row.candidate[0]:.3f}"
    return [
        _text(10, top + 14, label),
        _text(RIGHT, top + 14, values, "soft end"),
        *_interval(row.base, x, top + 24, "first hollow"),
        *_interval(row.candidate, x, top + 35, "second fill"),
    ]


def _interval(interval: tuple[float, float, float], x: Axis, height: float, kind: str) -> list[str]:
    mean, low, high = (_n(x.at(value)) for value in interval)
    return [
        f'<line class="line {kind}" x1="{low}" x2="{high}" y1="{_n(height)}" y2="{_n(height)}"/>',
        f'<circle class="{kind}" cx="{mean}" cy="{_n(height)}" r="4" stroke-width="2"/>',
    ]


def _pair(x: float, y: float) -> str:
    return f"{_n(x)},{_n(y)}"


def _n(value: float) -> str:
    """A coordinate: a tenth of a unit is finer than any screen shows."""
    return f"{value:.1f}".removesuffix(".0")
