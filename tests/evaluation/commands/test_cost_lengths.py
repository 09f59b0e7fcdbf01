"""`run_eval cost --lengths`: FLOPs and cache over the length, as tables, JSON and a figure."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ahn.cost import zoo
from ahn.cost.accounting import ACCOUNTINGS, cache_bytes, flops
from common.errors import InputError
from common.settings import SettingsError, settings
from evaluation.commands.cost import cost_table
from evaluation.commands.cost_lengths import (
    cost_curve,
    costed_variants,
    costs_over_length,
    render_lengths,
)
from evaluation.commands.options import Cost
from reports import formats
from tests.conftest import ROOT

RunEval = Callable[..., Any]
SHAPE = zoo.find("qwen2.5-3b").shape
K = 1024


@pytest.fixture
def run_eval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunEval:
    from click.testing import CliRunner

    from evaluation.cli import app

    monkeypatch.chdir(tmp_path)

    def run(*arguments: Any) -> Any:
        words = ["cost", "--model", "qwen2.5-3b", *map(str, arguments)]
        return CliRunner().invoke(app, words, catch_exceptions=False)

    return run


def found(**given: Any) -> dict[str, Any]:
    asked = settings(Cost, {"model": "qwen2.5-3b", "lengths": ["8k,64k,1m"]} | given)
    return json.loads(json.dumps(costs_over_length(asked).data))


# -- lengths -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (["1k,2k", "4096"], [K, 2 * K, 4 * K]),
        (["64k", "1k,1024"], [K, 64 * K]),
        ([100, "2k"], [100, 2 * K]),
        (["0..64"], list(range(1, 65))),
        (["1000..1064"], list(range(1000, 1065))),
        (["0..256k"], [4 * K * i for i in range(1, 65)]),
        (["0..3", "1m"], [1, 2, 3, K * K]),
        (["2m"], [2 * K * K]),
    ],
)
def test_lengths_are_numbers_lists_and_ranges(written: list[Any], expected: list[int]) -> None:
    assert settings(Cost, {"model": "m", "lengths": written}).lengths == expected


@pytest.mark.parametrize(
    "written",
    ["0", "-1", "1k..1k", "2k..1k", "1k,...,1m", "1k...2k", "", "1k,,2k", "many", "1.5k", "..",
     "1k..", "..2k", "1e3", "10000000000000", "1k..2k..4k", True, 1.5, None, "0..64;100..164"],
)  # fmt: skip
def test_what_is_no_length_is_refused(written: Any) -> None:
    with pytest.raises(SettingsError) as caught:
        settings(Cost, {"model": "m", "lengths": [written]})
    (problem,) = caught.value.problems
    assert problem.startswith("--lengths: ")


def test_there_are_not_too_many_lengths() -> None:
    with pytest.raises(SettingsError, match="5,000 lengths; give 1 to 2,000"):
        settings(Cost, {"model": "m", "lengths": list(range(1, 5001))})


# -- numbers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("accounting", ACCOUNTINGS)
def test_every_number_is_that_of_the_table_of_one_length(accounting: str) -> None:
    """The defaults of `--length` are those of `--lengths`: the same cells."""
    of_lengths = found(lengths=["64k,128000"], accounting=accounting, generate=9)
    one = cost_table(settings(Cost, {"model": "qwen2.5-3b", "length": 128_000, "generate": 9}))
    assert list(of_lengths["variants"]) == ["full", "window", "ahn"] == list(one["variants"])
    for name, told in of_lengths["variants"].items():
        held_as = "exact" if accounting == "exact" else "paper"
        cells = one["variants"][name]
        assert told["flops"][1] == cells["flops"][accounting]["total"]
        assert told["cache_bytes"][1] == cells["cache_bytes"][held_as]["total"]
        change = cells["flops"][accounting]["change_percent"]
        assert 100 * (told["flops_of_full"][1] - 1) == pytest.approx(change)
        change = cells["cache_bytes"][held_as]["change_percent"]
        assert 100 * (told["cache_bytes_of_full"][1] - 1) == pytest.approx(change)


def test_every_variant_costs_what_the_accounting_says() -> None:
    told = found(
        variants=["full,window:sinks=4,name=w", "ahn:cell=DeltaNet", "no-write", "memory-only",
                  "compressive:slots=64,rate=2,name=ct"],
        window=16 * K, cell="Mamba2", dtype="float32",
    )["variants"]  # fmt: skip
    span = {"window": 16 * K, "sinks": 128}
    expected: dict[str, tuple[str, dict[str, Any]]] = {
        "full": ("full", {}),
        "w": ("window", {"window": 16 * K, "sinks": 4}),
        "ahn-cellDeltaNet": ("ahn", span | {"cell": "DeltaNet"}),
        "no-write": ("no-write", span | {"cell": "Mamba2"}),
        "memory-only": ("memory-only", {"cell": "Mamba2"}),
        "ct": ("compressive", span | {"rate": 2, "slots": 64}),
    }
    assert list(told) == list(expected)
    for name, (kind, own) in expected.items():
        one = told[name]
        assert {key: one[key] for key in ("variant", *own)} == {"variant": kind} | own
        for at, length in enumerate((8 * K, 64 * K, K * K)):
            assert one["flops"][at] == flops(SHAPE, kind, length, **own).total
            held = cache_bytes(SHAPE, kind, length, dtype_bytes=4, **own).total
            assert one["cache_bytes"][at] == held


def test_several_windows_are_a_line_each() -> None:
    told = found(
        window=["8k", "32k"], variants=["full", "window", "ahn", "window:window=64,name=narrow"]
    )["variants"]
    assert {name: one.get("window") for name, one in told.items()} == {
        "full": None, "window-8192": 8 * K, "window-32768": 32 * K, "ahn-8192": 8 * K,
        "ahn-32768": 32 * K, "narrow": 64,
    }  # fmt: skip
    assert told["window-8192"]["cache_bytes"][2] < told["window-32768"]["cache_bytes"][2]


def test_any_length_is_quickly_known() -> None:
    told = found(lengths=["1k,1000m"], variants=["full,ahn,compressive,memory-only"])
    assert told["lengths"] == [K, 1000 * K * K]
    assert all(one["flops"][1] > one["flops"][0] > 0 for one in told["variants"].values())
    kept = {name: one["cache_bytes"] for name, one in told["variants"].items()}
    assert kept["memory-only"][0] == kept["memory-only"][1] and kept["full"][1] > 10**13


def test_curves_can_be_had_without_the_command() -> None:
    variants = costed_variants(SHAPE, ["window", "ahn"], [8 * K, 16 * K], 128, "DeltaNet")
    names = [variant.name for variant in variants]
    assert names == ["window-8192", "window-16384", "ahn-8192", "ahn-16384"]
    curve = cost_curve(SHAPE, variants[0], [K, 64 * K], accounting="paper")
    assert [n for n, _, _ in curve.points] == [K, 64 * K]
    wanted = flops(SHAPE, "window", 64 * K, window=8 * K, sinks=128, accounting="paper").total
    assert curve.points[1][1] == wanted


# -- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"variants": ["windw"]}, "did you mean 'window'"),
        ({"variants": ["kvpress:snapkv"]}, "the costs of 'kvpress' over the length are not known"),
        ({"variants": ["full:window=4"]}, "full has no option 'window'"),
        ({"variants": ["memory-only:window=4"]}, "memory-only has no option 'window'"),
        ({"variants": ["window:window=0"]}, "--variant window:window=0: window must be at least 1"),
        ({"variants": ["ahn:cell=Mamba3"]}, "--variant ahn:cell=Mamba3: cell 'Mamba3' is unknown"),
        ({"variants": ["compressive:slots=0"]}, "slots must be at least 1"),
        ({"variants": ["window:name=a", "ahn:name=a"]}, "two variants are called a"),
        ({"variants": [""]}, "--variant: no name is given"),
        ({"window": [64, 128], "variants": ["window", "ahn:window=9,name=window-64"]},
         "two variants are called window-64"),
        ({"length": 128_000}, "--length: one length, and --lengths are several"),
        ({"model": "qwen9"}, "qwen9"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        found(**given)
    assert said in str(caught.value)


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(InputError) as caught:
        found(variants=["windw", "full:x=1", "compressive:slots=0"])
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--variant", "ahn"], "--variant: goes with --lengths"),
        (["--plot", "x.svg"], "--plot: goes with --lengths"),
        (["--accounting", "paper"], "--accounting: goes with --lengths"),
        (["--window", "8k,16k"], "--window: several go with --lengths"),
        (["--window", "8k", "--window", "16k"], "--window: several go with --lengths"),
        (["--lengths", "1k", "--window", "8k,8192"], "--window: 8,192 is given twice"),
        (["--lengths", "1k", "--window", "0"], "--window: must be at least 1, not 0"),
        (["--lengths", "1k,...,1M"], "'...' is no length (128000, 128k, 1m) and no range"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(
    run_eval: RunEval, tmp_path: Path, words: list[str], said: str
) -> None:
    result = run_eval(*words)
    assert result.exit_code == 2 and said in result.stderr and not result.stdout
    assert list(tmp_path.iterdir()) == []


# -- what is printed and drawn -------------------------------------------------------------------


def test_the_tables_have_a_line_for_each_length(run_eval: RunEval) -> None:
    result = run_eval("--lengths", "8k,128000", "--variant", "full,ahn,memory-only")
    assert result.exit_code == 0, result.stderr
    said = " ".join(result.stdout.split())
    for cell in ("8,192", "128,000", "1.27 GiB (28.8 %)", "4.39 GiB", "(57.5 %)", "36.0 MiB"):
        assert cell in said, cell
    assert "ahn: window 32,640, sinks 128, GatedDeltaNet; memory-only: GatedDeltaNet" in said


@pytest.mark.parametrize("lengths", ["1k,2k,4k,8k,16k,32k,64k,128k,256k,512k,1m", "0..256k", "64k"])
def test_a_figure_has_both_panels_and_a_name_for_each_line(
    run_eval: RunEval, tmp_path: Path, lengths: str
) -> None:
    for name in ("a.svg", "b.html", "deep/er/c.SVG"):
        result = run_eval(
            "--lengths", lengths, "--plot", name, "--json", "--variant",
            "full,window,ahn,compressive,memory-only", "--window", "8k,32k",
        )  # fmt: skip
        assert result.exit_code == 0, result.stderr
        assert f"figure: {name}" in result.stderr
        names = list(json.loads(result.stdout)["variants"])
        assert len(names) == 8
        text = (tmp_path / name).read_text("utf-8")
        if name.endswith(".html"):
            assert text.startswith("<!doctype html>") and text.count("<table>") == 2
            assert "<script" not in text and "http" not in text.replace("http-equiv", "").replace(
                "http://www.w3.org/2000/svg", ""
            )
            text = text[text.index("<svg") : text.index("</svg>") + 6]
        root = ET.fromstring(text)
        told = ["".join(e.itertext()) for e in root.iter() if e.tag.endswith("}text")]
        assert all(told.count(name) == 2 for name in names)
        assert sum("length, tokens" in one for one in told) == 2
        lines = [e for e in root.iter() if e.tag.endswith("polyline")]
        assert len(lines) == 16 and "nan" not in text
        marks = [e for e in root.iter() if e.get("class", "").startswith("mark")]
        assert len(marks) >= 2 * 2 * 8, "each line has a mark, and so has its name"


def test_lines_stand_where_the_numbers_are(run_eval: RunEval, tmp_path: Path) -> None:
    run_eval("--lengths", "64k,128k,192k,256k", "--plot", "a.svg", "--variant", "full,memory-only")
    root = ET.fromstring((tmp_path / "a.svg").read_text("utf-8"))
    lines = [e.get("points", "") for e in root.iter() if e.tag.endswith("polyline")]
    places = [[tuple(map(float, p.split(","))) for p in line.split()] for line in lines]
    grows, _, kept, still = places
    assert grows[0][1] > grows[1][1] > grows[3][1], "more work stands higher"
    steps = [b[0] - a[0] for a, b in zip(kept, kept[1:], strict=False)]
    assert max(steps) - min(steps) < 0.3, "equal steps of length on a linear axis"
    rises = [a[1] - b[1] for a, b in zip(kept, kept[1:], strict=False)]
    assert max(rises) - min(rises) < 0.3, "full attention's cache is a straight line"
    assert len({height for _, height in still}) == 1, "a memory alone does not grow"


def test_lengths_that_grow_by_factors_have_logarithmic_axes(
    run_eval: RunEval, tmp_path: Path
) -> None:
    for lengths, logarithmic in (("1k,2k,4k,8k,16k,32k", True), ("1k,9k,17k,25k,33k", False)):
        run_eval("--lengths", lengths, "--plot", "a.svg", "--variant", "full")
        root = ET.fromstring((tmp_path / "a.svg").read_text("utf-8"))
        lines = [e.get("points", "") for e in root.iter() if e.tag.endswith("polyline")]
        places = [tuple(map(float, p.split(","))) for p in lines[1].split()]
        steps = [b[0] - a[0] for a, b in zip(places, places[1:], strict=False)]
        assert max(steps) - min(steps) < 0.3, "equal steps, or equal factors, are equally far"
        told = ["".join(e.itertext()) for e in root.iter() if e.tag.endswith("}text")]
        assert ("cache (both axes logarithmic)" in told) is logarithmic
        assert ("cache" in told) is not logarithmic
        assert ("0" in told) is not logarithmic
        assert ({"16 MiB", "64 MiB", "256 MiB"} <= set(told)) is logarithmic


def test_a_page_has_the_numbers_of_both_panels(run_eval: RunEval, tmp_path: Path) -> None:
    told = json.loads(
        run_eval(
            "--lengths", "8k,64k", "--plot", "a.html", "--variant", "full,ahn", "--json"
        ).stdout
    )
    page = (tmp_path / "a.html").read_text("utf-8")
    work, held = page[page.index("<caption>FLOPs") :].split("<caption>Cache")
    for name in ("full", "ahn"):
        assert f'<th scope="col">{name}</th>' in work and f'<th scope="col">{name}</th>' in held
        for amount in told["variants"][name]["flops"]:
            assert f"<td>{formats.operations(amount)}</td>" in work
        for amount in told["variants"][name]["cache_bytes"]:
            assert f"<td>{formats.size(amount)}</td>" in held
    assert "ahn: window 32,640, sinks 128, GatedDeltaNet" in page


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a.png", "no PNG, which would need an image library; name it .svg"),
        ("a.pdf", "no PDF"),
        ("a.txt", "a figure ends in .svg or .html"),
        ("a", "a figure ends in .svg or .html"),
        ("folder.svg", "is a folder; give the name of the SVG or HTML file"),
        ("run/run.json.svg", None),
    ],
)
def test_only_figures_that_can_be_drawn_are_written(
    run_eval: RunEval, tmp_path: Path, name: str, said: str | None
) -> None:
    (tmp_path / "folder.svg").mkdir()
    result = run_eval("--lengths", "1k,2k", "--plot", name)
    if said is None:
        assert result.exit_code == 0 and (tmp_path / name).is_file()
    else:
        assert result.exit_code == 2 and said in result.stderr and not result.stdout
        assert [path.name for path in tmp_path.iterdir()] == ["folder.svg"]


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ("notes", "a.svg"),
        ('<svg xmlns="http://www.w3.org/2000/svg"><path d="M0 0"/></svg>', "a.svg"),
        ("<!doctype html>\n<title>mine</title>", "a.html"),
        ("<!doctype html>\n<title>AHN-Bench: run</title>", "a.html"),
    ],
)
def test_another_file_is_not_replaced(
    run_eval: RunEval, tmp_path: Path, content: str, name: str
) -> None:
    (tmp_path / name).write_text(content)
    result = run_eval("--lengths", "1k,2k", "--plot", name)
    assert result.exit_code == 2 and "is no figure of run_eval cost" in result.stderr
    assert (tmp_path / name).read_text() == content


@pytest.mark.parametrize("name", ["a.svg", "a.html"])
def test_its_own_figure_is_replaced(run_eval: RunEval, tmp_path: Path, name: str) -> None:
    written = []
    for lengths in ("1k,2k", "1k,4k", "1k,4k"):
        assert run_eval("--lengths", lengths, "--plot", name).exit_code == 0
        written.append((tmp_path / name).read_bytes())
    assert written[0] != written[1] == written[2]


def test_a_report_is_not_replaced_by_a_figure_nor_the_other_way(tmp_path: Path) -> None:
    from reports.targets import check_cost_target, check_page_target

    page, figure = tmp_path / "page.html", tmp_path / "figure.html"
    page.write_text("<!doctype html>\n<title>AHN-Bench: run</title>")
    figure.write_text("<!doctype html>\n<title>AHN-Bench cost: model</title>")
    check_page_target(page)
    check_cost_target(figure)
    for check, target in ((check_page_target, figure), (check_cost_target, page)):
        with pytest.raises(InputError, match="so it is not replaced"):
            check(target)


def test_names_are_escaped_and_long_ones_cut() -> None:
    from reports.cost_curves import CostCurve, html_file, svg_file

    nasty = "</text><script>&\"'"
    curves = [CostCurve(name, [(1, 2, 3), (2, 4, 6)]) for name in (nasty, "x" * 200)]
    for text in (svg_file(curves, nasty), html_file(nasty, [nasty], curves, nasty)):
        assert "<script" not in text
    drawn = svg_file(curves, "")
    ET.fromstring(drawn)
    assert "x" * 29 + "…" in drawn and "x" * 31 not in drawn.split("<style>")[1]


def test_no_torch_is_imported(tmp_path: Path) -> None:
    code = (
        "import sys; from evaluation.cli import app; app.main(["
        "'cost', '--model', 'qwen2.5-3b', '--lengths', '1k,2k', '--window', '1k,2k', '--plot', "
        f"{str(tmp_path / 'a.svg')!r}], standalone_mode=False); "
        "print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "False False"


def test_many_variants_fit_a_terminal() -> None:
    import io

    from rich.console import Console

    asked = settings(Cost, {
        "model": "qwen2.5-3b", "lengths": "1m", "window": "8k,32k",
        "variants": "full,window,ahn,compressive,memory-only",
    })  # fmt: skip
    stream = io.StringIO()
    Console(width=140, file=stream).print(render_lengths(costs_over_length(asked)))
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= 140 and sum("168 PFLOP" in line for line in lines) == 1
