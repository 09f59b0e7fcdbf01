"""What a model will be is decided once: every way to ask for one gives the same answer."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ahn
from ahn.cli import main
from common.errors import InputError

Ask = Callable[..., None]
"""Asks for a model by `load_model`'s names; raises `InputError`, or returns."""


def by_name(**asked: Any) -> dict[str, Any]:
    """The arguments of a model: the pocket one with a memory, unless others are asked for."""
    return {
        "model": "pocket", "ahn": "pocket", "variant": "ahn", "window": 64, "sinks": 4,
        "device": "cpu", **asked,
    }  # fmt: skip


def as_flags(asked: dict[str, Any]) -> list[str]:
    return [word for key, value in asked.items() for word in (f"--{key}", str(value))]


def load_model(asked: dict[str, Any]) -> None:
    ahn.load_model(asked["model"], **{k: v for k, v in asked.items() if k != "model"})


def resolve_checkpoint(asked: dict[str, Any]) -> None:
    ahn.resolve_checkpoint(asked["model"], **{k: v for k, v in asked.items() if k != "model"})


def generate(asked: dict[str, Any]) -> None:
    _command(["ahn", "generate", "--prompt", "x", "--max-new-tokens", "1", *as_flags(asked)])


def merge(asked: dict[str, Any]) -> None:
    names = {"model": "base", "ahn": "ahn", "window": "window", "sinks": "sinks"}
    flags = {new: asked[old] for old, new in names.items()}
    _command(["ahn", "merge", "-o", str(Path.cwd() / "merged"), *as_flags(flags)])


def _command(words: list[str]) -> None:
    before, sys.argv = sys.argv, words
    try:
        main()
    except SystemExit as ended:
        if ended.code:
            raise InputError(*_said().splitlines()) from None
    finally:
        sys.argv = before


def run_eval(asked: dict[str, Any]) -> None:
    from click.testing import CliRunner

    from evaluation.cli import app

    words = ["longbench", "--data", "pocket", "--tasks", "pocket_qa@1", "--limit", "1", "--dry-run"]
    result = CliRunner().invoke(app, [*words, *as_flags(asked)], catch_exceptions=False)
    if result.exit_code:
        raise InputError(*result.stderr.splitlines())


def lm_eval(asked: dict[str, Any]) -> None:
    pytest.importorskip("lm_eval")
    from evaluation.lm_eval.plugin import AHNLM

    AHNLM(pretrained=asked["model"], **{k: v for k, v in asked.items() if k != "model"})


_said: Callable[[], str] = lambda: ""  # noqa: E731  set by the fixture
WAYS = (resolve_checkpoint, load_model, run_eval, lm_eval, generate, merge)


@pytest.fixture(autouse=True)
def _alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A working directory of its own, no network, no mps, and what commands write to stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr(sys.modules[__name__], "_said", lambda: capsys.readouterr().err)


def plain(problem: str) -> str:
    """A message without what says who was asked: `error: --window: must` is `window must`."""
    problem = problem.removeprefix("error: ")
    for argument in ("window", "sinks", "device"):
        problem = problem.replace(f"--{argument}: ", f"{argument} ")
    return problem


QUESTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "no window": ({"window": 0}, "window must be at least 1, not 0"),
    "negative window": ({"window": -3}, "window must be at least 1, not -3"),
    "negative sinks": ({"sinks": -1}, "sinks must be at least 0, not -1"),
    "mps that is not here": ({"device": "mps"}, "device 'mps' is not here"),
    "cuda that is not here": ({"device": "cuda:77"}, "device 'cuda:77' is not here: "),
    "no such device": ({"device": "abacus"}, "device 'abacus' is unknown; cpu, cuda, cuda:1 or"),
    "a typo in a memory's name": (
        {"ahn": "pocket/gnd"},
        "pocket/gnd: no such folder, and no embedded memory (those are pocket/dn, ",
    ),
    "a typo in a model's name": (
        {"model": "pocket/gnd"},
        "pocket/gnd: no such folder, and no embedded memory (those are pocket/dn, ",
    ),
    "a memory as a model": ({"model": "pocket/dn"}, "dn: holds AHN weights alone"),
    "a model as a memory": ({"ahn": str(ahn.POCKET_PATH)}, "names no"),
    "no such folder": ({"model": "./nowhere"}, "./nowhere: no such folder"),
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_bad_question_gets_the_same_answer_from_everyone(question: str) -> None:
    asked, said = QUESTIONS[question]
    first: list[str] = []
    for way in WAYS:
        if way is merge and "device" in asked:
            continue
        with pytest.raises(InputError) as caught:
            way(by_name(**asked))
        answers = [plain(problem) for problem in caught.value.problems]
        # `run_eval` goes on to the tokenizer, whatever the model is
        answers = [answer for answer in answers if not answer.startswith("--tokenizer: ")]
        first = first or answers
        assert said in answers[0] and answers == first, way.__name__


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_more_sinks_than_window_are_fine_for_everyone(way: Ask) -> None:
    way(by_name(window=3, sinks=40))


def test_a_default_of_more_sinks_than_window_is_told(run_eval: Any, tiny: Path, data: Path) -> None:
    result = run_eval(
        "longbench", "--model", tiny, "--data", data, "--tasks", "hotpotqa", "--device", "cpu",
        "--variant", "window", "--window", 64, "--dry-run",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    said = " ".join(result.stdout.split())
    assert "64 tokens are fewer than the 128 sinks (the default; see --sinks)" in said


def test_the_plan_holds_what_is_loaded(
    run_eval: Any, memory: Path, tiny: Path, data: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A run resolves each variant once, and loads just that."""
    import evaluation.backends.streaming as streaming

    resolved, loaded = [], []
    resolve, load = streaming.resolve_checkpoint, streaming.load_resolved

    def noted(*arguments: Any, **options: Any) -> Any:
        resolved.append(resolve(*arguments, **options))
        return resolved[-1]

    def loading(checkpoint: Any) -> Any:
        loaded.append(checkpoint)
        return load(checkpoint)

    monkeypatch.setattr(streaming, "resolve_checkpoint", noted)
    monkeypatch.setattr(streaming, "load_resolved", loading)
    result = run_eval(
        "longbench", "--model", tiny, "--ahn", memory, "--data", data, "--tasks", "hotpotqa",
        "--limit", 1, "--max-length", 200, "--device", "cpu", "--no-report",
        "--variant", "full,window:window=32,sinks=2,name=narrow,window,ahn", "-o", tmp_path / "run",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert len(resolved) == 4 and all(a is b for a, b in zip(resolved, loaded, strict=True))
    seen = [(r.settings.variant, r.settings.window, r.settings.sinks) for r in loaded]
    assert seen == [("full", 48, 4), ("window", 32, 2), ("window", 48, 4), ("ahn", 48, 4)] or (
        seen[1:] == [("window", 32, 2), ("window", 48, 4), ("ahn", 48, 4)]
    )
    assert sorted(f.name for f in (tmp_path / "run").iterdir() if f.is_dir()) == [
        "ahn", "full", "narrow", "window",
    ]  # fmt: skip
