"""Drawings are read as XML: where things stand is worked out by hand from the borders of the data."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training import plots
from training.plots import BOTTOM, LEFT, RIGHT, TOP, Histogram, IntervalRow

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = '</title><script>alert(1)</script> & "quoted"'


def texts(drawn: str) -> list[str]:
    return [one.text or "" for one in ET.fromstring(drawn).iter(f"{SVG}text")]


def marks(drawn: str, tag: str, kind: str) -> list[ET.Element]:
    found = ET.fromstring(drawn).iter(f"{SVG}{tag}")
    return [one for one in found if kind in one.attrib.get("class", "").split()]


def line(points: list[tuple[float, float]]) -> str:
    return plots.line_chart(points, title="Loss", x_label="step", y_label="nats")


def differences(values: list[float]) -> str:
    return plots.difference_chart(values, title="Change", x_label="queries", y_label="nDCG@10")


def intervals(rows: list[IntervalRow]) -> str:
    return plots.interval_chart(rows, title="Means", x_label="nDCG@10")


def heights(path: ET.Element) -> list[float]:
    return [float(one) for one in re.findall(r"V([\d.-]+)", path.attrib["d"])]


@pytest.mark.parametrize(
    ("low", "high", "count", "ticks"),
    [
        (0, 1, 5, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0.13, 0.87, 5, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 7, 5, [0, 2, 4, 6, 8]),
        (0, 470, 5, [0, 100, 200, 300, 400, 500]),
        (-0.31, 0.12, 5, [-0.4, -0.3, -0.2, -0.1, 0, 0.1, 0.2]),
        (0.6, 0.8, 2, [0.6, 0.7, 0.8]),
        (0.6, 1.1, 5, [0.6, 0.7, 0.8, 0.9, 1, 1.1]),  # 1.1 / 0.1 is a little more than 11
        (1234, 1239, 5, [1234, 1235, 1236, 1237, 1238, 1239]),
        (-3, -1, 2, [-3, -2, -1]),
        (5, 5, 5, [4.4, 4.6, 4.8, 5, 5.2, 5.4, 5.6]),  # moved apart by a tenth: 4.5 to 5.5
        (0, 0, 2, [-1, 0, 1]),
    ],
)
def test_ticks_by_hand(low: float, high: float, count: int, ticks: list[float]) -> None:
    assert plots.nice_ticks(low, high, count) == ticks


@given(st.floats(-1e9, 1e9), st.floats(-1e9, 1e9), st.integers(2, 30))
def test_ticks_cover_evenly_and_are_round(one: float, other: float, count: int) -> None:
    low, high = min(one, other), max(one, other)
    ticks = plots.nice_ticks(low, high, count)
    step = (ticks[-1] - ticks[0]) / (len(ticks) - 1)
    assert ticks[0] <= low + 1e-8 * step
    assert ticks[-1] >= high - 1e-8 * step
    assert 2 <= len(ticks) <= count + 3
    assert f"{step:.0e}"[0] in "125"
    assert [later - earlier for earlier, later in pairwise(ticks)] == pytest.approx([step] * (len(ticks) - 1), rel=1e-5)


def test_a_line_runs_between_the_borders_of_the_data() -> None:
    [drawn] = marks(line([(0, 0), (5, 1), (10, 0.5)]), "polyline", "line")
    middle, half = (LEFT + RIGHT) // 2, (TOP + BOTTOM) // 2
    assert drawn.attrib["points"] == f"{LEFT},{BOTTOM} {middle},{TOP} {RIGHT},{half}"


def test_a_line_has_its_values_and_names_in_words() -> None:
    found = texts(line([(0, 0), (5, 1), (10, 0.5)]))
    assert found == ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0", "0", "2", "4", "6", "8", "10", "step", "nats"]


def test_of_many_points_the_means_are_drawn() -> None:
    points = [(step, float(step % 2)) for step in range(3000)]  # each ten points: mean 0.5
    [drawn] = marks(line(points), "polyline", "line")
    found = drawn.attrib["points"].split()
    assert len(found) == 300
    assert len({point.split(",")[1] for point in found}) == 1


def test_values_that_are_not_finite_are_left_out_and_told() -> None:
    drawn = line([(1, 0.0), (2, math.nan), (3, 1.0), (4, math.inf)])
    assert "values that are not finite: 2" in texts(drawn)
    assert len(marks(drawn, "polyline", "line")[0].attrib["points"].split()) == 2


def test_one_point_is_a_dot() -> None:
    [dot] = marks(line([(1, 0.5)]), "circle", "second")
    assert (float(dot.attrib["cx"]), float(dot.attrib["cy"])) == ((LEFT + RIGHT) / 2, (TOP + BOTTOM) / 2)


def test_differences_are_sorted_and_counted() -> None:
    drawn = differences([-0.5, 0.0, 1.0, 0.5])
    assert texts(drawn)[:3] == ["2 better", "1 worse", "1 unchanged"]
    [better], [worse] = marks(drawn, "path", "second"), marks(drawn, "path", "third")
    # From -0.5 at the bottom to 1 at the top: a third of the height is below 0.
    zero = BOTTOM - (BOTTOM - TOP) / 3
    assert heights(better) == pytest.approx([TOP, (TOP + zero) / 2, zero, zero, zero], abs=0.06)
    assert heights(worse) == pytest.approx([zero, zero, zero, BOTTOM, zero], abs=0.06)


def test_of_many_differences_the_extremes_stay() -> None:
    drawn = differences([-1.0, 1.0] + [0.0] * 9998)
    [better], [worse] = marks(drawn, "path", "second"), marks(drawn, "path", "third")
    assert heights(better)[0] == TOP
    assert heights(worse)[-2] == BOTTOM
    assert len(heights(better)) == 301


def test_intervals_stand_where_their_values_are() -> None:
    drawn = intervals([IntervalRow(label="all", base=(0.25, 0.0, 0.5), candidate=(0.75, 0.5, 1.0))])
    left, right = 16, RIGHT - 8
    [base] = marks(drawn, "line", "first")
    [candidate] = marks(drawn, "line", "second")
    middle, quarter = (left + right) / 2, (right - left) / 4
    assert (float(base.attrib["x1"]), float(base.attrib["x2"])) == (left, middle)
    assert (float(candidate.attrib["x1"]), float(candidate.attrib["x2"])) == (middle, right)
    assert [float(dot.attrib["cx"]) for dot in marks(drawn, "circle", "first")] == [left + quarter]
    assert [float(dot.attrib["cx"]) for dot in marks(drawn, "circle", "second")] == [right - quarter]
    assert {"all", "0.250 → 0.750", "before", "candidate"} <= set(texts(drawn))


def test_rows_of_intervals_do_not_overlap() -> None:
    rows = [IntervalRow(label=f"row {i}", base=(0.2, 0.1, 0.3), candidate=(0.4, 0.3, 0.5)) for i in range(6)]
    drawn = intervals(rows)
    tops = [float(one.attrib["y1"]) for one in (*marks(drawn, "line", "first"), *marks(drawn, "line", "second"))]
    assert len(set(tops)) == 12
    tall = float(ET.fromstring(drawn).attrib["viewBox"].split()[3])
    assert max(tops) < tall


def test_a_long_label_is_cut() -> None:
    drawn = intervals([IntervalRow(label="x" * 100, base=(0.2, 0.1, 0.3), candidate=(0.4, 0.3, 0.5))])
    assert "x" * 35 + "…" in texts(drawn)


def test_values_are_counted_over_common_bins() -> None:
    binned = plots.bin_values({"positives": [0.1, 0.2, 1.0, math.nan], "negatives": [0.0, 0.39]}, bins=5)
    assert binned["edges"] == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert binned["counts"] == {"positives": [1, 1, 0, 0, 1], "negatives": [1, 1, 0, 0, 0]}


@given(st.lists(st.floats(-100, 100), min_size=1), st.integers(2, 30))
def test_every_value_is_counted_once(values: list[float], bins: int) -> None:
    binned = plots.bin_values({"all": values}, bins)
    assert sum(binned["counts"]["all"]) == len(values)
    assert len(binned["edges"]) == len(binned["counts"]["all"]) + 1


def test_groups_of_unlike_size_are_drawn_as_shares() -> None:
    data = Histogram(edges=[0, 1, 2], counts={"positives": [1, 1], "negatives": [1000, 0]})
    drawn = plots.histogram(data, title="Scores", x_label="score")
    [positives], [negatives] = marks(drawn, "path", "second"), marks(drawn, "path", "third")
    half = (TOP + BOTTOM) / 2
    assert heights(positives) == [half, half, BOTTOM]  # 50 % each, of 100 % in all
    assert heights(negatives) == [TOP, BOTTOM, BOTTOM]
    assert {"positives (2)", "negatives (1,000)", "100"} <= set(texts(drawn))


@pytest.mark.parametrize(
    "drawn",
    [
        line([]),
        line([(1, math.nan)]),
        differences([]),
        intervals([]),
        intervals([IntervalRow(label="all", base=(0.5, math.nan, 1), candidate=(0.5, 0, 1))]),
        plots.histogram(plots.bin_values({"positives": []}), title="Scores", x_label="score"),
        plots.histogram(Histogram(edges=[0, 1], counts={"positives": [0]}), title="Scores", x_label="score"),
    ],
)
def test_without_data_a_drawing_says_so(drawn: str) -> None:
    assert texts(drawn) == ["Nothing to show: no values"]


@pytest.mark.parametrize("x", [1e-9, 1e-3, 1.0, 12345.0, 1e12])
def test_labels_of_any_size_stay_short(x: float) -> None:
    assert max(map(len, texts(line([(0, 0), (1, x)])))) <= 10


def test_minus_signs_are_minus_signs() -> None:
    assert "−1.0" in texts(differences([-1.0, 1.0]))


@pytest.mark.parametrize(
    "drawn",
    [
        plots.line_chart([(0, 0), (1, 1)], title=HOSTILE, x_label=HOSTILE, y_label=HOSTILE),
        plots.difference_chart([1, -1], title=HOSTILE, x_label=HOSTILE, y_label=HOSTILE),
        plots.interval_chart(
            [IntervalRow(label=HOSTILE, base=(0.2, 0.1, 0.3), candidate=(0.4, 0.3, 0.5))], title=HOSTILE, x_label="x"
        ),
        plots.histogram(plots.bin_values({HOSTILE: [1, 2]}), title=HOSTILE, x_label=HOSTILE),
        plots.line_chart([], title=HOSTILE, x_label="", y_label=""),
    ],
)
def test_texts_are_escaped_and_nothing_is_run_or_fetched(drawn: str) -> None:
    tree = ET.fromstring(drawn)
    assert {one.tag.removeprefix(SVG) for one in tree.iter()} <= {
        *("svg", "title", "style", "text", "line", "polyline", "path", "rect", "circle", "g")
    }
    [title] = tree.iter(f"{SVG}title")
    assert title.text == HOSTILE
    assert tree.attrib["aria-label"] == HOSTILE
    assert tree.attrib["role"] == "img"
    assert not re.search(r"url\(|href|@import|on\w+=", drawn.replace(SVG, ""))


def test_colours_follow_the_scheme() -> None:
    [style] = ET.fromstring(line([(0, 0), (1, 1)])).iter(f"{SVG}style")
    assert "@media (prefers-color-scheme:dark)" in (style.text or "")
