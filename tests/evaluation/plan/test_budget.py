"""Equal bytes: where documents end, what a budget is, and what is kept under it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Gemma3TextConfig

from ahn.checkpoints.tokenizer import load_tokenizer
from ahn.config import LayerLayout
from ahn.cost import layout_bytes
from common.errors import InputError
from evaluation.backends.base import Question
from evaluation.plan.configuration import RunConfiguration
from evaluation.plan.plan import make_plan
from evaluation.plan.planned import Plan
from evaluation.plan.prompts import prepare
from evaluation.run.runner import groups_in_order
from tasks.registry import benchmark_names, find_task, task_names
from tasks.schema import Example
from tests.evaluation.conftest import byte_tokenizer, records_of

TOKEN = 2 * 8 * 2 * 4 * 2  # bytes of keys and values of a token of the tiny model


@pytest.fixture
def asked(tiny: Path, memory: Path, data: Path) -> Any:
    def make(*variants: str, **settings: Any) -> Plan:
        given: dict[str, Any] = {
            "model": str(tiny), "ahn": {"": str(memory)}, "data": str(data), "tasks": ["hotpotqa"],
            "max_length": 1500, "dtype": "float32", "device": "cpu", "variants": list(variants),
        }  # fmt: skip
        return make_plan(RunConfiguration(**given | settings))

    return make


# -- where documents end ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_tokenizer(byte_tokenizer(tmp_path_factory.mktemp("bytes")))


ROW = {
    "context": "  The first line.\nThe last line of it is here. ", "input": "What is 3 (a)?",
    "answers": ["x"], "all_classes": ["x"], "length": 9, "answer": ["x"], "id": 0,
    "options": ["x", "b", "c", "d"], "answer_keywords": None, "confusing_facts": None,
}  # fmt: skip
QUESTIONS = {"code_run": "Call func_1(2) now", "math_find": "The largest number of the list"}


@pytest.mark.parametrize("benchmark", ["longbench", "lveval", "infinitebench", "pocket"])
def test_the_end_of_the_document_is_found_in_every_prompt(benchmark: str, tokenizer: Any) -> None:
    assert benchmark in benchmark_names()
    for name in task_names(benchmark):
        task = find_task(benchmark, name)
        row = ROW | {"input": QUESTIONS.get(name, ROW["input"])}
        example = Example("1", row, ["x"], "d", "row 1")
        for protocol in task.protocols:
            for limit in (10_000, 1_000):
                prompt = prepare(task, example, protocol, tokenizer, limit, None, True)
                end = prompt.document_tokens
                assert end is not None and 0 < end < prompt.tokens
                before, after = (tokenizer.decode(x) for x in np.split(prompt.ids, [end]))
                rest = task.after_document(example, protocol)
                assert rest is not None and after.lstrip().startswith(rest.strip())
                if not prompt.tokens_cut:
                    assert before.rstrip().endswith("line of it is here.")


def test_a_question_that_was_cut_is_told(tokenizer: Any) -> None:
    task = find_task("longbench", "hotpotqa")
    row = ROW | {"input": "long " * 200}
    with pytest.raises(InputError, match="row 1: the end of the document cannot be found"):
        prepare(task, Example("1", row, ["x"], "d", "row 1"), "official", tokenizer, 90, None, True)


def test_without_need_the_end_is_not_looked_for(asked: Any) -> None:
    plan = asked("full", "window")
    assert not plan.at_boundary
    assert {p.document_tokens for p in plan.tasks[0].prompts} == {None}
    assert {"documents", "budget"}.isdisjoint(identity(plan))


def identity(plan: Plan) -> dict[str, Any]:
    from evaluation.plan.identity import parts_without_weights

    return parts_without_weights(plan)


def test_documents_are_read_to_their_end_under_a_budget(asked: Any) -> None:
    plan = asked("full", "window", budget="ahn")
    assert plan.at_boundary
    groups = groups_in_order(plan)
    assert sorted(len(g.indices) for g in groups) == [2, 3, 3]
    for group in groups:
        assert {group.shared_tokens} == {
            group.planned.prompts[i].document_tokens for i in group.indices
        }
    alone = asked("full", "window", budget="ahn", reuse_prefixes=False)
    assert [len(g.indices) for g in groups_in_order(alone)] == [1] * 8


def test_a_question_before_its_document_is_told(asked: Any, tmp_path: Path) -> None:
    row = ROW | {"input": "Please call func_1(2).", "answer": ["2"]}
    (tmp_path / "code_run.jsonl").write_text(json.dumps(row))
    plan = asked(
        "full", "window", benchmark="infinitebench", tasks=["code_run"], data=str(tmp_path),
        budget="ahn", max_length=2000,
    )  # fmt: skip
    assert any("code_run: part of the question stands before" in w for w in plan.warnings)


# -- what a budget is ------------------------------------------------------------------------


def test_a_budget_is_what_another_variant_holds(asked: Any) -> None:
    plan = asked("full", "window", budget="ahn")
    ahn = asked("ahn").models["ahn"]
    for tokens in (10, 52, 53, 300, 5000):
        assert plan.budget_of(tokens) == ahn.document_bytes(tokens)
    assert plan.budget_of(0) is None and plan.budget_of(None) is None
    assert identity(plan)["budget"]["kind"] == "ahn"
    assert identity(plan)["budget"]["as"] == dict(ahn.identity())


@pytest.mark.parametrize(
    ("text", "tokens", "expected"),
    [
        ("0.26", 1000, int(0.26 * 1000 * TOKEN)),
        ("26%", 1000, int(0.26 * 1000 * TOKEN)),
        (".5", 100, 50 * TOKEN),
        ("100000", 1000, 100_000),
        ("0.1MiB", 5, 104_857),
        ("20 kB", 5, 20_000),
    ],
)
def test_a_budget_is_a_share_or_bytes(asked: Any, text: str, tokens: int, expected: int) -> None:
    plan = asked("full", "window", budget=text)
    assert plan.budget_of(tokens) == expected


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ("anh", "--budget: 'anh' is no variant, share .* variants whose size is known: full"),
        ("0.0", "above 0"),
        ("150%", "at most 1"),
        ("0", "no number of bytes"),
        ("window", "--budget: window is itself sized by the budget"),
        ("10kB", "holds .* bytes with its 4 sinks and a window of one token, and the budget is"),
    ],
)
def test_a_budget_that_cannot_be_is_refused(asked: Any, budget: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        if budget == "10kB":
            budget = str(2 * TOKEN)
        asked("full", "window", budget=budget, sinks=4)


def test_several_variants_of_different_size_are_no_budget(
    asked: Any, tiny: Path, memory: Path, tmp_path: Path
) -> None:
    from ahn.checkpoints.load import build_model, describe_model, save_memory
    from ahn.config import AHNConfig

    config, settings = describe_model(tiny), AHNConfig(window=48, sinks=4, cell="DeltaNet")
    save_memory(build_model(tiny, "qwen2", config, settings, torch.float32), tmp_path, config)
    both = {"a": str(memory), "b": str(tmp_path)}
    with pytest.raises(InputError, match="ahn is several variants.*name one of them: ahn-a, ahn-b"):
        asked("window", ahn=both, budget="ahn", window=48, sinks=4)
    assert asked("window", ahn=both, budget="ahn-b", window=48, sinks=4).budget_of(300)


def test_a_variant_that_is_named_for_its_size_alone_has_its_own_size(asked: Any) -> None:
    plan = asked("full", "window:name=sized", budget="quantized:bits=8,backend=fp8")
    (fp8,) = asked("quantized:bits=8,backend=fp8").models.values()
    assert plan.budget_of(300) == fp8.document_bytes(300)
    plan = asked("full", "window:name=sized", budget="window", window=60, sinks=4)
    assert plan.budget_of(300) == 64 * TOKEN


def test_models_of_other_families_are_told_what_can_be_asked(asked: Any, tmp_path: Path) -> None:
    config = Gemma3TextConfig(vocab_size=300, hidden_size=32, num_hidden_layers=1)
    config.save_pretrained(tmp_path)
    byte_tokenizer(tmp_path)
    with pytest.raises(InputError, match=r"'gemma3_text' is not supported.*--variant hf"):
        asked("full", model=str(tmp_path), ahn={})
    with pytest.raises(InputError, match=r"--budget: 0.26: .*give a number of bytes"):
        asked("hf", model=str(tmp_path), ahn={}, budget="0.26")


def test_a_budget_that_nobody_uses_is_told(asked: Any) -> None:
    plan = asked("full", "window:window=20", budget="ahn")
    assert "--budget: none of the variants has a size that it could choose" in plan.warnings


# -- what is kept under it -------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [1, 5, 30, 100, 256, 257, 600, 5000])
@pytest.mark.parametrize("budget", [5 * TOKEN, 30 * TOKEN + 1, 1000 * TOKEN])
def test_the_window_is_the_largest_that_fits(asked: Any, tokens: int, budget: int) -> None:
    window = asked("window", budget="1MB", sinks=4).models["window"]
    (chosen,) = {layout.window for layout in window.layouts(tokens, budget)}

    def bytes_of(number: int) -> int:
        layouts = [LayerLayout(number, 4)] * window.checkpoint.shape.num_hidden_layers
        return layout_bytes(window.checkpoint.shape, layouts, tokens, dtype_bytes=4).total

    held, wider = bytes_of(chosen), bytes_of(chosen + 1)
    assert held <= budget
    assert wider > budget or chosen + 4 >= tokens, "nothing more could be kept"
    assert window.kept(tokens, budget) == min(tokens, 4 + chosen)


@pytest.mark.parametrize("variant", ["window", "compressive"])
def test_of_a_short_document_nothing_is_lost_while_the_budget_has_room(
    asked: Any, variant: str
) -> None:
    sized = asked(variant, budget="1MB", sinks=4).models[variant]
    (layout,) = set(sized.layouts(10, 50 * TOKEN))
    waiting = layout.rate - 1
    assert layout.window + layout.sinks + waiting == 50, "room for 40 tokens of the question"
    assert sized.kept(10, 50 * TOKEN) == 10


@pytest.mark.parametrize("variant", ["window", "compressive"])
def test_a_prompt_without_a_document_is_read_whole(asked: Any, variant: str) -> None:
    plan = asked("full", variant, budget="ahn", sinks=4)
    ids = plan.tasks[0].prompts[0].ids
    question = Question(ids, plan.tasks[0].settings)
    answers = {}
    for name, model in plan.models.items():
        reader = model.open(plan.tokenizer, 0)
        args = (ids[:0], None) if model.sizable else (ids[:0],)
        answers[name] = reader.read(*args).ask(question, last=True)
    assert answers[variant].token_ids == answers["full"].token_ids
    sized = plan.models[variant].cost(len(ids), answers[variant].generated_tokens, 0, None)
    assert sized.cache_bytes == answers[variant].cache_bytes
    assert sized.flops == plan.models["full"].cost(len(ids), len(answers["full"].token_ids)).flops


@pytest.mark.slow
def test_records_say_what_was_kept(
    run_eval: Any, tiny: Path, memory: Path, data: Path, tmp_path: Path
) -> None:
    command = [
        "longbench", "--model", tiny, "--ahn", memory, "--data", data, "--tasks", "hotpotqa",
        "--variant", "full", "--variant", "ahn", "--variant", "window:name=equal",
        "--variant", "window:window=20,sinks=2", "--variant", "hf", "--budget", "ahn",
        "--max-length", 1500, "--dtype", "float32", "--device", "cpu", "-o", tmp_path / "run",
    ]  # fmt: skip
    assert (result := run_eval(*command)).exit_code == 0, result.stderr
    found: dict[str, list[dict[str, Any]]] = {}
    for record in records_of(tmp_path / "run"):
        assert record["error"] is None and record["schema_version"] == 4
        assert 0 < record["document_tokens"] < record["prompt_tokens"]
        assert record["cache_bytes_stored"] >= record["cache_bytes_measured"]
        found.setdefault(record["variant"], []).append(record)
    budget = found["ahn"][0]["budget_bytes"]
    assert {r["budget_bytes"] for records in found.values() for r in records} == {budget}
    for record in found["ahn"]:
        assert record["document_bytes"] == budget
        assert record["kept_tokens"] == 52
    for record in found["equal"]:
        assert budget - 2 * TOKEN < record["document_bytes"] <= budget
        assert record["cache_bytes_measured"] == record["cache_bytes_analytic"]
        assert record["kept_tokens"] * TOKEN == record["document_bytes"]
    for record in found["window-window20-sinks2"]:
        assert (record["kept_tokens"], record["document_bytes"]) == (22, 22 * TOKEN)
    for record in found["hf"]:
        assert record["document_bytes"] == record["document_tokens"] * TOKEN
        assert record["kept_tokens"] == record["document_tokens"]
    for records in found.values():
        peaks = [r["peak_bytes"] for r in records if "peak_bytes" in r]
        assert 1 <= len(peaks) < len(records), "on a CPU some are measured"
        assert all(peak > r["document_bytes"] for peak, r in zip(peaks, records, strict=False))
    assert [r["prediction"] for r in found["hf"]] == [r["prediction"] for r in found["full"]]
    again = run_eval(*command[:-4], "--budget", "0.5", "-o", tmp_path / "run")
    assert again.exit_code == 2 and "budget" in again.stderr
    assert run_eval("check", tmp_path / "run").exit_code == 0
