"""A YAML file can say all that the flags say, flags win, and nothing unknown is ignored."""

from __future__ import annotations

import os
from pathlib import Path

import click
import pytest

from common.errors import InputError
from evaluation.cli import app
from evaluation.commands.benchmarks import COMMANDS
from evaluation.plan.configuration import (
    RunConfiguration,
    preset_names,
    read_config_file,
    resolve_configuration,
)


@pytest.mark.parametrize("command", ["run", *(c.benchmark for c in COMMANDS)])
def test_every_flag_is_a_key_and_every_key_a_flag(command):
    parameters = app.commands[command].get_params(
        click.Context(app.commands[command], **app.commands[command].context_settings)
    )
    flags = {str(p.name) for p in parameters} - {"config", "dry_run", "_click_default_help"}
    keys = set(RunConfiguration.model_fields) - ({"benchmark"} if command != "run" else set())
    fixed = {c.benchmark: set(c.without) for c in COMMANDS}  # what a benchmark has no choice of
    assert fixed["longbench"] == {"lengths"} and not fixed["lveval"]
    assert flags == keys - fixed.get(command, set())


def test_what_a_benchmarks_help_says_is_of_fields_that_there_are():
    for command in COMMANDS:
        assert {*command.helps, *command.without} <= set(RunConfiguration.model_fields)


def test_ahn_weights_may_have_names():
    def of(value: object) -> dict[str, str]:
        configuration, problems = resolve_configuration({"ahn": value})
        assert problems == []
        return configuration.ahn

    assert of("org/weights") == of(["org/weights"]) == {"": "org/weights"}
    assert of(["gdn=a/b", "dn=./x=y"]) == {"gdn": "a/b", "dn": "./x=y"}
    assert of({"gdn": "a/b"}) == {"gdn": "a/b"}
    assert of(["./x=y"]) == {"": "./x=y"}, "a path may hold '='"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (["a", "b"], "need names"),
        (["gdn=a", "b"], "need names"),
        (["gdn=a", "gdn=b"], "gdn is given twice"),
        ({"../x": "a"}, "is no name"),
    ],
)
def test_names_of_ahn_weights_are_checked(value, reason):
    _, problems = resolve_configuration({"ahn": value})
    assert len(problems) == 1 and reason in problems[0]


