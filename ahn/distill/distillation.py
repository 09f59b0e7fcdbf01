"""Self-distillation: the same model is teacher (full attention) and student (window + memory).

The base is frozen; only memories train.  Per batch a window and sinks are drawn as the recipe
says; `W_total` counts the sinks, so the student's window is `W_total - S`.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ahn.checkpoints.load import describe_model, save_memory
from ahn.config import LayerLayout
from ahn.distill.losses import beyond, ce_loss, distill_loss, kl_loss, shifted
from ahn.distill.provenance import read_record
from ahn.distill.recipe import Recipe
from ahn.distill.student import draw_span
from ahn.distill.trainer import Data, RecipeTrainer
from common.errors import InputError

logger = logging.getLogger(__name__)


@contextmanager
def attention_outputs(model: Any, collect: bool = True) -> Iterator[list[Tensor]]:
    """Collects each layer's attention output `[B, L, H * d]` before `o_proj`, in order.

    Nothing is collected, and so nothing kept in memory, when `collect` is False.
    """
    collected: list[Tensor] = []
    if not collect:
        yield collected
        return
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


class Distillation(nn.Module):
    """Teacher and student in one module whose forward pass is the loss.

    So the wrappers of many processes (DDP, FSDP, DeepSpeed) see a forward and a backward pass
    like any other's.

    Args:
        model: a model of `ahn.models.causal_lm` with memories, all but these frozen.
        recipe: names the losses.

    Attributes:
        sharded: weights lie in parts on many processes (FSDP), which gather them layer by layer:
            each process must run through all layers in each pass, whatever it has to learn.
    """

    sharded = False

    def __init__(self, model: PreTrainedModel, recipe: Recipe) -> None:
        super().__init__()
        self.model = model
        self._weights = recipe.weights
        self._normalized = recipe.use_normalized_l2
        self._kl_positions = recipe.kl_positions

    @property
    def config(self) -> Any:
        """That of the model."""
        return self.model.config

    @property
    def _no_split_modules(self) -> Any:
        return self.model._no_split_modules  # what FSDP wraps by itself

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor,
        span: tuple[int, int] | None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> dict[str, Any]:
        """`loss`, a float32 scalar; its `terms` by name, without gradient; whether `skipped`.

        A skipped batch has nothing to learn from: its loss is 0, and it has no terms.

        Args:
            input_ids: `[B, L]`.
            labels: `[B, L]`, -100 where a token carries no loss.
            span: `(W_total, sinks)`; None when no window fits the batch.
            attention_mask: `[B, L]`, padding on the right.
            position_ids: `[B, L]`.
        """
        inputs: dict[str, Any] = {"input_ids": input_ids}
        if attention_mask is not None and not bool(attention_mask.all()):
            inputs["attention_mask"] = attention_mask
        if position_ids is not None:
            inputs["position_ids"] = position_ids
        terms = None
        if span is not None:
            terms = distillation_terms(
                self.model,
                inputs,
                labels,
                span,
                list(self._weights),
                normalized=self._normalized,
                kl_positions=self._kl_positions,
            )
        if terms is None:
            return {"loss": self._nothing(inputs), "terms": {}, "skipped": True}
        loss = weighted(terms, self._weights)
        terms = {name: term.detach() for name, term in terms.items()}
        return {"loss": loss, "terms": terms, "skipped": False}

    def _nothing(self, inputs: dict[str, Any]) -> Tensor:
        """0, as a function of all that trains: every process must have its gradients."""
        if not self.sharded:
            trained = [p for p in self.model.parameters() if p.requires_grad]
            return torch.stack([p.sum() * 0.0 for p in trained]).sum()
        model: Any = self.model
        # a window of one token, so that every memory is read
        layout = [
            LayerLayout(1, 0, seen.cell) if seen.cell else seen for seen in model.model.layout
        ]
        if has_teacher(self._weights):
            with torch.no_grad():
                model.model(**inputs, layout=[LayerLayout()] * len(layout), use_cache=False)
        student = model.model(**inputs, layout=layout, use_cache=False)
        return student.last_hidden_state.float().sum() * 0.0


@dataclass(frozen=True)
class _Gathered:
    """What `save_memory` reads of a model whose weights lay on many processes."""

    config: Any
    state: dict[str, Tensor]

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Names and whole tensors."""
        return iter(self.state.items())


