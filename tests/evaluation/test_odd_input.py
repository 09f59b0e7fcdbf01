"""What no one means: names of 5,000 letters, pipes and devices, numbers beyond all use."""

from __future__ import annotations

import gzip
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.evaluation.conftest import question, write_rows

LONG = "x" * 5000
RUN = "longbench --tasks hotpotqa --dry-run"
SCORE = "score --benchmark longbench --task hotpotqa"


@pytest.fixture
def refused(
    run_eval: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """Runs a command in a folder of its own, and returns what it says when it refuses."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows").mkdir()
    write_rows(tmp_path / "rows" / "hotpotqa.jsonl", [question(0, 1)])
    (tmp_path / "pred.jsonl").write_text('{"pred": "a", "answers": ["a"]}\n')
    os.mkfifo(tmp_path / "pipe")
    before = sorted(tmp_path.rglob("*"))

    def run(*arguments: str) -> str:
        began = time.monotonic()
        result = run_eval(*arguments)
        assert result.exit_code == 2, result.output
        lines = result.stderr.splitlines()
        assert lines and all(line.startswith("error: ") for line in lines), result.stderr
        assert max(map(len, lines)) < 1000
        assert time.monotonic() - began < 60
        assert sorted(tmp_path.rglob("*")) == before and (tmp_path / "pipe").is_fifo()
        return "\n".join(lines)

    return run


@pytest.mark.parametrize(
    "arguments",
    [
        f"{RUN} --data rows --model @",
        f"{RUN} --data rows --model pocket --tokenizer @",
        f"{RUN} --data rows --model pocket --ahn @",
        f"{RUN} --model pocket --data @",
        f"{RUN} --data rows --model pocket --config @",
        "pocket --tasks pocket_qa@1 --limit 1 --data @",
        "report @ -o out.html",
        f"{SCORE} @",
        f"{SCORE} pred.jsonl --data @",
        "export @ --format longbench",
        "cost --model @",
        "tasks --data @",
        "tasks @",
        "lm-eval --model ahn --tasks ahnbench_pocket_qa_1 --include_path @",
    ],
)
@pytest.mark.parametrize("kind", ["long", "pipe", "device"])
def test_odd_paths_are_refused(
    refused: Callable[..., str], tmp_path: Path, arguments: str, kind: str
) -> None:
    path = {"long": LONG, "pipe": str(tmp_path / "pipe"), "device": "/dev/zero"}[kind]
    told = refused(*(path if word == "@" else word for word in arguments.split()))
    assert (LONG[:90] if kind == "long" else path) in told


@pytest.mark.parametrize(
    "arguments",
    [f"{SCORE} pred.jsonl --per-example @", "pocket --tasks pocket_qa@1 --limit 1 --output @"],
)
@pytest.mark.parametrize("kind", ["long", "pipe"])  # no device: should this fail, it would be lost
def test_odd_places_are_refused(
    refused: Callable[..., str], tmp_path: Path, arguments: str, kind: str
) -> None:
    path = {"long": LONG, "pipe": str(tmp_path / "pipe")}[kind]
    told = refused(*(path if word == "@" else word for word in arguments.split()))
    assert (LONG[:90] if kind == "long" else path) in told


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--limit", "1000000000"], "--limit: must be at most 100,000"),
        (["--limit", "1" + "0" * 30], "--limit: must be at most 100,000"),
        (["--limit", "-1"], "--limit: must be more than 0"),
        (["--window", "1" + "0" * 30], "--window: must be at most 1,000,000,000,"),
        (["--sinks", "1" + "0" * 30], "--sinks: must be at most 1,000,000,000,"),
        (["--max-length", "1" + "0" * 30], "--max-length: must be at most 1,000,000,000,"),
        (["--seed", "1" + "0" * 30], "--seed: must be less than 4,294,967,296"),
        (["--threads", "1000000"], "--threads: must be at most 1,024"),
        (["--yarn-factor", "nan"], "--yarn-factor: must be a finite number"),
        (["--yarn-factor", "1e300"], "--yarn-factor: must be at most 1,000"),
        (["--yarn-factor", "inf"], "--yarn-factor: must be a finite number"),
        (["--lengths", "9" * 400], "should be a number of tokens"),
        (["--device", "cuda:" + "9" * 30], "--device"),
        (["--model", ""], "--model: string should have at least 1 character"),
        (["--output", ""], "--output: string should have at least 1 character"),
        (["--data", ""], "--data: string should have at least 1 character"),
    ],
)
def test_numbers_out_of_range_and_empty_names_are_refused(
    refused: Callable[..., str], flags: list[str], told: str
) -> None:
    assert told in refused("pocket", "--tasks", "pocket_qa@1", "--dry-run", *flags)


@pytest.mark.parametrize("packed", [False, True])
def test_a_row_that_a_flag_cannot_mend_is_told_with_its_line(
    refused: Callable[..., str], tmp_path: Path, packed: bool
) -> None:
    rows = [
        json.dumps(question(0, 1) | {"length": True}),
        json.dumps(question(1, 1))[:-1] + ', "_id": "again"}',
        json.dumps(question(2, 1) | {"length": float("inf")}),
    ]
    content = "\n".join(rows).encode()
    (tmp_path / "rows" / "hotpotqa.jsonl").write_bytes(
        gzip.compress(content) if packed else content
    )
    told = refused(*RUN.split(), "--model", "pocket", "--data", "rows").splitlines()
    assert [line.split(": ")[1] for line in told] == [f"rows/hotpotqa.jsonl:{n}" for n in (1, 2, 3)]
    assert "'length': input should be a valid integer" in told[0]
    assert "key '_id' is given twice" in told[1] and "Infinity is no number" in told[2]
