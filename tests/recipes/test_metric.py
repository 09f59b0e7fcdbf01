"""The recipe of a metric, carried out as written."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import tasks
from common.errors import InputError
from tasks import metric_registry
from tasks.metric_code import metric_sha256
from tasks.metrics import METRICS, find_metric
from tasks.predictions import read_predictions
from tasks.registry import find_task
from tasks.schema import scored_example
from tasks.scoring import score_file
from tasks.workers import scores_of
from tests.recipes.recipe import blocks, commands, install, write

BLOCKS = blocks("metric")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The package of the recipe, installed."""
    monkeypatch.setattr(metric_registry.TABLE, "_functions", dict(metric_registry.TABLE._functions))
    monkeypatch.setattr(metric_registry.TABLE, "_loaded", set())
    folder = tmp_path / "site"
    write(folder, {"my_metrics.py": BLOCKS["my_metrics.py"]})
    install(folder, BLOCKS["pyproject.toml"])
    monkeypatch.syspath_prepend(folder)
    yield folder
    sys.modules.pop("my_metrics", None)


def test_the_recipe_is_carried_out_as_written(
    site: Path, run_eval: Callable[..., Any], tmp_path: Path
) -> None:
    write(tmp_path, {"predictions.jsonl": BLOCKS["predictions.jsonl"]})
    (command,) = commands("metric")
    said = run_eval(*command).stdout
    assert said.strip() == "hotpotqa (official, but by first_word, 2 predictions): 50.0"


def test_it_is_known_by_name_and_its_code_is_in_the_identity(site: Path) -> None:
    assert "first_word" in METRICS and "first_word" in list(METRICS)
    digest = metric_sha256("first_word")
    assert digest is not None and len(digest) == 64
    sys.modules.pop("my_metrics")
    metric_registry.TABLE._functions.pop("first_word")
    metric_registry.TABLE._loaded.clear()
    path = site / "my_metrics.py"
    path.write_text(BLOCKS["my_metrics.py"].replace("!= []", ""))
    assert metric_sha256("first_word") != digest


def test_a_module_that_it_imports_from_its_package_is_in_the_identity(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = {"__init__.py": "", "help.py": "def half():\n    return 0.5\n"}
    metric = "from .help import half\n\n\ndef metric(prediction, example):\n    return half()\n"
    write(site / "several", package | {"metric.py": metric})
    from several.metric import metric as function  # type: ignore[import-not-found]

    tasks.register_metric("half", function)
    before = metric_sha256("half")
    (site / "several" / "help.py").write_text("def half():\n    return 1 / 2\n")
    import linecache

    linecache.clearcache()
    assert before is not None and metric_sha256("half") != before


def half(prediction: str, example: object) -> float:
    return 0.5


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("kind", ["module", "lambda"])
def test_a_registered_metric_scores_with_any_number_of_workers(
    site: Path, tmp_path: Path, workers: int, kind: str
) -> None:
    from my_metrics import first_word  # type: ignore[import-not-found]

    function = first_word if kind == "module" else lambda prediction, example: 0.25
    tasks.register_metric("mine", function)
    file = tmp_path / "pred.jsonl"
    lines = [{"pred": said, "answers": ["yes"]} for said in ("yes it is", "no", "yes")]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = score_file(file, "longbench", "hotpotqa", "official", metric="mine", workers=workers)
    assert found == ([1.0, 0.0, 1.0] if kind == "module" else [0.25] * 3)


@pytest.mark.parametrize("given", [1.5, -0.1, float("nan"), "1", None])
def test_what_is_no_score_is_an_error_that_names_the_metric(site: Path, given: Any) -> None:
    import dataclasses

    tasks.register_metric("odd", lambda prediction, example: given)
    task = find_task("longbench", "hotpotqa")
    rules = dataclasses.replace(task.protocol("official"), metric="odd")
    task = dataclasses.replace(task, protocols={"official": rules})
    with pytest.raises(InputError, match=r"metric 'odd' gave .*, which is no score in \[0, 1\]"):
        task.score("x", scored_example(["x"]), "official")


def test_a_name_that_is_taken_or_no_name_is_refused(site: Path) -> None:
    tasks.register_metric("half", half)
    tasks.register_metric("half", half)  # as a module that is imported twice does
    for name in ("half", "qa_f1"):
        with pytest.raises(InputError, match=f"metric '{name}' is there already"):
            tasks.register_metric(name, lambda prediction, example: 1.0)
    with pytest.raises(InputError, match="is no name"):
        tasks.register_metric("a name", half)
    with pytest.raises(InputError, match="unknown metric 'first_wrd'; did you mean 'first_word'"):
        find_metric("first_wrd")


def test_a_package_that_does_not_load_is_named(site: Path) -> None:
    (site / "my_metrics.py").write_text("import a_package_that_is_not_there\n")
    with pytest.raises(
        InputError, match=r"metric 'first_word': entry point my_metrics:.*not_there"
    ):
        find_metric("first_word")


def test_an_installed_metric_does_not_take_the_name_of_another(tmp_path, monkeypatch) -> None:
    install(tmp_path, BLOCKS["pyproject.toml"].replace("first_word =", "qa_f1 ="))
    monkeypatch.syspath_prepend(tmp_path)
    assert find_metric("qa_f1").__module__ == "tasks.metrics.qa_f1"
    with pytest.raises(InputError, match="'qa_f1' .* has the name of another metric"):
        list(METRICS)


def test_workers_score_tasks_of_this_package_as_before(tmp_path: Path) -> None:
    task = find_task("longbench", "hotpotqa")
    file = tmp_path / "pred.jsonl"
    file.write_text(json.dumps({"pred": "yes", "answers": ["yes"]}) + "\n")
    assert scores_of(read_predictions(file, task), task, "official", workers=2) == [1.0]
