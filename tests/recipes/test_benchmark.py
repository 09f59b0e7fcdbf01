"""The recipe of a benchmark, carried out as written: a folder of data, and a package."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.errors import InputError
from tasks.predictions import read_predictions
from tasks.registry import benchmark_names, find_task
from tasks.sources import load_examples
from tasks.workers import scores_of
from tests.recipes.recipe import blocks, commands, install, write

BLOCKS = blocks("benchmark")
FOLDER = {name: text for name, text in BLOCKS.items() if name.startswith("cities/")}


def test_a_folder_of_data_is_listed_run_checked_reported_exported_scored(
    run_eval: Callable[..., Any], tmp_path: Path
) -> None:
    write(tmp_path, FOLDER)
    *asked, lm_eval = commands("benchmark")
    assert [command[0] for command in asked] == [
        "tasks", "run", "check", "report", "export", "score",
    ]  # fmt: skip
    said = [run_eval(*command).stdout for command in asked]
    assert "home" in said[0] and "exact_match" in said[0]
    records = [json.loads(x) for x in (tmp_path / "runs/cities/full/home.jsonl").open("rb")]
    assert [(r["benchmark"], r["task"], r["answers"]) for r in records] == [
        ("cities", "home", ["paris"]), ("cities", "home", ["rome"]),
    ]  # fmt: skip
    assert "2 whole records" in said[2] and "nothing is wrong" in said[2]
    assert "not know" not in (tmp_path / "cities.html").read_text()
    (exported,) = (tmp_path / "runs/cities/export").rglob("*.jsonl")
    lines = [json.loads(line) for line in exported.open("rb")]
    assert [line["pred"] for line in lines] == [r["prediction"] for r in records]
    mean = 100 * sum(r["score"] for r in records) / 2
    assert said[5].strip().endswith(f"(official, 2 predictions): {mean}")
    assert lm_eval[0] == "lm-eval"


def test_a_folder_of_data_is_asked_through_lm_eval(
    run_eval: Callable[..., Any], tmp_path: Path
) -> None:
    pytest.importorskip("lm_eval")
    from evaluation.commands import lm_eval

    write(tmp_path, FOLDER)
    folder = tmp_path / "written"
    folder.mkdir()
    places = lm_eval._task_files_of_others([str(tmp_path / "cities")], None, folder)
    assert places == [str(folder)], "its own files are not handed on: they might name functions"

    from lm_eval.tasks import TaskManager

    include = [str(lm_eval.task_folder()), str(folder)]
    manager = TaskManager(include_path=include, include_defaults=False)
    built = manager.load(["ahnbench_cities_home"])["tasks"]["ahnbench_cities_home"]
    task = find_task("cities", "home")
    examples = load_examples(task, None, None, 0).examples
    assert [built.doc_to_text(doc) for doc in built.eval_docs] == [
        task.render(example, "official") for example in examples
    ]
    assert built.process_results(built.eval_docs[0], [" paris ."]) == {"score": 1.0}


def test_code_in_a_folder_of_data_is_not_run(run_eval: Callable[..., Any], tmp_path: Path) -> None:
    write(tmp_path, {**FOLDER, "cities/adapter.py": "raise SystemExit('was run')"})
    said = run_eval("run", "cities", "--data", "cities", "--model", "pocket", code=2).stderr
    assert "adapter.py would not be run" in said and "ahn_bench.benchmarks" in said


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("_benchmark.yaml", "benchmark: cities", "benchmark: ../up", "should match pattern"),
        ("home.yaml", "{context}", "{context.__class__}", "not a field of the rows"),
        ("home.yaml", "{context}", "{context:>9999999}", "has a format of its own"),
        ("home.yaml", "{context}", "{context", "is no template"),
        ("home.yaml", "exact_match", "exact_mtch", "did you mean 'exact_match'"),
        ("home.jsonl", '"answers": ["rome"]', '"answer": "rome"', "home.jsonl:2: "),
        ("home.yaml", "name: home}", "name: work}", "the file's name says otherwise"),
    ],
)
def test_a_mistake_is_told_with_its_file(
    run_eval: Callable[..., Any], tmp_path: Path, file: str, old: str, new: str, said: str
) -> None:
    assert old in FOLDER[f"cities/{file}"]
    write(tmp_path, FOLDER | {f"cities/{file}": FOLDER[f"cities/{file}"].replace(old, new)})
    found = run_eval("run", "cities", "--data", "cities", "--model", "pocket", code=2)
    assert said in found.stderr and f"cities/{file.split('.')[0]}" in found.stderr
    assert "Traceback" not in found.output


def test_a_folder_does_not_take_the_name_of_a_benchmark(
    run_eval: Callable[..., Any], tmp_path: Path
) -> None:
    write(tmp_path, {name: text.replace("cities", "lveval") for name, text in FOLDER.items()})
    said = run_eval("run", "lveval", "--data", "cities", "--model", "pocket", code=2).stderr
    assert "there is another benchmark 'lveval'" in said and "choose another name" in said


@pytest.fixture
def towns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package of the recipe, installed; returns the file of its rows."""
    site = tmp_path / "site"
    texts = {
        name: text.replace("cities", "towns").replace("{context} {input}", "{story} {question}")
        for name, text in FOLDER.items()
    }
    package = {
        "__init__.py": "",
        "towns/__init__.py": "",
        "towns/adapter.py": BLOCKS["my_benchmarks/towns/adapter.py"],
        "towns/_benchmark.yaml": texts["cities/_benchmark.yaml"],
        "towns/home.yaml": texts["cities/home.yaml"],
        "towns/home.jsonl": '{"story": "It rains.", "question": "Does it?", "gold": "yes"}\n',
    }
    write(site / "my_benchmarks", package)
    install(site, BLOCKS["pyproject.toml"])
    monkeypatch.syspath_prepend(site)
    return site / "my_benchmarks" / "towns" / "home.jsonl"


