"""Settings from a file and from flags: who wins, and where each problem is said to be."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pytest
from click.testing import CliRunner, Result
from pydantic import Field

from common.commands import Program
from common.errors import InputError
from common.settings import (
    Flag,
    Number,
    Seed,
    Settings,
    SettingsError,
    SettingsFile,
    Tokens,
    Whole,
    parse_file,
    read_file,
    settings,
)


class Inner(Settings):
    place: str
    depth: Whole = Field(1, ge=1)


class Example(Settings):
    """Settings with a field of every kind."""

    groups: ClassVar[Mapping[str, str]] = {"name": "Names", "length": "Numbers"}

    name: str | None = None
    """A name."""
    kind: Literal["plain", "fancy"] = "plain"
    """How it looks."""
    files: Annotated[list[str], Flag(("--file",), metavar="FILE", own_form=True)] = []
    """Files."""
    several: str | list[str] = "none"
    """One, or several."""
    length: Tokens = Field(512, ge=1)
    """A length."""
    layers: list[Whole] = []
    """Layers."""
    rate: Number = Field(0.5, gt=0, le=1)
    """A rate."""
    seed: Seed = 0
    """A seed."""
    quick: bool = False
    """Be quick."""
    tidy: Annotated[bool, Flag(off="as-it-is")] = True
    """Tidy up."""
    inner: Inner | None = None
    """What is within."""
    extra: dict[str, Any] = {}
    """Anything else."""


app = Program("example", "An example.", lambda: "1.2.3", examples=("example show --quick",))
app.settings_command(lambda: Example, "show", examples=("example show \\\n    --quick",))(
    lambda given: print(given.model_dump_json(exclude_unset=True))
)


def run(*words: str) -> Result:
    return CliRunner().invoke(app, words)


def given(*words: str) -> dict[str, Any]:
    """The settings that words of a command line make, those that were said."""
    result = run("show", *words)
    assert result.exit_code == 0, result.output
    return Example.model_validate_json(result.stdout).model_dump(exclude_unset=True)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--name 2024", {"name": "2024"}),
        ("--name true", {"name": "true"}),
        ("--name ~", {"name": "~"}),
        ("--name=", {"name": ""}),
        ("--name null", {"name": None}),
        ("--name '[a]'", {"name": "'[a]'"}),
        ("--kind fancy", {"kind": "fancy"}),
        ("--file a --file b,c", {"files": ["a", "b,c"]}),
        ("--files 7", {"files": ["7"]}),
        ("--several a", {"several": "a"}),
        ("--several 7", {"several": "7"}),
        ("--several [a,b]", {"several": ["a", "b"]}),
        ("--several a --several b", {"several": ["a", "b"]}),
        ("--length 1k", {"length": 1024}),
        ("--length=7", {"length": 7}),
        ("--layers 0,2 --layers 5", {"layers": [0, 2, 5]}),
        ("--layers [1,2]", {"layers": [1, 2]}),
        ("--layers 3", {"layers": [3]}),
        ("--rate 1", {"rate": 1.0}),
        ("--rate 1e-3", {"rate": 0.001}),
        ("--quick", {"quick": True}),
        ("--quick --no-quick", {"quick": False}),
        ("--quick no", {"quick": False}),
        ("--quick=Yes", {"quick": True}),
        ("--as-it-is", {"tidy": False}),
        ("--as_it_is", {"tidy": False}),
        ("--tidy no", {"tidy": False}),
        ("--inner.place x --inner.depth 2", {"inner": {"place": "x", "depth": 2}}),
        ("--inner {place:\tx}", {"inner": {"place": "x"}}),
        ("--extra.a-b.c 1e-3 --extra.d [1]", {"extra": {"a_b": {"c": 0.001}, "d": [1]}}),
        ("--extra.command a=b", {"extra": {"command": "a=b"}}),
    ],
)
def test_words_become_values_of_the_fields_type(words: str, expected: dict[str, Any]) -> None:
    found = given(*(word.replace("\t", " ") for word in words.split(" ")))
    assert found == expected
    for key, value in expected.items():
        assert type(found[key]) is type(value), "1.0 is no 1, and True is no 1"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--lenght 3", "--lenght: there is no such option; did you mean '--length'?"),
        ("--length x", "--length: input should be a valid integer, not 'x'"),
        ("--length 0", "--length: must be at least 1, not 0"),
        ("--length 4.0", "--length: input should be a valid integer, not '4.0'"),
        ("--length true", "--length: input should be a valid integer, not 'true'"),
        ("--layers 1,x", "--layers.1: input should be a valid integer, not 'x'"),
        ("--rate nan", "--rate: must be a finite number, not nan"),
        ("--rate .nan", "--rate: input should be a valid number, not '.nan'"),
        ("--rate 1e999", "--rate: must be a finite number, not inf"),
        ("--rate 0", "--rate: must be more than 0, not 0"),
        ("--rate 1.5", "--rate: must be at most 1, not 1.5"),
        ("--seed -1", "--seed: must be at least 0, not -1"),
        ("--seed 4294967296", "--seed: must be less than 4,294,967,296, not 4294967296"),
        ("--kind odd", "--kind: must be 'plain' or 'fancy', not 'odd'"),
        ("--quick=maybe", "Option '--quick' does not take a value"),
        ("--name --quick", "--name: its value is missing (--quick follows)"),
        ("--inner.depth 0 --inner.place x", "--inner.depth: must be at least 1, not 0"),
        ("--inner.place x --inner.dept 1",
         "--inner.dept: there is no such option; did you mean 'depth'?"),
        ("--quick.much", "No such option '--quick.much'"),
        ("--length.much 3", "No such option '--length.much'"),
        ("--inner.depth 2", "--inner.place: is missing"),
        ("--extra 3 --extra.a 3", "--extra: given both as a whole and in parts"),
        ("--extra.a 3 --extra.a.b 3", "--extra: given both as a whole and in parts"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_flag(words: str, told: str) -> None:
    result = run("show", *words.split())
    assert result.exit_code == 2 and told in result.stderr, result.stderr
    assert "Traceback" not in result.output and result.stdout == ""


def test_all_that_is_wrong_is_said_at_once() -> None:
    result = run("show", "--length", "0", "--seed", "-1", "--kind", "odd")
    assert [line.split(":")[1].strip() for line in result.stderr.splitlines()] == [
        "--kind", "--length", "--seed",
    ]  # fmt: skip
    result = run("show", "--one", "1", "--name", "--quick", "--two=2", "x")
    assert [line.split(": ")[1] for line in result.stderr.splitlines()] == [
        "--one", "--name", "--two",
    ]  # fmt: skip


def test_flags_win_and_mappings_are_merged(tmp_path: Path) -> None:
    path = tmp_path / "e.yaml"
    path.write_text("length: 7\nname: x\nfile: [a]\nextra: {a: 1, b: {c: 2, d: 3}}\nseed: null\n")
    file = read_file(Example, path)
    assert file.lines == {"length": 1, "name": 2, "files": 3, "extra": 4, "seed": 5}
    found = settings(Example, {"length": 9, "extra": {"b": {"c": 5}}}, file)
    assert (found.length, found.name, found.files, found.seed) == (9, "x", ["a"], 0)
    assert found.extra == {"a": 1, "b": {"c": 5, "d": 3}}


def test_problems_of_a_file_have_its_line_and_those_of_flags_their_flag(tmp_path: Path) -> None:
    path = tmp_path / "e.yaml"
    path.write_text("# a comment\nlength: 0\n\nnaem: x\ninner:\n  place: 1\n  deptt: 3\n")
    with pytest.raises(SettingsError) as caught:
        settings(Example, {"rate": 2.0}, read_file(Example, path))
    assert sorted(caught.value.problems) == [
        "--rate: must be at most 1, not 2.0",
        f"{path}:2: length: must be at least 1, not 0",
        f"{path}:4: naem: there is no such option; did you mean 'name'?",
        f"{path}:5: inner.deptt: there is no such option; did you mean 'depth'?",
        f"{path}:5: inner.place: input should be a valid string, not 1",
    ]
    assert caught.value.keys == {"rate", "length", "naem", "inner"}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("file: a\nfiles: b\n", "e.yaml:2: 'files' is given twice under two spellings"),
        ("- a\n", "e.yaml must hold 'key: value' lines"),
        ("length: 1\nlength: 2\n", "e.yaml:2: key 'length' is given twice"),
        ("length: 010\n", "e.yaml:1: 010 would be read to the base 8"),
    ],
)
def test_a_file_that_can_be_misread_is_refused(text: str, told: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_file(Example, text, "e.yaml")
    assert told in str(caught.value)


def test_an_empty_file_says_nothing_and_keys_may_be_merged_from_an_anchor() -> None:
    assert parse_file(Example, "", "e.yaml") == SettingsFile("e.yaml")
    text = "extra: &more {name: x}\n<<: *more\nkind: odd\n"
    file = parse_file(Example, text, "e.yaml")
    assert file.values["name"] == "x"
    with pytest.raises(SettingsError, match="e.yaml:3: kind: must be"):
        settings(Example, {}, file)


def test_help_has_groups_types_defaults_and_examples() -> None:
    text = run("show", "--help").output
    lines = text.splitlines()
    assert lines[lines.index("Names:") + 1].split() == ["--name", "TEXT", "A", "name."]
    assert "--kind plain|fancy    How it looks. [default: plain]" in text
    assert "--file, --files FILE" in text and "--layers N,..." in text and "--rate X" in text
    assert "--quick " in text and "--no-quick" not in text and "--tidy / --as-it-is" in text
    assert "--inner.NAME VALUE" in text
    assert text.index("Names:") < text.index("Numbers:") < text.index("Other options:")
    assert text.endswith("Examples:\n  example show \\\n      --quick\n")


def test_a_program_has_a_version_and_names_what_was_meant() -> None:
    assert run("--version").stdout == "example 1.2.3\n"
    result = run("shwo")
    assert result.exit_code == 2 and "Did you mean 'show'?" in result.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_are_told_how_to_complete(shell: str) -> None:
    assert 'eval "$(_EXAMPLE_COMPLETE=bash_source example)"' in " ".join(
        run("--help").output.split()
    )
    script = CliRunner().invoke(app, [], env={"_EXAMPLE_COMPLETE": f"{shell}_source"})
    assert "_EXAMPLE_COMPLETE" in script.stdout and script.exit_code == 0


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("example s", ["show"]),
        ("example show --la", ["--layers"]),
        ("example show --kind f", ["fancy"]),
        ("example show --as", ["--as-it-is"]),
        ("example show --nothing 1 --as", ["--as-it-is"]),
    ],
)
def test_names_flags_and_values_are_completed(words: str, expected: list[str]) -> None:
    environment = {
        "_EXAMPLE_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    result = CliRunner().invoke(app, [], env=environment)
    assert [line.partition(",")[2] for line in result.stdout.splitlines()] == expected
