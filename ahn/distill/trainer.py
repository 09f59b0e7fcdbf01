"""transformers' Trainer with the losses of this project.

Only the loss, the optimiser and the order of the data are ours; steps, accumulation, mixed
precision, schedules, logging, checkpoints and resuming are the Trainer's.
"""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase, Trainer

from ahn.config import InputError
from ahn.distill.data import Conversations, StreamedConversations, TokenBudgetBatches
from ahn.distill.encoding import IGNORED
from ahn.distill.options import first_line, new_optimizer, training_arguments
from ahn.distill.recipe import Recipe
from ahn.distill.spread import collected_keys, key_overlap

Data = Conversations | StreamedConversations


class RecipeTrainer(Trainer):
    """Trainer whose data order and optimiser follow a recipe."""

    optimizer: torch.optim.Optimizer | None

    def __init__(self, recipe: Recipe, model: nn.Module, data: Data, **kwargs: Any) -> None:
        self.recipe = recipe
        self.data = data
        super().__init__(model=model, args=training_arguments(recipe), train_dataset=data, **kwargs)
        # our losses are means of a batch: let the Trainer divide by the accumulated ones
        self.model_accepts_loss_kwargs = False

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Batches by tokens in file order where the recipe says so, else the Trainer's own."""
        if self.recipe.tokens_per_batch is None:
            return super().get_train_dataloader()
        assert isinstance(self.data, Conversations)
        batches = TokenBudgetBatches(
            self.data.lengths, self.recipe.tokens_per_batch, self.args.world_size
        )
        loader = DataLoader(self.data, batch_sampler=batches, collate_fn=self.data_collator)
        return self.accelerator.prepare(loader)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """As the recipe says; transformers' own where `training_arguments.optim` names one."""
        if "optim" in self.recipe.training_arguments:
            try:
                return super().create_optimizer(model)
            except (ImportError, ValueError) as error:
                name = self.recipe.training_arguments["optim"]
                raise InputError(f"training_arguments.optim: {name}: {first_line(error)}") from None
        if self.optimizer is None:
            self.optimizer = new_optimizer(self.model, self.recipe)
        return self.optimizer

    def skipped_batches(self) -> int | None:
        """Batches with nothing to learn from, where there can be such; of all processes."""
        return None

    def save_weights(self, output: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write the finished weights and the tokenizer."""
        model: Any = self.accelerator.unwrap_model(self.model)
        state = self.gathered_state()
        if not self.args.should_save:
            return
        model.config.use_cache = True  # the Trainer turns it off for itself
        model.save_pretrained(output, state_dict=state)
        tokenizer.save_pretrained(output)

    def gathered_state(self) -> dict[str, torch.Tensor] | None:
        """Whole tensors by name where they lie on many processes, all of which take part; or None.

        An output head that is the embedding appears under one name.
        """
        if not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            return None
        state = self.accelerator.get_state_dict(self.model_wrapped)
        model: Any = self.accelerator.unwrap_model(self.model)
        tied = bool(model.config.tie_word_embeddings)
        return {k: v for k, v in state.items() if not (tied and k.endswith("lm_head.weight"))}

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        try:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        except InputError:
            raise
        except Exception as error:  # of safetensors, torch, accelerate
            raise InputError(
                f"{resume_from_checkpoint}: the run cannot go on from this checkpoint: "
                f"{first_line(error)}. Was it made with other devices (FSDP or not), or damaged? "
                "Remove it, train with --fresh, or into another folder"
            ) from error

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """As the Trainer's; one that cannot be written leaves the earlier ones as they are."""
        folder = Path(self.args.output_dir or ".") / f"checkpoint-{self.state.global_step}"
        try:
            super()._save_checkpoint(model, trial)
        except Exception as error:  # OSError, RuntimeError of torch, SafetensorError
            if not self.args.should_save:
                raise
            shutil.rmtree(folder, ignore_errors=True)
            raise InputError(
                f"{folder}: the checkpoint cannot be written: {first_line(error)}. Free space "
                f"there; the same command then goes on from {last_checkpoint(folder.parent)}"
            ) from error


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
        inputs = {key: value for key, value in inputs.items() if key != "sample"}
        labels = inputs.pop("labels")[:, 1:]
        keys: list[torch.Tensor] = []
        spread = self.recipe.key_spread
        with collected_keys(model, keys) if spread else nullcontext():
            hidden = model.model(**inputs, use_cache=False).last_hidden_state[:, :-1]
        chosen = labels != IGNORED
        logits = model.lm_head(hidden[chosen])
        loss = F.cross_entropy(logits.float(), labels[chosen])
        if spread:
            head_dim = model.model.layers[0].self_attn.head_dim
            loss = loss + spread * key_overlap(keys, head_dim, inputs["attention_mask"])
        return (loss, {"logits": logits}) if return_outputs else loss


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint in `folder`; one whose writing was cut short is passed over.

    The Trainer's state is the last file that it writes.
    """
    found = []
    for path in folder.glob("checkpoint-*"):
        number = path.name.removeprefix("checkpoint-")
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if number.isdigit():
            found.append((int(number), path))
    return max(found)[1] if found else None
