"""A YAML file can say all that the flags say, flags win, and nothing unknown is ignored."""

from __future__ import annotations

import pytest
from typer.main import get_command

from evaluation.cli import app
from evaluation.configuration import (
    RunConfiguration,
    preset_names,
    read_config_file,
    resolve_configuration,
)
from evaluation.problems import InputError
from evaluation.run_options import COMMANDS


@pytest.mark.parametrize("command", [c.benchmark for c in COMMANDS])
def test_every_flag_is_a_key_and_every_key_a_flag(command):
    parameters = get_command(app).commands[command].params  # type: ignore[attr-defined]
    flags = {str(p.name) for p in parameters} - {"config", "dry_run", "help"}
    flags = {"variants" if flag == "variant" else flag for flag in flags}
    keys = set(RunConfiguration.model_fields) - {"benchmark"}
    assert flags == (keys - {"lengths"} if command == "longbench" else keys)


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
    assert "'windwo'" in text and "did you mean 'window'" in text
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
        ("? {model: a}\n: b\n", "not valid YAML"),
        ("? [model]\n: b\n", "not valid YAML"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused(tmp_path, content, reason):
    file = tmp_path / "run.yaml"
    file.write_text(content)
    with pytest.raises(InputError, match=reason):
        read_config_file(str(file))


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
