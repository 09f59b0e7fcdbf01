"""Charts and numbers as text: values in the right places, labels escaped."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest

from reports import figures, formats
from reports.stats import mean_interval

NASTY = '<script>alert(1)</script>&"'


def points(*shares: float) -> list[figures.Point]:
    return [
        figures.Point(f"v{i}", i, 1000.0 * (i + 1), mean_interval([share] * 20))
        for i, share in enumerate(shares)
    ]


def texts(svg: str) -> list[str]:
    return ["".join(e.itertext()) for e in ET.fromstring(svg).iter("text")]


def test_all_charts_are_well_formed_and_escape_their_labels() -> None:
    interval = mean_interval([0.0, 1.0])
    charts = [
        figures.score_against_cache([figures.Point(NASTY, 0, 5.0, interval)]),
        figures.score_rows([figures.Point(NASTY, 0, 5.0, interval)]),
        figures.score_lines([NASTY], [(NASTY, [interval]), ("4", [None])], NASTY, NASTY),
        figures.bars(NASTY, [(NASTY, 0, 1.0), (NASTY, 9, None)], formats.seconds),
        figures.differences(NASTY, [(NASTY, interval)], 12),
    ]
    for chart in charts:
        assert "<script" not in chart
        root = ET.fromstring(str(chart))
        assert NASTY in root.attrib["aria-label"]
        assert any(NASTY in text for text in texts(str(chart)))
        assert "nan" not in chart


def test_a_higher_score_stands_higher_and_a_larger_cache_further_right() -> None:
    svg = str(figures.score_against_cache(points(0.1, 0.9)))
    marks = re.findall(r'class="mark c\d" d="M([\d.]+) ([\d.]+)', svg)
    (x0, y0), (x1, y1) = ((float(x), float(y)) for x, y in marks)
    assert x0 < x1
    assert y0 > y1


def test_variants_have_signs_of_their_own() -> None:
    signs = [str(figures.swatch(number)) for number in range(64)]
    assert len(set(signs)) == 64
    assert ["hollow" in sign for sign in signs[:9]] == [False] * 4 + [True] * 5


def test_labels_of_equal_scores_do_not_overlap() -> None:
    svg = ET.fromstring(str(figures.score_against_cache(points(0, 0, 0, 0))))
    heights: dict[str, list[float]] = {}
    for text in svg.iter("text"):
        if "name" in text.attrib["class"]:
            side = text.attrib["text-anchor"]
            heights.setdefault(side, []).append(float(text.attrib["y"]))
    for placed in heights.values():
        placed.sort()
        assert all(b - a >= 15 for a, b in zip(placed, placed[1:], strict=False))


def names_of(svg: str) -> list[float]:
    """Heights of the names, in order of appearance."""
    found = ET.fromstring(svg).iter("text")
    return [float(text.attrib["y"]) for text in found if "name" in text.attrib["class"]]


def test_names_of_many_lines_stand_within_the_chart() -> None:
    labels = [f"v{i}" for i in range(24)]
    cells = [mean_interval([1.0] * 20) for _ in labels]
    svg = str(figures.score_lines(labels, [("1", cells), ("2", cells)], "axis", "title"))
    height = float(ET.fromstring(svg).attrib["viewBox"].split()[3])
    placed = sorted(names_of(svg))
    assert len(placed) == 24 and placed[0] > 0 and placed[-1] < height
    assert all(b - a >= 15 for a, b in zip(placed, placed[1:], strict=False))
    few = str(figures.score_lines(labels[:3], [("1", cells[:3])], "axis", "title"))
    assert ET.fromstring(few).attrib["viewBox"].split()[3] == "330"


def test_a_column_without_bytes_has_no_place_beside_the_others() -> None:
    unknown = figures.Point("server", 2, None, mean_interval([0.5] * 20))
    svg = str(figures.score_against_cache([*points(0.1, 0.9), unknown]))
    assert "server" not in texts(svg) and "server" not in ET.fromstring(svg).attrib["aria-label"]


def test_many_columns_have_a_row_each_with_score_and_bytes() -> None:
    unknown = figures.Point("server", 3, None, mean_interval([0.5] * 20))
    svg = str(figures.score_rows([*points(0.1, 0.9, 0.9), unknown]))
    marks = re.findall(r'class="mark c\d" d="M([\d.]+) ([\d.]+)', svg)
    places = [(float(x), float(y)) for x, y in marks]
    assert places[0][0] < places[3][0] < places[1][0] == places[2][0]
    assert [y for _, y in places] == sorted(y for _, y in places)  # in the order of the columns
    assert {"1,000 B", "1.95 KiB", "v2", "server", "–"} <= set(texts(svg))
    assert "v1: score 90.0 [" in ET.fromstring(svg).attrib["aria-label"]


def test_charts_carry_their_numbers_for_those_who_cannot_see_them() -> None:
    label = ET.fromstring(str(figures.score_against_cache(points(0.25)))).attrib["aria-label"]
    assert "v0: score 25.0 [" in label
    assert "cache 1,000 B" in label


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (formats.points(0.71349), "71.3"),
        (formats.points(None), "–"),
        (formats.signed_points(0.5), "+50.0"),
        (formats.signed_points(-0.0312), "\N{MINUS SIGN}3.1"),
        (formats.signed_points(-0.0001), "0.0"),
        (formats.size(512), "512 B"),
        (formats.size(1536), "1.50 KiB"),
        (formats.size(1024 * 1024 - 1), "1.00 MiB"),
        (formats.size(26 * 2**30), "26.0 GiB"),
        (formats.operations(2.58e9), "2.58 GFLOP"),
        (formats.operations(999_999_999), "1.00 GFLOP"),
        (formats.seconds(0.0215), "21.5 ms"),
        (formats.seconds(0.9999), "1.00 s"),
        (formats.seconds(123.4), "123 s"),
        (formats.seconds_between(0.0123, 0.0309), "12.3–30.9 ms"),
        (formats.seconds_between(0.5, 2.0), "0.50–2.00 s"),
        (formats.seconds_between(None, 2.0), "–"),
        (formats.p_value(0.0312), "= 0.031"),
        (formats.p_value(0.0009), "< 0.001"),
        (formats.p_value(None), "–"),
        (formats.percent(0.2604), "26.0 %"),
        (formats.whole(12345.4), "12,345"),
        (formats.clipped("abcdef", 4), "abcd [… 2 more characters]"),
        (formats.clipped("abcdef", 4, keep="tail"), "[… 2 more characters] cdef"),
        (formats.clipped("abcd", 4), "abcd"),
    ],
)
def test_numbers_are_written_with_unit_and_fitting_digits(written: str, expected: str) -> None:
    assert written == expected
