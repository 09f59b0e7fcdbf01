"""transformers' Trainer with the losses of this project.

Only the loss, the optimiser, the order of the data and what stops a run are ours; steps,
accumulation, mixed precision, schedules, logging, checkpoints and resuming are the Trainer's.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase, Trainer

from ahn.distill.data import Conversations, Repeated, StreamedConversations, TokenBudgetBatches
from ahn.distill.encoding import IGNORED
from ahn.distill.files import first_line, honour_umask, why_not_written
from ahn.distill.options import new_optimizer, training_arguments
from ahn.distill.provenance import RunRecord, read_record
from ahn.distill.recipe import Recipe
from ahn.distill.spread import collected_keys, key_overlap
from common.errors import InputError

Data = Conversations | StreamedConversations
#: options of a loader with workers, as transformers has them with `dataloader_` before them
_LOADER_OPTIONS = ("in_order", "multiprocessing_context", "persistent_workers", "prefetch_factor")


class RecipeTrainer(Trainer):
    """Trainer whose data order, optimiser and provenance follow a recipe.

    A loss, gradient or weight that is not finite ends the run, on all processes at once, before
    it is saved: the step that it would spoil is not taken.

    Args:
        recipe: what is trained.
        model: what it is trained on.
        data: in which order, see `get_train_dataloader`.
        record: written beside each checkpoint; None: nothing is.
    """

    optimizer: torch.optim.Optimizer | None

    def __init__(
        self,
        recipe: Recipe,
        model: nn.Module,
        data: Data,
        record: RunRecord | None = None,
        **kwargs: Any,
    ) -> None:
        self.recipe = recipe
        self.data = data
        self.record = record
        arguments = training_arguments(recipe)
        try:
            super().__init__(model=model, args=arguments, train_dataset=data, **kwargs)
        except (ValueError, TypeError, ImportError) as error:  # options that do not go together
            raise InputError(f"transformers refuses the options: {first_line(error)}") from error
        # our losses are means of a batch: let the Trainer divide by the accumulated ones
        self.model_accepts_loss_kwargs = False
        self._began = time.perf_counter()
        self._bad_losses: torch.Tensor | None = None  # of this step, of this process
        self._terms: dict[str, torch.Tensor] = {}  # since the last line of the log
        self._terms_since: int | None = None

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Batches by tokens in file order, or streamed, where the recipe says so.

        Else the Trainer's own.

        Raises:
            InputError: options of loaders that do not go together.
        """
        try:
            return self._train_dataloader()
        except ValueError as error:
            raise InputError(f"training_arguments (dataloader_...): {first_line(error)}") from None

    def _train_dataloader(self) -> DataLoader[Any]:
        options: dict[str, Any] = {"collate_fn": self.data_collator}
        options["pin_memory"] = self.args.dataloader_pin_memory
        if isinstance(self.data, StreamedConversations):  # has processes of its own
            stream = Repeated(self.data)
            loader: Any = DataLoader(stream, batch_size=self._train_batch_size, **options)
            return self.accelerator.prepare(loader)
        if self.recipe.tokens_per_batch is None:
            return super().get_train_dataloader()
        batches = TokenBudgetBatches(
            self.data.lengths, self.recipe.tokens_per_batch, self.args.world_size
        )
        options["num_workers"] = self.args.dataloader_num_workers
        for name in _LOADER_OPTIONS:
            options[name] = getattr(self.args, f"dataloader_{name}")
        return self.accelerator.prepare(DataLoader(self.data, batch_sampler=batches, **options))

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

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As the Trainer's; takes down whether the loss is finite, without waiting for it."""
        loss = super().training_step(*args, **kwargs)
        bad = (~torch.isfinite(loss)).float()
        self._bad_losses = bad if self._bad_losses is None else self._bad_losses + bad
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """The Trainer asks for it right before each optimiser step: what is bad ends here."""
        norm = super()._get_grad_norm(model, grad_norm)
        bad, self._bad_losses = self._bad_losses, None
        if bad is not None and float(self.accelerator.reduce(bad, "sum")):
            named = [name for name, t in self._terms.items() if not bool(torch.isfinite(t))]
            self._stop(f"the loss is not a finite number{_in_brackets(named)}")
        # fp16 steps with infinite gradients are left out, by design, until the scale is right
        scaled = getattr(self.accelerator, "scaler", None) is not None
        if norm is not None and not scaled:
            whole = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
            if not math.isfinite(whole):
                graded = {
                    name: p.grad for name, p in model.named_parameters() if p.grad is not None
                }
                named = [name for name, gradient in graded.items() if not _finite(gradient)]
                if len(named) == len(graded):  # clipping by such a norm has spread it
                    named = []
                self._stop(
                    f"the gradient's norm is {whole}, not a finite number{_in_brackets(named)}"
                )
        return norm

    def check_weights(self) -> None:
        """Every process takes part.

        Raises:
            InputError: what trains is not finite, on any process; names a parameter.
        """
        bad = [
            name
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad and not _finite(parameter)
        ]
        count = torch.tensor(float(len(bad)), device=self.args.device)
        if float(self.accelerator.reduce(count, "sum")):
            self._stop(f"weights are not finite numbers{_in_brackets(bad)}", after=True)

    def check_evaluation(self, loss: float) -> None:
        """Raises InputError when an evaluation's loss is not finite."""
        if not math.isfinite(loss):
            self._stop(f"the loss of eval_dataset is {loss}, not a finite number", after=True)

    def _stop(self, what: str, after: bool = False) -> None:
        step = self.state.global_step + (not after)
        last = last_checkpoint(Path(str(self.args.output_dir)))
        kept = "No checkpoint was written before" if last is None else f"{last} is as it was"
        raise InputError(
            f"the training stopped at step {step}: {what}. Nothing of it is saved. {kept}. Lower "
            "learning_rate, make warmup_steps longer, or look at the data and the base model; then "
            "train into another folder (output_dir), or anew with --fresh"
        )

    def add_terms(self, terms: dict[str, torch.Tensor]) -> None:
        """Take down the terms of a batch's loss, for the log; what they weigh is not in them."""
        if self._terms_since is None:
            self._terms_since = self.state.global_step
        for name, term in terms.items():
            share = term.detach() / self.current_gradient_accumulation_steps
            self._terms[name] = self._terms[name] + share if name in self._terms else share

    def term_names(self) -> list[str]:
        """The terms that are logged beside the loss: all, where there is more than one."""
        return []

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As the Trainer's, with each term of the loss: means over the same batches."""
        names = self.term_names()
        if "loss" in logs and self._terms_since is not None:
            steps = max(1, self.state.global_step - self._terms_since)
            nothing = torch.zeros((), device=self.args.device)
            if names:
                mine = torch.stack([self._terms.get(name, nothing).float() for name in names])
                means = self.accelerator.reduce(mine, "mean") / steps
                logs = {**logs, **dict(zip(names, means.tolist(), strict=True))}
            self._terms, self._terms_since = {}, None
        super().log(logs, start_time)

    def go_on_from(self, checkpoint: Path) -> None:
        """Take over what was counted up to a checkpoint."""
        record = read_record(checkpoint)
        if record is not None and record.samples and isinstance(self.data, StreamedConversations):
            self.data.counts = dict(record.samples)

    def so_far(self) -> dict[str, Any]:
        """Where this start of the run has come to, and in how many seconds."""
        seconds = round(time.perf_counter() - self._began, 1)
        return {"to_step": self.state.global_step, "seconds": seconds}

    def skipped_batches(self) -> int | None:
        """Batches with nothing to learn from, where there can be such; of all processes."""
        return None

    def best_step(self) -> int | None:
        """The step with the lowest evaluation loss so far, the first of them."""
        rows = [row for row in self.state.log_history if "eval_loss" in row]
        return min(rows, key=lambda row: row["eval_loss"])["step"] if rows else None

    def load_best(self) -> int | None:
        """Go back to the weights with the lowest evaluation loss; every process takes part.

        Returns:
            Their step; None where there was no evaluation.

        Raises:
            InputError: their checkpoint is not there any more.
        """
        step = self.best_step()
        if step is not None and step != self.state.global_step:
            folder = Path(str(self.args.output_dir)) / f"checkpoint-{step}"
            if not folder.is_dir():
                raise InputError(
                    f"{folder}: the checkpoint with the lowest evaluation loss is not there any "
                    "more; put it back, or train anew with --fresh"
                )
            sharded = self.model_wrapped if self.is_fsdp_enabled else None
            self._load_from_checkpoint(str(folder), sharded)
        return step

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
        with _readable(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """As the Trainer's, which starts anew, in silence, what a checkpoint lacks."""
        whole = not (checkpoint is None or self.is_fsdp_enabled or self.is_deepspeed_enabled)
        with _readable(str(checkpoint)):
            for name in ("optimizer.pt", "scheduler.pt") if whole else ():
                if not (Path(str(checkpoint)) / name).is_file():
                    raise FileNotFoundError(f"{name} is missing")
            super()._load_optimizer_and_scheduler(checkpoint)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """As the Trainer's, with the recipe beside it.

        One that cannot be written leaves the earlier ones as they are.
        """
        self.check_weights()
        skipped = self.skipped_batches()
        folder = Path(self.args.output_dir or ".") / f"checkpoint-{self.state.global_step}"
        try:
            if self.args.should_save and self.record is not None:
                folder.mkdir(parents=True, exist_ok=True)
                self.record.skipped_batches = skipped
                self.record.starts[-1] |= self.so_far()
                if isinstance(self.data, StreamedConversations):
                    self.record.samples = self.data.counts
                self.record.write(folder)  # before the Trainer's state, which makes it whole
            super()._save_checkpoint(model, trial)
            if self.args.should_save:
                honour_umask(folder)
        except InputError:
            raise
        except Exception as error:  # OSError, RuntimeError of torch, SafetensorError
            if not self.args.should_save:
                raise
            why = why_not_written(error, folder)
            shutil.rmtree(folder, ignore_errors=True)
            raise InputError(
                f"{folder}: the checkpoint cannot be written: {why}. Free space there; "
                f"{same_command(folder.parent)}"
            ) from error


@contextmanager
def _readable(checkpoint: str) -> Iterator[None]:
    """Whatever goes wrong inside is the checkpoint's fault, and told so."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # of safetensors, torch, accelerate
        raise InputError(
            f"{checkpoint}: the run cannot go on from this checkpoint: {first_line(error)}. Was it "
            "made with other devices (FSDP or not), or damaged? Remove it, train with --fresh, or "
            "into another folder"
        ) from error


def _finite(tensor: torch.Tensor) -> bool:
    """Whether all numbers are finite, of the part that this process holds."""
    local: torch.Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return bool(torch.isfinite(local.detach()).all())


def _in_brackets(names: list[str]) -> str:
    if not names:
        return ""
    return f" ({', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''})"


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
        chosen = labels != IGNORED
        with (
            self.accelerator.autocast(),  # not by itself: this is no forward pass of the model
            collected_keys(model, keys) if spread else nullcontext(),
        ):
            hidden = model.model(**inputs, use_cache=False).last_hidden_state[:, :-1]
            logits = model.lm_head(hidden[chosen])
        if chosen.any():
            loss = F.cross_entropy(logits.float(), labels[chosen])
        else:  # the only label is the first token's, which nothing predicts
            loss = logits.float().sum()
        terms = {"ce": loss}
        if spread:
            head_dim = model.model.layers[0].self_attn.head_dim
            terms["key_overlap"] = key_overlap(keys, head_dim, inputs["attention_mask"])
            loss = loss + spread * terms["key_overlap"]
        if model.training:
            self.add_terms(terms)
        return (loss, {"logits": logits}) if return_outputs else loss

    def term_names(self) -> list[str]:
        """Cross-entropy and the keys' overlap, where that is trained, too."""
        return ["ce", "key_overlap"] if self.recipe.key_spread else []

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """As the Trainer's; a loss that is not finite ends the run."""
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        self.check_evaluation(output.metrics[f"{metric_key_prefix}_loss"])
        return output


def same_command(folder: Path) -> str:
    """What the same command does after this one failed, from the checkpoints in `folder`."""
    last = last_checkpoint(folder)
    if last is None:
        return "the same command then begins anew"
    return f"the same command then goes on from {last}"


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
