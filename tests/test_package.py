"""What gets installed: packages, data files, commands, pinned versions; and what README says."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import ahn

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("ahn", "common", "evaluation", "tasks", "reports", "configs")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
README = (ROOT / "README.md").read_text("utf-8")


def shipped(root: Path) -> set[str]:
    """Every file of the packages, relative to `root`."""
    return {
        path.relative_to(root).as_posix()
        for package in PACKAGES
        for path in (root / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the checkout, so that nothing is left in it."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for package in PACKAGES:
        shutil.copytree(
            ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    code = f"import setuptools.build_meta as b; b.build_wheel({str(out)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True)
    (built,) = out.glob("*.whl")
    return built


def test_the_wheel_holds_every_file_of_the_packages_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == shipped(ROOT)
    # Guards the comparison itself: data of every kind is among what must be there.
    assert {Path(name).suffix for name in names} >= {".py", ".yaml", ".json", ".safetensors"}


def test_the_wheel_names_version_licence_and_commands(wheel):
    with zipfile.ZipFile(wheel) as archive:
        info = {Path(n).name: n for n in archive.namelist() if ".dist-info/" in n}
        metadata = archive.read(info["METADATA"]).decode()
        commands = archive.read(info["entry_points.txt"]).decode()
    assert f"Version: {ahn.__version__}\n" in metadata
    assert "License-Expression: Apache-2.0" in metadata
    assert {"LICENSE", "NOTICE"} <= set(info)
    assert "run_eval = evaluation.cli:main" in commands
    assert "ahn = ahn.cli:main" in commands


@pytest.mark.slow
def test_installed_elsewhere_the_commands_find_their_data(wheel, tmp_path):
    """From another folder, with only the wheel's files in reach."""
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    environment = os.environ | {"PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1"}

    def run(*command: str) -> str:
        done = subprocess.run(
            [sys.executable, "-P", *command],
            cwd=elsewhere,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert str(site) in run("-c", "import evaluation.cli as c; print(c.__file__)")
    cost = run("-m", "evaluation", "cost", "--model", "qwen2.5-3b", "--length", "1000")
    assert "qwen2.5-3b" in cost
    plan = run("-m", "evaluation", "longbench", "--config", "demo", "--limit", "1", "--dry-run")
    assert "pocket" in plan
    assert not list(elsewhere.glob("runs/**/*.jsonl"))


@pytest.mark.parametrize("command", PROJECT["scripts"])
def test_commands_are_callable(command):
    module, _, function = PROJECT["scripts"][command].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    found: dict[str, str] = {}
    for requirement in requirements:
        (pin,) = requirement.specifier
        assert pin.operator == "==", requirement
        found[canonicalize_name(requirement.name)] = pin.version
    return found


def test_constraints_pin_all_that_is_required_with_versions_that_fit():
    pinned = pins()
    extras = PROJECT["optional-dependencies"]
    lines = [*PROJECT["dependencies"], *extras["dev"]]
    for line in lines:
        requirement = Requirement(line)
        if requirement.name == PROJECT["name"]:  # another extra, which is tried as well
            lines += [other for extra in requirement.extras for other in extras[extra]]
            continue
        version = pinned[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), line


def test_constraints_fit_cpu_and_cuda_builds_of_torch():
    pinned = pins()
    assert pinned["torch"] == "2.13.0"
    assert not [name for name in pinned if name.startswith(("nvidia-", "cuda-", "triton"))]
    assert not [name for name, version in pinned.items() if "+" in version]


def readme_commands(name: str) -> Iterator[list[str]]:
    """Each command line of README's code blocks that starts with `name`, in words."""
    for block in re.findall(r"^```\w*\n(.*?)^```$", README, re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith(name + " "):
                yield line.partition("#")[0].split()


def test_readme_names_targets_of_the_makefile():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = [words[1] for words in readme_commands("make")]
    assert {"demo", "test"} <= set(targets)
    for target in [*targets, "lint", "bench", "clean"]:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_ci_runs_the_readmes_test_command_and_what_that_leaves_out():
    targets = re.findall(r"^make ([\w-]+)", (ROOT / ".ci" / "run").read_text("utf-8"), re.MULTILINE)
    assert targets == ["lint", "test", "test-slow"]
    # not what the make that may have started these tests was given
    environment = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "PYTEST_ARGS")}
    marks = []
    for target in targets[1:]:
        planned = subprocess.run(
            ["make", "-n", target], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        (command,) = re.findall(r"-m pytest .*", planned.stdout)
        words = shlex.split(command)
        marks.append(words[words.index("-m", 2) + 1 :])
    assert marks == [["not slow"], ["slow"]], "together all tests, none twice, and no other choice"


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        (
            "run_eval",
            {"longbench", "lveval", "infinitebench", "lm-eval", "report", "score", "cost"},
        ),
        ("ahn", {"info", "merge", "split", "generate", "serve", "train"}),
    ],
)
def test_readme_uses_options_that_the_commands_have(program: str, expected: set[str]):
    import click

    import ahn.cli
    import evaluation.cli

    app = {"run_eval": evaluation.cli.app, "ahn": ahn.cli.app}[program]
    commands = app.commands
    used = list(readme_commands(program))
    assert expected <= {words[1] for words in used}
    for _, name, *arguments in used:
        command = commands[name]
        if isinstance(command, click.Group) and arguments and arguments[0] in command.commands:
            command = command.commands[arguments[0]]
        parameters = command.get_params(click.Context(command, **command.context_settings))
        options = {option for parameter in parameters for option in parameter.opts}
        if name == "lm-eval":  # what it passes on to lm-evaluation-harness
            options |= {"--model", "--tasks", "--model_args"}
        given = {word.replace("_", "-") for word in arguments if word.startswith("-")}
        assert given <= {option.replace("_", "-") for option in options}, name


def test_readme_names_presets_that_exist():
    named = [words[words.index("--config") + 1] for words in readme_commands("run_eval")
             if "--config" in words]  # fmt: skip
    assert named
    assert all((ROOT / "configs" / "eval" / f"{name}.yaml").exists() for name in named)


def test_readme_names_files_that_exist():
    for path in re.findall(r"[(`]((?:docs|ahn|configs|examples)/[\w./-]*|[A-Z]+\.md)[)`]", README):
        assert (ROOT / path).exists(), path


def test_readme_gives_the_costs_that_are_computed():
    from ahn.cost import zoo
    from ahn.cost.accounting import cache_bytes, flops

    shape = zoo.find("qwen2.5-3b").shape
    settings: dict[str, Any] = {"window": 32_640, "sinks": 128, "cell": "GatedDeltaNet"}
    for accounting in ("paper", "exact"):
        for cost in (cache_bytes, flops):
            part = cost(shape, "ahn", 128_000, accounting=accounting, **settings).total
            share = 100 * part / cost(shape, "full", 128_000, accounting=accounting).total
            assert f"{share:.1f} %" in README, (accounting, cost.__name__)
