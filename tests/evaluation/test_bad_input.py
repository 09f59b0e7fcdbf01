"""Bad input: exit code 2, one message per problem, no traceback, nothing written, no weights."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.evaluation.conftest import (
    byte_tokenizer,
    question,
    save_tiny_qwen2,
    start_process,
    write_rows,
)


@pytest.fixture
def base(tiny, data, tmp_path, monkeypatch):
    """Arguments of a run that would be fine; reading weights fails the test."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("evaluation.backends.streaming.load_resolved", refuse)
    monkeypatch.chdir(tmp_path)
    return [
        "longbench", "--model", tiny, "--data", data, "--tasks", "hotpotqa",
        "--device", "cpu", "--output", tmp_path / "run",
    ]  # fmt: skip


def problems(result, count: int = 1) -> list[str]:
    """The messages of a refused command, after checking how it was refused."""
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert all(line.startswith("error: ") for line in lines), result.stderr
    assert len(lines) == count, result.stderr
    assert "Traceback" not in result.output
    return lines


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--tasks", "hotpotqua"], "unknown task 'hotpotqua'"),
        (["--tasks", "hotpotqa,nope"], "unknown task 'nope'"),
        (["--data", "nowhere"], "nowhere"),
        (["--tasks", "narrativeqa"], "narrativeqa"),  # no such file in the folder
        (["--variant", "windw"], "did you mean 'window'"),
        (["--variant", "window"], "--window: needed by window"),
        (["--variant", "window", "--window", 0], "--window: must be at least 1, not 0"),
        (["--window", -5], "--window: must be at least 1, not -5"),
        (["--variant", "window", "--window", 64, "--sinks", -1], "--sinks: must be at least 0"),
        (["--variant", "window:window=4.5"], "window: '4.5' is not a number of tokens"),
        (["--variant", "window:windw=4"], "no option 'windw' (known: window, sinks); did you mean"),
        (["--variant", "full:window=4"], "full has no option 'window' (known: none)"),
        (["--variant", "window:"], "no options after the colon"),
        (["--variant", "window:window"], "'window' is not key=value"),
        (["--variant", "window:window=4,window=5"], "window is given twice"),
        (["--variant", "window:window=4,name=a/b"], "name: 'a/b'"),
        (["--ahn", "pocket/gnd"], "did you mean 'pocket/gdn'"),
        (["--tokenizer", "pocket/gnd"], "did you mean 'pocket/gdn'"),
        (["--variant", "ahn", "--window", 64, "--sinks", 4], "--ahn: needed by ahn"),
        (["--limit", 0], "--limit"),
        (["--protocol", "mine"], "--protocol"),
        (["--dtype", "int4"], "--dtype"),
        (["--device", "abacus"], "abacus"),
        (["--max-length", 1], "--max-length: 1 is too small"),
        (["--max-length", 4096], "max_position_embeddings 2048"),
        (["--model", "nowhere"], "nowhere"),
        (["--tokenizer", "nowhere"], "--tokenizer: nowhere: no such folder"),
        (["--config", "nowhere.yaml"], "no such file: nowhere.yaml"),
        (["--seed", -1], "--seed"),
        (["--tasks", ","], "--tasks: no name is given"),
        (["--variant", ""], "--variant: no name is given"),
    ],
)  # fmt: skip
def test_one_problem_one_message(run_eval, base, tmp_path, flags, said):
    for flag in flags[::2]:  # the last value of a flag wins, but lists are joined
        if flag == "--tasks":
            at = base.index("--tasks")
            base = base[:at] + base[at + 2 :]
    (line,) = problems(run_eval(*base, *flags))
    assert said in line
    assert not (tmp_path / "run").exists()


def test_every_problem_is_listed_at_once(run_eval, base, tmp_path):
    (tmp_path / "run.yaml").write_text("windwo: 3\nlimit: none of them\n")
    lines = problems(
        run_eval(
            *base, "--config", "run.yaml", "--tasks", "nope", "--tasks", "narrativeqa",
            "--variant", "windw", "--variant", "ahn", "--window", 0, "--device", "abacus",
        ),
        8,
    )  # fmt: skip
    text = "\n".join(lines)
    for said in ("windwo", "limit", "nope", "narrativeqa", "windw", "--window", "--ahn", "abacus"):
        assert said in text


def test_no_model_is_said(run_eval, data):
    (line,) = problems(run_eval("longbench", "--data", data, "--tasks", "hotpotqa"))
    assert "--model: none given" in line


