"""Which tasks a configuration asks for, and their rows; all that is wrong with either at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from common.errors import InputError
from evaluation.plan import tasks as planned
from evaluation.plan.configuration import RunConfiguration
from evaluation.plan.tasks import load_rows, resolve_tasks
from tests.recipes.recipe import blocks, write

FOLDER = {name: text for name, text in blocks("benchmark").items() if name.startswith("cities/")}


def asked(**values: Any) -> RunConfiguration:
    return RunConfiguration.model_validate(values)


@pytest.fixture
def cities(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder of data that defines a benchmark, which no other test knows afterwards."""
    monkeypatch.setattr("tasks.registry._registered", {})
    write(tmp_path, FOLDER)
    return str(tmp_path / "cities")


def test_a_folder_of_data_brings_its_benchmark(cities: str) -> None:
    found = resolve_tasks(asked(benchmark="cities", data=cities))
    assert [task.name for task in found.tasks] == ["home"] and found.problems == ()
    rows = load_rows(found.tasks, asked(benchmark="cities", data=cities, limit=1), 0)
    assert rows.problems == () and len(rows.sources["home"].examples) == 1


def test_a_folder_of_data_is_not_run_under_another_name(cities: str) -> None:
    with pytest.raises(InputError, match="is the benchmark 'cities', not 'longbench'"):
        resolve_tasks(asked(benchmark="longbench", data=cities))


def test_an_unknown_benchmark_is_told_with_the_nearest() -> None:
    with pytest.raises(InputError, match="unknown benchmark 'lvevel'; did you mean 'lveval'"):
        resolve_tasks(asked(benchmark="lvevel"))


def test_lengths_choose_levels_in_their_order_and_make_generated_tasks() -> None:
    levels = asked(benchmark="lveval", tasks=["cmrc_mixup"], lengths=["64k", "16K"])
    assert [task.level for task in resolve_tasks(levels).tasks] == ["16k", "64k"]
    made = asked(benchmark="pocket", tasks=["pocket_qa@1,pocket_qa@4_2048"], lengths=["512", "1k"])
    assert [task.name for task in resolve_tasks(made).tasks] == [
        "pocket_qa@1", "pocket_qa@4", "pocket_qa@1_1024", "pocket_qa@4_1024",
    ]  # fmt: skip


def test_all_that_is_wrong_is_told_and_what_is_right_is_kept() -> None:
    found = resolve_tasks(
        asked(benchmark="lveval", tasks=["cmrc_mixup", "cmrc"], lengths=["16k", "17k"])
    )
    assert [task.name for task in found.tasks] == ["cmrc_mixup_16k"]
    first, second = found.problems
    assert "unknown task 'cmrc'" in first and "unknown length '17k'" in second


@pytest.mark.parametrize(
    ("benchmark", "data"),
    [("longbench", None), ("infinitebench", "synthetic"), ("pocket", "pocket"), ("pocket", None)],
)
def test_a_run_that_cannot_start_waits_for_no_hub_and_no_generator(
    benchmark: str, data: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(planned, "load_examples", lambda task, *_, **__: calls.append(task.name))
    configuration = asked(benchmark=benchmark, data=data)
    some = resolve_tasks(configuration).tasks[:2]
    assert load_rows(some, configuration, 0, files_only=True).sources == {} and calls == []
    load_rows(some, configuration, 0)
    assert calls == [task.name for task in some]


def test_folders_are_read_also_where_the_run_cannot_start(cities: str) -> None:
    configuration = asked(benchmark="cities", data=cities)
    (Path(cities) / "home.jsonl").unlink()
    rows = load_rows(resolve_tasks(configuration).tasks, configuration, 0, files_only=True)
    assert len(rows.problems) == 1 and "no rows in" in rows.problems[0]
