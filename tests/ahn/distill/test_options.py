"""Recipes: every option of the paper's tool, flags, the paper's presets, Trainer's options."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import yaml
from click.testing import CliRunner

import ahn
from ahn.cli import app
from ahn.distill.options import new_optimizer, training_arguments, zero_stage
from ahn.distill.recipe import Recipe, load_recipe
from ahn.distill.run import train
from ahn.distill.trainer import last_checkpoint
from tests.ahn.distill.processes import ON_CPU
from tests.ahn.distill.recipes import pocket_options, write_conversations

PRESETS = sorted(
    path for path in Path("configs/train").glob("qwen2.5-*.yaml") if "ablation" not in path.stem
)
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


def parsed(*words: str) -> tuple[str | None, dict[str, Any]]:
    """The recipe and the values of the flags that `ahn train` gets from a command line."""
    found: dict[str, Any] = {}
    command = app.commands["train"]
    with mock.patch.object(command, "callback", lambda **given: found.update(given)):
        command.main(list(words), standalone_mode=False)
    return found["recipe"], found["flags"]


def test_flags_are_options() -> None:
    flags = "--loss_type kl+ce --sliding-window=64 --learning_rate 1e-4 --bf16 --dataset a.jsonl"
    more = "--fa_layer_ids 0,2 --training_arguments.deepspeed ds.json --cutoff-len 32k"
    recipe, given = parsed(*flags.split(), *more.split())
    assert recipe is None and given == {
        "loss_type": "kl+ce",
        "sliding_window": 64,
        "learning_rate": "1e-4",
        "bf16": True,
        "dataset": "a.jsonl",
        "fa_layer_ids": [0, 2],
        "training_arguments": {"deepspeed": "ds.json"},
        "cutoff_len": "32k",
    }
    made = load_recipe(None, given | {"model_name_or_path": "x", "output_dir": "x"})
    assert (made.learning_rate, made.cutoff_len) == (1e-4, 32 * 1024)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            "--sliding_windov 3 --nothing --template --bf16",
            "error: --sliding_windov: there is no such option; did you mean '--sliding-window'",
        ),
        ("--sliding_windov 3 --zzz", "error: --zzz: there is no such option\n"),
        ("--zzz --template --bf16", "error: --template: its value is missing (--bf16 follows)\n"),
        ("r.yaml again", "unexpected extra argument (again)"),
        ("--template", "Option '--template' requires an argument"),
        ("--training_arguments.deepspeed", "'--training-arguments' requires an argument"),
        ("--base 3 --base.tokenizer x", "--base: given both as a whole and in parts"),
        ("--base.tokenizer x --base.tokenizer.y x", "--base: given both as a whole and in parts"),
    ],
)
def test_words_that_are_no_flags_are_refused(words: str, told: str) -> None:
    result = CliRunner().invoke(app, ["train", *words.split()])
    assert result.exit_code == 2 and told in result.stderr, result.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["r.yaml", "--bf16"], {"bf16": True}),
        (["--bf16", "r.yaml", "--max-steps", "-1"], {"bf16": True, "max_steps": -1}),
        (["--bf16", "no", "r.yaml"], {"bf16": False}),
        (["--no-bf16", "r.yaml"], {"bf16": False}),
        (["--bf16=false", "r.yaml"], {"bf16": False}),
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
        (
            ["--set", "max_steps=3", "r.yaml", "--set=base.tokenizer=x"],
            {"max_steps": 3, "base": {"tokenizer": "x"}},
        ),
    ],
)
def test_a_recipe_stands_anywhere_among_flags(words: list[str], expected: dict[str, Any]) -> None:
    assert parsed(*words) == ("r.yaml", expected)


def test_flags_win_over_the_file_and_mappings_are_merged(tmp_path: Path) -> None:
    written = {
        "model_name_or_path": "x",
        "output_dir": "x",
        "dataset": "x",
        "training_arguments": {"run_name": "file", "fsdp_config": {"fsdp_version": 1}},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(written))
    flags = ["--seed", "3", "--training_arguments.fsdp_config.reshard_after_forward", "false"]
    recipe = load_recipe(tmp_path / "recipe.yaml", parsed(*flags)[1])
    assert recipe.seed == 3 and recipe.training_arguments == {
        "run_name": "file",
        "fsdp_config": {"fsdp_version": 1, "reshard_after_forward": False},
    }
    flags = [f"--{name}={value}" for name, value in written.items() if isinstance(value, str)]
    assert load_recipe(None, parsed(*flags)[1]) == Recipe(
        **{name: value for name, value in written.items() if isinstance(value, str)}  # type: ignore[arg-type]
    )


def refused(*words: str) -> list[str]:
    """What `ahn train` says on standard error, with exit code 2."""
    result = CliRunner().invoke(app, ["train", *words])
    assert result.exit_code == 2, result.output
    return [line.removeprefix("error: ") for line in result.stderr.splitlines()]


def test_every_problem_of_a_command_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "dataset: x\noutput_dir: x\nmodel_name_or_path: x\nfilter_length: 3\nbf16: maybe\n"
        "base: {tokeniser: x, config: {}}\n"
    )
    found = refused(str(path), "--sliding_window", "many", "--set", "loss_type=l1")
    assert found == [
        f"{path}:6: base.tokenizer: is missing",
        f"{path}:6: base.tokeniser: there is no such option; did you mean 'tokenizer'?",
        "--loss-type: 'l1' is not kl, ce and distill joined with +",
        "--sliding-window: input should be a valid integer, not 'many'",
        f"{path}:5: bf16: input should be a valid boolean, not 'maybe'",
        f"{path}:4: filter_length: there is no such option; did you mean 'filter_len'?",
    ]
    assert refused() == refused("--fresh") and "ahn train --help" in refused()[0]
    assert refused("--seed", "1") == ["--output-dir: is missing", "--dataset: is missing"]
    assert refused("--set", "seed") == ["--set seed: give it as option=value"]
    assert refused("no.yaml", "--seed", "1") == ["no.yaml: no such recipe"]
    path.write_text("dataset: x\noutput_dir: [\n")
    assert refused(str(path))[0].startswith(f"{path}:3: is not valid YAML: ")


def test_keys_of_a_recipe_may_be_written_as_flags_are(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("dataset: x\noutput-dir: x\nmodel_name_or_path: x\nmax-samples: null\n")
    assert load_recipe(path).output_dir == "x"
    path.write_text(path.read_text() + "output_dir: y\n")
    with pytest.raises(ahn.InputError, match="recipe.yaml:5: 'output_dir' is given twice"):
        load_recipe(path)


NUMBERS = [
    *[
        "filter_len",
        "cutoff_len",
        "max_samples",
        "sliding_window",
        "num_attn_sinks",
        "max_steps",
        "save_steps",
    ],
    *["tokens_per_batch", "gradient_accumulation_steps", "per_device_train_batch_size", "seed"],
    *["position_gap", "logging_steps", "save_total_limit", "eval_steps", "threads"],
    *["preprocessing_num_workers", "early_stopping_patience"],
]
FACTORS = [
    *[
        "learning_rate",
        "muon_learning_rate",
        "warmup_steps",
        "weight_decay",
        "adam_beta2",
        "max_grad_norm",
    ],
    *["num_train_epochs", "key_spread", "decay_init_max", "loss_weights.ce", "base.offset_logit"],
]


@pytest.mark.parametrize("value", ["99999999999", "1" + "0" * 30, "-2", "nan", "1.5", "1e3", "yes"])
@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_that_nobody_means_are_refused(name: str, value: str) -> None:
    told = refused("--model_name_or_path", "x", "--output_dir", "x", "--dataset", "x",
                   f"--{name}", value)  # fmt: skip
    assert any(line.startswith(f"--{name.replace('_', '-')}: ") for line in told), told


def test_less_than_a_step_of_an_epoch_is_refused() -> None:
    told = refused("--output_dir", "x", "--dataset", "x", "--num_train_epochs", "1e-9")
    assert told == ["--num-train-epochs: must be at least 1e-06, not 1e-09"]


@pytest.mark.parametrize("value", ["1e300", "-1", "nan", "inf", "yes", "many"])
@pytest.mark.parametrize("name", FACTORS)
def test_factors_that_nobody_means_are_refused(name: str, value: str) -> None:
    told = refused("--model_name_or_path", "x", "--output_dir", "x", "--dataset", "x",
                   f"--{name}", value)  # fmt: skip
    first, _, rest = name.partition(".")
    flag = f"--{first.replace('_', '-')}" + (f".{rest}" if rest else "")
    assert any(line.startswith(f"{flag}: ") for line in told), told


def test_help_lists_every_option_with_its_meaning() -> None:
    text = CliRunner().invoke(app, ["train", "--help"], terminal_width=200).output
    for name, field in Recipe.model_fields.items():
        assert f"--{name.replace('_', '-')}" in text and field.description, name
    assert "kl, ce, distill, joined with +" in text and "[default: 24576]" in text
    assert "--ahn-position prefix|random" in text and "GatedDeltaNet, DeltaNet, Mamba2" in text
    headings = [line for line in text.splitlines() if line.endswith(":") and line[0] != " "]
    ours = [f"{heading}:" for heading in Recipe.groups.values()]
    assert [heading for heading in headings if heading in ours] == ours


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
    with pytest.raises(ahn.InputError, match="did you mean 'dataloader_num_workers'"):
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
        ({"sliding_window_choices": []}, "sliding_window_choices: list should have at least 1"),
        ({"sliding_window_choices": [0]}, "sliding_window_choices.0: must be more than 0, not 0"),
        ({"num_attn_sinks_choices": [-1]}, "num_attn_sinks_choices.0: must be at least 0, not -1"),
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


def arguments_of(tmp_path: Path, **options: Any) -> Any:
    """transformers' arguments for a recipe with these options."""
    values = {"model_name_or_path": "x", "output_dir": str(tmp_path / "out"), "dataset": "x"}
    return training_arguments(Recipe(**{**values, **options}))


