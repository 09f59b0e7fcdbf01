"""A recipe in the words of transformers' Trainer: its arguments, and the optimiser."""

from __future__ import annotations

import dataclasses
import difflib
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks

from ahn.config import InputError
from ahn.distill.optim import MuonAdamW
from ahn.distill.recipe import Recipe

#: Folder of the Trainer's checkpoints, in the output folder.
CHECKPOINTS = "checkpoints"

_ADAM_BETA1 = 0.9


def training_arguments(recipe: Recipe) -> TrainingArguments:
    """The Trainer's options for a recipe.

    Raises:
        InputError: an option that transformers does not have, or a value that it refuses.
    """
    known = {item.name for item in dataclasses.fields(TrainingArguments)}
    unknown = sorted(recipe.training_arguments.keys() - known)
    if unknown:
        close = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise InputError(f"training_arguments: transformers has no option {unknown[0]!r}{hint}")
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
        "remove_unused_columns": False,
        "report_to": recipe.report_to,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "ddp_find_unused_parameters": False,
        "use_cpu": not torch.accelerator.is_available(),
        **evaluation,
        **recipe.training_arguments,
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
        return arguments
    except ImportError as error:
        hint = "; pip install deepspeed" if recipe.training_arguments.get("deepspeed") else ""
        raise InputError(f"a package is missing: {first_line(error)}{hint}") from None
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        raise InputError(f"transformers refuses the options: {first_line(error)}") from None


def new_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Over what trains: Muon + AdamW, or AdamW; only matrices are decayed."""
    betas = (_ADAM_BETA1, recipe.adam_beta2)
    if recipe.optimizer == "muon":
        return MuonAdamW(
            model,
            learning_rate=recipe.learning_rate,
            muon_learning_rate=recipe.muon_learning_rate,
            weight_decay=recipe.weight_decay,
            betas=betas,
        )
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.dim() > 1]
    vectors = [p for p in trained if p.dim() <= 1]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=betas)


def first_line(error: BaseException) -> str:
    """What an error of a library says, without its explanations."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