def test_flags_win_over_the_file(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("model: a\nwindow: 64\nsinks: 2\ntasks: [hotpotqa]\nvariant: ahn\n")
    flags = {"window": 128, "variants": ["full", "window"], "tasks": None, "sinks": None}
    configuration, problems = resolve_configuration(flags, str(file))
    assert problems == []
    assert configuration.model == "a"
    assert configuration.window == 128
    assert configuration.sinks == 2
    assert configuration.tasks == ["hotpotqa"]
    assert configuration.variants == ["full", "window"]


def test_names_may_be_joined_by_commas_and_are_taken_once():
    configuration, _ = resolve_configuration(
        {"tasks": ["a, b", "c,a"], "variants": ["full,window"]}
    )
    assert configuration.tasks == ["a", "b", "c"]
    assert configuration.variants == ["full", "window"]


def test_a_variant_in_a_file_may_be_a_mapping(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(
        "variants:\n- full\n- {kind: window, window: 64, sinks: 4, name: narrow}\n- kind: hf\n"
    )
    configuration, problems = resolve_configuration({}, str(file))
    assert problems == []
    assert configuration.variants == ["full", "window:window=64,sinks=4,name=narrow", "hf"]
    for wrong, reason in (
        ("{window: 64}", "needs its kind"),
        ("{kind: window, window: [64]}", "window: window: must be one word or number"),
        ("{kind: window, name: 'a,b'}", "must be one word or number, not 'a,b'"),
    ):
        file.write_text(f"variants: [{wrong}]\n")
        _, problems = resolve_configuration({}, str(file))
        assert len(problems) == 1 and reason in problems[0], problems


def test_keys_may_be_written_as_flags_are(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("max-length: 100\nreuse-prefixes: false\n")
    configuration, problems = resolve_configuration({}, str(file))
    assert problems == []
    assert (configuration.max_length, configuration.reuse_prefixes) == (100, False)


def test_all_problems_of_a_file_are_listed_and_the_rest_is_kept(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("model: a\nwindwo: 64\nlimit: 0\ndtype: mine\nsinks: many\n")
    configuration, problems = resolve_configuration({}, str(file))
    assert len(problems) == 4
    text = "\n".join(problems)
    assert "run.yaml:2: windwo: there is no such option; did you mean 'window'?" in text
    assert "limit" in text and "dtype" in text and "sinks" in text
    assert all(str(file) in problem for problem in problems)
    assert configuration.model == "a"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("window: 1\nwindow: 2\n", "given twice"),
        ("variant: full\nvariants: full\n", "given twice"),
        ("- model\n", "key: value"),
        ("model: [\n", "not valid YAML"),
        ("? {model: a}\n: b\n", "a key must be a name"),
        ("? [model]\n: b\n", "a key must be a name"),
        ("window: .nan\n", "run.yaml:1: .nan is no finite number"),
        ("model: pocket\nwindow: 0100\n", "run.yaml:2: 0100 would be read to the base 8"),
        ("on: 1\n", "the key on would be read as a value"),
        pytest.param("model: " + "[" * 5000, "run.yaml:1: is nested more than", id="nested"),
        ("tasks: &a [*a]\n", "run.yaml:1: holds an alias of itself"),
        pytest.param("model: " + "x" * 2_000_000, "is longer than", id="long"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused(tmp_path, content, reason):
    file = tmp_path / "run.yaml"
    file.write_text(content)
    with pytest.raises(InputError, match=reason):
        read_config_file(str(file))


def test_pipes_devices_and_folders_are_no_configuration(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, told in ((tmp_path / "pipe", "a named pipe"), (Path("/dev/zero"), "a device")):
        with pytest.raises(InputError, match=f"--config: {path}: is {told}, not a file"):
            read_config_file(str(path))
    with pytest.raises(InputError, match=f"--config: {tmp_path}: is a folder, not a file"):
        read_config_file(str(tmp_path))


@pytest.mark.parametrize("name", ["x" * 5000, "configs/eval/" + "x" * 5000, "a/" * 2500],
                         ids=["name", "preset", "folders"])  # fmt: skip
def test_a_path_of_5000_characters_is_no_such_file(name):
    with pytest.raises(InputError, match="--config: no such file: ") as caught:
        read_config_file(name)
    assert len(str(caught.value)) < 600


def test_the_pocket_suites_own_preset_is_not_a_file_that_lies_here(tmp_path, monkeypatch):
    wanted = resolve_configuration({"benchmark": "pocket"})
    assert wanted[0].model == "pocket" and wanted[0].limit != 1 and wanted[1] == []
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pocket").write_text("limit: 1\n")
    assert resolve_configuration({"benchmark": "pocket"}) == wanted


NUMBERS = ["window", "sinks", "limit", "max_length", "threads", "seed", "max_errors"]


@pytest.mark.parametrize(
    "value", ["true", "'4'", "4.0", "4.5", "1e3", "1.0e3", "[4]", "[4.0]", "{a: 4}"]
)
@pytest.mark.parametrize("key", NUMBERS)
def test_a_whole_number_is_nothing_else(tmp_path, key, value):
    if (key, value) == ("window", "[4]"):
        value = "[[4]]"  # the one number of which there may be a list
    file = tmp_path / "run.yaml"
    file.write_text(f"{key}: {value}\n")
    configuration, problems = resolve_configuration({}, str(file))
    assert len(problems) == 1 and f"run.yaml:1: {key}: " in problems[0], problems
    assert getattr(configuration, key) == RunConfiguration.model_fields[key].default


@pytest.mark.parametrize("value", [10**12, 10**30])
@pytest.mark.parametrize("key", ["window", "sinks", "limit", "max_length", "threads", "seed"])
@pytest.mark.parametrize("flag", [False, True])
def test_a_number_that_nobody_means_is_refused(tmp_path, key, value, flag):
    file = tmp_path / "run.yaml"
    file.write_text("{}\n" if flag else f"{key}: {value}\n")
    _, problems = resolve_configuration({key: value} if flag else {}, str(file))
    (problem,) = problems
    assert "must be " in problem and str(value) in problem
    assert (f"--{key.replace('_', '-')}: " if flag else f"run.yaml:1: {key}: ") in problem


@pytest.mark.parametrize("value", [0.5, -1.0, 1001.0, float("nan"), float("inf"), True, "4"])
def test_a_factor_out_of_range_is_refused(value):
    configuration, problems = resolve_configuration({"yarn_factor": value})
    assert len(problems) == 1 and "--yarn-factor: " in problems[0]
    assert configuration.yarn_factor is None


@pytest.mark.parametrize("value", ["1", 1, "yes", 0.0])
def test_a_switch_is_true_or_false(value):
    _, problems = resolve_configuration({"overwrite": value})
    assert len(problems) == 1 and "--overwrite: " in problems[0]


@pytest.mark.parametrize("key", ["model", "tokenizer", "data", "output", "protocol", "device"])
@pytest.mark.parametrize(("value", "told"), [("", "at least 1 character"), ("a\0b", "null byte")])
def test_an_empty_name_does_not_mean_this_folder(key, value, told):
    _, problems = resolve_configuration({key: value})
    assert len(problems) == 1 and f"--{key}: " in problems[0] and told in problems[0]


@pytest.mark.parametrize("value", ["", "gdn=", {"gdn": " "}])
def test_ahn_weights_have_a_path(value):
    _, problems = resolve_configuration({"ahn": value})
    assert len(problems) == 1 and "--ahn: a path is empty" in problems[0]


def test_a_long_value_is_shown_in_brief():
    _, problems = resolve_configuration({"dtype": "x" * 5000})
    assert len(problems) == 1 and len(problems[0]) < 500


def test_a_missing_file_names_the_presets():
    with pytest.raises(InputError, match="nowhere.yaml.*demo"):
        read_config_file("nowhere.yaml")


def test_null_in_a_file_is_not_said(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("variants: null\nlimit:\n")
    configuration, problems = resolve_configuration({}, str(file))
    assert problems == []
    assert configuration.variants == [] and configuration.limit is None


@pytest.mark.parametrize("name", preset_names())
def test_presets_are_valid_and_found_by_name_anywhere(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # as after `pip install`, outside a checkout
    by_name = resolve_configuration({}, name)
    by_path = resolve_configuration({}, f"configs/eval/{name}.yaml")
    assert by_name == by_path
    assert by_name[1] == []
