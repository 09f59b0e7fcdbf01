"""The recipe of a back-end, carried out as written: a package outside this one."""

from __future__ import annotations

import json
import re
import shlex
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from evaluation.backends import registry
from evaluation.backends.base import Backend
from tests.processes import start_fork

RECIPE = Path(__file__).resolve().parents[2] / "docs" / "recipes" / "backend.md"
BLOCKS = dict(
    re.findall(r"```\w+\n# (\S+)\n(.*?)```", RECIPE.read_text(encoding="utf-8"), re.DOTALL)
)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The package of the recipe, installed as pip does it, in a folder on `sys.path`."""
    site = tmp_path / "site"
    information = site / "keyword_search-1.dist-info"
    information.mkdir(parents=True)
    (site / "keyword_search.py").write_text(BLOCKS["keyword_search.py"])
    project = tomllib.loads(BLOCKS["pyproject.toml"])["project"]
    points = project["entry-points"]["ahn_bench.backends"].items()
    lines = ["[ahn_bench.backends]", *(f"{name} = {value}" for name, value in points)]
    (information / "entry_points.txt").write_text("\n".join(lines) + "\n")
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\n")
    monkeypatch.syspath_prepend(site)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("keyword_search", None)


@pytest.fixture
def run(installed: Path) -> Callable[..., Any]:
    """One line of the recipe's commands, in this process; a click `Result`."""
    from click.testing import CliRunner

    from evaluation.cli import app

    return lambda *words: CliRunner().invoke(app, [str(w) for w in words], catch_exceptions=False)


def commands() -> list[list[str]]:
    return [shlex.split(line)[1:] for line in BLOCKS["commands"].splitlines() if line]


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(x) for f in sorted(folder.glob("*/*.jsonl")) for x in f.open("rb")]


def test_the_recipe_is_carried_out_as_written(run: Any, installed: Path) -> None:
    plan, *others = [run(*command) for command in commands()]
    for result in (plan, *others):
        assert result.exit_code == 0, result.output
    (row,) = [line for line in plan.stdout.splitlines() if re.match(r"\W*search\b", line)]
    assert row.count("unknown") == 2, "what it costs is not guessed"
    found = [r for r in records(installed / "runs/search") if r["variant"] == "search-2"]
    assert len(found) == 4 and not any(r["error"] for r in found)
    assert all(r["prediction"] and r["prompt_tokens"] > 0 for r in found)
    for unknown in ("flops", "cache_bytes_analytic", "cache_bytes_measured", "generated_tokens"):
        assert {r[unknown] for r in found} == {None}
    assert not any("reused_prefix_tokens" in r for r in found)
    info = json.loads((installed / "runs/search/run.json").read_text())
    assert info["identity_parts"]["variants"]["search-2"] == {
        "kind": "keyword-search", "version": 1, "sentences": 2,
    }  # fmt: skip
    assert "search-2" in (installed / "search.html").read_text()
    assert run("check", installed / "runs/search").exit_code == 0


def hold(arguments: list[str], waiting: Path) -> None:
    """`run_eval ARGUMENTS`, which makes the file `waiting` and stops in its third example."""
    import time

    import keyword_search  # type: ignore[import-not-found]

    from evaluation.cli import main

    answer = keyword_search.SearchDocument.ask
    answered: list[Any] = []

    def held(self: Any, question: Any, last: bool) -> Any:
        if len(answered) == 2:
            waiting.touch()
            time.sleep(600)
        answered.append(answer(self, question, last))
        return answered[-1]

    keyword_search.SearchDocument.ask = held
    sys.argv = ["run_eval", *arguments]
    main()


SEARCH_ALONE = [
    "pocket", "--tokenizer", "pocket", "--max-length", "500", "--variant", "search",
    "--tasks", "pocket_qa@1", "--limit", "4", "--no-report", "-o",
]  # fmt: skip


def without_model(tmp_path: Path) -> list[str]:
    """`SEARCH_ALONE` with a file that names no model, where the preset `pocket` names one."""
    file = tmp_path / "search.yaml"
    file.write_text("data: pocket\n")
    return ["pocket", "--config", str(file), *SEARCH_ALONE[1:]]


def test_a_run_of_it_that_was_killed_is_continued(run: Any, installed: Path) -> None:
    import os
    import signal
    import time

    waiting, folder = installed / "waiting", installed / "killed"
    arguments = [*without_model(installed), str(folder)]
    process = start_fork(hold, arguments, waiting, output=installed / "said")
    while not waiting.exists() and process.is_alive():
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert len(records(folder)) == 2, (installed / "said").read_text()
    result = run(*arguments)
    assert result.exit_code == 0 and "continuing: 2 of 4" in result.stderr
    whole = run(*without_model(installed), installed / "whole")
    assert whole.exit_code == 0, whole.output
    predictions = [
        {r["example_id"]: r["prediction"] for r in records(place)}
        for place in (folder, installed / "whole")
    ]
    assert predictions[0] == predictions[1] and len(predictions[0]) == 4


def test_another_identity_is_another_run(run: Any, installed: Path) -> None:
    arguments = [*without_model(installed), installed / "run"]
    assert run(*arguments).exit_code == 0
    arguments[arguments.index("search")] = "search:sentences=3,name=search"
    result = run(*arguments)
    assert result.exit_code == 2 and "variants.search.sentences 1 there, 3 here" in result.stderr


@pytest.mark.parametrize(
    ("variant", "said"),
    [
        ("search:sentence=2", "no option 'sentence' (known: sentences); did you mean 'sentences'"),
        ("search:sentences=none", "sentences: 'none' is not a number above 0"),
        (
            "serch",
            "unknown variant 'serch' (known: full, window, ahn, no-write, compressive, "
            "memory-only, hf, quantized, kvpress, endpoint, search); did you",
        ),
        ("search:name=a,search:sentences=2,name=a", "two variants are called a"),
    ],
)
def test_what_it_refuses_is_an_input_error(
    run: Any, installed: Path, variant: str, said: str
) -> None:
    arguments = [*without_model(installed), installed / "run"]
    arguments[arguments.index("search")] = variant
    result = run(*arguments)
    assert result.exit_code == 2 and said in result.stderr and "Traceback" not in result.output
    assert not (installed / "run").exists()


def test_a_package_that_does_not_load_is_named(run: Any, installed: Path) -> None:
    (installed / "site" / "keyword_search.py").write_text("import a_package_that_is_not_there\n")
    result = run(*without_model(installed), installed / "run")
    assert result.exit_code == 2
    assert "keyword_search:KeywordSearch" in result.stderr and "not_there" in result.stderr


def test_it_can_be_registered_in_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_KINDS", dict(registry._KINDS))

    class Other(Backend):
        pass

    make: Any = Other
    registry.register_backend("other", make)
    registry.register_backend("other", make)  # as a module that is imported twice does
    assert "other" in registry.backend_kinds() and registry.find_backend("other") is make
    with pytest.raises(ValueError, match="already"):
        registry.register_backend("full", make)
    with pytest.raises(ValueError, match="cannot be the name"):
        registry.register_backend("a:b", make)
