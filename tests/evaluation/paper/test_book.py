"""`run_eval paper figure3`: log perplexity and memory over a book, and over pocket's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from common.errors import InputError
from common.settings import settings
from evaluation.paper.book import PaperBook, book_configuration
from evaluation.perplexity.run import plan_perplexity
from reports.perplexity import read_perplexity


def test_the_papers_setting(tmp_path: Path) -> None:
    asked = settings(PaperBook, {"model": "Qwen/Qwen2.5-3B-Instruct", "data": "book.txt"})
    found = book_configuration(asked)
    assert found.variants == [
        "full",
        "ahn:window=32640,sinks=128,weights=gdn,name=ahn-gdn-32640",
    ]
    assert found.model == "Qwen/Qwen2.5-3B-Instruct" and found.allow_overlong
    assert found.max_tokens is None and list(found.ahn) == ["gdn"]
    assert found.output == "runs/paper/qwen2.5-3b/book"
    own = book_configuration(asked.model_copy(update={"base": "here", "ahn": {"gdn": "w"}}))
    assert (own.model, own.ahn) == ("here", {"gdn": "w"})


def test_pocket_has_the_window_alone_beside_it_and_keeps_its_positions() -> None:
    found = book_configuration(settings(PaperBook, {"model": "pocket"}))
    kinds = [text.partition(":")[0] for text in found.variants]
    assert sorted(kinds) == ["ahn", "full", "window"] and found.data == "pocket"
    assert (found.dtype, found.device, found.allow_overlong) == ("float32", "cpu", False)
    plan = plan_perplexity(found)
    assert plan.text.tokens == 4000 <= (plan.planned.context or 0)
    windows = {model.describe().get("window") for model in plan.models.values()}
    assert windows == {None, 128}
    machine = settings(PaperBook, {"model": "pocket", "device": "auto", "dtype": "bfloat16"})
    assert book_configuration(machine).dtype == "bfloat16"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "--model: needed by figure3; one of qwen2.5-3b, pocket"),
        ({"model": "qwen2.5-7b"}, "figure3 has no 'qwen2.5-7b'"),
        ({"model": "qwen2.5-3b"}, "--data: needed: a file with the first book of PG19"),
        ({"model": "pocket", "ahn": {"dn": "x"}}, "--ahn: figure3 reads gdn"),
    ],
)
def test_what_is_missing_is_said(given: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said.replace(".", r"\.")):
        book_configuration(settings(PaperBook, given))


def test_it_runs_on_a_few_pocket_tokens_and_the_papers_page_has_it(
    run_eval: Any, tmp_path: Path
) -> None:
    runs = tmp_path / "paper"
    words = ["paper", "figure3", "--model", "pocket", "-o", runs, "--max-tokens", 600, "--no-peak"]
    planned = run_eval(*words, "--dry-run")
    assert planned.exit_code == 0 and not runs.exists() and "600 tokens" in planned.stdout
    result = run_eval(*words, "--json")
    assert result.exit_code == 0, result.stderr
    data = json.loads(result.stdout)
    losses = {name: of["log_perplexity"]["mean"] for name, of in data["variants"].items()}
    assert losses["full"] < losses["ahn-gdn-128"] + 0.05 < losses["window-128"]
    run = read_perplexity(runs / "pocket" / "book")
    assert run.info.status == "finished" and run.info.data["scored"] == "answers"
    page = tmp_path / "paper.html"
    assert run_eval("paper", "report", runs, "-o", page).exit_code == 0
    text = page.read_text(encoding="utf-8")
    assert "log perplexity by token index" in text and "ahn-gdn-128" in text


def test_the_list_says_how_it_is_run(run_eval: Any) -> None:
    listed = json.loads(run_eval("paper", "--no-estimate", "--json").stdout)
    assert "run_eval paper figure3 --model" in listed["figure3"]["here"]
