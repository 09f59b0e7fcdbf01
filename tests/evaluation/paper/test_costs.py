"""`run_eval paper`: every printed cost beside ours."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ahn.cost import zoo
from ahn.cost.accounting import flops
from ahn.cost.paper import METHODS, method_cost
from evaluation.commands.cost import find_shape
from evaluation.paper.costs import as_json, paper_table, printed

TABLES = ("table2", "table7", "table9")
OF_7B = "Qwen2.5-7B-Instruct"
#: cells of 14B's rows with a memory that differ from what is printed, by less than one unit
WITHIN_ONE_UNIT = {
    ("Qwen2.5-14B-Instruct", "AHN-GDN", "mixing FLOPs 1e15"),
    ("Qwen2.5-14B-Instruct", "AHN-Mamba2", "model FLOPs %"),
    ("Qwen2.5-14B-Instruct", "AHN-DN", "model FLOPs %"),
    # the 7B ratios of mixing: 48.146 for 48.2
    (OF_7B, "AHN-Mamba2", "mixing FLOPs %"),
    (OF_7B, "AHN-DN", "mixing FLOPs %"),
}
#: 7B's cells that do not follow from the formula
SLIPS = ("mixing FLOPs 1e15", "model FLOPs 1e15", "model FLOPs %", "training step FLOPs 1e17")


def cells() -> Iterator[Any]:
    for name in TABLES:
        for model, rows in printed().tables[name].rows.items():
            for method, row in rows.items():
                for index, column in enumerate(printed().tables[name].columns):
                    where = (name, model, method, index)
                    yield pytest.param(*where, row[index], id=f"{name}-{model}-{method}-{column}")


@pytest.mark.parametrize(("name", "model", "method", "index", "published"), list(cells()))
def test_a_cell_is_as_printed(
    name: str, model: str, method: str, index: int, published: float
) -> None:
    table = paper_table(name, model)
    ours, column = table.ours[model][method][index], table.columns[index]
    unit = 10.0 ** -table.decimals[index]
    if model == OF_7B and column == "memory cache GB" and method == "Full Attn":
        unit = 0.1  # printed 14.7, with one decimal
    full_row = method == "Full Attn" and column.endswith("%")
    if model == OF_7B and column in SLIPS and not full_row:
        low, high = (0.05, 0.4) if column.endswith("%") else (0.05 * published, 0.1 * published)
        assert low < abs(ours - published) < high, "the paper's slip"
    elif (model, method, column) in WITHIN_ONE_UNIT:
        assert unit / 2 < abs(ours - published) < unit
    else:
        assert abs(ours - published) <= unit / 2 + 1e-9


@pytest.mark.parametrize("model", ["Qwen2.5-3B-Instruct", "Qwen2.5-14B-Instruct"])
def test_without_the_output_gate_every_row_with_a_memory_is_as_printed(model: str) -> None:
    table, shape = printed().tables["table9"], zoo.find(printed().models[model]).shape
    full = method_cost(shape, "Full Attn", **table.sizes)
    for method in ("AHN-Mamba2", "AHN-DN", "AHN-GDN"):
        cost = method_cost(shape, method, output_gate=False, **table.sizes).columns(full)
        for ours, published, decimals in zip(
            cost, table.rows[model][method], table.decimals, strict=True
        ):
            assert abs(ours - published) <= 10.0**-decimals / 2


def test_7bs_training_steps_are_of_no_whole_number_of_layers_and_heads() -> None:
    """Full less window has one unknown; its error is that of two roundings."""
    rows = printed().tables["table7"].rows[OF_7B]
    apart = rows["Full attention"][0] - rows["Attention Sinks + SWA"][0]
    pair = 2 * 2 * 128 * (24_000 - 8_192) ** 2
    low, high = (1e17 * (apart + error) / pair for error in (-1e-4, 1e-4))
    assert (round(low), round(high)) == (92_540, 92_696)
    for layers in range(20, 41):
        for heads in range(8, 65):
            for dim in (64, 80, 96, 112, 128, 160, 192, 256):
                assert not low <= layers * heads * dim <= high


@pytest.mark.shared
def test_the_figures_are_those_of_the_protocols_file(shared: Path) -> None:
    paper = json.loads((shared / "protocol" / "ahn-paper.json").read_text("utf-8"))
    tables, compared = printed().tables, 0
    assert list(printed().models) == paper["models"]
    for name, columns in (("table2", slice(4)), ("table9", slice(8))):
        of_file = paper[name.replace("table", "table_")]
        assert list(tables[name].columns) == of_file["columns"][columns]
        assert set(tables[name].rows) == set(of_file["rows"])
        for model, rows in of_file["rows"].items():
            assert list(tables[name].rows[model]) == list(rows) == list(METHODS)
            for method, row in rows.items():
                assert list(tables[name].rows[model][method]) == row[columns]
                compared += len(row[columns])
    for method, row in paper["table_7"]["rows"].items():
        for model, cell in zip(paper["models"], row, strict=True):
            assert tables["table7"].rows[model][method] == (cell,)
            compared += 1
    assert compared == 3 * 7 * (4 + 8) + 9


def test_json_of_a_table_is_unrounded_and_has_the_papers_names(run_eval: Any) -> None:
    result = run_eval("paper", "table9", "--json")
    found = json.loads(result.stdout)
    assert found == as_json(paper_table("table9"))
    assert [len(row) for rows in found.values() for row in rows.values()] == [8] * 21
    row = found["Qwen2.5-3B-Instruct"]["AHN-GDN"]
    L, W, D, H, Nq, Nkv = 128_000, 32_768, 2048, 128, 16, 2
    mixing = 4 * L * D * H * (Nq + Nkv) + 2 * H * Nq * W**2
    mixing += 2 * (L - W) * (2 * W * H * Nq + 2 * H**2 * Nq + 3 * D * Nq)
    assert row[2] == 36 * mixing / 1e15 and row[7] == 26.0
    one = json.loads(run_eval("paper", "table9", "--json", "--model", "qwen2.5-7b").stdout)
    assert one == {OF_7B: found[OF_7B]}
    by_hub_id = run_eval("paper", "table9", "--json", "--model", f"Qwen/{OF_7B}")
    assert json.loads(by_hub_id.stdout) == one


def test_table_2_is_four_columns_of_table_9() -> None:
    costs, inference = paper_table("table2").ours, paper_table("table9").ours
    for model, rows in inference.items():
        for method, row in rows.items():
            assert costs[model][method] == row[1::2]


def test_notes_say_what_is_no_figure_of_the_formula_and_what_is_not_run(run_eval: Any) -> None:
    of_14b = " ".join(run_eval("paper", "table9", "--model", "qwen2.5-14b").stdout.split())
    assert "output gate" in of_14b and "7B" not in of_14b
    of_7b = run_eval("paper", "table2", "--model", "qwen2.5-7b", "--costs-only").stdout
    of_7b = " ".join(of_7b.split())
    assert "do not follow from its formula" in of_7b and "--model MODEL runs them" in of_7b
    assert "output gate" not in of_7b


def test_table_2_alone_prints_its_costs_and_runs_nothing(run_eval: Any, tmp_path: Path) -> None:
    one = run_eval("paper", "table2", "--model", "qwen2.5-3b", "--costs-only")
    every = run_eval("paper", "table2")
    assert (one.exit_code, every.exit_code) == (0, 0)
    titles = [line for line in every.stdout.splitlines() if line.startswith("Table 2: costs")]
    assert len(titles) == 3 and one.stdout.startswith(titles[0])
    assert json.loads(run_eval("paper", "table2", "--json").stdout) == as_json(
        paper_table("table2")
    )
    assert json.loads(
        run_eval("paper", "table2", "--json", "--model", "qwen2.5-3b").stdout
    ) == as_json(paper_table("table2", "qwen2.5-3b"))


@pytest.mark.parametrize("name", ["table1", *TABLES])
def test_the_pocket_models_costs_are_at_its_own_sizes_and_beside_no_published_cell(
    run_eval: Any, name: str
) -> None:
    table = paper_table(name, "pocket")
    assert list(table.ours) == ["pocket"] and not table.published
    assert "pocket" not in paper_table(name).ours, "the paper's three, where none is named"
    alone = ("--costs-only",) if name == "table2" else ()
    shown = run_eval("paper", name, "--model", "pocket", *alone).stdout
    assert "ours" in shown and "published" not in shown.partition("Costs.")[0]
    unrounded = json.loads(run_eval("paper", name, "--model", "pocket", "--json").stdout)
    assert unrounded == as_json(table)


def test_the_pocket_models_costs_are_those_of_the_formula() -> None:
    L, W, D, H, Nq, Nkv, layers = 2048, 132, 128, 64, 4, 4, 3
    row = paper_table("table9", "pocket").ours["pocket"]["Sinks + SWA"]
    mixing = 4 * L * D * H * (Nq + Nkv) + 2 * H * Nq * W**2 + 2 * (L - W) * 2 * W * H * Nq
    assert row[2] == layers * mixing / 1e15
    sizes = printed().tables["table7"].pocket
    shape = find_shape("pocket")
    step = 2 * sizes["batch_size"] * flops(shape, "full", sizes["length"], accounting="paper").total
    assert paper_table("table7", "pocket").ours["pocket"]["Full attention"] == (step / 1e17,)


def test_a_printed_table_has_published_ours_and_difference(run_eval: Any) -> None:
    text = run_eval("paper", "table7", "--model", "qwen2.5-14b").stdout
    assert "published" in text and "difference" in text
    (line,) = [line for line in text.splitlines() if "AHN-GDN" in line]
    assert line.split()[-3:] == ["2.2319", "2.231860", "-0.000040"]
    formulas = run_eval("paper", "table1", "--model", "qwen2.5-3b").stdout
    assert "published" not in formulas and "2 H Nq L^2" in " ".join(formulas.split())
    (line,) = [line for line in formulas.splitlines() if "parameters" in line and "GDN" in line]
    assert line.split()[-1] == f"{3 * 2048 * 16 + 128 * 128 * 16:,}"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["table9", "--model", "qwen2.5-4b"], "the paper has no 'qwen2.5-4b'"),
        (["--json", "table9"], "--json stands behind a table's name"),
        (["table9", "--dry-run"], "--dry-run: there is no such option"),
    ],
)
def test_what_is_not_understood_is_refused(run_eval: Any, words: list[str], said: str) -> None:
    result = run_eval("paper", *words)
    assert result.exit_code == 2 and said in result.stderr


def test_a_training_step_of_any_model_and_length(run_eval: Any) -> None:
    costs = json.loads(run_eval("training-step", "--model", "qwen2.5-3b", "--json").stdout)
    full, ahn = costs["variants"]["full"], costs["variants"]["ahn"]
    assert round(full["flops"] / 1e17, 4) == 0.6348 and round(ahn["flops"] / 1e17, 4) == 0.5422
    other = ("--model", "qwen3-8b", "--length", "8k", "--batch-size", 1, "--window", "8k")
    short = json.loads(run_eval("training-step", *other, "--json").stdout)["variants"]
    assert len({variant["flops"] for variant in short.values()}) == 1, "nothing leaves the window"
    assert "PFLOP" in run_eval("training-step", "--model", "qwen2.5-3b").stdout
    assert run_eval("training-step", "--model", "qwen2.5-3b", "--batch-size", 0).exit_code == 2
