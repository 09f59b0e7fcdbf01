"""Builders of records and run folders: small, complete, and changed where a test says so."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from reports.records import ExampleRecord, RunInfo

MakeRecord = Callable[..., ExampleRecord]
MakeRun = Callable[..., Path]


def build_record(**changes: Any) -> ExampleRecord:
    """A complete record; `changes` replace its fields."""
    fields: dict[str, Any] = {
        "benchmark": "longbench",
        "task": "qa",
        "protocol": "ahn",
        "variant": "full",
        "example_id": "row-1",
        "document_id": "doc-1",
        "prediction": "amber lamp",
        "answers": ["amber lamp"],
        "score": 1.0,
        "metric": "exact_match",
        "prompt_tokens": 512,
        "prompt_tokens_untruncated": 512,
        "generated_tokens": 3,
        "prefill_seconds": 0.02,
        "decode_seconds": 0.01,
        "flops": 2_000_000_000,
        "cache_bytes_analytic": 1_048_576,
        "cache_bytes_measured": 1_048_576,
        "prompt_tail": "Question: which lamp?\nAnswer:",
    }
    return ExampleRecord(**(fields | changes))


def build_info(variants: Sequence[str], planned: Mapping[str, int], **changes: Any) -> RunInfo:
    """A complete ``run.json``; `planned` maps tasks to the planned number of examples."""
    fields: dict[str, Any] = {
        "identity": hashlib.sha256(b"run").hexdigest(),
        "identity_parts": {"seed": 0},
        "created": "2025-11-20T22:00:00+00:00",
        "updated": "2025-11-20T22:03:10+00:00",
        "command": ["run_eval", "longbench", "--limit", "3"],
        "configuration": {"model": "pocket"},
        "generation": {v: {"do_sample": False, "repetition_penalty": 1.05} for v in variants},
        "git": {"revision": "0123456789abcdef", "dirty": True},
        "packages": {"torch": "2.13.0"},
        "hardware": {"cores": 2},
        "models": {v: {"path": "pocket", "window": None, "sinks": 0} for v in variants},
        "tasks": {
            t: {"protocol": "ahn", "template_sha256": "ab" * 32, "examples": n}
            for t, n in planned.items()
        },
        "data_files": [{"path": "qa.jsonl", "sha256": "cd" * 32, "revision": None}],
        "status": "finished",
    }
    return RunInfo(**(fields | changes))


def write_run(
    folder: Path,
    scores: Mapping[str, Mapping[str, Sequence[float | None]]],
    record: Mapping[str, Any] | Callable[[str, str, int], Mapping[str, Any]] | None = None,
    **info: Any,
) -> Path:
    """Write a run of `scores[variant][task]`; a score of None is an example that failed.

    `record` changes fields of every record: a mapping, or a function of variant, task, number.
    """
    planned = {t: len(s) for tasks in scores.values() for t, s in tasks.items()}
    folder.mkdir(parents=True, exist_ok=True)
    description = build_info(list(scores), planned, **info)
    (folder / "run.json").write_text(description.model_dump_json(), encoding="utf-8")
    for variant, tasks in scores.items():
        for task, values in tasks.items():
            lines = []
            for i, score in enumerate(values):
                changes: dict[str, Any] = {
                    "variant": variant,
                    "task": task,
                    "score": score,
                    "example_id": f"{task}-{i}",
                    "document_id": f"{task}-doc-{i}",
                    "error": "out of memory" if score is None else None,
                }
                own = record(variant, task, i) if callable(record) else record
                lines.append(build_record(**(changes | dict(own or {}))).model_dump_json())
            file = folder / variant / f"{task}.jsonl"
            file.parent.mkdir(exist_ok=True)
            file.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return folder


@pytest.fixture
def make_record() -> MakeRecord:
    """`build_record`."""
    return build_record


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """`write_run` into a folder of the given name below the test's own."""

    def make(name: str = "run", *arguments: Any, **options: Any) -> Path:
        return write_run(tmp_path / name, *arguments, **options)

    return make


@pytest.fixture
def pocket_run(make_run: MakeRun) -> Path:
    """Four variants, two tasks of ten examples: full 1.0, window 0.0, ahn 0.9/0.5, no-write 0.0."""

    def cost(variant: str, task: str, number: int) -> dict[str, Any]:
        size = {"full": 1_048_576, "window": 262_144}.get(variant, 524_288)
        return {
            "cache_bytes_analytic": size,
            "cache_bytes_measured": size,
            "attributes": {"facts": int(task.split("@")[1])},
        }

    def of(one: int, four: int) -> dict[str, list[float]]:
        return {
            "pocket_qa@1": [1.0] * one + [0.0] * (10 - one),
            "pocket_qa@4": [1.0] * four + [0.0] * (10 - four),
        }

    scores = {"full": of(10, 10), "window": of(0, 0), "ahn": of(9, 5), "no-write": of(0, 0)}
    return make_run("demo", scores, record=cost)
