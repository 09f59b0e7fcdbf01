"""One training run: checked, data and model made, trained, written whole or not at all."""

from __future__ import annotations

import logging
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
)

from ahn.checkpoints.build import check_finite
from ahn.checkpoints.tokenizer import load_tokenizer
from ahn.distill import provenance
from ahn.distill.conversations import Source, find_sources
from ahn.distill.data import Collator, Conversations, StreamedConversations, TokenBudgetBatches
from ahn.distill.distillation import DistillTrainer
from ahn.distill.encoding import set_template
from ahn.distill.files import honour_umask, no_empty_folders, why_not_written
from ahn.distill.gaps import PositionGaps
from ahn.distill.hub import check_hub, upload, wants_upload
from ahn.distill.options import CHECKPOINTS, training_arguments
from ahn.distill.outputs import check_output, command_line, machine, write_outputs
from ahn.distill.provenance import RunRecord
from ahn.distill.recipe import Recipe
from ahn.distill.student import (
    base_config,
    checkpoint_layers,
    student_model,
    student_settings,
)
from ahn.distill.trainer import Data, PretrainTrainer, RecipeTrainer, last_checkpoint, same_command
from ahn.distill.windows import check_windows, notices_of_data, notices_of_recipe
from common.errors import InputError
from common.writing import check_folder_writable

logger = logging.getLogger(__name__)


def train(recipe: Recipe, resume: bool = True) -> Path:
    """Run a recipe to its end; under `torchrun` or `accelerate launch`, on many devices.

    Args:
        recipe: what to train.
        resume: continue from the last whole checkpoint in the output folder, if there is one;
            False: checkpoints that are there are removed.

    Returns:
        The folder of the finished weights, `recipe.output_dir`.

    Raises:
        InputError: data, tokenizer, base model or options cannot be used, what lies in the output
            folder is of another recipe, there is no room for a checkpoint, or the loss is no
            number any more; what was saved before stays, and a folder where nothing was saved
            is not left behind.
    """
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    output = Path(recipe.output_dir)
    try:
        check_folder_writable(output)
    except InputError as error:
        raise error.prefixed("output_dir: ") from None
    check_output(output)
    with no_empty_folders(output / CHECKPOINTS):
        return _Run(recipe, output, resume).run()


