"""One training run: checked, data and model made, trained, written whole or not at all."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoTokenizer,
    EarlyStoppingCallback,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
)

from ahn.config import InputError
from ahn.distill.data import Collator, Conversations, StreamedConversations, TokenBudgetBatches
from ahn.distill.distillation import DistillTrainer
from ahn.distill.gaps import PositionGaps
from ahn.distill.options import first_line, training_arguments
from ahn.distill.outputs import check_output, write_outputs
from ahn.distill.recipe import Recipe
from ahn.distill.student import smallest_window, student_model, student_settings
from ahn.distill.trainer import Data, PretrainTrainer, RecipeTrainer, last_checkpoint

logger = logging.getLogger(__name__)


def _tokenizer(recipe: Recipe) -> PreTrainedTokenizerBase:
    source = recipe.base.tokenizer if recipe.base is not None else recipe.model_name_or_path
    assert source is not None
    if source.startswith((".", "/", "~")) and not Path(source).is_dir():
        option = "base.tokenizer" if recipe.base is not None else "model_name_or_path"
        raise InputError(f"{option}: {source}: no such folder")
    try:
        return AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise InputError(f"{source}: cannot load the tokenizer: {error}") from error


def train(recipe: Recipe, resume: bool = True) -> Path:
    """Run a recipe to its end; under `torchrun` or `accelerate launch`, on many devices.

    Args:
        recipe: what to train.
        resume: continue from the last whole checkpoint in the output folder, if there is one;
            False: checkpoints that are there are removed.

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
    check_output(output)
    arguments = training_arguments(recipe)
    if recipe.stage == "distill":
        student_settings(recipe)  # before data are tokenised, which may take long
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
    options["callbacks"] = [_StopsWhenDone()]
    if recipe.early_stopping_patience is not None:
        options["callbacks"].append(EarlyStoppingCallback(recipe.early_stopping_patience))
    trainer: RecipeTrainer
    if recipe.stage == "pretrain":
        trainer = PretrainTrainer(recipe, _base_model(recipe), data, **options)
    else:
        for dataset, samples in ((recipe.dataset, data), (recipe.eval_dataset, evaluation)):
            if isinstance(samples, Conversations):
                _longer_than(smallest_window(recipe), samples, dataset)
        trainer = DistillTrainer(recipe, student_model(recipe), data, **options)
    output.mkdir(parents=True, exist_ok=True)
    checkpoints = Path(str(arguments.output_dir))
    if not resume and trainer.args.should_save:
        shutil.rmtree(checkpoints, ignore_errors=True)  # else the next start would go on from them
    trainer.accelerator.wait_for_everyone()
    checkpoint = last_checkpoint(checkpoints) if resume else None
    started = time.perf_counter()
    try:
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    except _NothingLeft:
        if all((output / name).exists() for name in ("model.safetensors", "training.json")):
            logger.warning("%s: finished before; --fresh trains anew", output)
            return output
    seconds = time.perf_counter() - started
    _finish(trainer, tokenizer, seconds, output)
    return output


class _NothingLeft(Exception):
    """The checkpoint is that of the last step."""


class _StopsWhenDone(TrainerCallback):
    """The Trainer takes one step more when it goes on from a last step; here it takes none."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Model, optimiser and state are loaded by now."""
        if state.global_step >= state.max_steps:
            raise _NothingLeft


def _data(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Data:
    if recipe.streaming:
        return StreamedConversations(recipe, tokenizer)
    data = Conversations(recipe, tokenizer)
    counts = ", ".join(f"{name} {count:,}" for name, count in data.counts.items())
    logger.warning("data: %s%s", counts, " (tokenised before)" if data.from_cache else "")
    return data


def _longer_than(window: int, data: Conversations, dataset: str | list[str] | None) -> None:
    """Something lies beyond the smallest window; how much does not is said."""
    name = ", ".join(dataset) if isinstance(dataset, list) else dataset
    inside = int((data.lengths <= window).sum())
    if inside == len(data):
        raise InputError(
            f"{name}: no sample is longer than the window: the longest has "
            f"{int(data.lengths.max())} tokens, the smallest window {window} (sliding_window, "
            "sliding_window_choices)"
        )
    if inside:
        logger.warning(
            "%s: %d of %d samples fit the smallest window (%d tokens): nothing is learnt from them",
            name,
            inside,
            len(data),
            window,
        )


def _can_be_written(output: Path) -> None:
    """Tries the folder, or the nearest one above it that there is; makes none."""
    place = output.absolute()
    there = next(path for path in (place, *place.parents) if os.path.lexists(path))
    try:
        with tempfile.TemporaryFile(dir=there):
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
        skipped = trainer.skipped_batches()
        batches = trainer.state.global_step * trainer.args.gradient_accumulation_steps
        if main and skipped and skipped >= batches * trainer.args.world_size:
            logger.warning(
                "nothing was learnt: none of %d batches has a labelled token beyond the window "
                "(see sliding_window, sliding_window_choices)",
                skipped,
            )
        if main:
            write_outputs(
                trainer.recipe,
                trainer.state,
                samples=trainer.data.counts,
                skipped=skipped,
                seconds=seconds,
                processes=trainer.args.world_size,
                trained_parameters=trained,
                output=unfinished,
            )
            for path in unfinished.iterdir():
                os.replace(path, output / path.name)
    except Exception as error:
        raise InputError(
            f"{output}: the weights cannot be written: {first_line(error)}. Free space there; the "
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
