"""A recipe in the words of transformers' Trainer: its arguments, and the optimiser."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any, get_args, get_type_hints

import torch
from torch import nn
from transformers import TrainingArguments, get_scheduler
from transformers.integrations import get_reporting_integration_callbacks
from transformers.training_args import ParallelMode

from ahn.distill.files import first_line
from ahn.distill.optim import MuonAdamW
from ahn.distill.recipe import MOST_PROCESSES, Recipe
from common.errors import InputError
from common.suggestions import did_you_mean

#: Folder of the Trainer's checkpoints, in the output folder.
CHECKPOINTS = "checkpoints"

_MOST = 10**12  # beyond it no option of transformers has a meaning
_STEPS_TRIED = 100  # of a schedule whose length is not known yet
_BEST = "early_stopping_patience saves the weights with the lowest evaluation loss"
_CHECKPOINTING = "say gradient_checkpointing, an option of the recipe"
#: Options of transformers that would do nothing here, or something else than they say.
_REFUSED = {
    "activation_checkpointing": _CHECKPOINTING,
    "activation_checkpointing_kwargs": _CHECKPOINTING,
    "gradient_checkpointing_kwargs": _CHECKPOINTING,
    "auto_find_batch_size": "the batch would be another than the recipe's",
    "average_tokens_across_devices": "losses are means of each batch",
    "do_eval": "give an eval_dataset",
    "do_predict": "'run_eval' evaluates",
    "greater_is_better": _BEST,
    "hub_always_push": "the finished folder is uploaded, once",
    "hub_strategy": "the finished folder is uploaded, once",
    "label_names": "labels are made from conversations",
    "label_smoothing_factor": "the losses here take no smoothed labels",
    "length_column_name": "samples know their lengths",
    "load_best_model_at_end": _BEST,
    "metric_for_best_model": _BEST,
    "remove_unused_columns": "windows are drawn by a column that this would remove",
    "resume_from_checkpoint": "the same command goes on from the last checkpoint by itself",
    "save_only_model": "a run could not go on from such a checkpoint",
    "use_liger_kernel": "the losses here work in pieces by themselves",
}
#: Values that ask for nothing, where they are not transformers' default.
_HARMLESS = {"remove_unused_columns": False}
#: Options about the order of data, which these options of a recipe settle.
_OF_ORDER = ("dataloader_drop_last", "train_sampling_strategy")
#: Options of workers that load batches.
_OF_LOADERS = (
    "dataloader_in_order",
    "dataloader_multiprocessing_context",
    "dataloader_persistent_workers",
    "dataloader_prefetch_factor",
)
#: Options of an optimiser of transformers.
_OF_OPTIM = ("optim_args", "optim_target_modules")


def training_arguments(recipe: Recipe) -> TrainingArguments:
    """The Trainer's options for a recipe.

    Raises:
        InputError: an option that transformers does not have, or a value that it refuses.
    """
    _check_names(recipe)
    if zero_stage(recipe.training_arguments.get("deepspeed")) == 3:
        raise InputError(_ZERO3)
    evaluation: dict[str, Any] = {}
    if recipe.eval_dataset is not None:
        evaluation = {
            "eval_strategy": "steps",
            "eval_steps": recipe.eval_steps,
            "prediction_loss_only": True,
        }
        if recipe.early_stopping_patience is not None:
            evaluation |= {"metric_for_best_model": "eval_loss", "greater_is_better": False}
    values: dict[str, Any] = {
        "output_dir": str(Path(recipe.output_dir) / CHECKPOINTS),
        "learning_rate": recipe.learning_rate,
        "lr_scheduler_type": recipe.lr_scheduler_type,
        "lr_scheduler_kwargs": recipe.lr_scheduler_kwargs or None,
        "warmup_steps": recipe.warmup_steps,
        "weight_decay": recipe.weight_decay,
        "adam_beta2": recipe.adam_beta2,
        "max_grad_norm": recipe.max_grad_norm,
        "max_steps": recipe.max_steps,
        "num_train_epochs": recipe.num_train_epochs,
        "per_device_train_batch_size": recipe.per_device_train_batch_size,
        "per_device_eval_batch_size": recipe.per_device_train_batch_size,
        "gradient_accumulation_steps": recipe.gradient_accumulation_steps,
        "bf16": recipe.bf16,
        "seed": recipe.seed,
        "data_seed": recipe.seed,
        "logging_steps": recipe.logging_steps,
        "save_steps": recipe.save_steps,
        "save_total_limit": recipe.save_total_limit,
        "logging_nan_inf_filter": False,  # it logs 0; such a run is stopped (see `RecipeTrainer`)
        "remove_unused_columns": False,
        "report_to": recipe.report_to,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "ddp_find_unused_parameters": False,
        "use_cpu": not torch.accelerator.is_available(),
        **evaluation,
        **recipe.training_arguments,
        "push_to_hub": False,  # the Trainer would upload checkpoints; see `ahn.distill.hub`
    }
    dealt: dict[str, Any] = {}
    if recipe.tokens_per_batch is not None:
        dealt = {"even_batches": False}  # batches are dealt out whole; their number is made to fit
    elif recipe.streaming:
        dealt = {"dispatch_batches": False}  # one process cannot deal out rows of unequal length
    if dealt and not isinstance(values.get("accelerator_config"), str):
        values["accelerator_config"] = {**(values.get("accelerator_config") or {}), **dealt}
    try:
        arguments = TrainingArguments(**values)
        for callback in get_reporting_integration_callbacks(arguments.report_to):
            callback()  # fails where its package is missing
    except ImportError as error:
        hint = "; pip install deepspeed" if recipe.training_arguments.get("deepspeed") else ""
        raise InputError(f"a package is missing: {first_line(error)}{hint}") from None
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        raise InputError(f"transformers refuses the options: {first_line(error)}") from None
    _check_devices(arguments)
    _check_schedule(arguments)
    return arguments


def _check_names(recipe: Recipe) -> None:
    """Options of transformers: there are such, and each does what it says."""
    given = recipe.training_arguments
    kinds = get_type_hints(TrainingArguments)
    known = {item.name: item.default for item in dataclasses.fields(TrainingArguments)}
    problems = []
    for name in sorted(given):
        if name in known and given[name] == _HARMLESS.get(name, known[name]):
            continue
        if name not in known:
            problems.append(f"transformers has no option {name!r}{did_you_mean(name, known)}")
        elif wrong := _wrong_type(given[name], kinds[name]):
            problems.append(f"{name}: {wrong}, not {given[name]!r}")
        elif name == "dataloader_num_workers" and not 0 <= given[name] <= MOST_PROCESSES:
            problems.append(f"{name}: 0 to {MOST_PROCESSES:,} processes, not {given[name]}")
        elif name in _REFUSED:
            problems.append(f"{name}: not supported: {_REFUSED[name]}")
        elif name in _OF_ORDER and (recipe.tokens_per_batch is not None or recipe.streaming):
            what = "streaming" if recipe.streaming else "tokens_per_batch"
            problems.append(f"{name}: {what} takes samples in the order of the data")
        elif name in _OF_LOADERS and recipe.streaming:
            problems.append(f"{name}: streaming has processes of its own, in the rows' order")
        elif name in _OF_OPTIM and "optim" not in given:
            problems.append(f"{name}: goes with training_arguments.optim")
        elif name == "optim" and recipe.optimizer == "muon":
            problems.append(f"{name}: the recipe has an optimizer, muon; give one of the two")
        elif name == "neftune_noise_alpha" and recipe.stage == "distill":
            problems.append(f"{name}: not supported: a teacher's input takes no noise")
        elif name == "save_strategy" and recipe.early_stopping_patience is not None:
            problems.append(f"{name}: early stopping saves at every better evaluation")
    if problems:
        raise InputError(*(f"training_arguments: {problem}" for problem in problems))


def _wrong_type(value: Any, kind: Any) -> str | None:
    """What is wanted instead of `value`, for options that are numbers or yes/no.

    transformers checks no types: to it, any text is a yes.
    """
    kinds = set(get_args(kind) or [kind]) - {type(None)}
    if value is None or not kinds <= {bool, int, float}:
        return None
    if bool in kinds:
        return None if isinstance(value, bool) else "true or false is needed"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "a number is needed"
    if float not in kinds and not isinstance(value, int):
        return "a whole number is needed"
    if not math.isfinite(value):
        return "a finite number is needed"
    return None if abs(value) <= _MOST else f"a number of at most {_MOST:,} is needed"


_ZERO3 = (
    "training_arguments.deepspeed: ZeRO stage 3 is not supported: memories are made and the output "
    "head is used outside of their modules' forward passes, where stage 3 holds no weights. Use "
    "stage 2, or training_arguments.fsdp: true, which shards parameters, too"
)


def zero_stage(configuration: Any) -> int | None:
    """The ZeRO stage of a DeepSpeed configuration, a mapping or a JSON file; None: not said."""
    if isinstance(configuration, (str, Path)) and Path(configuration).is_file():
        try:
            configuration = json.loads(Path(configuration).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(
                f"training_arguments.deepspeed: {configuration}: {first_line(error)}"
            ) from None
    if not isinstance(configuration, dict):
        return None
    section = configuration.get("zero_optimization")
    stage = section.get("stage") if isinstance(section, dict) else None
    return int(str(stage)) if str(stage).isdigit() else None


def _check_devices(arguments: TrainingArguments) -> None:
    """Ways of sharding: what the launcher asks for, and that there is a launcher."""
    if arguments.fsdp and arguments.parallel_mode != ParallelMode.DISTRIBUTED:
        raise InputError(
            "training_arguments.fsdp: parameters are shared out among processes, and this is one: "
            "start it with torchrun --nproc_per_node DEVICES -m ahn.cli train ..."
        )
    plugin = getattr(arguments, "deepspeed_plugin", None)  # of `accelerate launch`, too
    launched = os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"
    asked = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") if launched else None
    if str(getattr(plugin, "zero_stage", asked)) == "3":
        raise InputError(_ZERO3)


def _check_schedule(arguments: TrainingArguments) -> None:
    """The learning rate's schedule can be made and gives finite numbers."""
    steps = arguments.max_steps if arguments.max_steps > 0 else _STEPS_TRIED
    kind = str(getattr(arguments.lr_scheduler_type, "value", arguments.lr_scheduler_type))
    named = f"lr_scheduler_kwargs: {arguments.lr_scheduler_kwargs or {}} for {kind}"
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=arguments.learning_rate)
    if arguments.lr_scheduler_kwargs and kind in ("constant", "constant_with_warmup"):
        raise InputError(f"{named}: this schedule takes none")
    try:
        schedule = get_scheduler(
            arguments.lr_scheduler_type,
            optimizer,
            num_warmup_steps=arguments.get_warmup_steps(steps),
            num_training_steps=steps,
            scheduler_specific_kwargs=dict(arguments.lr_scheduler_kwargs or {}),
        )
        rates = [group["lr"] for group in optimizer.param_groups]
        for factor in getattr(schedule, "lr_lambdas", []):
            rates += [factor(step) * arguments.learning_rate for step in range(min(steps, 10_000))]
        finite = all(math.isfinite(rate) for rate in rates)
    except Exception as error:  # whatever the schedule's own code raises
        raise InputError(f"{named}: {first_line(error)}") from None
    if not finite:
        raise InputError(f"{named}: gives learning rates that are no finite numbers")


def new_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Over what trains: Muon + AdamW, or AdamW; only matrices are decayed."""
    given = recipe.training_arguments
    betas = (float(given.get("adam_beta1", 0.9)), recipe.adam_beta2)
    eps = float(given.get("adam_epsilon", 1e-8))
    if recipe.optimizer == "muon":
        return MuonAdamW(
            model,
            learning_rate=recipe.learning_rate,
            muon_learning_rate=recipe.muon_learning_rate,
            weight_decay=recipe.weight_decay,
            betas=betas,
            eps=eps,
        )
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.dim() > 1]
    vectors = [p for p in trained if p.dim() <= 1]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=betas, eps=eps)
