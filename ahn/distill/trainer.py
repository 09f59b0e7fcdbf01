"""`ahn train`: transformers' Trainer with the losses of this project.

Only the loss, the optimiser and the order of the data are ours; steps, accumulation, mixed
precision, schedules, logging, checkpoints and resuming are the Trainer's.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import logging
import os
import shutil
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import (
    AutoTokenizer,
    EarlyStoppingCallback,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)

from ahn.config import InputError
from ahn.distill.data import Collator, Conversations, StreamedConversations, TokenBudgetBatches
from ahn.distill.encoding import IGNORED
from ahn.distill.gaps import PositionGaps
from ahn.distill.optim import MuonAdamW
from ahn.distill.outputs import write_outputs
from ahn.distill.recipe import Recipe
from ahn.distill.spread import collected_keys, key_overlap

logger = logging.getLogger(__name__)

Data = Conversations | StreamedConversations
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
    if recipe.tokens_per_batch is not None:
        # batches of unequal size are dealt out whole; their number is made to fit
        values["accelerator_config"] = {"even_batches": False}
    try:
        return TrainingArguments(**values)
    except ImportError as error:
        name = "deepspeed" if recipe.training_arguments.get("deepspeed") else "what it names"
        raise InputError(
            f"training_arguments: a package is missing: {_first_line(error)} pip install {name}"
        ) from None
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        raise InputError(f"transformers refuses the options: {_first_line(error)}") from None


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


class RecipeTrainer(Trainer):
    """Trainer whose data order and optimiser follow a recipe."""

    optimizer: torch.optim.Optimizer | None
    skipped: int | None = None  # batches with nothing to learn from, where there can be such

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
        """As the recipe says."""
        if self.optimizer is None:
            self.optimizer = new_optimizer(self.model, self.recipe)
        return self.optimizer

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
                f"{_first_line(error)}. Was it made with other devices (FSDP or not), or damaged? "
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
                f"{folder}: the checkpoint cannot be written: {_first_line(error)}. Free space "
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


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


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


def _tokenizer(recipe: Recipe) -> PreTrainedTokenizerBase:
    source = recipe.base.tokenizer if recipe.base is not None else recipe.model_name_or_path
    try:
        return AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise InputError(f"{source}: cannot load the tokenizer: {error}") from error


def train(recipe: Recipe, resume: bool = True) -> Path:
    """Run a recipe to its end; under `torchrun` or `accelerate launch`, on many devices.

    Args:
        recipe: what to train.
        resume: continue from the last whole checkpoint in the output folder, if there is one.

    Returns:
        The folder of the finished weights, `recipe.output_dir`.

    Raises:
        InputError: data, tokenizer, base model or options cannot be used, or there is no room
            for a checkpoint; what was saved before stays.
    """
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    output = Path(recipe.output_dir)
    _can_be_written(output)
    arguments = training_arguments(recipe)
    tokenizer = _tokenizer(recipe)
    with arguments.main_process_first(desc="tokenising"):
        data = _data(recipe, tokenizer)
        evaluation = None
        if recipe.eval_dataset is not None:
            wanted = {"dataset": recipe.eval_dataset, "max_samples": None, "streaming": False}
            evaluation = Conversations(recipe.model_copy(update=wanted), tokenizer)
    transformers.set_seed(recipe.seed)
    gaps = None
    if recipe.position_gap and recipe.tokens_per_batch is not None:
        assert isinstance(data, Conversations)
        batches = TokenBudgetBatches(data.lengths, recipe.tokens_per_batch, arguments.world_size)
        gaps = PositionGaps(data.lengths, batches, recipe.position_gap, recipe.seed)
    options: dict[str, Any] = {
        "data_collator": Collator(tokenizer.pad_token_id or 0, gaps),
        "eval_dataset": evaluation,
    }
    if recipe.early_stopping_patience is not None:
        options["callbacks"] = [EarlyStoppingCallback(recipe.early_stopping_patience)]
    trainer: RecipeTrainer
    if recipe.stage == "pretrain":
        trainer = PretrainTrainer(recipe, _base_model(recipe), data, **options)
    else:
        from ahn.distill.distillation import DistillTrainer, smallest_window, student_model

        if isinstance(data, Conversations):
            _longer_than(smallest_window(recipe), data)
        trainer = DistillTrainer(recipe, student_model(recipe), data, **options)
    checkpoint = last_checkpoint(Path(str(arguments.output_dir))) if resume else None
    started = time.perf_counter()
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    seconds = time.perf_counter() - started
    _finish(trainer, tokenizer, seconds, output)
    return output


def _data(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Data:
    if recipe.streaming:
        return StreamedConversations(recipe, tokenizer)
    data = Conversations(recipe, tokenizer)
    counts = ", ".join(f"{name} {count:,}" for name, count in data.counts.items())
    logger.warning("data: %s%s", counts, " (tokenised before)" if data.from_cache else "")
    return data


def _longer_than(window: int, data: Conversations) -> None:
    """Something lies beyond the smallest window; how much does not is said."""
    inside = int((data.lengths <= window).sum())
    if inside == len(data):
        raise InputError(
            f"no sample is longer than the window: the longest has {int(data.lengths.max())} "
            f"tokens, the smallest window {window} (sliding_window, sliding_window_choices)"
        )
    if inside:
        logger.warning(
            "%d of %d samples fit the smallest window (%d tokens): nothing is learnt from them",
            inside,
            len(data),
            window,
        )


def _can_be_written(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output):
            pass
    except OSError as error:
        raise InputError(f"output_dir: {output} cannot be written: {error}") from None


def _finish(
    trainer: RecipeTrainer, tokenizer: PreTrainedTokenizerBase, seconds: float, output: Path
) -> None:
    """Weights, log, curve and card appear in `output` whole or not at all."""
    unfinished = output / ".unfinished"
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    main = trainer.args.should_save
    try:
        if main:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
        trainer.save_weights(unfinished, tokenizer)
        if main:
            write_outputs(
                trainer.recipe,
                trainer.state,
                samples=trainer.data.counts,
                skipped=trainer.skipped,
                seconds=seconds,
                processes=trainer.args.world_size,
                trained_parameters=trained,
                output=unfinished,
            )
            for path in unfinished.iterdir():
                os.replace(path, output / path.name)
    except Exception as error:
        raise InputError(
            f"{output}: the weights cannot be written: {_first_line(error)}. Free space there; the "
            f"same command then goes on from {last_checkpoint(Path(str(trainer.args.output_dir)))}"
        ) from error
    finally:
        if main:
            shutil.rmtree(unfinished, ignore_errors=True)


def _base_model(recipe: Recipe) -> PreTrainedModel:
    from transformers import Qwen2ForCausalLM

    from ahn.distill.pretrain import new_base_model

    if recipe.base is not None:
        return new_base_model(recipe.base, recipe.seed)
    try:
        return Qwen2ForCausalLM.from_pretrained(recipe.model_name_or_path, dtype=torch.float32)
    except OSError as error:
        raise InputError(f"{recipe.model_name_or_path}: cannot load: {error}") from error
