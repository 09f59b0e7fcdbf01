"""Charts: well-formed SVG that says its numbers, whatever the texts and values are."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET

import pytest

from common.charts import line_chart, round_ticks, spread, standalone

NASTY = "</text><script>&\"'\x00\x1b"


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(svg).iter() if element.text]


def test_a_line_chart_has_a_line_for_each_series_and_names_several():
    points = [(0, 1.0), (100, 0.25), (200, 0.5)]
    chart = line_chart("Loss", [("a", points), ("b", [(0, 2.0)])], "step", "loss")
    assert chart.count("<polyline") == 2
    assert {"a", "b", "step", "loss", "0", "200"} <= set(texts(chart))
    assert "a: 1 to 0.5; b: 2 to 2" in chart
    alone = line_chart("Loss", [("a", points)], "step", "loss")
    assert "a" not in texts(alone), "one line needs no name"


def test_points_stand_where_their_numbers_are():
    chart = line_chart("t", [("a", [(0, 0.0), (10, 10.0), (5, 5.0)])], "x", "y")
    (path,) = re.findall(r'points="([^"]*)"', chart)
    (x0, y0), (x1, y1), (x2, y2) = [map(float, pair.split(",")) for pair in path.split()]
    assert x0 < x2 < x1 and y0 > y2 > y1, "upwards is less"
    assert x2 == pytest.approx((x0 + x1) / 2, abs=0.11)
    assert y2 == pytest.approx((y0 + y1) / 2, abs=0.11)


def test_a_logarithmic_axis_has_equal_steps_for_equal_ratios():
    chart = line_chart("t", [("a", [(0, 1.0), (1, 10.0), (2, 100.0)])], "x", "y", log=True)
    (path,) = re.findall(r'points="([^"]*)"', chart)
    heights = [float(pair.split(",")[1]) for pair in path.split()]
    assert heights[0] - heights[1] == pytest.approx(heights[1] - heights[2], abs=0.21)


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(
    "points",
    [[], [(5, 3.0)], [(0, 2.0), (1, 2.0)], [(0, math.nan), (1, math.inf), (2, 1.0)],
     [(0, 0.0), (1, -1.0), (2, 1e-9), (3, 1e9)]],
)  # fmt: skip
def test_any_numbers_give_a_chart(points, log):
    chart = line_chart("t", [("a", points), ("b", points)], "x", "y", log=log)
    ET.fromstring(chart)
    assert "nan" not in chart and "inf" not in chart


def test_texts_are_escaped_and_a_file_stands_alone():
    points = [(0, 1.0), (1, 2.0)]
    drawn = line_chart(NASTY, [(NASTY, points), (NASTY, points)], NASTY, NASTY)
    file = standalone(drawn)
    root = ET.fromstring(file)
    assert root.tag == "{http://www.w3.org/2000/svg}svg" and "<script>" not in file
    assert int(root.attrib["width"]) > 520 and "<style>" in file and "viewBox" in root.attrib


def test_ticks_are_round_and_cover_the_range():
    assert round_ticks(0, 100) == [0, 20, 40, 60, 80, 100]
    ticks = round_ticks(-3.2, 7.1)
    assert ticks[0] <= -3.2 and ticks[-1] >= 7.1 and 0 in ticks and len(ticks) <= 9


def test_labels_are_spread_in_their_order():
    placed = spread([50, 50, 52, 200], 0, 300)
    assert placed == sorted(placed) and placed[3] == 200
    assert all(b - a >= 17 for a, b in zip(placed, placed[1:], strict=False))
