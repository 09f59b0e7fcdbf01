"""What is trained: a frozen base with fresh memories, and the windows that it is shown."""

from __future__ import annotations

import random
from typing import Any

import torch
from transformers import PreTrainedModel

from ahn.checkpoints import build_model, describe_model, local_folder
from ahn.config import AHNConfig, InputError
from ahn.distill.recipe import Recipe


def student_settings(recipe: Recipe) -> tuple[dict[str, Any], AHNConfig]:
    """The base model's configuration, and the memories that are added; no weights are read.

    Raises:
        InputError: no such model, one that is no Qwen2 or Qwen3, or one without the layers asked.
    """
    source = recipe.model_name_or_path
    assert source is not None
    config = describe_model(source)
    family = config.get("model_type")
    if family not in ("qwen2", "qwen3"):
        raise InputError(
            f"model_name_or_path: {source}: model_type {family!r}; a Qwen2 or Qwen3 base is needed"
        )
    layers = int(config.get("num_hidden_layers", 0))
    outside = [layer for layer in recipe.fa_layer_ids if not 0 <= layer < layers]
    if outside or len(set(recipe.fa_layer_ids)) >= layers:
        raise InputError(
            f"fa_layer_ids: {recipe.fa_layer_ids} for a model with layers 0 to {layers - 1}, of "
            "which one at least needs a memory"
        )
    return config, AHNConfig(
        cell=recipe.ahn_implementation,
        window=recipe.sliding_window - recipe.num_attn_sinks,
        sinks=recipe.num_attn_sinks,
        full_attention_layers=tuple(sorted(set(recipe.fa_layer_ids))),
    )


def student_model(recipe: Recipe) -> PreTrainedModel:
    """The base model with fresh memories, all but these frozen.

    Raises:
        InputError: the base model cannot be loaded, or is none (see `student_settings`).
    """
    assert recipe.model_name_or_path is not None
    config, settings = student_settings(recipe)
    folder, family = local_folder(recipe.model_name_or_path), str(config["model_type"])
    torch.manual_seed(recipe.seed)
    dtype = torch.bfloat16 if recipe.bf16 else torch.float32
    model = build_model(folder, family, config, settings, dtype)
    make_trainable(model, recipe, config.get("initializer_range", 0.02))
    return model


def make_trainable(model: Any, recipe: Recipe, std: float = 0.02) -> None:
    """Freeze all but the memories of `model`, which start anew in float32.

    Args:
        model: a model of `ahn.modeling` with memories.
        recipe: says how decays start and whether layers are run again going backward.
        std: of a fresh projection.
    """
    for name, parameter in model.named_parameters():
        # a released GatedDeltaNet holds a D that nothing reads
        parameter.requires_grad_(".ahn.fn." in name and not name.endswith(".fn.D"))
    for layer in model.model.layers:
        if layer.ahn is not None:
            layer.ahn.fn.reset_parameters(std, recipe.decay_init_max)
            layer.ahn.float()  # master weights; autocast computes in bfloat16 where it may
    if recipe.gradient_checkpointing:
        # transformers renames it
        old = "gradient_checkpointing_enable"
        enable = getattr(model, "activation_checkpointing_enable", None) or getattr(model, old)
        enable({"use_reentrant": False})


def smallest_window(recipe: Recipe) -> int:
    """W_total below which a recipe's batches have nothing to distil, in tokens."""
    if recipe.sliding_window_type == "fixed":
        return recipe.sliding_window
    if recipe.sliding_window_type == "linear":
        return 512
    return min(recipe.sliding_window_choices)


def draw_span(recipe: Recipe, length: int, rng: random.Random) -> tuple[int, int] | None:
    """`(W_total, sinks)` for a batch of `length` tokens; None when no window fits it.

    `fixed`: the recipe's; `linear`: `max(L/4, 512)`; `random`: one of the recipe's choices with
    `L/8 < W_total < L`. Sinks: the recipe's for `prefix`; for `random` one of its choices with
    `S <= W_total/2`. A batch that fits its window has nothing to distil.
    """
    if recipe.sliding_window_type == "fixed":
        total = recipe.sliding_window
    elif recipe.sliding_window_type == "linear":
        total = max(length // 4, 512)
    else:
        fitting = [w for w in recipe.sliding_window_choices if length / 8 < w < length]
        if not fitting:
            return None
        total = rng.choice(fitting)
    if total >= length:
        return None
    sinks = recipe.num_attn_sinks
    if recipe.ahn_position == "random":
        sinks = rng.choice([s for s in recipe.num_attn_sinks_choices if s <= total / 2] or [0])
    return (total, sinks) if sinks < total else None
