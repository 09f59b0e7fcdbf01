"""Self-distillation: the same model is teacher (full attention) and student (window + memory).

The base is frozen; only memories train.  Per batch a window and sinks are drawn as the recipe
says; `W_total` counts the sinks, so the student's window is `W_total - S`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ahn.checkpoints import build_model, describe_model, local_folder, save_memory
from ahn.config import AHNConfig, InputError, LayerLayout
from ahn.distill.data import Conversations
from ahn.distill.losses import beyond, ce_loss, distill_loss, kl_loss, shifted
from ahn.distill.recipe import Recipe
from ahn.distill.trainer import RecipeTrainer


def student_model(recipe: Recipe) -> PreTrainedModel:
    """The base model with fresh memories, all but these frozen.

    Raises:
        InputError: the base model cannot be loaded.
    """
    assert recipe.model_name_or_path is not None
    folder = local_folder(recipe.model_name_or_path)
    config = describe_model(folder)
    family = str(config.get("model_type"))
    if family not in ("qwen2", "qwen3"):
        raise InputError(f"{folder}: model_type {family!r}; a Qwen2 or Qwen3 base is needed")
    settings = AHNConfig(
        cell=recipe.ahn_implementation,
        window=recipe.sliding_window - recipe.num_attn_sinks,
        sinks=recipe.num_attn_sinks,
    )
    torch.manual_seed(recipe.seed)
    dtype = torch.bfloat16 if recipe.bf16 else torch.float32
    model = build_model(folder, family, config, settings, dtype)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".ahn.fn." in name)
    for layer in model.model.layers:
        if layer.ahn is not None:
            layer.ahn.fn.reset_parameters(
                config.get("initializer_range", 0.02), recipe.decay_init_max
            )
    return model


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


@contextmanager
def attention_outputs(model: Any) -> Iterator[list[Tensor]]:
    """Collects each layer's attention output `[B, L, H * d]` before `o_proj`, in order."""
    collected: list[Tensor] = []
    handles = [
        layer.self_attn.o_proj.register_forward_pre_hook(
            lambda module, inputs: collected.append(inputs[0])
        )
        for layer in model.model.layers
    ]
    try:
        yield collected
    finally:
        for handle in handles:
            handle.remove()


class DistillTrainer(RecipeTrainer):
    """KL, cross-entropy and attention-output losses between teacher and student.

    Batches with nothing to learn from (shorter than the window, no label beyond it) give a zero
    loss and are counted in `skipped`.
    """

    def __init__(
        self, recipe: Recipe, model: PreTrainedModel, data: Conversations, **kwargs: Any
    ) -> None:
        super().__init__(recipe, model, data, **kwargs)
        self.skipped = 0

    def _span(self, length: int) -> tuple[int, int] | None:
        # the draw depends on seed and step only, so that a resumed run draws the same
        rng = random.Random(f"{self.recipe.seed}/{self.state.global_step}/{self._micro_step}")
        return draw_span(self.recipe, length, rng)

    _micro_step = 0

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """As the Trainer's; counts micro-steps within an accumulated step."""
        loss = super().training_step(*args, **kwargs)
        self._micro_step = (self._micro_step + 1) % self.args.gradient_accumulation_steps
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The recipe's losses, added."""
        labels = inputs.pop("labels")
        span = self._span(labels.shape[1])
        loss = None
        if span is not None:
            loss = distillation_loss(
                model,
                inputs,
                labels,
                span,
                self.recipe.losses,
                normalized=self.recipe.use_normalized_l2,
                kl_positions=self.recipe.kl_positions,
            )
        if loss is None:
            self.skipped += 1
            trained = [p for p in model.parameters() if p.requires_grad]
            loss = torch.stack([p.sum() * 0.0 for p in trained]).sum()
        return (loss, None) if return_outputs else loss

    def save_weights(self, output: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write the memories alone, with released key names and configuration keys."""
        recipe = self.recipe
        assert recipe.model_name_or_path is not None
        save_memory(
            self.model,
            output,
            describe_model(recipe.model_name_or_path),
            loss_type=recipe.losses,
            ahn_position=recipe.ahn_position,
            sliding_window_type=recipe.sliding_window_type,
            use_normalized_l2=recipe.use_normalized_l2,
        )


def distillation_loss(
    model: Any,
    inputs: dict[str, Any],
    labels: Tensor,
    span: tuple[int, int],
    losses: list[str],
    *,
    normalized: bool = True,
    kl_positions: str = "label",
) -> Tensor | None:
    """One batch's loss, or None when no labelled position lies beyond the window.

    Cross-entropy is taken where a position at or beyond `W_total` predicts a labelled token.

    Args:
        model: a model of `ahn.modeling` with memories; teacher and student at once.
        inputs: `input_ids`, `attention_mask`, `position_ids` for the model.
        labels: `[B, L]`, -100 where a token carries no loss.
        span: `(W_total, sinks)` of the student.
        losses: any of `kl`, `ce`, `distill`, added up.
        normalized: see `distill_loss`.
        kl_positions: `label`: KL at positions whose own token is labelled, as in the paper's
            tool; `prediction`: at positions that predict a labelled token, the first token of an
            answer among them.
    """
    total, sinks = span
    targets = shifted(labels)
    predicting = beyond(targets, total)
    compared = predicting if kl_positions == "prediction" else beyond(labels, total)
    used = {"kl": compared, "ce": predicting}
    if any(not bool(used[name].any()) for name in losses if name in used):
        return None
    if "distill" in losses and labels.shape[1] <= total:
        return None
    count = len(model.model.layers)
    own = model.model.layout
    student_layout = [
        LayerLayout(total - sinks, sinks, seen.cell) if seen.cell is not None else seen
        for seen in own
    ]
    with torch.no_grad(), attention_outputs(model) as teacher_outputs:
        teacher = model.model(**inputs, layout=[LayerLayout()] * count, use_cache=False)
    with attention_outputs(model) as student_outputs:
        student = model.model(**inputs, layout=student_layout, use_cache=False)
    loss = labels.new_zeros((), dtype=torch.float32)
    mine, theirs = student.last_hidden_state, teacher.last_hidden_state
    if "kl" in losses:
        loss = loss + kl_loss(mine[compared], theirs[compared], model.lm_head)
    if "ce" in losses:
        loss = loss + ce_loss(mine[predicting], targets[predicting], model.lm_head)
    if "distill" in losses:
        loss = loss + distill_loss(
            student_outputs, teacher_outputs, total, normalized, inputs.get("attention_mask")
        )
    return loss
