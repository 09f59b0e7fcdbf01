"""A real server, `transformers serve`, gives the answers that the same weights give here."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ahn
from tests.servers import running_server

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    for name in ("fastapi", "uvicorn", "openai"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"the server's packages are not installed ({name})")
    with running_server(["-m", "transformers.cli.transformers", "serve"]) as running:
        yield running


@pytest.fixture
def run(url: str, run_eval: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """`run_eval pocket` of the embedded model, beside the server that has its folder."""

    def start(*words: object) -> Any:
        file = tmp_path / "config.yaml"
        file.write_text("data: pocket\n")
        return run_eval(
            "pocket", "--config", file, "--model", ahn.POCKET_PATH, "--endpoint", url,
            "--lengths", 512, "--device", "cpu", "--dtype", "float32", "--no-report",
            "-o", tmp_path / "run", *words,
        )  # fmt: skip

    return start


def records(folder: Path, variant: str) -> dict[str, dict[str, Any]]:
    lines = [x for f in sorted(folder.glob(f"{variant}/*.jsonl")) for x in f.open("rb")]
    return {record["example_id"]: record for record in map(json.loads, lines)}


def test_its_answers_are_those_of_the_stock_model_here(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    result = run(
        "--variant", "hf", "--variant", "endpoint", "--variant", "endpoint:stream=false,name=whole",
        "--tasks", "pocket_qa@4,pocket_kv_retrieval@16", "--limit", 8,
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    here = records(tmp_path / "run", "hf")
    assert len(here) == 16 and sum(r["score"] for r in here.values()) > 12
    for variant in ("endpoint", "whole"):
        there = records(tmp_path / "run", variant)
        assert there.keys() == here.keys()
        for name, record in there.items():
            same = ("prediction", "score", "prompt_tokens", "generated_tokens", "finish_reason")
            for field in same:
                assert record[field] == here[name][field], (variant, name, field)
            assert "reused_prefix_tokens" not in record, "it does not tell"
            assert (record["decode_seconds"] is None) == (variant == "whole")
    said = json.loads((tmp_path / "run" / "run.json").read_text())["models"]["endpoint"]
    assert said["answered_as"] == f"{ahn.POCKET_PATH}@main" and said["tells_token_counts"]


def test_a_model_that_it_cannot_load_is_refused(run: Callable[..., Any], tmp_path: Path) -> None:
    variant = "endpoint:model=/nowhere,tries=2,name=endpoint"
    result = run("--variant", variant, "--tasks", "pocket_qa@4", "--limit", 1)
    assert result.exit_code == 2 and "the model '/nowhere' does not answer" in result.stderr
    assert not records(tmp_path / "run", "endpoint")


def test_ids_are_refused_by_it_and_text_is_advised(run: Callable[..., Any]) -> None:
    variant = "endpoint:prompt=ids,name=endpoint"
    result = run("--variant", variant, "--tasks", "pocket_qa@4", "--limit", 1)
    assert result.exit_code == 2 and "prompt must be a string" in result.stderr
    assert "endpoint:prompt=text sends text" in result.stderr
