"""Recipes: every option of the paper's tool, flags, the paper's presets, Trainer's options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

import ahn
from ahn.cli import app
from ahn.distill.flags import parse_flags, parse_words
from ahn.distill.options import training_arguments
from ahn.distill.recipe import Recipe, load_recipe
from ahn.distill.trainer import last_checkpoint

PRESETS = sorted(Path("configs/train").glob("qwen2.5-*.yaml"))
PAPERS_OPTIONS = [
    "model_name_or_path",
    "dataset",
    "loss_type",
    "ahn_implementation",
    "ahn_position",
    "sliding_window_type",
    "sliding_window",
    "save_ahn_only",
    "filter_len",
    "cutoff_len",
    "max_samples",
    "use_normalized_l2",
    "template",
]


def test_every_option_of_the_papers_tool_is_there() -> None:
    assert set(PAPERS_OPTIONS) <= Recipe.model_fields.keys()


def test_presets_are_the_papers_recipe() -> None:
    assert len(PRESETS) == 9
    cells = {"gdn": "GatedDeltaNet", "dn": "DeltaNet", "mamba2": "Mamba2"}
    for path in PRESETS:
        _, size, cell = path.stem.split("-")
        recipe = load_recipe(path)
        assert recipe.model_name_or_path == f"Qwen/Qwen2.5-{size.upper()}-Instruct"
        assert recipe.ahn_implementation == cells[cell]
        assert (recipe.dataset, recipe.filter_len, recipe.cutoff_len) == ("chatqa2", 288, 24_576)
        assert (recipe.loss_type, recipe.bf16, recipe.save_ahn_only) == ("kl", True, True)
        assert (recipe.learning_rate, recipe.warmup_steps, recipe.weight_decay) == (1e-4, 0.1, 0.1)
        a_step = recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps
        assert a_step * 8 == 128  # eight processes, as the file says
        assert recipe.num_train_epochs == 1 and recipe.lr_scheduler_type == "cosine"


def test_the_embedded_model_has_a_name_here_too() -> None:
    options = {"model_name_or_path": "pocket", "dataset": "chats.jsonl", "output_dir": "mine"}
    recipe = Recipe.model_validate(options)
    assert recipe.model_name_or_path == str(ahn.POCKET_PATH)


def test_flags_are_options() -> None:
    assert parse_flags(
        [
            "--loss_type",
            "kl+ce",
            "--sliding-window=64",
            "--learning_rate",
            "1e-4",
            "--bf16",
            "--dataset",
            "a.jsonl",
            "--fa_layer_ids",
            "0,2",
            "--training_arguments.deepspeed",
            "ds.json",
        ]
    ) == {
        "loss_type": "kl+ce",
        "sliding_window": 64,
        "learning_rate": 1e-4,
        "bf16": True,
        "dataset": "a.jsonl",
        "fa_layer_ids": "0,2",
        "training_arguments": {"deepspeed": "ds.json"},
    }
    with pytest.raises(ahn.InputError) as caught:
        parse_flags(["stray", "--sliding_windov", "3", "again", "--template", "--bf16"])
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert "did you mean --sliding_window?" in lines[0]
    assert "again: a flag was expected" in lines[1] and "--template: its value" in lines[2]
    with pytest.raises(ahn.InputError, match="stray: a flag was expected"):
        parse_flags(["stray"])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["r.yaml", "--bf16"], {"bf16": True}),
        (["--bf16", "r.yaml", "--max-steps", "-1"], {"bf16": True, "max_steps": -1}),
        (["--bf16", "no", "r.yaml"], {"bf16": False}),
        (["--output_dir", "2024", "r.yaml"], {"output_dir": "2024"}),
        (["--max_samples", "null", "r.yaml"], {"max_samples": None}),
        (
            ["--report_to", "[wandb, tensorboard]", "r.yaml"],
            {"report_to": ["wandb", "tensorboard"]},
        ),
        (
            ["--training_arguments.optim_args", "1e-4", "r.yaml"],
            {"training_arguments": {"optim_args": 1e-4}},
        ),
    ],
)
def test_a_recipe_stands_anywhere_among_flags(words: list[str], expected: dict[str, Any]) -> None:
    assert parse_words(words) == ("r.yaml", expected)


def test_flags_win_over_the_file_and_mappings_are_merged(tmp_path: Path) -> None:
    written = {
        "model_name_or_path": "x",
        "output_dir": "x",
        "dataset": "x",
        "training_arguments": {"run_name": "file", "fsdp_config": {"fsdp_version": 1}},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(written))
    flags = ["--seed", "3", "--training_arguments.fsdp_config.reshard_after_forward", "false"]
    recipe = load_recipe(tmp_path / "recipe.yaml", parse_flags(flags))
    assert recipe.seed == 3 and recipe.training_arguments == {
        "run_name": "file",
        "fsdp_config": {"fsdp_version": 1, "reshard_after_forward": False},
    }
    flags = [f"--{name}={value}" for name, value in written.items() if isinstance(value, str)]
    assert load_recipe(None, parse_flags(flags)) == Recipe(
        **{name: value for name, value in written.items() if isinstance(value, str)}  # type: ignore[arg-type]
    )


def refused(*words: str) -> list[str]:
    """What `ahn train` says on standard error, with exit code 2."""
    result = CliRunner().invoke(app, ["train", *words])
    assert isinstance(result.exception, ahn.InputError), result.output
    return str(result.exception).splitlines()


def test_every_problem_of_a_command_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "dataset: x\noutput_dir: x\nmodel_name_or_path: x\nfilter_length: 3\nbf16: maybe"
    )
    found = refused(str(path), "--sliding_window", "many", "--set", "loss_type=l1")
    assert found == [
        "--loss_type: 'l1' is not kl, ce and distill joined with +",
        "--sliding_window: Input should be a valid integer, unable to parse string as an integer, "
        "not 'many'",
        f"{path}: bf16: Input should be a valid boolean, unable to interpret input, not 'maybe'",
        f"{path}: filter_length: no such option; did you mean filter_len?",
    ]
    assert refused() == refused("--fresh") and "ahn train --help" in refused()[0]
    assert refused("--seed", "1") == ["--output_dir: must be given", "--dataset: must be given"]
    assert refused("--set", "seed") == ["--set seed: give it as option=value"]
    assert refused("no.yaml", "--seed", "1") == ["no.yaml: no such recipe"]
    path.write_text("dataset: x\noutput_dir: [\n")
    assert refused(str(path))[0].startswith(f"{path}:3: is not valid YAML: ")
    assert refused("--base", "3", "--base.tokenizer", "x")[0].endswith("as a whole and in parts")


def test_help_lists_every_option_with_its_meaning() -> None:
    text = CliRunner().invoke(app, ["train", "--help"], env={"COLUMNS": "200"}).output
    for name, field in Recipe.model_fields.items():
        assert f"--{name} " in text and field.description, name
    assert "kl, ce, distill, joined with +" in text and "(default: 24576)" in text
    assert "--ahn_position prefix|random" in text and "GatedDeltaNet, DeltaNet, Mamba2" in text


def test_the_trainers_own_options_pass_through(tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "model_name_or_path": "x",
        "output_dir": str(tmp_path),
        "dataset": "x",
        "training_arguments": {"dataloader_num_workers": 2, "run_name": "mine"},
    }
    arguments = training_arguments(Recipe(**values))
    assert arguments.dataloader_num_workers == 2 and arguments.run_name == "mine"
    with pytest.raises(ahn.InputError, match="no option 'dataloader_workers'"):
        training_arguments(Recipe(**{**values, "training_arguments": {"dataloader_workers": 2}}))
    with pytest.raises(ValueError, match="learning_rate is an option of the recipe"):
        Recipe(**{**values, "training_arguments": {"learning_rate": 1}})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"streaming": True}, "streaming needs max_steps"),
        ({"streaming": True, "max_steps": 1, "tokens_per_batch": 9}, "cannot go with"),
        ({"early_stopping_patience": 2}, "needs an eval_dataset"),
        ({"max_steps": 0}, "0 steps train nothing"),
        ({"sliding_window_choices": []}, "sliding_window_choices: List should have at least 1"),
        ({"sliding_window_choices": [0]}, "sliding_window_choices.0: .*greater than 0, not 0"),
        ({"num_attn_sinks_choices": [-1]}, "num_attn_sinks_choices.0: .*equal to 0, not -1"),
    ],
)
def test_options_that_cannot_go_together(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    values = {"model_name_or_path": "x", "output_dir": "x", "dataset": "x", **changes}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(ahn.InputError, match=message):
        load_recipe(tmp_path / "recipe.yaml")


def test_a_checkpoint_that_was_cut_short_is_passed_over(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path) is None
    for number, state in ((2, "{}"), (10, "{}"), (11, '{"half'), (12, None)):
        (tmp_path / f"checkpoint-{number}").mkdir()
        if state is not None:
            (tmp_path / f"checkpoint-{number}" / "trainer_state.json").write_text(state)
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