@pytest.mark.parametrize(
    ("kind", "kwargs", "message"),
    [
        ("cosine", {"num_cycle": 1}, "unexpected keyword argument 'num_cycle'"),
        ("cosine", {"num_cycles": "many"}, "for cosine: "),
        ("cosine_with_min_lr", {}, "for cosine_with_min_lr: .*min_lr"),
        ("polynomial", {"lr_end": 1.0}, "lr_end"),
        ("constant", {"gamma": 0.1}, "takes none"),
        ("constant_with_warmup", {"gamma": 0.1}, "takes none"),
        ("warmup_stable_decay", {}, "num_decay_steps"),
        ("cosine", {"num_cycles": float("inf")}, "for cosine"),
    ],
)
def test_a_schedule_that_cannot_be_made_is_told(
    tmp_path: Path, kind: str, kwargs: dict[str, Any], message: str
) -> None:
    with pytest.raises(ahn.InputError, match=f"^lr_scheduler_kwargs: .*{message}[^\\n]*$"):
        arguments_of(tmp_path, lr_scheduler_type=kind, lr_scheduler_kwargs=kwargs)


@pytest.mark.parametrize(
    ("kind", "kwargs"),
    [
        ("cosine", {"num_cycles": 0.4}),
        ("cosine_with_min_lr", {"min_lr": 1e-6}),
        ("warmup_stable_decay", {"num_decay_steps": 10}),
        ("reduce_lr_on_plateau", {"patience": 3}),
        ("constant_with_warmup", {}),
    ],
)
def test_a_schedule_that_can_is_not(tmp_path: Path, kind: str, kwargs: dict[str, Any]) -> None:
    options = {"lr_scheduler_kwargs": kwargs, "max_steps": 50, "eval_dataset": "x"}
    arguments_of(tmp_path, lr_scheduler_type=kind, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"training_arguments": {"fsdp": True}}, "fsdp: .*start it with torchrun"),
        ({"training_arguments": {"fsdp": "full_shard"}}, "fsdp: .*start it with torchrun"),
        (
            {"training_arguments": {"deepspeed": {"zero_optimization": {"stage": 3}}}},
            "ZeRO stage 3 is not supported.*stage 2.*fsdp",
        ),
        (
            {"training_arguments": {"torch_compile": "maybe"}},
            "true or false is needed, not 'maybe'",
        ),
        (
            {"training_arguments": {"data_seed": 1.5}},
            "data_seed: a whole number is needed, not 1.5",
        ),
        ({"training_arguments": {"adam_epsilon": float("nan")}}, "a finite number is needed"),
        ({"training_arguments": {"adam_beta1": True}}, "adam_beta1: a number is needed, not True"),
        ({"training_arguments": {"dataloader_num_workers": -3}}, "0 to 1,024 processes, not -3"),
        (
            {"training_arguments": {"dataloader_num_workers": 999_999_999}},
            "dataloader_num_workers: 0 to 1,024 processes, not 999999999",
        ),
        ({"training_arguments": {"data_seed": 10**30}}, "data_seed: a number of at most"),
        ({"training_arguments": {"activation_checkpointing": True}}, "say gradient_checkpointing"),
        ({"training_arguments": {"label_smoothing_factor": 0.1}}, "label_smoothing_factor: not"),
        ({"training_arguments": {"remove_unused_columns": True}, "seed": 1}, "windows are drawn"),
        ({"training_arguments": {"neftune_noise_alpha": 5}}, "teacher's input takes no noise"),
        ({"training_arguments": {"auto_find_batch_size": True}}, "another than the recipe's"),
        ({"training_arguments": {"resume_from_checkpoint": "x"}}, "goes on from the last"),
        ({"training_arguments": {"save_only_model": True}}, "could not go on"),
        ({"training_arguments": {"load_best_model_at_end": True}}, "early_stopping_patience saves"),
        ({"training_arguments": {"metric_for_best_model": "x"}}, "early_stopping_patience saves"),
        ({"training_arguments": {"optim_args": "a=1"}}, "goes with training_arguments.optim"),
        (
            {"training_arguments": {"dataloader_drop_last": True}, "tokens_per_batch": 9},
            "tokens_per_batch takes samples in the order",
        ),
        (
            {"training_arguments": {"dataloader_in_order": False}, "streaming": True}
            | {"max_steps": 1},
            "streaming has processes of its own",
        ),
        (
            {"training_arguments": {"train_sampling_strategy": "sequential"}, "streaming": True}
            | {"max_steps": 1},
            "streaming takes samples in the order",
        ),
        (
            {"training_arguments": {"save_strategy": "no"}, "eval_dataset": "x"}
            | {"early_stopping_patience": 1},
            "saves at every better evaluation",
        ),
        (
            {"training_arguments": {"optim": "sgd"}, "stage": "pretrain", "optimizer": "muon"},
            "give one of the two",
        ),
    ],
    ids=lambda value: None if isinstance(value, str) else str(value)[:60],
)
def test_options_of_transformers_that_would_do_nothing_are_refused(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ahn.InputError, match=message):
        arguments_of(tmp_path, **options)


