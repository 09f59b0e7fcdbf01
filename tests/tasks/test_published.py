"""Published figures: each as its source prints it, and files that are not right are refused."""

import json
from pathlib import Path

import pytest
import yaml

from common.errors import InputError
from tasks.longbench.averages import CATEGORIES
from tasks.published import Below, published_tables, read_published
from tasks.registry import expand, task_names


def table(title):
    (found,) = [table for table in published_tables() if table.title == title]
    return found


def as_json(found):
    """`{row: {column: figure}}`, a bound as the protocol's table writes it."""
    return {
        name: {
            column: {"lt": cell.below} if isinstance(cell, Below) else cell
            for column, cell in zip(found.columns, cells, strict=True)
        }
        for name, cells in found.rows
    }


def test_tables_are_of_the_tasks_and_levels_that_we_have():
    assert {t.benchmark for t in published_tables()} == {"longbench", "lveval", "infinitebench"}
    assert set(table("LongBench leaderboard: data sets").columns) == set(task_names("longbench"))
    assert set(table("InfiniteBench: tasks").columns) == set(task_names("infinitebench"))
    datasets = {task.dataset for task in expand("lveval", ["lveval_16k"], None)}
    assert set(table("LV-Eval: data sets, mean of 5 levels").columns) == datasets
    titles = {table.title for table in published_tables("lveval")}
    assert {f"LV-Eval: {name}" for name in datasets} <= titles
    columns = table("LongBench leaderboard: English").columns
    assert [c.lower().removesuffix(" tasks") for c in columns[1:]] == [
        c.lower() for c in CATEGORIES
    ]


def test_every_table_says_where_it_stands_and_how_far_it_compares():
    for found in published_tables():
        assert found.source.repository and found.source.file and found.file_notes
        pinned = found.source.repository == "arXiv" or len(found.source.revision) == 40
        assert pinned and found.source.revision[:10] in str(found.source)


def test_a_bound_is_not_a_figure():
    cells = dict(table("InfiniteBench: tasks").rows)["Yi-6B-200K"]
    assert str(cells[2]) == "< 5" and isinstance(cells[0], float)


@pytest.mark.shared
def test_every_figure_is_that_of_the_protocol_table(shared):
    published = json.loads((shared / "protocol" / "published.json").read_text(encoding="utf-8"))
    compared = 0

    def equal(title, expected):
        nonlocal compared
        found = as_json(table(title))
        assert found == expected, title
        compared += sum(len(row) for row in found.values())

    board = published["longbench"]
    for language, models in board["leaderboard"].items():
        equal(f"LongBench leaderboard: {language}", models)
    equal("LongBench leaderboard: data sets", board["per_dataset"])
    lveval = published["lveval"]
    equal("LV-Eval: levels, mean of 11 data sets", lveval["overall_by_level"])
    equal("LV-Eval: data sets, mean of 5 levels", lveval["by_dataset_mean_over_levels"])
    for dataset, models in lveval["by_dataset_and_level"].items():
        equal(f"LV-Eval: {dataset}", models)
    extra = lveval["extra"]["Qwen2-72B-Instruct_16k"]
    extra = {name.removesuffix("_16k"): figure for name, figure in extra.items()}
    equal("LV-Eval: Qwen2-72B-Instruct at 16k", {"Qwen2-72B-Instruct": extra})
    equal("InfiniteBench: tasks", published["infinitebench"]["results"])
    ahn, model = published["ahn"], published["ahn"]["model"]
    average = ahn["lveval_128k_average"]
    equal(
        "AHN paper: LV-Eval at 128k, average",
        {model: {"128k": average["base"]}, f"{model} + AHN": {"128k": average["with_ahn"]}},
    )
    less = {
        "inference FLOPs": ahn["inference_flops_reduction_percent"],
        "memory cache": ahn["memory_cache_reduction_percent"],
    }
    equal("AHN paper: reductions", {f"{model} + AHN": less})
    equal("AHN parameters", ahn["ahn_parameters_millions"])
    # Nothing of ours is left over, and the count is that of the tables' printed cells.
    assert compared == sum(len(t.columns) * len(t.rows) for t in published_tables())
    assert compared == 2 * 8 * 7 + 8 * 21 + 10 * (5 + 11 + 55) + 11 + 7 * 12 + 2 + 2 + 9
    models = {
        name: {"context": checkpoint.context, "hf": checkpoint.checkpoint}
        for name, checkpoint in table("LV-Eval: levels, mean of 11 data sets").models.items()
    }
    assert models == lveval["models"]
    differing = published["infinitebench"]["recomputed_from_author_predictions"]["differing"]
    notes = " ".join(table("InfiniteBench: tasks").file_notes)
    for entry in differing:
        assert entry["task"] in notes
        assert entry["recomputed"] is None or str(entry["recomputed"]) in notes


GOOD = {
    "benchmark": "longbench",
    "protocol": "official",
    "sources": [{"repository": "a/b", "revision": "c", "file": "d"}],
    "tables": [
        {
            "title": "T",
            "source": {"repository": "a/b", "revision": "c", "file": "d"},
            "unit": "percent",
            "columns": ["x", "y"],
            "rows": {"model": [1, {"below": 5}]},
        }
    ],
}


def read(path: Path, content):
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return read_published([path])


def test_a_file_is_read(tmp_path):
    (found,) = read(tmp_path / "good.yaml", GOOD)
    assert found.rows == (("model", (1.0, Below(below=5.0))),) and found.file == "good"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": {"model": [1]}}, "2 columns, but not as many cells in ['model']"),
        ({"rows": {"model": [1, "high"]}}, "tables.0.rows.model.1"),
        ({"rows": {"model": [1, float("nan")]}}, ".nan is no finite number"),
        ({"columns": ["x", "x"]}, "a column is there twice"),
        ({"colums": ["x", "y"]}, "tables.0.colums"),
        ({"source": {"repository": "a/b", "file": "d"}}, "tables.0.source.revision: is missing"),
    ],
)
def test_a_wrong_key_or_value_is_named_with_its_file(tmp_path, change, message):
    wrong = GOOD | {"tables": [GOOD["tables"][0] | change]}
    with pytest.raises(InputError) as caught:
        read(tmp_path / "wrong.yaml", wrong)
    assert all(p.startswith(f"{tmp_path}/wrong.yaml:") for p in caught.value.problems)
    assert message in str(caught.value)


def test_what_is_not_yaml_and_a_title_twice_are_told(tmp_path):
    with pytest.raises(InputError, match="broken.yaml:2: is not valid YAML"):
        read(tmp_path / "broken.yaml", "a: [")
    with pytest.raises(InputError, match="table 'T' is there twice"):
        read(tmp_path / "twice.yaml", GOOD | {"tables": GOOD["tables"] * 2})  # type: ignore[operator]