class _Run:
    """The steps of `train`, in their order: what is cheap to check comes first.

    Args:
        recipe: what to train.
        output: folder of what comes out.
        resume: see `train`.
    """

    def __init__(self, recipe: Recipe, output: Path, resume: bool) -> None:
        self.recipe, self.output = recipe, output
        self.arguments = training_arguments(recipe)
        self.main = self.arguments.process_index == 0
        self.checkpoints = Path(str(self.arguments.output_dir))
        self.resume = resume
        self.checkpoint = last_checkpoint(self.checkpoints) if resume else None

    def run(self) -> Path:
        """See `train`."""
        recipe, output = self.recipe, self.output
        self._check_recipe()
        before = self._check_options()
        tokenizer = _tokenizer(recipe)
        set_template(tokenizer, recipe.template)
        sources = find_sources(recipe.dataset, recipe.streaming)
        eval_sources = None
        if recipe.eval_dataset is not None:
            eval_sources = find_sources(recipe.eval_dataset)
        content = provenance.content_of(recipe, tokenizer, sources, eval_sources)
        uploads = self.main and wants_upload(recipe)
        if uploads:
            check_hub(recipe)
        if self._is_finished(content, before):
            if uploads:  # the last time it may have failed
                upload(recipe, output)
            return output
        data = self._data(tokenizer, sources)
        evaluation = self._evaluation(tokenizer, eval_sources)
        transformers.set_seed(recipe.seed)
        record = self._new_record(content, before)
        trainer = self._trainer(tokenizer, data, evaluation, record)
        output.mkdir(parents=True, exist_ok=True)
        if not self.resume and self.main:  # else the next start would go on from them
            shutil.rmtree(self.checkpoints, ignore_errors=True)
        trainer.accelerator.wait_for_everyone()
        if self.checkpoint is not None:
            trainer.go_on_from(self.checkpoint)
        try:
            trainer.train(resume_from_checkpoint=self.checkpoint and str(self.checkpoint))
        except _NothingLeft:
            if provenance.finished_record(output) is not None:
                self._say(f"{output}: finished before; --fresh trains anew")
                return output
        finally:
            _close_bars(trainer)
        best = trainer.load_best() if recipe.early_stopping_patience is not None else None
        _finish(trainer, tokenizer, best, output)
        if uploads:
            upload(recipe, output)
        return output

    def _say(self, text: str) -> None:
        if self.main:
            logger.warning("%s", text)

    def _check_recipe(self) -> None:
        """What can be known before anything is read but the base's configuration."""
        recipe = self.recipe
        if recipe.stage == "distill":
            student_settings(recipe)
            check_windows(recipe)
            for notice in notices_of_recipe(recipe):
                self._say(notice)
            return
        if self.arguments.world_size > 1:
            raise InputError("stage pretrain trains in one process; start it without torchrun")
        if recipe.model_name_or_path is not None and base_config(recipe)["model_type"] != "qwen2":
            raise InputError(
                f"model_name_or_path: {recipe.model_name_or_path}: stage pretrain goes on with "
                "Qwen2 models only"
            )

    def _check_options(self) -> RunRecord | None:
        """What the output folder holds is of this recipe; the record of what is gone on from.

        Raises:
            InputError: it holds another recipe's.
        """
        recipe, output, place = self.recipe, self.output, self.checkpoint
        if not self.resume:
            return None
        processes = self.arguments.world_size
        if place is None:
            finished = provenance.finished_record(output)
            if finished is not None:
                found = provenance.option_differences(recipe, finished, processes)
                provenance.refuse(output, found, finished=True)
            return finished
        before = provenance.read_record(place)
        if before is None:
            before = self._older_record(place)
        if before is None:
            self._say(
                f"{place}: an older version wrote it, without its recipe: whether it is of this "
                "one cannot be checked"
            )
            return None
        provenance.refuse(place, provenance.option_differences(recipe, before, processes))
        if before.processes != processes and (
            before.recipe["gradient_accumulation_steps"] == recipe.gradient_accumulation_steps
        ):
            self._say(
                f"{place}: made by {before.processes} processes, now {processes}: a step has "
                "another number of samples from here on, and the data are not taken up where they "
                "were left; gradient_accumulation_steps can make up for it"
            )
        return before

    def _older_record(self, place: Path) -> RunRecord | None:
        """What the log of a finished training says about its last checkpoint, if this is it."""
        finished = provenance.finished_record(self.output)
        if finished is None or finished.starts[-1]["to_step"] != _step_of(place):
            return None
        return RunRecord(finished.recipe, finished.content, finished.processes)

    def _is_finished(self, content: dict[str, str], before: RunRecord | None) -> bool:
        """Whether there is nothing to do; the data and models are those of what was begun.

        Raises:
            InputError: they are not, or a finished training cannot be made longer.
        """
        if not self.resume:
            return False
        if before is not None:
            place = self.output if self.checkpoint is None else self.checkpoint
            found = provenance.content_differences(self.recipe, content, before)
            provenance.refuse(place, found, finished=self.checkpoint is None)
        finished = provenance.finished_record(self.output)
        if finished is None:
            return False
        processes = self.arguments.world_size
        same = not provenance.option_differences(self.recipe, finished, processes)
        same = same and not provenance.content_differences(self.recipe, content, finished)
        if same and provenance.same_length(self.recipe, finished):
            self._say(f"{self.output}: finished before; --fresh trains anew")
            return True
        if self.checkpoint is None:
            raise InputError(
                f"{self.output}: holds a finished training whose checkpoints are gone: it cannot "
                "be made longer; train into another folder (output_dir), or anew with --fresh"
            )
        return False

    def _data(self, tokenizer: PreTrainedTokenizerBase, sources: list[Source]) -> Data:
        recipe = self.recipe
        if recipe.streaming:
            processes = self.arguments.dataloader_num_workers
            return StreamedConversations(recipe, tokenizer, sources, processes)
        data = Conversations(recipe, tokenizer, sources)
        counts = ", ".join(f"{name} {count:,}" for name, count in data.counts.items())
        self._say(f"data: {counts}{' (tokenised before)' if data.from_cache else ''}")
        self._check_lengths(data, recipe.dataset)
        return data

    def _evaluation(
        self, tokenizer: PreTrainedTokenizerBase, sources: list[Source] | None
    ) -> Conversations | None:
        recipe = self.recipe.eval_recipe
        if recipe is None:
            return None
        data = Conversations(recipe, tokenizer, sources)
        self._check_lengths(data, recipe.dataset)
        return data

    def _check_lengths(self, data: Conversations, dataset: str | list[str]) -> None:
        if self.recipe.stage == "distill":
            for notice in notices_of_data(self.recipe, data.lengths, dataset):
                self._say(notice)

    def _new_record(self, content: dict[str, str], before: RunRecord | None) -> RunRecord:
        step = 0 if self.checkpoint is None else _step_of(self.checkpoint)
        start = {
            "from_step": step,
            "to_step": step,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": command_line(),
            "seconds": 0.0,
            "processes": self.arguments.world_size,
            "options": provenance.free_options(self.recipe),
            "machine": machine(),
        }
        earlier = before.starts if before is not None and self.checkpoint is not None else []
        return RunRecord(
            recipe=provenance.every_option(self.recipe),
            content=content,
            processes=self.arguments.world_size,
            starts=[*earlier, start],
        )

    def _trainer(
        self,
        tokenizer: PreTrainedTokenizerBase,
        data: Data,
        evaluation: Conversations | None,
        record: RunRecord,
    ) -> RecipeTrainer:
        recipe = self.recipe
        gaps = None
        if recipe.position_gap and recipe.tokens_per_batch is not None:
            assert isinstance(data, Conversations)
            processes = self.arguments.world_size
            batches = TokenBudgetBatches(data.lengths, recipe.tokens_per_batch, processes)
            gaps = PositionGaps(data.lengths, batches, recipe.position_gap, recipe.seed)
        options: dict[str, Any] = {
            "data_collator": Collator(tokenizer.pad_token_id or 0, gaps),
            "eval_dataset": evaluation,
            "record": record,
            "callbacks": [_StopsWhenDone()],
        }
        if recipe.early_stopping_patience is not None:
            options["callbacks"].append(_StopsWithoutBetter(recipe.early_stopping_patience))
        if recipe.stage == "pretrain":
            model = _base_model(recipe, len(tokenizer))
            return PretrainTrainer(recipe, model, data, **options)
        return DistillTrainer(recipe, student_model(recipe), data, **options)