def test_loaders_that_cannot_be_are_told(tmp_path: Path) -> None:
    data = write_conversations(tmp_path / "data.jsonl")
    extra = {**ON_CPU, "dataloader_persistent_workers": True}
    for batches in ({}, {"tokens_per_batch": 300}):
        options = pocket_options(data, tmp_path / "out", training_arguments=extra, **batches)
        with pytest.raises(ahn.InputError, match="training_arguments.*persistent_workers"):
            train(Recipe(**options))
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "extra", [{"eval_strategy": "steps"}, {"save_strategy": "best"}, {"save_strategy": "sometimes"}]
)
def test_what_transformers_finds_later_is_told_in_one_line(
    tmp_path: Path, extra: dict[str, Any]
) -> None:
    data = write_conversations(tmp_path / "data.jsonl")
    arguments = {**ON_CPU, **extra}
    options = pocket_options(data, tmp_path / "out", training_arguments=arguments)
    with pytest.raises(ahn.InputError, match="^transformers refuses the options: [^\\n]*$"):
        train(Recipe(**options))
    assert not (tmp_path / "out").exists()


def test_options_of_transformers_at_their_default_are_no_mistake(tmp_path: Path) -> None:
    given = {"do_eval": False, "save_only_model": False, "label_smoothing_factor": 0.0}
    arguments_of(tmp_path, training_arguments=given)


