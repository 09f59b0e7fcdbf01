"""The same task on the same model: the same answers and scores through lm-eval and `run_eval`."""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tasks
from common.errors import InputError
from tests.evaluation.conftest import SINKS, WINDOW, records_of, start_process, write_rows

pytest.importorskip("lm_eval", reason="needs the extra 'lm-eval'")

from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager

from evaluation.commands.lm_eval import our_names
from evaluation.commands.lm_eval import run as run_harness
from evaluation.lm_eval.plugin import AHNLM
from tasks import lm_eval_task
from tasks.registry import benchmark_names, benchmark_tasks, find_task, task_names
from tasks.sources import load_examples

FOLDER = Path(tasks.__file__).parent


def through_lm_eval(
    model: AHNLM, names: list[str], **metadata: Any
) -> tuple[dict[str, dict[str, str]], dict[str, float]]:
    """Answers by task and example id, and mean scores by task, as lm-eval forms them."""
    manager = TaskManager(include_path=str(FOLDER), include_defaults=False, metadata=metadata)
    results = simple_evaluate(model, tasks=names, task_manager=manager, bootstrap_iters=0)
    assert results is not None
    answers = {
        name: {
            json.loads(sample["doc"]["example"])["example_id"]: sample["resps"][0][0]
            for sample in samples
        }
        for name, samples in results["samples"].items()
    }
    return answers, {n: found["score,none"] for n, found in results["results"].items()}