def test_an_installed_package_is_found_by_its_name_and_its_adapter_reads_the_rows(
    towns: Path, run_eval: Callable[..., Any], tmp_path: Path
) -> None:
    assert "towns" in benchmark_names()
    task = find_task("towns", "home")
    (example,) = load_examples(task, None, None, 0).examples
    assert task.render(example, "official") == " It rains. Does it?"
    assert (example.answers, example.where) == (["yes"], f"{towns}:1")
    assert "towns" in run_eval("tasks").stdout
    assert run_eval("run", "towns", "--model", "pocket", "--dry-run").exit_code == 0
    towns.write_text('{"story": "It rains.", "question": "Does it?"}\n')
    with pytest.raises(InputError, match=r"home\.jsonl:1: field 'gold' is missing"):
        load_examples(task, None, None, 0)


def test_an_installed_benchmark_does_not_take_the_name_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, BLOCKS["pyproject.toml"].replace("towns =", "lveval ="))
    monkeypatch.syspath_prepend(tmp_path)
    assert find_task("lveval", "cmrc_mixup_16k").benchmark == "lveval"
    with pytest.raises(InputError, match="'lveval' .* has the name of a benchmark of ahn-bench"):
        benchmark_names()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("json", "json is no package with a _benchmark.yaml"),
        ("a_package_that_is_not_there.towns", "not_there"),
    ],
)
def test_an_entry_point_that_names_no_benchmark_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str, said: str
) -> None:
    install(tmp_path, BLOCKS["pyproject.toml"].replace("my_benchmarks.towns", value))
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=f"benchmark 'towns': .*{said}"):
        find_task("towns", "home")


def test_its_predictions_are_scored_in_worker_processes_too(towns: Path, tmp_path: Path) -> None:
    task = find_task("towns", "home")
    file = tmp_path / "pred.jsonl"
    lines = [{"pred": said, "answers": ["yes"]} for said in ("yes", "no", " yes .")]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    predictions = read_predictions(file, task)
    assert scores_of(predictions, task, "official", workers=2) == [1.0, 0.0, 1.0]
