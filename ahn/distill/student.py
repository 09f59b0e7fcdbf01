"""What is trained: a frozen base with memories, and the windows that it is shown."""

from __future__ import annotations

import random
from typing import Any

import torch
from safetensors import safe_open
from transformers import PreTrainedModel

from ahn.checkpoints.build import check_finite
from ahn.checkpoints.load import (
    build_model,
    check_model,
    describe_model,
    local_folder,
    weight_files,
)
from ahn.config import AHNConfig
from ahn.distill.recipe import Recipe
from ahn.families import family_of
from ahn.models.weights import stored_weights
from ahn.released import read_ahn_config
from common.errors import InputError


def base_config(recipe: Recipe) -> dict[str, Any]:
    """The base model's `config.json`; no weights are read.

    Raises:
        InputError: no such model, one of no family of `ahn.families`, one with a sliding window
            of its own, a memory, or a model that has memories already.
    """
    source = recipe.model_name_or_path
    assert source is not None
    config = describe_model(source)
    if config.get("_ahn_implementation"):
        raise InputError(
            f"model_name_or_path: {source}: is a memory ({config['_ahn_implementation']}), not a "
            "base model; give the model that it belongs to, and this as ahn_name_or_path to go on "
            "training it"
        )
    if config.get("ahn") or str(config.get("model_type")).endswith("_ahn"):
        raise InputError(
            f"model_name_or_path: {source}: has memories merged into it; give its base model, and "
            "as ahn_name_or_path, to go on training them, what 'ahn split' takes out"
        )
    try:
        family = family_of(config, source)
    except InputError as error:
        raise error.prefixed("model_name_or_path: ") from None
    if family.sliding_layers(config):
        found, remedy = family.window_switch(config)
        raise InputError(
            f"model_name_or_path: {source}: config.json has {found}: the teacher, which reads with "
            f"full attention, would not be this model; {remedy}"
        )
    return config


def student_settings(recipe: Recipe) -> tuple[dict[str, Any], AHNConfig]:
    """The base model's configuration, and the memories that are added; no weights are loaded.

    Raises:
        InputError: no such model (see `base_config`), or one without the layers asked; a memory to
            start from that does not fit it.
    """
    config = base_config(recipe)
    layers = int(config.get("num_hidden_layers", 0))
    outside = [layer for layer in recipe.fa_layer_ids if not 0 <= layer < layers]
    if outside or len(set(recipe.fa_layer_ids)) >= layers:
        raise InputError(
            f"fa_layer_ids: {recipe.fa_layer_ids} for a model with layers 0 to {layers - 1}, of "
            "which one at least needs a memory"
        )
    settings = AHNConfig(
        cell=recipe.ahn_implementation,
        window=recipe.sliding_window - recipe.num_attn_sinks,
        sinks=recipe.num_attn_sinks,
        full_attention_layers=tuple(sorted(set(recipe.fa_layer_ids))),
    )
    if recipe.ahn_name_or_path is not None:
        _check_start(recipe, settings)
    return config, settings


def _check_start(recipe: Recipe, settings: AHNConfig) -> None:
    """The memory that a recipe starts from is of the cell and the layers that it trains."""
    source = recipe.ahn_name_or_path
    assert source is not None and recipe.model_name_or_path is not None
    held = read_ahn_config(describe_model(source), source)
    problems = []
    if held is None:
        problems.append(
            f"{source}: config.json names no cell (_ahn_implementation); not an AHN checkpoint"
        )
    else:
        if held.cell != settings.cell:
            problems.append(
                f"{source}: holds {held.cell}, the recipe trains {settings.cell}; say "
                f"ahn_implementation: {held.cell}"
            )
        layers = tuple(sorted(set(held.full_attention_layers)))
        if layers != settings.full_attention_layers:
            problems.append(
                f"{source}: layers {list(layers)} keep full attention, in the recipe "
                f"{list(settings.full_attention_layers)}; say fa_layer_ids: {list(layers)}"
            )
    if not problems:
        problems = check_model(recipe.model_name_or_path, "ahn", source)
    if problems:
        raise InputError(*(f"ahn_name_or_path: {problem}" for problem in problems))


def student_model(recipe: Recipe) -> PreTrainedModel:
    """The base model with memories, fresh or those of `ahn_name_or_path`, all else frozen.

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
    if recipe.ahn_name_or_path is not None:
        _load_memory(model, recipe.ahn_name_or_path)
    check_finite(model, recipe.model_name_or_path)
    return model


def _load_memory(model: Any, source: str) -> None:
    """Put the weights of `source` into the memories of `model`, in float32."""
    memories = {name: t for name, t in stored_weights(model) if ".ahn.fn." in name}
    for path in weight_files(source):
        with safe_open(path, "pt") as file:
            for name in memories.keys() & set(file.keys()):
                tensor = file.get_tensor(name)
                if not bool(torch.isfinite(tensor).all()):
                    raise InputError(f"ahn_name_or_path: {path}: {name}: not finite numbers")
                with torch.no_grad():
                    memories.pop(name).copy_(tensor)
    if memories:
        raise InputError(f"ahn_name_or_path: {source}: {min(memories)} is missing")


def make_trainable(model: Any, recipe: Recipe, std: float = 0.02) -> None:
    """Freeze all but the memories of `model`, which start anew, in float32.

    Args:
        model: a model of `ahn.models.causal_lm` with memories.
        recipe: says how decays start and whether layers are run again going backward.
        std: of a fresh projection.
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".ahn.fn." in name)
    for layer in model.model.layers:
        if layer.ahn is not None:
            layer.ahn.fn.reset_parameters(std, recipe.decay_init_max)
            layer.ahn.float()  # master weights; autocast computes in bfloat16 where it may
    if recipe.gradient_checkpointing:
        checkpoint_layers(model)


def checkpoint_layers(model: Any) -> None:
    """Keep only what enters the layers of `model`; they are run again going backward."""
    old = "gradient_checkpointing_enable"  # transformers renames it
    enable = getattr(model, "activation_checkpointing_enable", None) or getattr(model, old)
    enable({"use_reentrant": False})


def fitting_windows(recipe: Recipe, length: int) -> list[int]:
    """Every W_total that a batch of `length` tokens can be trained with; none: it is skipped.

    `fixed`: the recipe's; `linear`: `max(L/4, 512)`; `random`: its choices with
    `L/8 < W_total < L`. A batch that fits its window has nothing to distil.
    """
    if recipe.sliding_window_type == "fixed":
        windows = [recipe.sliding_window]
    elif recipe.sliding_window_type == "linear":
        windows = [max(length // 4, 512)]
    else:
        windows = [w for w in recipe.sliding_window_choices if length / 8 < w]
    return [window for window in windows if window < length]


def fitting_sinks(recipe: Recipe, total: int) -> list[int]:
    """Every number of sinks that a window of `total` tokens can be trained with.

    `prefix`: none; `random`: the recipe's choices with `S <= W_total/2`; no sinks where none of
    them fits.
    """
    if recipe.ahn_position == "prefix":
        return [0]
    return [sinks for sinks in recipe.num_attn_sinks_choices if sinks <= total / 2] or [0]


def draw_span(recipe: Recipe, length: int, rng: random.Random) -> tuple[int, int] | None:
    """`(W_total, sinks)` for a batch of `length` tokens; None when no window fits it."""
    windows = fitting_windows(recipe, length)
    if not windows:
        return None
    total = rng.choice(windows) if recipe.sliding_window_type == "random" else windows[0]
    sinks = fitting_sinks(recipe, total)
    return total, rng.choice(sinks) if recipe.ahn_position == "random" else sinks[0]
