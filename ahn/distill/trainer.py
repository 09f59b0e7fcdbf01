"""`ahn train`: transformers' Trainer with the losses of this project.

Only the loss, the optimiser and the order of the data are ours; steps, accumulation, mixed
precision, schedules, logging, checkpoints and resuming are the Trainer's.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import (
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)

from ahn.config import InputError
from ahn.distill.data import IGNORED, Collator, Conversations, PositionGaps, TokenBudgetBatches
from ahn.distill.optim import MuonAdamW
from ahn.distill.recipe import Recipe

_ADAM_BETA1 = 0.9


def training_arguments(recipe: Recipe) -> TrainingArguments:
    """The Trainer's options for a recipe."""
    # named only where it is used: transformers 5.2x renames it, and warns of either value
    checkpointing = {"gradient_checkpointing": True} if recipe.gradient_checkpointing else {}
    return TrainingArguments(
        **checkpointing,
        output_dir=str(Path(recipe.output_dir) / "checkpoints"),
        learning_rate=recipe.learning_rate,
        lr_scheduler_type=recipe.lr_scheduler_type,
        lr_scheduler_kwargs=recipe.lr_scheduler_kwargs or None,
        warmup_steps=recipe.warmup_steps,
        weight_decay=recipe.weight_decay,
        adam_beta2=recipe.adam_beta2,
        max_grad_norm=recipe.max_grad_norm,
        max_steps=recipe.max_steps,
        num_train_epochs=recipe.num_train_epochs,
        per_device_train_batch_size=recipe.per_device_train_batch_size,
        gradient_accumulation_steps=recipe.gradient_accumulation_steps,
        bf16=recipe.bf16,
        seed=recipe.seed,
        data_seed=recipe.seed,
        logging_steps=recipe.logging_steps,
        save_steps=recipe.save_steps,
        save_total_limit=1,
        remove_unused_columns=False,
        report_to="none",
        dataloader_pin_memory=torch.cuda.is_available(),
    )


class RecipeTrainer(Trainer):
    """Trainer whose data order and optimiser follow a recipe."""

    optimizer: torch.optim.Optimizer | None

    def __init__(self, recipe: Recipe, model: PreTrainedModel, data: Conversations, **kwargs: Any):
        self.recipe = recipe
        self.data = data
        super().__init__(model=model, args=training_arguments(recipe), train_dataset=data, **kwargs)
        # our losses are means of a batch: let the Trainer divide by the accumulated ones
        self.model_accepts_loss_kwargs = False

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Batches by tokens in file order where the recipe says so, else the Trainer's own."""
        if self.recipe.tokens_per_batch is None:
            return super().get_train_dataloader()
        batches = TokenBudgetBatches(self.data.samples, self.recipe.tokens_per_batch)
        loader = DataLoader(self.data, batch_sampler=batches, collate_fn=self.data_collator)
        return self.accelerator.prepare(loader)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Muon + AdamW, or AdamW that decays matrices only."""
        if self.optimizer is None:
            recipe, betas = self.recipe, (_ADAM_BETA1, self.recipe.adam_beta2)
            if recipe.optimizer == "muon":
                self.optimizer = MuonAdamW(
                    self.model,
                    learning_rate=recipe.learning_rate,
                    muon_learning_rate=recipe.muon_learning_rate,
                    weight_decay=recipe.weight_decay,
                    betas=betas,
                )
            else:
                trained = [p for p in self.model.parameters() if p.requires_grad]
                self.optimizer = torch.optim.AdamW(
                    [
                        {
                            "params": [p for p in trained if p.dim() > 1],
                            "weight_decay": recipe.weight_decay,
                        },
                        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
                    ],
                    lr=recipe.learning_rate,
                    betas=betas,
                )
        return self.optimizer

    def save_weights(self, output: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write the finished weights and the tokenizer."""
        self.model.config.use_cache = True  # the Trainer turns it off for itself
        self.model.save_pretrained(output)
        tokenizer.save_pretrained(output)


