"""What is printed after a run: scores, costs and the sentence, over like examples."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from rich.console import Console

from evaluation.commands.tables import result_tables
from reports.run_folders import read_run
from tests.reports.conftest import write_run


def printed(folder: Path) -> str:
    stream = io.StringIO()
    Console(width=200, file=stream).print(result_tables(read_run(folder)))
    return stream.getvalue()


def rows(text: str) -> dict[str, list[str]]:
    """The cells of the printed tables' rows, by their first cell; the last table counts."""
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines()]
    return {row[0]: row[1:] for row in cells if row and row[0]}


def test_scores_are_over_the_examples_that_every_variant_answered(tmp_path: Path) -> None:
    scores: dict[str, dict[str, list[float | None]]] = {
        "full": {"qa": [1.0, 1.0, None, None]},
        "ahn": {"qa": [1.0, 0.0, 0.0, 0.0]},
    }
    found = rows(printed(write_run(tmp_path / "run", scores)))
    assert found["qa"][0] == "2"
    assert found["qa"][1].startswith("100.0 [") and found["qa"][2].startswith("50.0 [")
    assert found["full"][-1] == "2"


def test_stored_facts_are_compared_at_one_length(tmp_path: Path) -> None:
    def record(variant: str, task: str, i: int) -> dict[str, Any]:
        facts, length = task.split("@")[1].split("_")
        return {"attributes": {"facts": int(facts), "length": int(length)}}

    # Four facts are asked in long texts too, where nothing is known.
    right, wrong = [1.0] * 4, [0.0] * 4
    scores = {"ahn": {"qa@1_512": right, "qa@4_512": right, "qa@4_2048": wrong}}
    text = printed(write_run(tmp_path / "run", scores, record))
    found = rows(text)
    assert found["mean, 1 stored fact"][1].startswith("100.0 [")
    assert found["mean, 4 stored facts"][1].startswith("100.0 [")
    assert found["mean of tasks"][1].startswith("66.7 [")
    assert "Stored facts compared over task qa, texts of 512 tokens." in text


def test_costs_name_whole_prefills_and_the_share_that_was_reused(tmp_path: Path) -> None:
    def record(variant: str, task: str, i: int) -> dict[str, Any]:
        reused = 300 if i else 0
        return {
            "prompt_tokens": 400,
            "prefill_seconds": 0.001 if reused else 2.0,
            "reused_prefix_tokens": reused,
        }

    text = printed(write_run(tmp_path / "run", {"full": {"qa": [1.0] * 4}}, record))
    assert rows(text)["full"][5:7] == ["2.00 s", "56.2 %"]
    assert "seconds: median, measured, of whole prefills" in " ".join(text.split())
    assert "full on pocket scores 100.0 [" in text


def test_many_variants_have_tables_of_some_at_a_time(tmp_path: Path) -> None:
    names = [f"variant-{i:02}" for i in range(17)]
    scores: dict[str, dict[str, list[float | None]]] = {
        name: {"qa": [i / 17] * 4, "kv": [0.0] * 4} for i, name in enumerate(names)
    }
    text = printed(write_run(tmp_path / "run", scores))
    assert "variants 1 to 6 of 17" in text and "variants 13 to 17 of 17" in text
    lines = [[c.strip() for c in line.split("│")[1:-1]] for line in text.splitlines()]
    first, second, third = [line[2:] for line in lines if line and line[0] == "qa"]
    assert [float(cell) for cell in first + second + third] == [
        round(100 * i / 17, 1) for i in range(17)
    ]
    heads = [line for line in text.splitlines() if "variant-16" in line and "┃" in line]
    assert len(heads) == 1 and "variant-12" in heads[0] and "variant-11" not in heads[0]


def test_seven_variants_stand_in_one_table(tmp_path: Path) -> None:
    scores: dict[str, dict[str, list[float | None]]] = {f"v{i}": {"qa": [1.0]} for i in range(7)}
    text = printed(write_run(tmp_path / "run", scores))
    assert text.count("Score, points of 100") == 1 and "variants 1 to" not in text
