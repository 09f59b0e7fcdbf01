"""Runs with released AHN weights: the window of the evaluation, not the leftover in their file;
and checkpoints whose numbers or stop tokens cannot be, in `run_eval` and lm-eval alike."""

from __future__ import annotations

import json
import logging
import shutil

import pytest

import ahn
from common.errors import InputError

EVALUATED = {"window": 32_640, "sinks": 128}
LEFTOVER = "sliding_window 256 is a leftover of training"


@pytest.fixture
def released(memory, tmp_path):
    """The memory with what people report of a released config.json."""
    folder = shutil.copytree(memory, tmp_path / "released")
    config = json.loads((folder / "config.json").read_text())
    del config["num_attn_sinks"]
    config |= {"sliding_window": 256, "sliding_window_type": "random", "ahn_position": "random"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def base(tiny, data, tmp_path):
    return [
        "longbench", "--model", tiny, "--data", data, "--tasks", "hotpotqa", "--limit", 1,
        "--device", "cpu", "--max-length", 300, "--output", tmp_path / "run",
    ]  # fmt: skip


def flat(text):
    return " ".join(text.split())


def test_the_run_uses_and_records_the_papers_window_and_says_so_once(
    run_eval, base, released, tmp_path
):
    result = run_eval(*base, "--ahn", released)
    assert result.exit_code == 0, result.output
    assert flat(result.stderr).count(LEFTOVER) == 1
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    for variant in ("window", "ahn"):
        spec = info["models"][variant]
        assert {key: spec[key] for key in EVALUATED} == EVALUATED
        assert {(x["window"], x["sinks"]) for x in spec["layout"]} == {(32_640, 128)}
    parts = info["identity_parts"]["variants"]["ahn"]
    assert {key: parts[key] for key in EVALUATED} == EVALUATED


def test_the_plan_says_it_only_where_the_file_would_decide(run_eval, base, released):
    def said(*flags):
        result = run_eval(*base, "--dry-run", "--ahn", released, *flags)
        assert result.exit_code == 0, result.output
        return LEFTOVER in flat(result.output)

    assert said() and said("--variant", "window") and said("--sinks", 64)
    assert not said("--window", 256, "--sinks", 64)
    assert not said("--variant", "full")


def test_a_merged_model_is_asked_alike(run_eval, base, tiny, released, tmp_path):
    ahn.merge_checkpoint(tiny, released, tmp_path / "merged")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "merged" / name).is_file()
    config = tmp_path / "merged" / "config.json"
    result = run_eval(*base, "--dry-run", "--model", tmp_path / "merged")
    assert result.exit_code == 0 and "leftover" not in result.output
    assert "32,640" in result.stdout
    settings = json.loads(config.read_text()) | {"ahn_training": {"sliding_window_type": "random"}}
    del settings["ahn_checkpoint"]  # an earlier version's merge
    settings["ahn"] |= {"window": 256}
    config.write_text(json.dumps(settings))
    result = run_eval(*base, "--dry-run", "--model", tmp_path / "merged")
    assert "window 256 with 128 sinks is used as it stands there" in flat(result.output)


def test_lm_eval_uses_it_and_says_so(tiny, released, caplog):
    from evaluation.lm_eval.plugin import AHNLM

    with caplog.at_level(logging.WARNING, logger="ahn"):
        model = AHNLM(pretrained=str(tiny), ahn=str(released), device="cpu")
    layout = model.get_model_info()["layout"]
    assert {(x["window"], x["sinks"]) for x in layout} == {(32_640, 128)}
    assert [r.getMessage() for r in caplog.records if LEFTOVER in r.getMessage()]


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("generation_config.json", "{", "generation_config.json: not JSON"),
        ("generation_config.json", '{"eos_token_id": "256"}', 'eos_token_id: "256" is none'),
        ("config.json", '"rms_norm_eps": NaN', "config.json: rms_norm_eps: NaN is not a finite"),
        ("config.json", '"rope_theta": NaN', "config.json: rope_theta: NaN is not a finite number"),
    ],
)
def test_bad_numbers_and_stop_tokens_are_one_problem(
    run_eval, base, tiny, tmp_path, file, text, said
):
    from evaluation.lm_eval.plugin import AHNLM

    model = shutil.copytree(tiny, tmp_path / "model")
    path = model / file
    if file == "config.json":
        config = json.loads(path.read_text())
        config.pop(text.split('"')[1], None)
        text = json.dumps(config)[:-1] + f", {text}}}"
    path.write_text(text)
    result = run_eval(*base, "--model", model)
    (line,) = result.stderr.strip().splitlines()
    assert result.exit_code == 2 and line.startswith("error: ") and said in line
    assert str(model) in line and not (tmp_path / "run").exists()
    with pytest.raises((InputError, ahn.InputError), match="config.json: "):
        AHNLM(pretrained=str(model), device="cpu")
    if file == "config.json":
        result = run_eval("cost", "--model", model, "--length", 100)
        assert result.exit_code == 2 and said in result.stderr