def _close_bars(trainer: RecipeTrainer) -> None:
    """End the lines of progress bars, so that a message after them has one of its own."""
    for callback in trainer.callback_handler.callbacks:
        for name in ("training_bar", "prediction_bar"):
            bar = getattr(callback, name, None)
            if bar is not None:
                bar.close()


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


class _NothingLeft(Exception):
    """The checkpoint is that of the last step."""


class _StopsWhenDone(TrainerCallback):
    """The Trainer takes one step more when it goes on from a last step; here it takes none.

    The last step is evaluated, whatever `eval_steps` is.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Model, optimiser and state are loaded by now."""
        if state.global_step >= state.max_steps:
            raise _NothingLeft

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Asks for the last evaluation."""
        if state.global_step >= state.max_steps and args.eval_strategy != "no":
            control.should_evaluate = True


class _StopsWithoutBetter(TrainerCallback):
    """Stops after evaluations without a better loss; saves at each better one.

    All that it knows stands in the log, so that a run that was interrupted stops where it would
    have stopped.
    """

    def __init__(self, patience: int) -> None:
        self._patience = patience

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The best checkpoint is kept, also where its folder was moved."""
        best = Path(args.output_dir) / f"checkpoint-{state.best_global_step}"
        if best.is_dir():
            state.best_model_checkpoint = str(best)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Compares with the evaluations before."""
        losses = [row["eval_loss"] for row in state.log_history if "eval_loss" in row]
        since_best = len(losses) - 1 - losses.index(min(losses))
        if since_best == 0:
            control.should_save = True
        elif since_best >= self._patience:
            control.should_training_stop = True


def _tokenizer(recipe: Recipe) -> PreTrainedTokenizerBase:
    source = recipe.base.tokenizer if recipe.base is not None else recipe.model_name_or_path
    assert source is not None
    option = "base.tokenizer" if recipe.base is not None else "model_name_or_path"
    try:
        return load_tokenizer(source)
    except InputError as error:
        raise error.prefixed(f"{option}: ") from None


def _finish(
    trainer: RecipeTrainer,
    tokenizer: PreTrainedTokenizerBase,
    best_step: int | None,
    output: Path,
) -> None:
    """Weights, log, curve and card appear in `output` whole or not at all."""
    unfinished = output / ".unfinished"
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    main = trainer.args.should_save
    trainer.check_weights()
    record = trainer.record
    assert record is not None
    record.skipped_batches = skipped = trainer.skipped_batches()
    record.starts[-1] |= trainer.so_far()
    batches = trainer.state.global_step * trainer.args.gradient_accumulation_steps
    if main and skipped and skipped >= batches * trainer.args.world_size:
        logger.warning(
            "nothing was learnt: none of %d batches has a labelled token beyond the window "
            "(see sliding_window, sliding_window_choices)",
            skipped,
        )
    try:
        if main:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
        trainer.save_weights(unfinished, tokenizer)
        if main:
            write_outputs(
                trainer.recipe,
                trainer.state,
                record=record,
                samples=trainer.data.counts,
                best_step=best_step,
                trained_parameters=trained,
                output=unfinished,
            )
            honour_umask(unfinished)
            for path in unfinished.iterdir():
                os.replace(path, output / path.name)
    except Exception as error:  # OSError, or what a library makes of it
        raise InputError(
            f"{output}: the weights cannot be written: {why_not_written(error, output)}. Free "
            f"space there; {same_command(Path(str(trainer.args.output_dir)))}"
        ) from error
    finally:
        if main:
            shutil.rmtree(unfinished, ignore_errors=True)


def _base_model(recipe: Recipe, vocabulary: int) -> PreTrainedModel:
    """The model that stage pretrain trains, in float32.

    Args:
        recipe: says which, or how a new one is made.
        vocabulary: tokens of the tokenizer.

    Raises:
        InputError: it cannot be loaded or made, or knows fewer tokens than the tokenizer.
    """
    from transformers import Qwen2ForCausalLM

    from ahn.distill.pretrain import new_base_model

    source = recipe.model_name_or_path
    if recipe.base is not None:
        model: Any = new_base_model(recipe.base, recipe.seed)
    else:
        try:
            model, found = Qwen2ForCausalLM.from_pretrained(
                source, dtype=torch.float32, output_loading_info=True
            )
        except (OSError, ValueError) as error:
            raise InputError(f"{source}: cannot load: {error}") from error
        strange = sorted([*found["missing_keys"], *found["unexpected_keys"]])
        if strange or found["mismatched_keys"]:
            raise InputError(
                f"{source}: its weights are not those of the model that config.json describes: "
                f"{strange[0] if strange else found['mismatched_keys']}"
            )
        check_finite(model, str(source))
    if vocabulary > model.config.vocab_size:
        raise InputError(
            f"the model knows {model.config.vocab_size} tokens (vocab_size), the tokenizer "
            f"{vocabulary}"
        )
    if recipe.gradient_checkpointing:
        checkpoint_layers(model)
    return model
