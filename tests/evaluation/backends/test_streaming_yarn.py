"""`--yarn-factor`: the model's positions stretched, in the plan, the model and the record."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.evaluation.conftest import SINKS, WINDOW, question, records_of, write_rows


@pytest.fixture(scope="module")
def long_rows(tmp_path_factory) -> Path:
    """A question of about 3,000 tokens; the tiny model has 2,048 positions."""
    folder = tmp_path_factory.mktemp("long")
    write_rows(folder / "hotpotqa.jsonl", [question(0, 1) | {"context": "a word and " * 250}])
    return folder


@pytest.fixture
def asked(tiny, long_rows) -> list:
    return [
        "longbench", "--model", tiny, "--data", long_rows, "--tasks", "hotpotqa",
        "--variant", "full,window", "--window", WINDOW, "--sinks", SINKS, "--max-length", 3500,
        "--device", "cpu", "--no-report",
    ]  # fmt: skip


def texts(folder: Path) -> dict[str, str]:
    return {record["variant"]: record["prediction"] for record in records_of(folder)}


@pytest.mark.slow
def test_a_stretched_model_answers_as_one_whose_configuration_says_so(
    run_eval, asked, tiny, tmp_path
):
    refused = run_eval(*asked, "--dry-run")
    assert refused.exit_code == 2 and "--max-length: 3500 is more than" in refused.stderr
    result = run_eval(*asked, "--yarn-factor", 2, "--output", tmp_path / "flag")
    assert result.exit_code == 0, result.stderr

    model = shutil.copytree(tiny, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    config["rope_parameters"] |= {
        "rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 2048,
    }  # fmt: skip
    (model / "config.json").write_text(json.dumps(config))
    said = [model if part == tiny else part for part in asked]
    assert run_eval(*said, "--output", tmp_path / "config").exit_code == 0
    assert texts(tmp_path / "flag") == texts(tmp_path / "config")

    plain = run_eval(*asked, "--allow-overlong", "--output", tmp_path / "plain")
    assert plain.exit_code == 0
    assert texts(tmp_path / "plain") != texts(tmp_path / "flag"), "it takes effect"


@pytest.mark.slow
def test_the_factor_is_in_the_record_and_keeps_other_runs_out_of_the_folder(
    run_eval, asked, tmp_path
):
    folder = tmp_path / "run"
    assert run_eval(*asked, "--yarn-factor", 2, "--output", folder).exit_code == 0
    info = json.loads((folder / "run.json").read_text())
    assert {model["yarn_factor"] for model in info["models"].values()} == {2.0}
    assert info["configuration"]["yarn_factor"] == 2.0
    before = records_of(folder)
    for other in (["--yarn-factor", 4], ["--allow-overlong"]):
        result = run_eval(*asked, *other, "--output", folder)
        assert result.exit_code == 2 and "yarn_factor" in result.stderr, result.stderr
        assert records_of(folder) == before
    again = run_eval(*asked, "--yarn-factor", 2, "--output", folder)
    assert again.exit_code == 0 and "continuing: 2 of 2" in again.stderr


def test_the_default_length_is_that_of_the_stretched_positions(run_eval, asked, tmp_path):
    at = asked.index("--max-length")
    without = [*asked[:at], *asked[at + 2 :]]
    config = tmp_path / "yarn.yaml"
    config.write_text("yarn_factor: 2\n")
    result = run_eval(*without, "--config", config, "--dry-run")
    assert result.exit_code == 0 and "(YaRN x 2: 4,096 positions)" in result.stdout
    result = run_eval(*without, "--yarn-factor", 1.1, "--dry-run")
    assert result.exit_code == 0 and "middle" in result.stdout, "cut to 2252 - 500"


@pytest.mark.parametrize("factor", ["0.5", "nan", "inf", "-1"])
def test_a_factor_that_is_none_is_refused(run_eval, asked, factor):
    result = run_eval(*asked, "--yarn-factor", factor, "--dry-run")
    assert result.exit_code == 2 and "--yarn-factor" in result.stderr
    assert "Traceback" not in result.output
