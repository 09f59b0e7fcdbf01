"""Both programs in one manner: help, version, completion, and numbers that nobody means."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import click
import pytest
from click.testing import CliRunner

import ahn
import ahn.cli
import evaluation.cli
from ahn.commands.bench import command as bench
from common.commands import Program, SettingsCommand
from common.flags import Option
from common.settings import SettingsError, kinds_of, settings
from evaluation.plan.configuration import RunConfiguration

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS: dict[str, Program] = {"run_eval": evaluation.cli.app, "ahn": ahn.cli.app}
OF_PLAN = ("window", "sinks", "max_length")
COMMANDS: dict[str, SettingsCommand] = {
    f"{program} {name}": command
    for program, app in PROGRAMS.items()
    for name, command in app.commands.items()
    if isinstance(command, SettingsCommand)
} | {"bench": bench}


def options(command: SettingsCommand) -> Iterator[Option]:
    """The flags of a command's settings."""
    for parameter in command.get_params(click.Context(command, **command.context_settings)):
        if isinstance(parameter, Option):
            yield parameter


def item_of(kind: Any) -> Any:
    """The type of a list's items; of anything else its own."""
    return get_args(kind)[0] if get_origin(kind) is list else kind


NUMBERS = [
    pytest.param(command, option, id=f"{name} {option.opts[0]}")
    for name, command in COMMANDS.items()
    for option in options(command)
    if {int, float} & {kind for each in option.kinds for kind in kinds_of(item_of(each))}
]


@pytest.mark.parametrize(("command", "option"), NUMBERS)
def test_every_number_has_bounds(command: SettingsCommand, option: Option) -> None:
    for text in ("nan", "inf", "-inf", "1e400", "1" + "0" * 40, "-" + "1" * 40, "many", ""):
        value = option.value_of((text,) if option.multiple else text)
        of_plan = issubclass(command.model, RunConfiguration) and option.name in OF_PLAN
        if value == [] or (of_plan and text.startswith("-1")):
            continue  # a list of nothing; what the plan refuses
        with pytest.raises(SettingsError) as caught:
            settings(command.model, {str(option.name): value})
        shown = option.opts[0]
        found = caught.value.problems
        assert any(problem.startswith((f"{shown}: ", f"{shown}.")) for problem in found), text


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_in_one_manner(name: str) -> None:
    result = CliRunner().invoke(COMMANDS[name], ["--help"])
    assert result.exit_code == 0 and "Examples:\n" in result.output
    assert CliRunner().invoke(COMMANDS[name], ["-h"]).output == result.output
    for option in options(COMMANDS[name]):
        assert option.help, option.opts
        assert "_" not in option.opts[0], "flags are written with hyphens"


@pytest.mark.parametrize("name", COMMANDS)
def test_both_spellings_and_values_of_switches_are_understood(name: str) -> None:
    command = COMMANDS[name]
    for option in options(command):
        if option.is_flag:
            for word, value in ((option.opts[0], True), (option.secondary_opts[0], False)):
                for spelling in (word, "--" + word[2:].replace("-", "_")):
                    context = command.make_context(name, [spelling], resilient_parsing=True)
                    assert context.params[str(option.name)] is value


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_tells_its_version(program: str) -> None:
    result = CliRunner().invoke(PROGRAMS[program], ["--version"])
    assert result.stdout == f"{program} {ahn.__version__}\n"


@pytest.mark.parametrize(
    ("program", "words", "expected"),
    [
        ("run_eval", "run_eval lon", {"longbench", "longbench_v2"}),
        ("run_eval", "run_eval longbench --dt", {"--dtype"}),
        ("run_eval", "run_eval pocket --dtype b", {"bfloat16"}),
        ("ahn", "ahn tr", {"train"}),
        ("ahn", "ahn train --num-train", {"--num-train-epochs"}),
        ("ahn", "ahn train --optimizer m", {"muon"}),
    ],
)
def test_the_shell_completes(program: str, words: str, expected: set[str]) -> None:
    """As the line in the help makes bash ask, in a process of its own."""
    module = {"run_eval": "evaluation", "ahn": "ahn.cli"}[program]
    environment = os.environ | {
        f"_{program.upper()}_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    done = subprocess.run(
        [sys.executable, "-m", module], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert {line.partition(",")[2] for line in done.stdout.splitlines()} == expected


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_of_a_program_waits_for_no_model_of_settings(program: str) -> None:
    module = {"run_eval": "evaluation.cli", "ahn": "ahn.cli"}[program]
    code = (
        f"import sys\nfrom {module} import app\n"
        "try: app.main(['--help'])\nexcept SystemExit: pass\n"
        "print(sorted({'pydantic', 'torch', 'transformers', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_a_command_that_is_not_there_is_told() -> None:
    for program, word, meant in (("run_eval", "longbnch", "longbench"), ("ahn", "trian", "train")):
        result = CliRunner().invoke(PROGRAMS[program], [word])
        assert result.exit_code == 2 and f"'{meant}'" in result.stderr