def test_every_bad_row_is_named_with_file_and_line(run_eval, base, tmp_path):
    rows = [question(i, 1) for i in range(4)]
    del rows[1]["context"]
    rows[3]["answers"] = "not a list"
    file = write_rows(tmp_path / "rows" / "hotpotqa.jsonl", rows)
    lines = problems(run_eval(*base, "--data", file.parent), 2)
    assert f"{file}:2" in lines[0] and "context" in lines[0]
    assert f"{file}:4" in lines[1] and "answers" in lines[1]


LATER = {
    # what a row may hold that is only written after the answer: (benchmark, task, fields)
    "id": ("longbench", "hotpotqa", r'"_id": "row\ud800"'),
    "id of InfiniteBench": ("infinitebench", "math_find", r'"id": "1\udc00"'),
    "gold number": ("infinitebench", "math_find", '"answer": NaN'),
    "classes": ("lveval", "hotpotwikiqa_mixup_16k", '"all_classes": [1, 2]'),
    "classes that would be altered": (
        "lveval",
        "hotpotwikiqa_mixup_16k",
        r'"all_classes": ["a\ud800"]',
    ),
    "classes that are no list": ("infinitebench", "math_find", '"all_classes": "x"'),
    "key words": ("longbench", "hotpotqa", r'"answer_keywords": "lamp\ud800"'),
    "key words that are no text": ("longbench", "hotpotqa", '"answer_keywords": [NaN]'),
}


@pytest.mark.parametrize("what", list(LATER))
def test_what_no_record_can_hold_is_refused_before_a_model_is_loaded(
    run_eval, base, tmp_path, what
):
    benchmark, task, field = LATER[what]
    row = {
        "context": "Paragraph 1 tells of 7. " * 40, "input": "The largest of the list", "length": 9,
    }  # fmt: skip
    row |= {"answer": 7} if benchmark == "infinitebench" else {"answers": ["7"]}
    row = {key: value for key, value in row.items() if f'"{key}"' not in field}
    path = tmp_path / "rows" / f"{task}.jsonl"
    path.parent.mkdir()
    path.write_text(json.dumps(row)[:-1] + f", {field}}}\n")
    arguments = ["--data", path.parent, "--tasks", task, "--max-length", 200]
    for flag in ([], ["--dry-run"]):
        common = [word for word in base[1:] if word not in ("--tasks", "hotpotqa")]
        (line,) = problems(run_eval(benchmark, *common, *arguments, *flag))
        assert f"{path}:1: " in line
    assert not (tmp_path / "run").exists()


def test_prompts_beyond_the_models_positions_are_refused(run_eval, base, tmp_path):
    row = question(0, 1) | {"context": "word " * 600}
    file = write_rows(tmp_path / "rows" / "hotpotqa.jsonl", [row])
    long = [*base, "--data", file.parent, "--protocol", "ahn"]  # up to 32,000 tokens
    (line,) = problems(run_eval(*long))
    assert "1 of 1 prompts" in line and "max_position_embeddings 2048" in line
    assert run_eval(*long, "--allow-overlong", "--dry-run").exit_code == 0
    assert run_eval(*long, "--max-length", 1500, "--dry-run").exit_code == 0


