"""docs/recipes/option.md, carried out as it is written, in a folder outside the package."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "recipes" / "option.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    """The page's code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, subprocess.CompletedProcess]:
    """What each command of the page gives, by its words, with the page's files in a folder."""
    folder = tmp_path_factory.mktemp("recipe")
    for block in blocks("python"):
        name = re.match(r"# (\S+)\n", block)
        assert name is not None, "a file's block begins with its name"
        (folder / name[1]).write_text(block, "utf-8")
    (console,) = blocks("console")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    return {
        command: subprocess.run(
            [sys.executable, *command.split()[1:]],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
        )
        for command in re.findall(r"^\$ (.*)$", console, re.MULTILINE)
    }


def test_the_option_is_used(outputs: dict[str, subprocess.CompletedProcess]) -> None:
    from ahn.cost import zoo
    from ahn.cost.accounting import flops

    (done,) = (done for command, done in outputs.items() if "--length 128k" in command)
    assert done.returncode == 0, done.stderr
    total = flops(zoo.find("qwen2.5-3b").shape, "full", 131_072, 0).total
    assert done.stdout.splitlines()[0] == f"full: {total / 10**15 / 2:.2f}"
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["full", "window", "ahn"]


def test_what_is_wrong_is_told_as_the_page_says(
    outputs: dict[str, subprocess.CompletedProcess],
) -> None:
    (console,) = blocks("console")
    told = re.findall(r"^\$ (.*)\n(error: .*)$", console, re.MULTILINE)
    assert len(told) == 2
    for command, message in told:
        assert outputs[command].returncode == 2
        assert outputs[command].stderr.strip() == message


def test_the_help_has_the_option(outputs: dict[str, subprocess.CompletedProcess]) -> None:
    (done,) = (done for command, done in outputs.items() if "--help" in command)
    assert re.search(r"--price X +Price of 10\*\*15 operations. \[default: 1.0\]", done.stdout)


def test_the_models_and_places_that_the_page_names_are_there() -> None:
    for name, path in re.findall(r"`(\w+)`, `([\w/]+\.py)`", PAGE):
        assert f"class {name}(" in (ROOT / path).read_text("utf-8")
    for path in re.findall(r"[\w/]+/\w+\.py", PAGE):
        assert (ROOT / path).is_file(), path
