"""Score over window: which variants are joined, over which examples, and how it is drawn."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from reports.compare import summary_rows
from reports.figure_registry import PageFigure
from reports.leaderboard import columns_of
from reports.over_window import Family, Level, draw, families_of, levels_of, over_window
from reports.page import build_report
from reports.run_folders import Run, read_run
from reports.stats import mean_interval

MakeRun = Callable[..., Path]
Scores = Mapping[str, Mapping[str, Sequence[float | None]]]


def said(kind: str, window: int | None = None, **more: Any) -> dict[str, Any]:
    return {"variant": kind, "path": "pocket", "window": window, "sinks": 4, **more}


MODELS = {
    "full": said("full"),
    "window-64": said("window", 64),
    "window-128": said("window", 128),
    "ahn-gdn-64": said("ahn", 64, cell="GatedDeltaNet"),
    "ahn-gdn-128": said("ahn", 128, cell="GatedDeltaNet"),
    "ct-max-64": said("compressive", 64, pooling="max"),
    "ct-max-128": said("compressive", 128, pooling="max"),
    "ct-mean-64": said("compressive", 64, pooling="mean"),
}
SCORES: Scores = {
    "full": {"qa": [1.0, 1.0, 1.0, 1.0], "two_hop": [1.0, 0.0]},
    **{n: {"qa": [1.0, 0.0, 0.0, 0.0], "two_hop": [0.0, 0.0]} for n in MODELS if n[-2:] == "64"},
    **{n: {"qa": [1.0, 1.0, 0.0, 0.0], "two_hop": [1.0, 0.0]} for n in MODELS if n[-3:] == "128"},
}  # fmt: skip


@pytest.fixture
def swept(make_run: MakeRun) -> Path:
    return make_run("swept", {name: SCORES[name] for name in MODELS}, models=MODELS)


def drawn(*runs: Path | Run) -> PageFigure | None:
    read = [run if isinstance(run, Run) else read_run(run) for run in runs]
    return over_window(summary_rows(columns_of(read)))


def names(*runs: Path) -> list[tuple[str, list[int]]]:
    rows = summary_rows(columns_of([read_run(run) for run in runs]))
    return [(family.name, [w for w, _ in family.points]) for family in families_of(rows)]


def test_what_differs_in_the_window_alone_is_joined(swept: Path) -> None:
    assert names(swept) == [
        ("window", [64, 128]), ("ahn-gdn", [64, 128]), ("ct-max", [64, 128]),
    ]  # fmt: skip
    found = drawn(swept)
    assert found is not None
    assert found.table.columns == ("window", "ahn-gdn", "ct-max", "full")
    rows = summary_rows(columns_of([read_run(swept)]))
    by_name = {row.column.variant: row.score for row in rows}
    lowest, highest = by_name["window-64"], by_name["full"]
    assert lowest is not None and highest is not None and lowest.mean == 0.125
    cells = dict(found.table.rows)
    assert cells["64"][0] == cells["64"][1] and cells["64"][0].startswith("12.5 [")  # type: ignore[union-attr]
    assert cells["128"][0].startswith("50.0 [") and cells["128"][3] is None  # type: ignore[union-attr]
    assert cells["no window"][:3] == (None,) * 3
    assert cells["no window"][3].startswith("75.0 [")  # type: ignore[union-attr]


def test_a_run_of_one_window_has_no_such_figure(pocket_run: Path, make_run: MakeRun) -> None:
    assert drawn(pocket_run) is None
    kept = [name for name in MODELS if not name.endswith("128")]
    one = make_run("one", {n: SCORES[n] for n in kept}, models={n: MODELS[n] for n in kept})
    assert drawn(one) is None
    assert drawn(one, pocket_run) is None


def test_runs_of_one_window_each_are_joined_on_a_page(make_run: MakeRun) -> None:
    def run(name: str, variant: str, **own: Any) -> Path:
        models = {variant: said(**own)}
        return make_run(name, {variant: {"qa": [1.0, 0.0, 0.0]}}, models=models)

    runs = [
        run("a", "window", kind="window", window=64), run("b", "window", kind="window", window=256),
        run("c", "m", kind="ahn", window=64, cell="Mamba2"),
        run("d", "n", kind="ahn", window=256, cell="Mamba2"),
        run("e", "ahn", kind="ahn", window=512, cell="DeltaNet"),
        run("f", "full", kind="full"),
    ]  # fmt: skip
    assert names(*runs) == [("window", [64, 256]), ("ahn Mamba2", [64, 256])]


def test_other_sinks_slots_weights_and_models_are_other_families(make_run: MakeRun) -> None:
    for number, (key, a, b) in enumerate([
        ("sinks", 4, 8), ("slots", 16, 32), ("ahn", "seed-0", "seed-1"), ("cell", "A", "B"),
        ("rate", 2, 4), ("dtype", "float32", "bfloat16"),
    ]):  # fmt: skip
        models = {"a": said("ahn", 64) | {key: a}, "b": said("ahn", 128) | {key: b}}
        run = make_run(f"run{number}", {n: {"qa": [1.0]} for n in models}, models=models)
        assert drawn(run) is None, key
    first = make_run("m", {"window": {"qa": [1.0]}}, models={"window": said("window", 64)})
    other = make_run(
        "n", {"window": {"qa": [1.0]}}, models={"window": said("window", 128)},
        configuration={"model": "another"},
    )  # fmt: skip
    assert drawn(first, other) is None


def test_the_same_variant_in_two_runs_is_two_families(swept: Path, make_run: MakeRun) -> None:
    other = make_run("again", {name: SCORES[name] for name in MODELS}, models=MODELS)
    assert names(swept, other) == [
        (f"{family} · {run}", [64, 128])
        for family in ("window", "ahn-gdn", "ct-max")
        for run in ("swept", "again")
    ]


def test_it_is_over_the_examples_that_all_answered(make_run: MakeRun) -> None:
    scores: dict[str, Any] = {name: {"qa": [1.0, 0.0]} for name in MODELS}
    scores["ahn-gdn-64"] = {"qa": [None, 0.0]}  # failed: no variant's first example counts
    found = drawn(make_run("failed", scores, models=MODELS))
    assert found is not None
    for _, cells in found.table.rows:
        assert all(cell is None or str(cell).startswith("0.0 [") for cell in cells)


def test_points_of_different_tasks_are_not_joined(make_run: MakeRun) -> None:
    scores = {"window-64": {"qa": [1.0]}, "window-128": {"two_hop": [1.0]}}
    assert drawn(make_run("unlike", scores, models={n: MODELS[n] for n in scores})) is None


def test_full_attention_of_another_model_is_not_drawn(swept: Path, make_run: MakeRun) -> None:
    scores = {"full": {"qa": [0.0] * 4, "two_hop": [0.0] * 2}}
    other = make_run("big", scores, models={"full": said("full")}, configuration={"model": "big"})
    rows = summary_rows(columns_of([read_run(swept), read_run(other)]))
    assert [level.name for level in levels_of(rows)] == ["full · pocket"]


# -- the picture ---------------------------------------------------------------------------------


def family(name: str, *points: tuple[int, float]) -> Family:
    return Family(name, tuple((w, mean_interval([share] * 20)) for w, share in points))


def test_the_axis_is_logarithmic_and_higher_scores_stand_higher() -> None:
    picture = str(draw([family("w", (1024, 0.2), (2048, 0.4), (32768, 0.9))]).picture)
    places = re.findall(r'class="mark c0" d="M([\d.]+) ([\d.]+)', picture)
    (x0, y0), (x1, y1), (x2, y2) = ((float(x), float(y)) for x, y in places)
    assert y0 > y1 > y2
    assert (x2 - x1) / (x1 - x0) == pytest.approx(4, abs=0.02)
    assert picture.count("whisker") == 3 and "1k" in picture and "32k" in picture


def test_full_attention_is_a_line_with_a_band() -> None:
    whole = Level("full", mean_interval([1.0, 0.0] * 10))
    picture = ET.fromstring(str(draw([family("w", (8, 0.2), (16, 0.4))], [whole]).picture))
    band = next(e for e in picture if e.get("class", "").startswith("band"))
    (line,) = (e for e in picture if e.get("stroke-dasharray"))
    middle = float(re.fullmatch(r"M\S+ (\S+)H\S+", line.get("d", ""))[1])  # type: ignore[index]
    top, height = float(band.get("y", "")), float(band.get("height", ""))
    assert top < middle < top + height
    ticks = [
        e
        for e in picture.iter("text")
        if e.get("class") == "tick" and e.get("text-anchor") == "end"
    ]
    scale = {e.text: float(e.get("y", "")) - 4 for e in ticks}
    assert middle == pytest.approx((scale["40"] + scale["60"]) / 2, abs=0.2)


def test_names_are_escaped_and_read_without_colour() -> None:
    nasty = '<script>alert(1)</script>&"'
    figure = draw([family(nasty, (8, 0.2), (16, 0.4)), family("b", (8, 0.2))],
                  [Level(nasty, mean_interval([0.0, 1.0]))])  # fmt: skip
    root = ET.fromstring(str(figure.picture))
    texts = ["".join(e.itertext()) for e in root.iter("text")]
    assert texts.count(nasty) == 2 and "b" in texts and "<script" not in figure.picture
    assert "20.0 at 8, 40.0 at 16" in root.attrib["aria-label"]


def test_crowded_windows_keep_their_labels_apart() -> None:
    windows = [100, 110, 120, 130, 140, 150, 5000, 32_640]
    figure = draw([family("w", *((w, 0.5) for w in windows))])
    ticks = [
        (float(e.get("x", "")), float(e.get("y", "")), e.text or "")
        for e in ET.fromstring(str(figure.picture)).iter("text")
        if e.get("class") == "tick" and e.get("text-anchor") == "middle"
    ]
    assert {"100", "5,000", "32,640"} <= {words for _, _, words in ticks}
    for i, (x, y, words) in enumerate(ticks):
        for other_x, other_y, other in ticks[:i]:
            apart = abs(x - other_x) >= 3.5 * (len(words) + len(other))
            assert apart or abs(y - other_y) > 10, (words, other)


def test_one_point_and_no_level_can_be_drawn() -> None:
    figure = draw([family("w", (8, 0.5))])
    assert "nan" not in figure.picture and figure.table.rows[0][0] == "8"


# -- the page ------------------------------------------------------------------------------------


def test_the_page_shows_it_where_there_are_several_windows(
    swept: Path, pocket_run: Path, tmp_path: Path
) -> None:
    page = build_report([swept], tmp_path / "swept.html").read_text("utf-8")
    assert page.count('<section id="by-window">') == 1 and 'href="#by-window"' in page
    section = page[page.index('<section id="by-window">') :]
    section = section[: section.index("</section>")]
    assert "<svg" in section and "12.5 [" in section and "no window" in section
    assert "by-window" not in build_report([pocket_run], tmp_path / "one.html").read_text("utf-8")
