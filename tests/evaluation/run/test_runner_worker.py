"""What the runner owes to any back-end, whatever it is: here one that only counts."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from common.errors import InputError
from evaluation.backends import registry
from evaluation.backends.base import Answer, Backend, Cost, Document, Question, Reader
from evaluation.plan.configuration import RunConfiguration
from evaluation.plan.plan import make_plan
from evaluation.plan.planned import Plan
from evaluation.run.runner import Worker, groups_in_order


class Counting(Backend):
    """Answers with how often it was asked; fails where it is told to."""

    def __init__(self, request: Any, settings: Any) -> None:
        own = request.take(context=int, known=int, fails=int)
        self.name = request.name
        self.context = own.get("context")
        self.known = own.get("known")
        self.fails = own.get("fails")
        self.calls: Counter[str] = Counter()

    def identity(self) -> dict[str, Any]:
        return {"kind": "counting"}

    def cost(self, prompt_tokens: int, generated_tokens: int, *more: int | None) -> Cost:
        return Cost(flops=prompt_tokens + generated_tokens)

    def open(self, tokenizer: Any, seed: int) -> Reader:
        self.calls["opened"] += 1
        return CountingReader(self)


class CountingReader(Reader):
    def __init__(self, backend: Counting) -> None:
        self.backend = backend

    def read(self, ids: Any, budget: int | None = None) -> Document:
        self.backend.calls["read"] += 1
        return CountingDocument(self.backend)

    def close(self) -> None:
        self.backend.calls["closed"] += 1


class CountingDocument(Document):
    def __init__(self, backend: Counting) -> None:
        self.backend = backend

    def ask(self, question: Question, last: bool) -> Answer:
        self.backend.calls["asked"] += 1
        self.backend.calls["last"] += last
        if self.backend.calls["asked"] == self.backend.fails:
            raise ConnectionError("the line is dead\nand so on")
        return Answer("7", generated_tokens=self.backend.known)


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_KINDS", {**registry._KINDS, "counting": Counting})


def planned(tiny: Path, data: Path, *variants: str, **changes: Any) -> Plan:
    given: dict[str, Any] = {
        "tokenizer": str(tiny), "data": str(data), "tasks": ["hotpotqa"], "max_length": 600,
        "variants": list(variants), **changes,
    }  # fmt: skip
    return make_plan(RunConfiguration(**given))


def answered(plan: Plan, variant: str) -> list[Any]:
    worker = Worker(plan, variant)
    worker.open()
    return [r for group in groups_in_order(plan) for r in worker.answer(group, group.indices)]


def calls(plan: Plan, variant: str) -> Counter[str]:
    model = plan.models[variant]
    assert isinstance(model, Counting)
    return model.calls


def test_a_document_is_read_once_and_told_its_last_question(tiny: Path, data: Path) -> None:
    plan = planned(tiny, data, "counting")
    records = answered(plan, "counting")
    assert len(records) == 8 and not any(r.error for r in records)
    assert calls(plan, "counting") == {"opened": 1, "read": 3, "asked": 8, "last": 3}


def test_after_an_error_the_document_is_read_anew(tiny: Path, data: Path) -> None:
    plan = planned(tiny, data, "counting:fails=1,name=x")
    records = answered(plan, "x")
    assert [r.error for r in records if r.error] == ["ConnectionError: the line is dead"]
    assert calls(plan, "x")["read"] == 4 and calls(plan, "x")["asked"] == 8


def test_costs_of_an_answer_of_unknown_length_are_unknown(tiny: Path, data: Path) -> None:
    plan = planned(tiny, data, "counting", "counting:known=3,name=known")
    assert {r.flops for r in answered(plan, "counting")} == {None}
    known = answered(plan, "known")
    assert [r.flops for r in known] == [r.prompt_tokens + 3 for r in known]
    line = json.loads(known[0].to_line())
    assert "reused_prefix_tokens" not in line and line["prefill_seconds"] is None


def test_the_smallest_context_bounds_the_prompts_of_all(tiny: Path, data: Path) -> None:
    variants = ["counting:context=900,name=a", "counting:context=1100,name=b", "counting"]
    plan = planned(tiny, data, *variants, max_length=None)
    assert plan.context == 900 and plan.tasks[0].max_length == 900 - 500
    assert planned(tiny, data, *variants, model=str(tiny)).context == 900
    with pytest.raises(InputError, match="more than the model's max_position_embeddings 900"):
        planned(tiny, data, *variants, max_length=1000)


def test_without_a_model_tokenizer_and_length_must_be_given(tiny: Path, data: Path) -> None:
    with pytest.raises(InputError) as caught:
        planned(tiny, data, "counting", tokenizer=None)
    assert caught.value.problems == (
        "--tokenizer: none given, and no --model whose tokenizer could be used",
    )
    with pytest.raises(InputError, match="--max-length: needed, since no variant says"):
        planned(tiny, data, "counting", max_length=None)
    with pytest.raises(InputError, match="--model: none given"):
        planned(tiny, data, "counting", "full")


@pytest.mark.parametrize("most", [20, 0])
def test_it_is_closed_whatever_happened(
    run_eval: Any, tiny: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    most: int,
) -> None:  # fmt: skip
    closed: list[CountingReader] = []
    monkeypatch.setattr(CountingReader, "close", lambda reader: closed.append(reader))
    result = run_eval(
        "longbench", "--tokenizer", tiny, "--data", data, "--tasks", "hotpotqa", "--max-length",
        600, "--variant", "counting:fails=1", "--max-errors", most, "-o", tmp_path / "run",
    )  # fmt: skip
    assert result.exit_code == 1, result.output
    assert ("stopped: " in result.stderr) == (most == 0)
    assert len(closed) == 1