@pytest.mark.parametrize("stage", [2, 3, "3", None])
def test_the_zero_stage_is_read_from_a_file_or_a_mapping(tmp_path: Path, stage: Any) -> None:
    configuration = {"zero_optimization": {"stage": stage}} if stage else {}
    path = tmp_path / "zero.json"
    path.write_text(json.dumps(configuration))
    expected = None if stage is None else int(stage)
    assert zero_stage(configuration) == zero_stage(str(path)) == expected
    assert zero_stage(None) is zero_stage("no.json") is None
    path.write_text("{half")
    with pytest.raises(ahn.InputError, match="deepspeed: .*zero.json"):
        zero_stage(str(path))


def test_zero_3_of_the_launcher_is_refused_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3")
    if importlib.util.find_spec("deepspeed") is not None:
        pytest.skip("transformers reads the launcher's environment itself")
    # without the package transformers gives up before us, in one line
    with pytest.raises(ahn.InputError, match="ZeRO stage 3|package is missing|deepspeed"):
        arguments_of(tmp_path)


def test_adams_other_numbers_reach_the_optimiser(tmp_path: Path) -> None:
    given = {"adam_beta1": 0.7, "adam_epsilon": 1e-5}
    values: dict[str, Any] = {"model_name_or_path": "x", "output_dir": "x", "dataset": "x"}
    values["adam_beta2"] = 0.9
    recipe = Recipe(**values, training_arguments=given)
    optimizer = new_optimizer(torch.nn.Linear(2, 2), recipe)
    assert all(group["betas"] == (0.7, 0.9) for group in optimizer.param_groups)
    assert all(group["eps"] == 1e-5 for group in optimizer.param_groups)


