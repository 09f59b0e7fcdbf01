"""LV-Eval's and InfiniteBench's prompts with the real tokenizer, token for token.

Real text (Chinese and English rows) stands in both benchmarks' row schemas. What is expected is
coded here from the authors' scripts with the `tokenizers` library alone, and from the published
templates: LVEval utils.py:111-119, InfiniteBench eval_yarn_mistral.py:26-45 and
eval_utils.py:255-260, 397-403, AHN eval/longbench/pred.py:141-147.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evaluation.plan.prompts import prepare
from tasks.registry import find_task
from tasks.sources import as_example

pytestmark = pytest.mark.shared

QWEN_SYSTEM = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
LIMITS = (701, 2000, 3333, 100_000)  # odd, even, odd, nothing is cut


@pytest.fixture(scope="module")
def tokenizers(shared: Path):
    """The real tokenizer twice: bare, and as transformers loads it."""
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    folder = shared / "data" / "qwen2.5-tokenizer"
    return Tokenizer.from_file(str(folder / "tokenizer.json")), AutoTokenizer.from_pretrained(
        folder
    )


def texts(shared: Path) -> list[dict]:
    """Real rows, three of each language, and two of characters that are several tokens each."""
    found = [{"context": start + "𠮷野🧬" * 900, "input": "𠮷?"} for start in ("", "a ")]
    # Special tokens as text, whole or torn, and letters that the tokenizer puts together.
    marks = ("<|im_end|>", "<|endoftext|>\n", "<|im_start|>user\n", "<|im_end", "e\u0301")
    found += [{"context": f"A {mark} b {mark}. " * 60, "input": f"{mark}?"} for mark in marks]
    for name in ("multifieldqa_zh", "multi_news"):
        lines = (shared / "data" / "longbench" / f"{name}.jsonl").read_bytes().split(b"\n")[:3]
        found += [json.loads(line) for line in lines]
    return found


def published(shared: Path, benchmark: str, task: str) -> dict:
    content = json.loads((shared / "protocol" / f"{benchmark}.json").read_text("utf-8"))
    return next(t for t in content["tasks"] if t["task"] == task)


def chat(text: str, system: str = QWEN_SYSTEM) -> str:
    return (
        f"<|im_start|>system\n{system}<|im_end|>\n"
        f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
    )


def two_halves(raw, text: str, n: int) -> tuple[str, int]:
    """LV-Eval: halves decoded apart."""
    ids = raw.encode(text).ids
    if len(ids) <= n:
        return text, 0
    half = int(n / 2)
    return raw.decode(ids[:half]) + raw.decode(ids[-half:]), len(ids) - 2 * half


def joined_halves(raw, text: str, n: int) -> tuple[str, int]:
    """InfiniteBench, open models: ids[:n//2] + ids[-(n//2):]; decoded, whether cut or not."""
    ids = raw.encode(text).ids
    if len(ids) <= n:
        return raw.decode(ids), 0
    kept = ids[: n // 2] + ids[-(n // 2) :]
    return raw.decode(kept), len(ids) - len(kept)


def joined_with_the_odd_one(raw, text: str, n: int) -> tuple[str, int]:
    """InfiniteBench, GPT-4: ids[0:n//2] + ids[-n//2:], where -n//2 rounds away from 0."""
    ids = raw.encode(text).ids
    if len(ids) <= n:
        return text, 0
    kept = ids[0 : n // 2] + ids[-n // 2 :]
    return raw.decode(kept), len(ids) - len(kept)


def last_tokens(new_tokens: int):
    """AHN, InfiniteBench: the last tokens, room for the answer kept free once it is cut."""

    def cut(raw, text: str, n: int) -> tuple[str, int]:
        ids = raw.encode(text).ids
        if len(ids) <= n:
            return text, 0
        kept = ids[-(n - new_tokens) :]
        return raw.decode(kept), len(ids) - len(kept)

    return cut


def infinitebench_row(row: dict) -> dict:
    return {"id": 1, "context": row["context"], "input": row["input"], "answer": ["x"]}


def lveval_row(row: dict) -> dict:
    return {
        "input": row["input"] or "Summary?", "context": row["context"], "answers": ["x"],
        "length": 9, "dataset": "cmrc_mixup_16k", "language": "zh", "answer_keywords": "x",
        "confusing_facts": "",
    }  # fmt: skip


CASES: dict[str, tuple[str, str, str, Any, Any, str]] = {
    "lveval official": ("lveval", "cmrc_mixup_16k", "official", two_halves, chat, "middle"),
    "lveval ahn": ("lveval", "cmrc_mixup_16k", "ahn", two_halves, chat, "middle"),
    "open models": (
        "infinitebench", "longbook_qa_chn", "official", joined_halves, str, "middle_joined",
    ),
    "gpt-4": (
        "infinitebench", "longbook_qa_chn", "official-gpt4", joined_with_the_odd_one,
        lambda text: chat(text, "You are a helpful assistant"), "middle_joined",
    ),
    "infinitebench ahn": (
        "infinitebench", "longbook_qa_chn", "ahn", last_tokens(256), chat, "left",
    ),
}  # fmt: skip


def template_of(shared: Path, benchmark: str, task: str, protocol: str) -> str:
    prompts = published(shared, benchmark, task.removesuffix("_16k"))["prompt"]
    if protocol == "ahn" or benchmark == "lveval":
        return prompts[protocol]
    family = protocol.removeprefix("official").removeprefix("-") or "yarn-mistral"
    return prompts["official"][family]["template"]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_prompts_are_the_authors_token_for_token(shared, tokenizers, case):
    benchmark, name, protocol, cut, wrap, side = CASES[case]
    raw, tokenizer = tokenizers
    task = find_task(benchmark, name)
    template = template_of(shared, benchmark, name, protocol)
    form = lveval_row if benchmark == "lveval" else infinitebench_row
    sides = set()
    for row in map(form, texts(shared)):
        example = as_example(task, row, "1", "test")
        whole = template
        for field in ("context", "input", "question"):
            value = row["context"] if field == "context" else row["input"]
            whole = whole.replace("{" + field + "}", value)
        for limit in LIMITS:
            prompt = prepare(task, example, protocol, tokenizer, limit, "qwen2")
            text, removed = cut(raw, whole, limit)
            assert prompt.ids.tolist() == raw.encode(wrap(text)).ids
            assert prompt.tokens_cut == removed
            assert prompt.chat_template is (wrap is not str)
            sides.add(prompt.truncation)
    assert sides == {"none", side}


def test_the_three_ways_of_cutting_the_middle_differ(shared, tokenizers):
    """A character of several tokens may be cut in two, and only one decode of both
    halves can mend it."""
    raw, _ = tokenizers
    seen = set()
    for text in ("𠮷野🧬" * 900, "a " + "𠮷野🧬" * 900, texts(shared)[-1]["context"]):
        for n in range(301, 341):
            apart, _ = two_halves(raw, text, n)
            joined, _ = joined_halves(raw, text, n)
            odd, _ = joined_with_the_odd_one(raw, text, n)
            seen |= {("apart", apart != joined), ("odd", odd != joined)}
    assert seen == {(way, differs) for way in ("apart", "odd") for differs in (True, False)}
