"""Records and the leaderboard as frames, and frames as files of tables."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

import reports
from common.errors import InputError
from reports.frames import leaderboard
from reports.run_folders import read_run
from reports.stats import mean_interval


def test_a_frame_has_a_row_for_each_record_with_all_its_fields(pocket_run: Path) -> None:
    run = read_run(pocket_run)
    table = reports.frame([pocket_run])
    assert len(table) == len(run.records) and table.equals(reports.frame([run]))
    record, row = run.records[0], table.iloc[0]
    for name in ("variant", "task", "example_id", "prediction", "score", "prompt_tokens"):
        assert row[name] == getattr(record, name)
    assert row["run"] == pocket_run.name and row["attributes.facts"] == record.attributes["facts"]


def test_the_leaderboards_means_are_those_of_the_frame(pocket_run: Path) -> None:
    means = reports.frame([pocket_run]).groupby(["variant", "task"])["score"].mean()
    table = leaderboard([pocket_run]).set_index(["variant", "task"])
    assert table["mean"].to_dict() == pytest.approx(means.to_dict())
    scores = reports.frame([pocket_run]).query("variant == 'full' and task == 'pocket_qa@1'")
    interval = mean_interval(tuple(scores["score"]), tuple(scores["document_id"]))
    assert table.loc[("full", "pocket_qa@1"), "low"] == pytest.approx(interval.low)


TABLE = pd.DataFrame({"a|b_c": ["x|y & 50 %\n_", None], "n": [0.123456789, 2.0], "k": [1, 2]})


def test_a_table_is_written_in_four_formats(tmp_path: Path) -> None:
    text = {
        ending: reports.write_table(TABLE, tmp_path / f"t.{ending}").read_text()
        for ending in ("csv", "json", "md", "tex")
    }
    assert pd.read_csv(tmp_path / "t.csv").equals(TABLE)
    assert json.loads(text["json"]) == [
        {"a|b_c": "x|y & 50 %\n_", "n": 0.123456789, "k": 1}, {"a|b_c": None, "n": 2.0, "k": 2},
    ]  # fmt: skip
    assert text["md"].splitlines() == [
        "| a\\|b_c | n | k |", "|---|---|---|",
        "| x\\|y & 50 % _ | 0.123457 | 1 |", "|  | 2 | 2 |",
    ]  # fmt: skip
    assert text["tex"].splitlines() == [
        "\\begin{tabular}{lrr}", "a|b\\_c & n & k \\\\", "\\hline",
        "x|y \\& 50 \\% \\_ & 0.123457 & 1 \\\\", " & 2 & 2 \\\\", "\\end{tabular}",
    ]  # fmt: skip


def test_a_named_index_becomes_columns(pocket_run: Path, tmp_path: Path) -> None:
    table = leaderboard([pocket_run]).set_index(["task", "variant"])[["mean"]]
    lines = reports.write_table(table, tmp_path / "t.csv").read_text().splitlines()
    assert lines[0] == "task,variant,mean" and len(lines) == len(table) + 1


def test_another_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ends in '.xlsx'; known: .csv, .json, .md, .tex"):
        reports.write_table(TABLE, tmp_path / "t.xlsx")
    assert list(tmp_path.iterdir()) == []


def test_importing_the_package_imports_no_pandas() -> None:
    import subprocess
    import sys

    code = "import sys, reports, reports.page; print('pandas' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    with pytest.raises(AttributeError, match="has no attribute 'frames_of'"):
        _ = reports.frames_of