def test_a_tokenizer_of_another_model_is_refused(run_eval, base, tiny, tmp_path):
    model = shutil.copytree(tiny, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    config["vocab_size"] = 100
    (model / "config.json").write_text(json.dumps(config))
    result = run_eval(*base, "--model", model)
    assert result.exit_code == 2
    assert "the model's vocabulary ends at 99" in result.stderr


def test_weights_of_another_shape_are_refused(run_eval, base, tiny, tmp_path):
    model = shutil.copytree(tiny, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    config["intermediate_size"] = 48
    (model / "config.json").write_text(json.dumps(config))
    result = run_eval(*base, "--model", model)
    assert result.exit_code == 2 and "Traceback" not in result.output
    assert "mlp" in result.stderr


def test_memory_of_another_shape_is_refused(run_eval, base, memory, tmp_path):
    other = save_tiny_qwen2(tmp_path / "other", hidden_size=64)
    byte_tokenizer(other)
    result = run_eval(*base, "--model", other, "--ahn", memory, "--variant", "ahn")
    assert result.exit_code == 2 and "Traceback" not in result.output
    assert "ahn.fn" in result.stderr and "shape" in result.stderr


def test_a_base_model_is_no_memory(run_eval, base, tiny):
    flags = ["--variant", "ahn", "--window", 64, "--sinks", 4]
    (line,) = problems(run_eval(*base, "--ahn", tiny, *flags))
    assert f"{tiny}: config.json names no cell" in line


def test_a_model_folder_without_weights_is_refused(run_eval, base, tiny, tmp_path):
    model = shutil.copytree(tiny, tmp_path / "model")
    (model / "model.safetensors").unlink()
    result = run_eval(*base, "--model", model)
    assert result.exit_code == 2 and "Traceback" not in result.output


def test_output_that_is_a_file_is_refused(run_eval, base, tmp_path):
    (tmp_path / "run").write_text("mine")
    (line,) = problems(run_eval(*base))
    assert "is a file" in line
    assert (tmp_path / "run").read_text() == "mine"


def test_output_below_a_file_is_refused_before_the_run(run_eval, base, tmp_path):
    (tmp_path / "run").write_text("mine")
    place = tmp_path / "run" / "deeper" / "still"
    (line,) = problems(run_eval(*base, "--dry-run", "--output", place))
    assert f"--output: {tmp_path / 'run'} is a file, not a folder" in line


def test_a_model_folder_without_a_tokenizer_is_one_problem(run_eval, base, tiny, tmp_path):
    model = shutil.copytree(tiny, tmp_path / "model")
    for file in model.glob("tokenizer*"):
        file.unlink()
    (line,) = problems(run_eval(*base, "--model", model))
    assert "--tokenizer" in line and str(model) in line


def test_unreadable_memory_settings_are_not_reported_as_a_missing_window(
    run_eval, base, memory, tmp_path
):
    other = shutil.copytree(memory, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    config["_ahn_implementation"] = "Gated"
    (other / "config.json").write_text(json.dumps(config))
    (line,) = problems(run_eval(*base, "--ahn", other))
    assert "Gated" in line


@pytest.fixture
def hub(monkeypatch):
    """A hub that cannot be reached, and the files that it was asked for."""
    asked = []

    def download(repository, file, revision):
        asked.append(file)
        return f"{file} could not be had."

    monkeypatch.setattr("tasks.hub._download", download)
    return asked


def test_rows_that_the_hub_does_not_give_are_one_problem(run_eval, tiny, hub):
    (line,) = problems(run_eval("longbench", "--model", tiny))
    assert "data.zip could not be had" in line and "--data" in line
    assert len(hub) > 1


def test_the_hub_is_not_asked_for_a_run_that_cannot_start(run_eval, tiny, hub):
    (line,) = problems(run_eval("longbench", "--model", tiny, "--window", 0))
    assert "--window" in line
    assert hub == []


def test_a_file_for_another_benchmark_is_refused(run_eval, base, tmp_path):
    (tmp_path / "run.yaml").write_text("benchmark: lveval\n")
    (line,) = problems(run_eval(*base, "--config", "run.yaml"))
    assert "lveval" in line and "longbench" in line


def test_dry_run_lists_what_is_missing(run_eval, base):
    lines = problems(run_eval(*base, "--dry-run", "--variant", "ahn", "--data", "nowhere"), 3)
    assert "nowhere" in "\n".join(lines)


@pytest.mark.parametrize(
    "flags",
    [
        ["--variant", "window", "--window", 1, "--sinks", 0],
        ["--variant", "window", "--window", 8, "--sinks", 8],
        ["--limit", 1, "--max-length", 2, "--seed", 0],
    ],
)
def test_the_smallest_values_are_no_mistake(run_eval, base, flags):
    result = run_eval(*base, *flags, "--dry-run")
    assert result.exit_code == 0, result.stderr


@pytest.mark.slow
def test_the_process_ends_with_code_2_and_no_traceback(tiny, data, tmp_path):
    process = start_process(
        "longbench", "--model", tiny, "--data", data, "--tasks", "nope", "--window", 0,
        "--output", tmp_path / "run",
    )  # fmt: skip
    output, errors = process.communicate(timeout=600)
    assert process.returncode == 2
    assert len(errors.strip().splitlines()) == 2 and "Traceback" not in errors
    assert output == "" and not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["report", "score", "cost"])
def test_other_commands_refuse_alike(run_eval, tmp_path, command):
    arguments = {
        "report": ["report", tmp_path / "none", "-o", tmp_path / "out"],
        "score": ["score", tmp_path / "none", "--benchmark", "longbench", "--task", "hotpotqa",
                  "--per-example", tmp_path / "out"],
        "cost": ["cost", "--model", "qwen2.5-3c"],
    }[command]  # fmt: skip
    problems(run_eval(*arguments))
    assert not (tmp_path / "out").exists()
