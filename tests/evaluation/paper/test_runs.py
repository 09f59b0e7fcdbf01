"""Tables and figures of scores, run on the pocket model: folders, sharing, resuming, bad input."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from common.settings import settings
from evaluation.paper import runs
from evaluation.paper.experiments import experiments
from evaluation.paper.options import PaperRun
from evaluation.paper.runs import make_plans
from evaluation.paper.state import state_of
from evaluation.paper.study import study
from evaluation.plan.identity import differences, identity_parts
from evaluation.plan.plan import make_plan
from tests.evaluation.conftest import (
    byte_tokenizer,
    records_of,
    save_tiny_memory,
    save_tiny_qwen2,
    start_process,
    write_rows,
)

RUN = [name for name, made in experiments().items() if made.parts and not made.training]
"""But for table 4, whose variants are trainings: `test_ablation`."""


def asked(**given: Any) -> PaperRun:
    return settings(PaperRun, {"model": "pocket", "limit": 1, **given})


def answered(output: Path) -> dict[str, int]:
    """Examples answered, by run folder."""
    return {
        folder.parent.relative_to(output).as_posix(): state_of(folder.parent).answered
        for folder in sorted(output.glob("*/*/*/run.json"))
    }


@pytest.mark.slow
def test_a_table_s_variants_are_run_folders_of_their_own(run_eval: Any, tmp_path: Path) -> None:
    flags = ("--model", "pocket", "--limit", 1, "--variant", "window-128", "-o", tmp_path)
    result = run_eval("paper", "table5", *flags)
    assert result.exit_code == 0, result.stderr
    folder = tmp_path / "pocket" / "pocket-ruler-niah-128k" / "window-128"
    assert answered(tmp_path) == {folder.relative_to(tmp_path).as_posix(): 5}
    assert f"run folder: {folder}" in result.stdout and "pocket_passkey@1_2048" in result.stdout
    assert (tmp_path / "pocket" / "table5.html").exists()
    described = json.loads((folder / "run.json").read_text())
    assert described["status"] == "finished"
    start = described["starts"][-1]["configuration"]
    assert start["variants"] == ["window:window=128,sinks=4,name=window-128"]
    assert (start["output"], start["ahn"]) == (str(folder), {})
    assert run_eval("check", folder).exit_code == 0
    before = records_of(folder)
    again = run_eval("paper", "table5", *flags, "--no-report")
    assert again.exit_code == 0 and "continuing: 5 of 5" in again.stderr
    assert records_of(folder) == before


def test_a_variant_s_folder_is_that_of_its_own_run(tmp_path: Path) -> None:
    """Neither the plan made for all nor the parts beside it change what a run is."""
    for name, some in (
        ("table2", ["full", "compressive-max-128", "ahn-mamba2-128"]),
        ("table8", ["memory-only-gdn", "window-128"]),
    ):
        wanted = asked(output=str(tmp_path), variants=some)
        made = study(name, wanted)
        for planned in make_plans(made, wanted):
            for variant in made.variants:
                of_all = planned.only(variant)
                alone = make_plan(of_all.configuration)
                assert list(alone.models) == [variant.name] == list(of_all.models)
                assert differences(identity_parts(of_all), identity_parts(alone)) == []


@pytest.mark.slow
def test_an_ordinary_run_continues_what_a_table_began(run_eval: Any, tmp_path: Path) -> None:
    flags = ("--model", "pocket", "--limit", 1, "--variant", "ahn-gdn-128", "-o", tmp_path)
    assert run_eval("paper", "table5", *flags, "--no-report").exit_code == 0
    folder = tmp_path / "pocket" / "pocket-ruler-niah-128k" / "ahn-gdn-128"
    tasks = "passkey@1,number_string@1,kv_retrieval@1,kv_retrieval@4,kv_retrieval@16"
    tasks = ",".join(f"pocket_{task}" for task in tasks.split(","))
    variant = "ahn:window=128,sinks=4,weights=gdn,name=ahn-gdn-128"
    done = run_eval(
        "pocket", "--tasks", tasks, "--lengths", 2048, "--variant", variant, "--limit", 1,
        "-o", folder, "--no-report",
    )  # fmt: skip
    assert done.exit_code == 0 and "continuing: 5 of 5" in done.stderr


@pytest.mark.slow
def test_what_one_table_ran_no_other_runs_again(
    run_eval: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("--model", "pocket", "--limit", 1, "-o", tmp_path, "--no-report")
    assert run_eval("paper", "table2", *flags).exit_code == 0
    before = answered(tmp_path)
    assert len(before) == 2 * 7 and set(before.values()) == {5}
    loaded: list[str] = []
    real = runs.answer

    def watched(plan: Any, info: Any, folder: Path, engine: Any) -> Any:
        done = state_of(folder).answered
        found = real(plan, info, folder, engine)
        if state_of(folder).answered > done:
            loaded.append(folder.relative_to(tmp_path / "pocket").as_posix())
        return found

    monkeypatch.setattr(runs, "answer", watched)
    for name, new in (
        ("table6", set()),
        ("table8", {"memory-only-gdn"}),
        ("figure4", {f"{kind}-{w}" for w in (32, 64, 256, 512) for kind in ("window", "ahn-gdn")}),
    ):
        loaded.clear()
        assert run_eval("paper", name, *flags).exit_code == 0
        assert {Path(folder).name for folder in loaded} == new
    assert before.items() <= answered(tmp_path).items()


@pytest.mark.slow
@pytest.mark.parametrize("name", RUN)
def test_every_table_and_figure_runs_end_to_end(run_eval: Any, name: str, tmp_path: Path) -> None:
    result = run_eval("paper", name, "--model", "pocket", "--limit", 1, "-o", tmp_path)
    assert result.exit_code == 0, result.stderr
    made = study(name, asked())
    done = answered(tmp_path)
    assert len(done) == len(made.parts) * len(made.variants) and 0 not in done.values()
    assert (tmp_path / "pocket" / f"{name}.html").stat().st_size > 10_000
    listed = json.loads(run_eval("paper", "--no-estimate", "--json", "-o", tmp_path).stdout)[name]
    states = [run["state"] for by in listed["of"]["pocket"]["runs"].values() for run in by.values()]
    assert states == ["partly"] * len(done)
    assert listed["of"]["pocket"]["speed"]["basis"] == "runs" and listed["hours"] is None


def test_a_dry_run_says_all_and_writes_nothing(run_eval: Any, tmp_path: Path) -> None:
    output = tmp_path / "runs"
    flags = ("--model", "pocket", "--limit", 2, "--variant", "full,ahn-gdn-128", "-o", output)
    result = run_eval("paper", "table5", *flags, "--dry-run")
    assert result.exit_code == 0 and not output.exists()
    text = " ".join(result.stdout.split())
    assert "10 examples of up to 2,048 tokens" in text and "ruler-niah-128k" in text
    assert "full (Full Attn): 9.26 GFLOP an example, 92.6 GFLOP in all; not run" in text
    assert "5 tasks x 2 variants, 10 examples per variant" in text
    assert "here: weights of ahn-gdn" in text and "Nothing is missing" in text


def test_all_that_is_missing_is_one_error_and_nothing_is_written(
    run_eval: Any, tmp_path: Path
) -> None:
    output = tmp_path / "runs"
    for dry in ((), ("--dry-run",)):
        result = run_eval("paper", "table2", "--model", "qwen2.5-3b", "-o", output, *dry)
        assert result.exit_code == 2 and not output.exists()
        errors = result.stderr.splitlines()
        assert all(line.startswith("error: ") for line in errors)
        for name in (
            "Qwen/Qwen2.5-3B-Instruct", "AHN-GDN-for-Qwen", "AHN-DN-for-Qwen", "AHN-Mamba2-for",
            "rows of lveval-128k", "rows of infinitebench-qa",
        ):  # fmt: skip
            assert sum(name in line for line in errors) == 1, name
        assert "--base PATH" in errors[-1] and "--ahn gdn=PATH" in errors[-1]
    plan = " ".join(result.stdout.split())
    assert "1,729 examples" in plan and "not here: weights of qwen2.5-3b" in plan


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["table3", "--model", "qwen2.5-3c"], "table3 has no 'qwen2.5-3c'"),
        (["table5", "--model", "qwen2.5-14b"], "table5 has no 'qwen2.5-14b'"),
        (["table8", "--model", "pocket", "--limit", "0"], "--limit: must be more than 0"),
        (["table3", "--model", "pocket", "--limti", "1"], "did you mean '--limit'"),
        (["figure7", "--model", "pocket", "--variant", "full"], "no 'full'; one of window-32"),
        (["table2", "--limit", "1"], "--limit: nothing is run; table2 runs with --model"),
        (["table2", "--model", "pocket", "--costs-only", "--dry-run"], "--dry-run: nothing is run"),
        (["table2", "--model", "pocket", "--data", "x"], "rows are generated here"),
        (["table3", "--json"], "--json: there is no such option"),
        (["table3", "--model", "pocket", "--device", "tpu"], "--device"),
        (["table3", "--model", "pocket", "--ahn", "gdn=/nowhere"], "/nowhere: no such folder"),
        (["table3"], "--model: needed by table3"),
        (["--estimate", "table9"], "--estimate: belongs to the list"),
        (["--no-estimate", "--device", "cpu"], "which --no-estimate leaves out"),
        (["table4", "--model", "pocket", "--limt", "1"], "did you mean '--limit'"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(
    run_eval: Any, words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run_eval("paper", *words)
    assert result.exit_code == 2 and said in result.stderr and not result.stdout
    assert not list(tmp_path.iterdir())


def test_a_folder_of_another_run_is_refused_before_anything_runs(
    run_eval: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "pocket" / "pocket-ruler-niah-128k" / "window-128"
    given = ("--task", "pocket_qa@1", "--variant", "window", "--limit", 1, "--no-report")
    assert run_eval("pocket", *given, "-o", folder).exit_code == 0
    flags = ("--model", "pocket", "--limit", 1, "--variant", "full,window-128", "-o", tmp_path)
    result = run_eval("paper", "table5", *flags)
    assert result.exit_code == 2 and "belongs to another run" in result.stderr
    assert list(answered(tmp_path)) == ["pocket/pocket-ruler-niah-128k/window-128"]


def test_answers_to_more_than_is_asked_are_refused_before_anything_runs(
    run_eval: Any, tmp_path: Path
) -> None:
    flags = ("--model", "pocket", "-o", tmp_path, "--no-report", "--limit", 1, "--variant")
    assert run_eval("paper", "table5", *flags, "window-128").exit_code == 0
    file = next(tmp_path.glob("*/*/*/window-128/*passkey*.jsonl"))
    another = json.loads(file.read_text()) | {"example_id": "of a higher limit"}
    with file.open("a") as records:
        records.write(json.dumps(another) + "\n")
    for dry in ((), ("--dry-run",)):
        result = run_eval("paper", "table5", *flags, "full,window-128", *dry)
        assert result.exit_code == 2 and "holds answers to 1 examples that" in result.stderr
    assert len(answered(tmp_path)) == 1, "full was not begun"


@pytest.mark.slow
def test_own_weights_and_rows_are_run_and_another_shape_is_told(
    run_eval: Any, tmp_path: Path
) -> None:
    """A benchmark of the paper end to end, with a tiny model for the large one."""
    tiny = byte_tokenizer(save_tiny_qwen2(tmp_path / "model", context=40_000))
    rows, memory = tmp_path / "rows", save_tiny_memory(tmp_path / "memory", tiny)
    for number, task in enumerate(
        ("dureader", "hotpotqa", "musique", "narrativeqa", "qmsum", "triviaqa")
    ):
        row = {
            "input": "What?", "context": f"Text {number}.", "answers": ["It"], "length": 2,
            "dataset": task, "language": "en", "all_classes": None, "_id": f"row{number}",
        }  # fmt: skip
        write_rows(rows / f"{task}.jsonl", [row])
    output = tmp_path / "runs"
    result = run_eval(
        "paper", "table3", "--model", "qwen2.5-7b", "--base", tiny, "--ahn", f"gdn={memory}",
        "--data", rows, "--variant", "window-8064,ahn-gdn-8064", "-o", output,
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert "is no qwen2.5-7b" in result.stderr and "hidden_size 32, not 3584" in result.stderr
    assert set(answered(output).values()) == {6} and len(answered(output)) == 2


_KILLED_IN_THE_SECOND_VARIANT = """
import os, signal, sys
from evaluation.cli import main
from evaluation.run.store import RunStore
append, written = RunStore.append, []
def append_and_die(self, record):
    append(self, record)
    written.append(record)
    if len(written) == 7:
        os.kill(os.getpid(), signal.SIGKILL)
RunStore.append = append_and_die
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_killed_run_is_continued_and_ends_as_if_it_had_not_been(
    run_eval: Any, tmp_path: Path
) -> None:
    flags = ("--model", "pocket", "--limit", 1, "--variant", "window-128,ahn-gdn-128")
    words = ("paper", "table5", *flags, "--no-report", "-o")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = start_process(*words, killed, code=_KILLED_IN_THE_SECOND_VARIANT)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert sorted(answered(killed).values()) == [2, 5]
    assert run_eval(*words, killed).exit_code == 0 == run_eval(*words, whole).exit_code
    for folder in sorted(whole.glob("*/*/*")):
        assert records_of(killed / folder.relative_to(whole)) == records_of(folder)