class PretrainTrainer(RecipeTrainer):
    """Next-token cross-entropy on assistant tokens; logits of those positions only."""

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Mean cross-entropy over the labelled tokens of the batch."""
        labels = inputs.pop("labels")[:, 1:]
        hidden = model.model(**inputs, use_cache=False).last_hidden_state[:, :-1]
        chosen = labels != IGNORED
        logits = model.lm_head(hidden[chosen])
        loss = F.cross_entropy(logits.float(), labels[chosen])
        return (loss, {"logits": logits}) if return_outputs else loss


def machine() -> dict[str, Any]:
    """What the training ran on."""
    return {
        "cpu": platform.processor() or platform.machine(),
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def write_log(recipe: Recipe, trainer: RecipeTrainer, seconds: float, output: Path) -> None:
    """`training.json` (recipe, losses, time, machine) and `loss.png` beside the weights."""
    history = [
        {key: row[key] for key in ("step", "loss", "learning_rate", "grad_norm") if key in row}
        for row in trainer.state.log_history
        if "loss" in row
    ]
    log = {
        "command": "ahn " + " ".join(sys.argv[1:]),
        "recipe": recipe.model_dump(exclude_defaults=True),
        "samples": trainer.data.counts,
        "steps": trainer.state.global_step,
        "seconds": round(seconds, 1),
        "machine": machine(),
        "history": history,
    }
    (output / "training.json").write_text(json.dumps(log, indent=1) + "\n", encoding="utf-8")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.5), dpi=100)
    axes.plot([row["step"] for row in history], [row["loss"] for row in history])
    axes.set(xlabel="step", ylabel=recipe.loss_type if recipe.stage == "distill" else "ce")
    axes.set_yscale("log")
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(output / "loss.png")
    pyplot.close(figure)


def _tokenizer(recipe: Recipe) -> PreTrainedTokenizerBase:
    source = recipe.base.tokenizer if recipe.base is not None else recipe.model_name_or_path
    try:
        return AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise InputError(f"{source}: cannot load the tokenizer: {error}") from error


def train(recipe: Recipe, resume: bool = True) -> Path:
    """Run a recipe to its end.

    Args:
        recipe: what to train.
        resume: continue from the last checkpoint in the output folder, if there is one.

    Returns:
        The folder of the finished weights, `recipe.output_dir`.

    Raises:
        InputError: data, tokenizer or base model cannot be used.
    """
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    output = Path(recipe.output_dir)
    tokenizer = _tokenizer(recipe)
    data = Conversations(recipe, tokenizer)
    transformers.set_seed(recipe.seed)
    gaps = None
    if recipe.position_gap and recipe.tokens_per_batch is not None:
        batches = TokenBudgetBatches(data.samples, recipe.tokens_per_batch)
        gaps = PositionGaps(data.samples, batches, recipe.position_gap, recipe.seed)
    collator = Collator(tokenizer.pad_token_id or 0, gaps)
    trainer: RecipeTrainer
    if recipe.stage == "pretrain":
        trainer = PretrainTrainer(recipe, _base_model(recipe), data, data_collator=collator)
    else:
        from ahn.distill.distillation import DistillTrainer, student_model

        trainer = DistillTrainer(recipe, student_model(recipe), data, data_collator=collator)
    checkpoints = Path(trainer.args.output_dir)
    resumable = resume and checkpoints.is_dir() and any(checkpoints.glob("checkpoint-*"))
    started = time.perf_counter()
    trainer.train(resume_from_checkpoint=resumable or None)
    seconds = time.perf_counter() - started
    output.mkdir(parents=True, exist_ok=True)
    trainer.save_weights(output, tokenizer)
    write_log(recipe, trainer, seconds, output)
    return output


def _base_model(recipe: Recipe) -> PreTrainedModel:
    from transformers import Qwen2ForCausalLM

    from ahn.distill.pretrain import new_base_model

    if recipe.base is not None:
        return new_base_model(recipe.base, recipe.seed)
    try:
        return Qwen2ForCausalLM.from_pretrained(recipe.model_name_or_path, dtype=torch.float32)
    except OSError as error:
        raise InputError(f"{recipe.model_name_or_path}: cannot load: {error}") from error
