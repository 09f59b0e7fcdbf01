"""What no one means: names of 5,000 letters, pipes and devices, numbers beyond all use."""

from __future__ import annotations

import io
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from ahn.cli import main
from ahn.commands import prompting
from ahn.commands.options import Generate
from ahn.commands.prompting import read_prompt
from ahn.config import AHNConfig
from ahn.distill.recipe import load_recipe
from common.errors import InputError

LONG = "x" * 5000
TRAIN = "--output_dir out --sliding_window 32"


@pytest.fixture(autouse=True)
def _own_signals(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def refused(arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What the command says on standard error, after checking how it ends."""
    began = time.monotonic()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["ahn", *arguments.split()])
        with pytest.raises(SystemExit) as ended:
            main()
    shown = capsys.readouterr()
    assert ended.value.code == 2, shown.err
    assert all(line.startswith("error: ") for line in shown.err.splitlines()), shown.err
    assert shown.out == "" and len(shown.err) < 1500
    assert time.monotonic() - began < 60
    return shown.err


@pytest.mark.parametrize(
    "arguments",
    [
        "generate --model @ --prompt x",
        "generate --model pocket --ahn @ --prompt x",
        "generate --model pocket --tokenizer @ --prompt x",
        "generate --model pocket --prompt-file @",
        "info @",
        "merge --base @ --ahn pocket -o made",
        "merge --base pocket --ahn @ -o made",
        "split --model @ -o made",
        "train @",
        f"train --model_name_or_path @ --dataset rows.jsonl {TRAIN}",
        f"train --model_name_or_path pocket --dataset @ {TRAIN}",
    ],
)
@pytest.mark.parametrize("kind", ["long", "pipe", "device"])
def test_odd_paths_are_refused(
    arguments: str,
    kind: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    (tmp_path / "rows.jsonl").write_text('{"messages": []}\n')
    path = {"long": LONG, "pipe": str(tmp_path / "pipe"), "device": "/dev/zero"}[kind]
    told = refused(arguments.replace("@", path), capsys)
    assert (LONG[:90] if kind == "long" else path) in told
    assert sorted(p.name for p in tmp_path.iterdir()) == ["pipe", "rows.jsonl"]


@pytest.mark.parametrize("arguments", ["merge --base pocket --ahn pocket -o @"])
def test_places_that_cannot_be_are_refused(
    arguments: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "of so long a name" in refused(arguments.replace("@", LONG), capsys)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--window 1000000000000000000000000", "--window: must be at most 1,000,000,000,000"),
        (
            "--window 64 --sinks 1000000000000000000000000",
            "--sinks: must be at most 1,000,000,000,000",
        ),
        ("--window 64 --sinks -1", "--sinks: must be at least 0, not -1"),
        ("--max-new-tokens 1000000000001", "--max-new-tokens: must be at most 1,000,000,000"),
        ("--seed -1", "--seed: must be at least 0, not -1"),
        ("--seed 100000000000000000000000", "--seed: must be less than 4,294,967,296"),
        ("--temperature nan", "--temperature: must be a finite number, not nan"),
        ("--temperature inf", "--temperature: must be a finite number, not inf"),
        ("--temperature 1e-300", "--temperature: must be 0, or from 0.001 to 100.0, not 1e-300"),
        ("--temperature -1", "--temperature: must be 0"),
        ("--yarn-factor nan", "--yarn-factor: must be a finite number, not nan"),
        ("--yarn-factor 1e300", "--yarn-factor: must be at most 1,000, not '1e300'"),
    ],
)
def test_numbers_out_of_range_are_refused(
    options: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told in refused(f"generate --model pocket --prompt x {options}", capsys)


def test_the_bounds_themselves_are_fine() -> None:
    least = {"model": "x", "max_new_tokens": 1, "temperature": 0.001, "seed": 0}
    most = {"model": "x", "max_new_tokens": 10**9, "temperature": 100.0, "seed": 2**32 - 1}
    for bounds in (least, most):
        Generate.model_validate(bounds)
    AHNConfig(window=10**12, sinks=10**12)
    with pytest.raises(InputError, match="window must be at most"):
        AHNConfig(window=10**12 + 1)


def test_a_prompt_is_read_to_its_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompting, "MOST_BYTES", 5)
    (tmp_path / "five").write_text("12345")
    (tmp_path / "six").write_text("123456")
    assert read_prompt(None, str(tmp_path / "five")) == "12345"
    with pytest.raises(InputError, match="--prompt-file: .*six: is longer than the 5 bytes"):
        read_prompt(None, str(tmp_path / "six"))
    endless = SimpleNamespace(buffer=io.BytesIO(b"x" * 100))
    monkeypatch.setattr(sys, "stdin", endless)
    with pytest.raises(InputError, match="--prompt-file: standard input: is longer than"):
        read_prompt(None, "-")
    assert endless.buffer.tell() == 6  # no more of it is read


RECIPE = "dataset: x\noutput_dir: x\nmodel_name_or_path: x\n"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("seed: 1\nseed: 2\n", "recipe.yaml:5: key 'seed' is given twice"),
        ("max_steps: 010\n", "recipe.yaml:4: 010 would be read to the base 8 or 60"),
        ("learning_rate: .nan\n", "recipe.yaml:4: .nan is no finite number"),
        ("base: &b {config: *b}\n", "recipe.yaml:4: holds an alias of itself"),
        pytest.param("base: " + "[" * 5000, "recipe.yaml:4: is nested more than", id="nested"),
    ],
)
def test_a_recipe_is_read_strictly(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE + text)
    with pytest.raises(InputError, match=re.escape(f"{tmp_path}/{told}")):
        load_recipe(str(tmp_path / "recipe.yaml"))
