"""The recipe of a figure, carried out as written."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from markupsafe import Markup

import reports
from common.charts import line_chart
from common.errors import InputError
from reports import figure_registry
from reports.figure_registry import figures_of
from tests.recipes.recipe import blocks, commands, install, write

BLOCKS = blocks("figure")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The package of the recipe, installed."""
    monkeypatch.setattr(figure_registry, "_registered", {})
    folder = tmp_path / "site"
    write(folder, {"my_figures.py": BLOCKS["my_figures.py"]})
    install(folder, BLOCKS["pyproject.toml"])
    monkeypatch.syspath_prepend(folder)
    yield folder
    sys.modules.pop("my_figures", None)


def test_the_recipe_is_carried_out_as_written(
    site: Path, run_eval: Callable[..., Any], tmp_path: Path
) -> None:
    run, report = commands("figure")
    run_eval(*run)
    run_eval(*report)
    page = (tmp_path / "lengths.html").read_text()
    section = page[page.index('<section id="figures">') :].split("</section>")[0]
    assert "Tokens of the answers" in section and "<svg" in section and "polyline" in section
    assert page == (tmp_path / "runs/lengths/report.html").read_text()


NASTY = "<script>alert('x')</script>\x00&\""
TABLE = reports.FigureTable(NASTY, (NASTY,), ((NASTY, (NASTY,)),), (NASTY,))


def test_its_texts_are_escaped(site: Path) -> None:
    def drawn(columns: Any) -> reports.PageFigure:
        return reports.PageFigure(line_chart(NASTY, [(NASTY, [(1, 2)])] * 2, NASTY, NASTY), TABLE)

    reports.register_figure("nasty", drawn)
    (figure,), problems = figures_of([])
    assert not problems and "<script>" not in figure.picture and "&lt;script&gt;" in figure.picture


def raising(columns: Any) -> Any:
    raise ZeroDivisionError("nothing to divide by")


def of(picture: Any, table: Any = TABLE) -> Callable[[Any], Any]:
    return lambda columns: reports.PageFigure(picture, table)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (raising, "ZeroDivisionError: nothing to divide by"),
        (lambda columns: "<svg/>", "it gave str, no reports.PageFigure"),
        (of("<svg/>"), "no Markup"),
        (of(Markup("<svg>")), "is no SVG"),
        (of(Markup("<!DOCTYPE svg><svg/>")), "no Markup"),
        (of(Markup("<svg><script/></svg>")), "holds <script>"),
        (of(Markup('<svg onload="x()"/>')), "holds <svg>, onload"),
        (of(Markup("<svg/>"), reports.FigureTable("t", ("a", "b"), (("r", (1.0,)),))), "as long"),
    ],
)
def test_a_figure_that_fails_is_left_out_and_said(site: Path, make: Any, said: str) -> None:
    reports.register_figure("odd", make)
    reports.register_figure("none", lambda columns: None)
    found, (problem,) = figures_of([])
    assert found == [] and "'odd' is left out" in problem and said in problem


def test_a_name_that_is_taken_is_refused(site: Path) -> None:
    reports.register_figure("mine", raising)
    reports.register_figure("mine", raising)
    with pytest.raises(InputError, match="'mine' is there already"):
        reports.register_figure("mine", lambda columns: None)