def through_run_eval(
    folder: Path,
) -> tuple[dict[str, dict[str, str]], dict[str, float]]:
    """The same of a run folder."""
    answers: dict[str, dict[str, str]] = {}
    scores: dict[str, list[float]] = {}
    for record in records_of(folder):
        assert record["error"] is None
        answers.setdefault(record["task"], {})[record["example_id"]] = record["prediction"]
        scores.setdefault(record["task"], []).append(record["score"])
    return answers, {task: sum(found) / len(found) for task, found in scores.items()}


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["full", "window", "ahn", "no-write"])
def test_pocket_tasks(variant: str, run_eval: Callable[..., Any], tmp_path: Path) -> None:
    window = [] if variant == "full" else ["--window", 128, "--sinks", 4]
    memory = ["--ahn", "pocket"] if variant in ("ahn", "no-write") else []
    names = ["pocket_qa@4", "pocket_number_string@1"]
    result = run_eval(
        "pocket", "--model", "pocket", *memory, "--variant", variant, *window,
        "--tasks", ",".join(names), "--lengths", "512", "--limit", 8, "--output", tmp_path / "run",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    answers, scores = through_run_eval(tmp_path / "run")

    options: dict[str, Any] = {} if variant == "full" else {"window": 128, "sinks": 4}
    if memory:
        options["ahn"] = "pocket"
    model = AHNLM(pretrained="pocket", variant=variant, device="cpu", **options)
    theirs = ["ahnbench_pocket_qa_4", "ahnbench_pocket_number_string_1"]
    found, means = through_lm_eval(model, theirs, data="pocket", limit=8)
    assert [found[name] for name in theirs] == [answers[name] for name in names]
    assert [means[name] for name in theirs] == pytest.approx([scores[n] for n in names], abs=1e-12)
    if variant == "full":
        assert means[theirs[0]] > 0.8  # answers were found, not only equal


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize("protocol", ["official", "ahn"])
@pytest.mark.parametrize("variant", ["full", "ahn"])
def test_real_rows(
    variant: str,
    protocol: str,
    shared: Path,
    tiny: Path,
    memory: Path,
    run_eval: Callable[..., Any],
    tmp_path: Path,
) -> None:
    """Truncation, chat template, generation settings and scores are the protocol's in both."""
    data = shared / "data" / "longbench"
    names = ["multifieldqa_zh", "passage_retrieval_zh"]
    given = [] if variant == "full" else ["--ahn", memory, "--window", WINDOW, "--sinks", SINKS]
    result = run_eval(
        "longbench", "--model", tiny, "--variant", variant, *given, "--tasks", ",".join(names),
        "--data", data, "--protocol", protocol, "--limit", 3, "--max-length", 600,
        "--output", tmp_path / "run",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    answers, scores = through_run_eval(tmp_path / "run")
    assert all(len(by_id) == 3 for by_id in answers.values())

    options: dict[str, Any] = {}
    if variant == "ahn":
        options = {"ahn": str(memory), "window": WINDOW, "sinks": SINKS}
    model = AHNLM(
        pretrained=str(tiny), variant=variant, device="cpu", max_length=600, batch_size=2, **options
    )
    theirs = [f"ahnbench_longbench_{name}" for name in names]
    found, means = through_lm_eval(model, theirs, data=str(data), protocol=protocol, limit=3)
    assert [found[name] for name in theirs] == [answers[name] for name in names]
    assert [means[name] for name in theirs] == [scores[name] for name in names]


@pytest.mark.slow
def test_sampled_answers_are_the_same_too(
    tmp_path: Path, tiny: Path, data: Path, run_eval: Callable[..., Any]
) -> None:
    """Under the AHN protocol Qwen3 samples, with a seed of its own for each example."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    folder = tmp_path / "qwen3"
    shape = json.loads((tiny / "config.json").read_text("utf-8"))
    kept: tuple[str, ...] = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    kept += ("num_attention_heads", "num_key_value_heads", "max_position_embeddings")
    config = Qwen3Config(**{key: shape[key] for key in kept}, head_dim=8, initializer_range=0.3)
    Qwen3ForCausalLM(config).save_pretrained(folder)
    for file in tiny.glob("tokenizer*"):
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "chat_template.jinja").write_bytes((tiny / "chat_template.jinja").read_bytes())
    write_rows(folder / "rows" / "hotpotqa.jsonl", _rows(data)[:3])
    result = run_eval(
        "longbench", "--model", folder, "--variant", "full", "--tasks", "hotpotqa", "--data",
        folder / "rows", "--protocol", "ahn", "--max-length", 1500, "--output", tmp_path / "run",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    answers, _ = through_run_eval(tmp_path / "run")
    model = AHNLM(pretrained=str(folder), variant="full", device="cpu", max_length=1500)
    found, _ = through_lm_eval(
        model, ["ahnbench_longbench_hotpotqa"], data=str(folder / "rows"), protocol="ahn"
    )
    assert found["ahnbench_longbench_hotpotqa"] == answers["hotpotqa"]
    assert len(set(answers["hotpotqa"].values())) > 1


def _rows(data: Path) -> list[dict[str, Any]]:
    lines = (data / "hotpotqa.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.slow
def test_what_the_user_asks_of_generation_goes_first(tiny: Path, data: Path) -> None:
    model = AHNLM(pretrained=str(tiny), variant="full", device="cpu", max_length=1500)
    manager = TaskManager(
        include_path=str(FOLDER), include_defaults=False, metadata={"data": str(data)}
    )
    results = simple_evaluate(
        model,
        tasks=["ahnbench_longbench_hotpotqa"],
        task_manager=manager,
        gen_kwargs={"max_gen_toks": 2},
        limit=2,
        bootstrap_iters=0,
    )
    assert results is not None
    for sample in results["samples"]["ahnbench_longbench_hotpotqa"]:
        # Two bytes; one that is half a letter is decoded as U+FFFD.
        assert 0 < len(sample["resps"][0][0]) <= 2


def test_a_prompt_longer_than_the_model_is_refused(tiny: Path, tmp_path: Path, data: Path) -> None:
    row = _rows(data)[0] | {"context": "x" * 3000}
    write_rows(tmp_path / "hotpotqa.jsonl", [row])
    model = AHNLM(pretrained=str(tiny), variant="full", device="cpu", max_length=2500)
    with pytest.raises(InputError, match=r"hotpotqa.jsonl:1: .* 2048 positions; give max_length"):
        through_lm_eval(model, ["ahnbench_longbench_hotpotqa"], data=str(tmp_path))


@pytest.mark.slow
def test_the_command_runs_lm_eval_whole(tmp_path: Path) -> None:
    """One process, as a user starts it: model and tasks are found, a table and files are left."""
    process = start_process(
        "lm-eval", "--model", "ahn", "--model_args",
        "pretrained=pocket,ahn=pocket,variant=ahn,window=128,sinks=4", "--tasks",
        "ahnbench_pocket_qa_1", "--metadata", '{"limit": 4}', "--output_path", tmp_path,
        "--log_samples", "--device", "cpu",
    )  # fmt: skip
    output, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    row = re.search(r"\|ahnbench_pocket_qa_1\|.*\|score *\|↑ *\| *([0-9.]+)\|", output)
    assert row, output
    (results,) = tmp_path.rglob("results_*.json")
    stored = json.loads(results.read_text("utf-8"))
    assert stored["results"]["ahnbench_pocket_qa_1"]["score,none"] == float(row[1])
    assert stored["config"]["model_num_parameters"] > 0 and stored["config"]["variant"] == "ahn"
    (samples,) = tmp_path.rglob("samples_*.jsonl")
    assert len(samples.read_text("utf-8").splitlines()) == 4


# -- caches -------------------------------------------------------------------------------------


def prompts_of(model: Any, folder: Path, **metadata: Any) -> list[str]:
    """What is asked of `model` for hotpotqa, with lm-eval's cache of prompts."""
    manager = TaskManager(include_path=str(FOLDER), include_defaults=False, metadata=metadata)
    results = simple_evaluate(
        model,
        tasks=["ahnbench_longbench_hotpotqa"],
        task_manager=manager,
        bootstrap_iters=0,
        cache_requests=True,
    )
    assert results is not None
    samples = results["samples"]["ahnbench_longbench_hotpotqa"]
    assert [sample["doc"]["protocol"] for sample in samples] == [metadata["protocol"]] * len(
        samples
    )
    return [sample["arguments"][0][0] for sample in samples]


@pytest.fixture
def request_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the test's own for lm-eval's cache of prompts."""
    from lm_eval.caching import cache

    monkeypatch.setattr(cache, "PATH", str(tmp_path / "requests"))
    return tmp_path / "requests"


@pytest.mark.slow
def test_prompts_are_not_reused_across_protocols_and_data(
    request_cache: Path, tmp_path: Path, data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from lm_eval.api.registry import get_model

    dummy = get_model("dummy")()
    other = [row | {"context": "Other text."} for row in _rows(data)]
    write_rows(tmp_path / "other" / "hotpotqa.jsonl", other)
    asked = {
        (protocol, folder): prompts_of(dummy, folder, protocol=protocol, data=str(folder))
        for protocol in ("official", "ahn")
        for folder in (data, tmp_path / "other")
    }
    for (protocol, folder), prompts in asked.items():
        task = find_task("longbench", "hotpotqa")
        examples = load_examples(task, str(folder), None, 0).examples
        assert prompts == [task.render(example, protocol) for example in examples]
    assert not list(request_cache.glob("*hotpotqa*"))
    assert "--cache_requests: not for tasks of AHN-Bench" in caplog.text


def test_the_cache_of_answers_is_refused_with_our_model(tmp_path: Path, data: Path) -> None:
    model = AHNLM(pretrained="pocket", device="cpu")
    manager = TaskManager(
        include_path=str(FOLDER), include_defaults=False, metadata={"data": str(data)}
    )
    with pytest.raises(InputError, match="--use_cache: not with the model 'ahn'"):
        simple_evaluate(
            model,
            tasks=["ahnbench_longbench_hotpotqa"],
            task_manager=manager,
            use_cache=str(tmp_path / "cache"),
        )


def test_the_command_refuses_the_cache_of_answers_before_there_is_one(tmp_path: Path) -> None:
    asked = ["--model", "ahn", "--model_args", "pretrained=pocket", "--tasks"]
    with pytest.raises(InputError, match="--use_cache: not with the model 'ahn'"):
        run_harness([*asked, "ahnbench_pocket_qa_1", "--use_cache", str(tmp_path / "cache")])
    assert not list(tmp_path.iterdir())


# -- other models -------------------------------------------------------------------------------


@pytest.mark.slow
def test_another_model_is_told_what_it_cannot_carry_out(
    data: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval.api.registry import get_model

    monkeypatch.setattr(lm_eval_task, "PROTOCOL_MODELS", set())
    lm_eval_task._warn_once.cache_clear()
    manager = TaskManager(
        include_path=str(FOLDER), include_defaults=False,
        metadata={"data": str(data), "protocol": "official"},
    )  # fmt: skip
    manager.load(["ahnbench_longbench_samsum"])
    (told,) = [r.getMessage() for r in caplog.records if r.name == "tasks.lm_eval_task"]
    assert "ahnbench_longbench_samsum: the protocol 'official' is followed as a whole by" in told
    for part in ("loses its middle", "chat template is left out", "an answer ends at a newline"):
        assert part in told
    results = simple_evaluate(
        get_model("dummy")(), tasks=["ahnbench_longbench_samsum"], task_manager=manager,
        bootstrap_iters=0,
    )  # fmt: skip
    assert results is not None
    config = results["configs"]["ahnbench_longbench_samsum"]
    assert config["metadata"]["protocol_followed"] is False
    assert len([r for r in caplog.records if r.name == "tasks.lm_eval_task"]) == 1


@pytest.mark.slow
def test_another_model_beside_ours_is_told_when_its_answers_are_there(
    data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from lm_eval.api.registry import get_model

    ours = AHNLM(pretrained="pocket", device="cpu")
    lm_eval_task._warn_once.cache_clear()
    manager = TaskManager(include_path=str(FOLDER), include_defaults=False, metadata={"limit": 2})
    for model, followed in ((ours, True), (get_model("dummy")(), False)):
        caplog.clear()
        results = simple_evaluate(
            model, tasks=["ahnbench_pocket_qa_1"], task_manager=manager, bootstrap_iters=0
        )
        assert results is not None
        config = results["configs"]["ahnbench_pocket_qa_1"]
        assert config["metadata"]["protocol_followed"] is followed
        told = [r for r in caplog.records if r.name == "tasks.lm_eval_task"]
        assert len(told) == (0 if followed else 1)


@pytest.mark.slow
def test_what_the_harness_would_put_around_a_prompt_is_told(
    tiny: Path, data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = AHNLM(pretrained=str(tiny), variant="full", device="cpu", max_length=1500)
    manager = TaskManager(
        include_path=str(FOLDER), include_defaults=False, metadata={"data": str(data)}
    )

    def answers(**options: Any) -> list[str]:
        found = simple_evaluate(
            model, tasks=["ahnbench_longbench_samsum"], task_manager=manager, bootstrap_iters=0,
            **options,
        )  # fmt: skip
        assert found is not None
        return [s["resps"][0][0] for s in found["samples"]["ahnbench_longbench_samsum"]]

    plain = answers()
    assert "is left out" not in caplog.text
    assert answers(apply_chat_template=True, system_instruction="Be brief.") == plain
    assert (
        "what --apply_chat_template and --system_instruction would add is left out" in caplog.text
    )
    assert answers(num_fewshot=2) == plain


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"max_gen_toks": 0}, "max_gen_toks: should be a number of tokens, not 0"),
        ({"max_gen_toks": True}, "max_gen_toks: should be a number of tokens, not True"),
        ({"max_gen_toks": "4"}, "max_gen_toks: should be a number of tokens, not '4'"),
        ({"num_beams": 4}, "num_beams: not for tasks of this package"),
        ({"temperature": 0.5}, r"temperature: .* \(needs do_sample=True\)"),
        ({"do_sample": "no"}, "do_sample: should be True or False, not 'no'"),
        ({"until": [3]}, "until: should be texts"),
    ],
)
def test_generation_options_that_are_not_understood_are_refused(
    tiny: Path, data: Path, options: dict[str, Any], told: str
) -> None:
    model = AHNLM(pretrained=str(tiny), variant="full", device="cpu", max_length=1500)
    manager = TaskManager(
        include_path=str(FOLDER), include_defaults=False, metadata={"data": str(data)}
    )
    with pytest.raises(InputError, match=f"--gen_kwargs {told}"):
        simple_evaluate(
            model, tasks=["ahnbench_longbench_hotpotqa"], task_manager=manager, limit=1,
            gen_kwargs=options, bootstrap_iters=0,
        )  # fmt: skip


# -- lm-eval's own command ----------------------------------------------------------------------


@pytest.mark.slow
def test_lm_evals_own_command_finds_the_model(tmp_path: Path) -> None:
    """`lm_eval` as it is installed, told of the model by its file among the tasks."""
    command = [
        sys.executable, "-m", "lm_eval", "--model", "ahn",
        "--model_args", "pretrained=pocket,ahn=pocket,window=128,sinks=4",
        "--include_path", str(FOLDER), "--metadata", '{"limit": 2}', "--device", "cpu",
        "--tasks", f"{FOLDER}/ahn.yaml,ahnbench_pocket_qa_1,ahnbench_pocket_qa_4",
        "--output_path", str(tmp_path),
    ]  # fmt: skip
    root = str(FOLDER.parent)
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, check=False,
        env=os.environ | {"PYTHONPATH": root, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    (results,) = tmp_path.rglob("results_*.json")
    stored = json.loads(results.read_text("utf-8"))
    scored = {name for name, found in stored["results"].items() if "score,none" in found}
    assert scored == {"ahnbench_pocket_qa_1", "ahnbench_pocket_qa_4"} == set(stored["configs"])
    for config in stored["configs"].values():
        assert config["metadata"]["protocol_followed"] is True
    assert "followed as a whole" not in done.stderr


def test_all_names_follow_one_rule_and_are_lm_evals() -> None:
    manager = TaskManager(include_path=str(FOLDER), include_defaults=False)
    names = our_names()
    tasks_of = [len(benchmark_tasks(benchmark)) for benchmark in benchmark_names()]
    assert len(names) == len(set(names)) == sum(tasks_of) + len(manager.all_groups) - 1
    assert {*names, "ahnbench_model"} == set(manager.all_tasks)
    benchmarks = benchmark_names()
    for name in names:
        assert any(
            name == f"ahnbench_{benchmark}" or name.startswith(f"ahnbench_{benchmark}_")
            for benchmark in benchmarks
        )
    for benchmark in benchmark_names():
        for task in (find_task(benchmark, name) for name in task_names(benchmark)):
            dataset = task.dataset.removeprefix(f"{benchmark}_").replace("@", "_")
            parts = [benchmark, dataset, *([task.level] if task.level else [])]
            assert task.lm_eval_name == "ahnbench_" + "_".join(parts)


def test_bad_input_is_one_message_and_exit_code_2(run_eval: Callable[..., Any]) -> None:
    asked = ["--model", "ahn", "--tasks", "ahnbench_pocket_qa_1", "--include_path", "/nowhere"]
    result = run_eval("lm-eval", *asked)
    assert result.exit_code == 2, result.output
    assert result.stderr == "error: --include_path: /nowhere is not a folder\n"


@pytest.fixture
def ours_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-eval does not index its own tasks, thousands of files."""
    without = functools.partial(TaskManager, include_defaults=False)
    monkeypatch.setattr("lm_eval.tasks.TaskManager", without)


@pytest.mark.usefixtures("ours_alone")
def test_rows_that_are_not_there_are_said_in_lm_evals_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match="data.zip of the data set") as error:
        run_harness(
            ["--model", "ahn", "--model_args", "pretrained=pocket", "--device", "cpu"]
            + ["--tasks", "ahnbench_longbench_hotpotqa"]
        )
    assert """--data FOLDER is --metadata '{"data": "FOLDER"}'""" in error.value.problems[-1]


@pytest.mark.usefixtures("ours_alone")
def test_tasks_that_nobody_has_are_named_with_what_may_be_meant() -> None:
    names = ["zzz", "lveval_128k", "longbench_paper", "ahnbench_longbench_hotpotqua"]
    asked = ["--model", "ahn", "--model_args", "pretrained=pocket", "--tasks", ",".join(names)]
    with pytest.raises(InputError) as error:
        run_harness(asked)
    told = list(error.value.problems)
    assert told[0] == "--tasks: task not found: zzz"
    assert told[1:3] == [
        "--tasks: task not found: lveval_128k; did you mean 'ahnbench_lveval_128k'?",
        "--tasks: task not found: longbench_paper; did you mean 'ahnbench_longbench_paper'?",
    ]
    assert "did you mean 'ahnbench_longbench_hotpotqa'" in told[3] and "ls tasks" in told[3]


def test_help_is_lm_evals(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_harness(["--help"]) == 0
    assert "validate" in capfd.readouterr().out


def test_without_lm_eval_the_command_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "lm_eval").mkdir()
    (tmp_path / "lm_eval" / "__init__.py").write_text("raise ImportError('not here')")
    root = Path(__file__).resolve().parents[3]
    result = subprocess.run(
        [sys.executable, "-m", "evaluation", "lm-eval", "--help"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{root}"},
        check=False,
    )
    assert result.returncode == 2
    assert "lm-eval is not installed; pip install 'ahn-bench[lm-eval]'" in result.stderr