class DistillTrainer(RecipeTrainer):
    """KL, cross-entropy and attention-output losses between teacher and student.

    Batches with nothing to learn from (shorter than the window, no label beyond it) give a zero
    loss and are counted in `skipped`.
    """

    def __init__(self, recipe: Recipe, model: PreTrainedModel, data: Data, **kwargs: Any) -> None:
        module = Distillation(model, recipe)
        super().__init__(recipe, module, data, **kwargs)
        module.sharded = self.is_fsdp_enabled
        self.skipped = 0  # by this process, in this start of the run
        self._skipped_before = 0
        self._evaluated: dict[str, float] = {}

    def skipped_batches(self) -> int:
        """Of all processes, before and after a resumption; every process takes part."""
        mine = torch.tensor(self.skipped, device=self.args.device)
        return self._skipped_before + int(self.accelerator.reduce(mine, "sum"))

    def term_names(self) -> list[str]:
        """The losses of the recipe, where there is more than one."""
        return self.recipe.losses if len(self.recipe.losses) > 1 else []

    def span(self, sample: int, length: int, epoch: int = 0) -> tuple[int, int] | None:
        """The window of the batch that begins with `sample`.

        Drawn from the seed, the epoch and the data alone, so that it is the same in a resumed
        run and however batches are dealt out to processes.
        """
        rng = random.Random(f"{self.recipe.seed}/{epoch}/{sample}")
        return draw_span(self.recipe, length, rng)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The batch's loss; zero, and counted, where there is nothing to learn."""
        inputs = dict(inputs)
        sample = int(inputs.pop("sample"))
        rows, length = inputs["input_ids"].shape
        # one window a sample for all evaluations, so that they can be compared
        epoch = int(self.state.epoch or 0) if model.training else 0
        output = model(**inputs, span=self.span(sample, length, epoch))
        if not model.training:
            self._count_evaluated(rows, output)
        else:
            self.add_terms(output["terms"])
            if output["skipped"]:
                self.skipped += 1
                if self.skipped == 1 or self.skipped % 100 == 0:
                    logger.warning(
                        "%d batches skipped so far: no labelled token beyond the window",
                        self.skipped,
                    )
        loss = output["loss"]
        return (loss, {"loss": loss}) if return_outputs else loss

    def _count_evaluated(self, rows: int, output: dict[str, Any]) -> None:
        seen = self._evaluated
        seen["rows"] += rows
        seen["skipped"] += rows * output["skipped"]
        for name, term in output["terms"].items():
            seen[name] += rows * float(term)

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """The mean loss over rows that have one: the zeros of the others are taken out.

        Beside it, where the loss has several terms, the mean of each.
        """
        names = self.recipe.losses
        self._evaluated = dict.fromkeys(("rows", "skipped", *names), 0.0)
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        mine = torch.tensor(list(self._evaluated.values()), dtype=torch.float32)
        found = self.accelerator.reduce(mine.to(self.args.device), "sum").tolist()
        rows, skipped, *sums = found
        if 0 < skipped < rows:
            output.metrics[f"{metric_key_prefix}_loss"] *= rows / (rows - skipped)
        if len(names) > 1 and skipped < rows:
            for name, total in zip(names, sums, strict=True):
                output.metrics[f"{metric_key_prefix}_{name}"] = total / (rows - skipped)
        self.check_evaluation(output.metrics[f"{metric_key_prefix}_loss"])
        return output

    def _trained_state(self) -> dict[str, Tensor]:
        """Names and tensors of what trains, on the CPU."""
        wrapped: Any = self.accelerator.unwrap_model(self.model)
        return {
            name: parameter.detach().cpu().contiguous()
            for name, parameter in wrapped.named_parameters()
            if parameter.requires_grad
        }

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None
    ) -> None:
        """A checkpoint holds what trains, not the frozen base."""
        if not self.args.should_save:
            return
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        if state_dict is None:
            state = self._trained_state()
        else:  # gathered from many processes by FSDP or DeepSpeed
            state = {name: t for name, t in state_dict.items() if ".ahn.fn." in name}
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})

    def go_on_from(self, checkpoint: Path) -> None:
        """As of any trainer, with the batches that were skipped before."""
        super().go_on_from(checkpoint)
        weights = checkpoint / "model.safetensors"
        if (record := read_record(checkpoint)) is not None:
            self._skipped_before = record.skipped_batches or 0
        elif weights.is_file():  # of an older version, which had no record
            with safe_open(weights, "pt") as file:
                self._skipped_before = int((file.metadata() or {}).get("skipped_batches", 0))

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """The frozen base is not in a checkpoint; everything else must be."""
        wrapped: Any = self.accelerator.unwrap_model(self.model)
        trained = {name for name, p in wrapped.named_parameters() if p.requires_grad}
        missing = sorted(trained & set(load_result.missing_keys))
        wrong = missing + sorted(load_result.unexpected_keys)
        if wrong:
            raise InputError(
                f"{self.args.output_dir}: the checkpoint is of another model: {wrong[0]} and "
                f"{len(wrong) - 1} more keys differ; train with --fresh or into another folder"
            )

    def save_weights(self, output: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write the memories alone, with released key names and configuration keys."""
        recipe = self.recipe
        assert recipe.model_name_or_path is not None
        model: Any = self.accelerator.unwrap_model(self.model).model
        gathered = self.gathered_state()
        if gathered is not None:
            gathered = {name.removeprefix("model."): tensor for name, tensor in gathered.items()}
        if not self.args.should_save:
            return
        if not recipe.save_ahn_only:
            model.config.use_cache = True
            model.save_pretrained(output, state_dict=gathered)
            tokenizer.save_pretrained(output)
            return
        save_memory(
            model if gathered is None else _Gathered(model.config, gathered),
            output,
            describe_model(recipe.model_name_or_path),
            loss_type=recipe.losses,
            ahn_position=recipe.ahn_position,
            sliding_window_type=recipe.sliding_window_type,
            use_normalized_l2=recipe.use_normalized_l2,
        )


def has_teacher(losses: Iterable[str]) -> bool:
    """Whether full attention runs beside the student: cross-entropy alone asks the data."""
    return not {"kl", "distill"}.isdisjoint(losses)


def weighted(terms: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    """The terms of a loss, each times its weight, added up in their order."""
    loss = next(iter(terms.values())).new_zeros((), dtype=torch.float32)
    for name, term in terms.items():
        loss = loss + weights[name] * term
    return loss


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
    """The sum of `distillation_terms`; None when there is nothing to learn from."""
    terms = distillation_terms(
        model, inputs, labels, span, losses, normalized=normalized, kl_positions=kl_positions
    )
    return None if terms is None else weighted(terms, dict.fromkeys(terms, 1.0))


def distillation_terms(
    model: Any,
    inputs: dict[str, Any],
    labels: Tensor,
    span: tuple[int, int],
    losses: list[str],
    *,
    normalized: bool = True,
    kl_positions: str = "label",
    layout: Sequence[LayerLayout] | None = None,
) -> dict[str, Tensor] | None:
    """One batch's losses by name, or None when no labelled position lies beyond the window.

    Cross-entropy is taken where a position at or beyond `W_total` predicts a labelled token.

    Args:
        model: a model of `ahn.models.causal_lm` with memories; teacher and student at once.
        inputs: `input_ids`, `attention_mask`, `position_ids` for the model.
        labels: `[B, L]`, -100 where a token carries no loss.
        span: `(W_total, sinks)` of the student.
        losses: any of `kl`, `ce`, `distill`.
        normalized: see `distill_loss`.
        kl_positions: `label`: KL at positions whose own token is labelled, as in the paper's
            tool; `prediction`: at positions that predict a labelled token, the first token of an
            answer among them.
        layout: what the student's layers see; it must have the same span. Default: their memories
            behind that span. Layers without one keep what they have.

    Returns:
        Float32 scalars, in the order kl, ce, distill.
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
    if layout is None:
        layout = [
            LayerLayout(total - sinks, sinks, seen.cell) if seen.cell is not None else seen
            for seen in model.model.layout
        ]
    collect = "distill" in losses
    with torch.no_grad(), attention_outputs(model, collect) as teacher_outputs:
        teacher = (
            model.model(**inputs, layout=[LayerLayout()] * count, use_cache=False)
            if has_teacher(losses)
            else None
        )
    with attention_outputs(model, collect) as student_outputs:
        student = model.model(**inputs, layout=list(layout), use_cache=False)
    mine = student.last_hidden_state
    terms = {}
    if teacher is not None and "kl" in losses:
        theirs = teacher.last_hidden_state
        terms["kl"] = kl_loss(mine[compared], theirs[compared], model.lm_head)
    if "ce" in losses:
        terms["ce"] = ce_loss(mine[predicting], targets[predicting], model.lm_head)
    if "distill" in losses:
        terms["distill"] = distill_loss(
            student_outputs, teacher_outputs, total, normalized, inputs.get("attention_mask")
        )
    return terms
