"""`run_eval paper`: what each table and figure needs, what is here, how long it takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from evaluation.paper.costs import paper_table
from evaluation.paper.experiments import experiments
from evaluation.paper.listing import listed
from evaluation.paper.speed import Speed, measured_speed, speed_of_runs
from evaluation.paper.state import State, state_of
from tests.evaluation.conftest import ROOT


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, run_eval: Any) -> Path:
    """Output folder with one run of the pocket model: five examples of 120."""
    output = tmp_path_factory.mktemp("runs")
    flags = ("--model", "pocket", "--limit", 1, "--variant", "window-128", "--no-report")
    assert run_eval("paper", "table5", *flags, "-o", output).exit_code == 0
    return output


def folder(output: Path) -> Path:
    return output / "pocket" / "pocket-ruler-niah-128k" / "window-128"


def test_the_list_says_what_is_needed(run_eval: Any, tmp_path: Path) -> None:
    found = json.loads(run_eval("paper", "--json", "--no-estimate", "-o", tmp_path).stdout)
    assert found == json.loads(json.dumps(listed(tmp_path)))
    assert [name for name in found if name.startswith("table")] == [
        f"table{n}" for n in range(1, 10)
    ]
    one = found["table5"]
    assert (one["examples"], one["tokens"], one["hours"]) == (8 * 500, 131_072, None)
    assert found["table6"]["flops"] < found["table2"]["flops"]
    assert found["table2"]["examples"] == 1729 + 351 + 189
    for name, made in found.items():
        if experiments()[name].parts:
            total = sum(made["of"][model]["flops"] for model in made["models"])
            assert made["flops"] == total > 0
            assert f"run_eval paper {name} --model " in made["here"]
    text = " ".join(run_eval("paper", "--no-estimate", "-o", tmp_path).stdout.split())
    assert "table9" in text and "nothing run" in text and "not here: weights" in text
    assert "without --no-estimate, matrix products are measured" in text


def test_hours_are_there_without_being_asked_for(run_eval: Any, tmp_path: Path) -> None:
    found = json.loads(run_eval("paper", "--json", "-o", tmp_path, "--device", "cpu").stdout)
    entry = found["table2"]["of"]["qwen2.5-3b"]
    assert entry["hours"] > 1 and "a run is slower" in entry["speed"]["told"]
    result = run_eval("paper", "--no-estimate", "--dtype", "float32")
    assert result.exit_code == 2 and "--no-estimate leaves out" in result.stderr
    result = run_eval("paper", "--no-estimate", "table9")
    assert result.exit_code == 2 and "belongs to the list" in result.stderr


def test_the_memory_alone_is_arithmetic_and_training_stands_apart(tmp_path: Path) -> None:
    found = listed(tmp_path)
    of_8 = found["table8"]["of"]["qwen2.5-7b"]
    assert of_8["variants"] == ["window-32640", "memory-only-gdn", "ahn-gdn-32640"]
    assert 0 < found["table8"]["flops"] < found["table2"]["of"]["qwen2.5-7b"]["flops"]
    (step,) = paper_table("table7", "qwen2.5-7b").ours["Qwen2.5-7B-Instruct"]["AHN-GDN"]
    assert found["table4"]["training_flops"] == pytest.approx(3 * 740 * step * 1e17)
    assert found["table4"]["flops"] < found["table4"]["training_flops"] / 50
    assert [name for name in found if found[name]["training_flops"] is not None] == ["table4"]


def test_the_list_says_how_far_runs_are(run: Path) -> None:
    assert state_of(folder(run)) == State(5, "finished")
    for name in ("table5",):
        runs = listed(run)[name]["of"]["pocket"]["runs"]["pocket-ruler-niah-128k"]
        assert [runs[key]["state"] for key in runs] == ["none", "partly", "none"]
        assert (runs["window-128"]["answered"], runs["window-128"]["examples"]) == (5, 120)
    assert State(120).in_words(120) == "done" and State(5).in_words(120) == "5 of 120 done"


def test_an_example_that_failed_is_not_answered(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", folder(run), copy], check=True)
    path = sorted(copy.glob("*/*.jsonl"))[0]
    failed = json.loads(path.read_text()) | {"error": 'RuntimeError: "error":null', "score": None}
    path.write_text(json.dumps(failed) + "\n")
    assert state_of(copy).answered == 4
    path.write_text('{"torn')
    assert state_of(copy).answered == 4
    (copy / "run.json").write_text("[]")
    assert state_of(copy).problem and state_of(copy).answered == 0
    assert state_of(tmp_path / "none") == State()


def test_a_folder_that_cannot_be_read_is_said_to_be(run_eval: Any, tmp_path: Path) -> None:
    folder(tmp_path).mkdir(parents=True)
    (folder(tmp_path) / "run.json").write_text("[]")
    found = listed(tmp_path)["table5"]["of"]["pocket"]["runs"]["pocket-ruler-niah-128k"]
    assert "run.json" in found["window-128"]["problem"] and "problem" not in found["full"]
    assert "1 cannot be read" in " ".join(
        run_eval("paper", "--no-estimate", "-o", tmp_path).stdout.split()
    )


def test_hours_come_from_runs_of_that_model_on_this_machine(run: Path, tmp_path: Path) -> None:
    speed = speed_of_runs(run / "pocket")
    assert speed is not None and speed.basis == "runs"
    entry = listed(run)["table5"]["of"]["pocket"]
    assert entry["hours"] == entry["flops"] / speed.flops_per_second / 3600
    assert listed(run)["table5"]["hours"] is None, "nothing of 7B was run"
    subprocess.run(["cp", "-r", run / "pocket", tmp_path / "pocket"], check=True)
    described = folder(tmp_path) / "run.json"
    info = json.loads(described.read_text())
    info["hardware"]["processor"] = "another"
    described.write_text(json.dumps(info))
    assert speed_of_runs(tmp_path / "pocket") is None
    assert speed_of_runs(tmp_path / "none") is None


def test_an_estimate_is_measured_and_named_as_what_it_is(tmp_path: Path) -> None:
    speed = measured_speed("cpu", "float32", seconds=0.05)
    assert speed.flops_per_second > 1e8 and speed.basis == "matrix products"
    assert "a run is slower" in speed.told and "float32" in speed.told
    made = Speed(1e15, "matrix products", "a device", "told")
    found = listed(tmp_path, made)
    assert found["table5"]["hours"] == found["table5"]["flops"] / 1e15 / 3600
    assert found["table5"]["of"]["pocket"]["hours"] is None, "too small for a product's speed"


def test_the_list_is_quick_and_loads_no_model() -> None:
    code = (
        "import sys; from evaluation.paper.listing import listed, listing; listing(listed()); "
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