def test_a_key_that_stands_twice_in_a_recipe_is_named(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("dataset: x\noutput_dir: x\nseed: 1\nmodel_name_or_path: x\nseed: 2\n")
    with pytest.raises(ahn.InputError, match="recipe.yaml:5: .*key 'seed' is given twice"):
        load_recipe(path)


@pytest.mark.parametrize("value", [".nan", ".inf", "1.0e+37"])
def test_numbers_that_are_none_are_refused(tmp_path: Path, value: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"dataset: x\noutput_dir: x\nmodel_name_or_path: x\nlearning_rate: {value}\n")
    with pytest.raises(ahn.InputError, match="learning_rate|recipe.yaml:4: .* is no finite number"):
        load_recipe(path)


@pytest.mark.parametrize(
    "changes", [{"loss_type": "ce"}, {"sliding_window": 64}, {"fa_layer_ids": [1]}], ids=str
)
def test_a_base_model_takes_no_options_of_memories(changes: dict[str, Any]) -> None:
    values: dict[str, Any] = {"stage": "pretrain", "model_name_or_path": "x", "output_dir": "x"}
    Recipe(**values, dataset="x")
    with pytest.raises(ValueError, match=f"{next(iter(changes))} is for stage distill"):
        Recipe(**values, dataset="x", **changes)


# --- the hub ---

PUSH = {**ON_CPU, "push_to_hub": True, "hub_model_id": "me/mine", "hub_token": "hf_x"}


def test_a_hub_that_cannot_be_reached_is_told_before_data_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    data = write_conversations(tmp_path / "data.jsonl")
    monkeypatch.setenv("AHN_BENCH_CACHE", str(tmp_path / "cache"))
    options = pocket_options(data, tmp_path / "out", training_arguments=PUSH)
    with pytest.raises(ahn.InputError, match="^training_arguments.push_to_hub: me/mine: [^\\n]*$"):
        train(Recipe(**options))
    assert not (tmp_path / "out").exists() and not (tmp_path / "cache").exists()


def test_the_finished_folder_goes_to_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the Trainer would upload are checkpoints, which nobody can load."""
    calls: list[tuple[str, Any]] = []

    class Api:
        def __init__(self, token: str | None = None) -> None:
            assert token == "hf_x"

        def create_repo(self, name: str, **options: Any) -> None:
            calls.append(("create", name))

        def upload_folder(self, *, folder_path: Path, repo_id: str, **options: Any) -> None:
            held = sorted(path.name for path in Path(folder_path).iterdir())
            calls.append(("upload", (repo_id, held, options["ignore_patterns"])))
            if len(calls) > 2:
                raise OSError("gone")

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    data = write_conversations(tmp_path / "data.jsonl")
    options = pocket_options(data, tmp_path / "out", training_arguments=PUSH, max_steps=1)
    train(Recipe(**options))
    assert calls[0] == ("create", "me/mine")
    _, (name, held, left_out) = calls[1]
    assert name == "me/mine" and left_out == ["checkpoints/*", ".*"]
    assert {"model.safetensors", "README.md", "config.json", "training.json"} <= set(held)
    calls.clear()
    train(Recipe(**options))  # finished before: uploaded, since it may have failed
    assert [what for what, _ in calls] == ["create", "upload"]
    calls.append(("one more", None))
    with pytest.raises(ahn.InputError, match="me/mine: gone. The training is finished and saved"):
        train(Recipe(**options), resume=False)
    assert (tmp_path / "out" / "model.safetensors").exists()
