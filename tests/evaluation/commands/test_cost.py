"""`run_eval cost`: the table of equal bytes, printed and as JSON."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from rich.console import Console

from ahn.config import CELLS
from evaluation.commands.cost import cost_table, render
from evaluation.commands.options import Cost

PAPER: dict[str, Any] = {"model": "qwen2.5-3b", "length": 128_000}


def costs(**changes: Any) -> dict[str, Any]:
    return cost_table(Cost(**PAPER | changes))


def printed(table: dict[str, Any], width: int = 140) -> str:
    stream = io.StringIO()
    Console(width=width, file=stream).print(render(table))
    return stream.getvalue()


def row(text: str, name: str, accounting: str) -> str:
    """The first line of a method in the table of an accounting."""
    tables = text.split("At equal bytes, ")[1:]
    (of,) = [table for table in tables if table.startswith(accounting)]
    (line,) = [line for line in of.splitlines() if line.strip().startswith(name + "  ")]
    return line


@pytest.mark.parametrize("accounting", ["exact", "paper"])
def test_json_has_every_method_at_the_bytes_of_the_memory(accounting: str) -> None:
    found = json.loads(json.dumps(costs()))
    assert {"model", "length", "variants", "parameters", "accountings"} <= set(found)
    table = found["equal_bytes"][accounting]
    budget = found["variants"]["ahn"]["cache_bytes"][accounting]["total"]
    assert table["budget_bytes"] == budget
    assert table["full_bytes"] == found["variants"]["full"]["cache_bytes"][accounting]["total"]
    names = [method["name"] for method in table["methods"]]
    assert len(names) == len(set(names))
    assert {f"ahn {cell}" for cell in CELLS} <= set(names)
    for method in table["methods"]:
        assert method["cache_bytes"] and method["prefill_flops"] and method["decode_flops"]
        assert method["share_of_budget"] == method["cache_bytes"] / budget
        assert method["share_of_full"] == method["cache_bytes"] / table["full_bytes"]


def test_the_printed_tables_have_both_budgets_and_the_sizes() -> None:
    text = printed(costs())
    folded = " ".join(text.split())
    assert (
        "exact accounting: ahn GatedDeltaNet holds 1.266 GiB of 128,000 tokens, 28.80 % of full "
        "attention; 36,864 tokens a layer, compression ratio 0.71200" in folded
    )
    assert "holds 1.143 GiB of 128,000 tokens, 26.00 % of full attention; 33,280 tokens" in folded
    for name, exact, paper in (
        ("window at equal bytes", "sinks 128 + 36,736", "sinks 128 + 33,152"),
        ("StreamingLLM", "n_sink 128 + 36,736", "n_sink 128 + 33,152"),
        ("PyramidKV", "layers 71,885 ... 1,843", "layers 64,896 ... 1,664"),
        ("fp8", "57.6 % of the tokens", "52.0 % of the tokens"),
        ("4 bit, group 64", "all; 98 % of the budget", "92.4 % of the tokens"),
        ("2 bit, group 64", "all; 54 % of the budget", "all; 60 % of the budget"),
    ):
        assert exact in row(text, name, "exact"), name
        assert paper in row(text, name, "paper"), name
    assert "512 pooled, reach 2,048" in folded.replace(" │ ", " ")


def test_what_cannot_be_sized_is_a_gap_and_says_why() -> None:
    table = costs(length=10)
    methods = {m["name"]: m for m in table["equal_bytes"]["exact"]["methods"]}
    gap = methods["compressive 4x, same window"]
    assert gap["missing"] and gap["cache_bytes"] is None and gap["share_of_budget"] is None
    line = row(printed(table), "compressive 4x, same window", "exact")
    assert line.count("–") == 8 and "the window holds" in line


def test_sizes_have_the_unit_that_fits() -> None:
    large = row(printed(costs(length=10**9), 200), "full attention", "exact")
    assert "33.5 TiB" in large and "GiB" not in large
    small = row(printed(costs(length=100), 200), "fp8", "exact")
    assert "1.76 MiB" in small


def test_tables_fit_a_narrow_terminal() -> None:
    assert max(map(len, printed(costs(), 100).splitlines())) <= 100
