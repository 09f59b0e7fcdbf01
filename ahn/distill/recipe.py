"""Training recipes: everything that decides what weights come out, in one YAML file.

The option names of the paper's own tool are kept (`loss_type`, `ahn_implementation`,
`sliding_window_type` ...); names of optimisation options are those of
`transformers.TrainingArguments`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    Field,
    PlainSerializer,
    StrictBool,
    field_validator,
    model_validator,
)

from ahn.cells.registry import CELLS
from ahn.checkpoints.names import ahn_path, model_path, name_of
from common.errors import InputError, shown
from common.files import kind_of
from common.settings import Number, Seed, Settings, Tokens, Whole, read_file, settings

LossName = Literal["kl", "ce", "distill"]
#: W_total where a recipe names none (told when a run starts)
DEFAULT_WINDOW = 32


#: The embedded model stands in recipes and logs by its name, not by its folder on this machine
_WRITTEN = PlainSerializer(name_of)
#: more tokens, steps or samples than any training has; and more processes than a machine runs
_MOST, MOST_PROCESSES = 10**9, 1024
_LEAST_EPOCHS, _MOST_EPOCHS = 1e-6, 10**6
#: a step with a greater learning rate overflows float32
_RATE_LIMIT = 1e36
#: Options that say nothing about a base model
_OF_DISTILLATION = (
    "ahn_name_or_path",
    "loss_type",
    "loss_weights",
    "kl_positions",
    "ahn_implementation",
    "ahn_position",
    "sliding_window_type",
    "sliding_window",
    "sliding_window_choices",
    "num_attn_sinks_choices",
    "num_attn_sinks",
    "fa_layer_ids",
    "use_normalized_l2",
    "save_ahn_only",
    "decay_init_max",
)


class BaseModelRecipe(Settings):
    """Shape and start of a base model that is trained from scratch (`stage: pretrain`)."""

    config: dict[str, Any]
    """Arguments of transformers' Qwen2Config."""
    tokenizer: str
    """Folder of the tokenizer that is saved with the model."""
    structured_start: StrictBool = True
    """First-layer heads look at fixed offsets, later layers match equal keys (see
    ahn.distill.pretrain)."""
    offset_logit: Number = Field(20.0, gt=0, le=_MOST)
    """Attention logit at a head's own offset."""


class Recipe(Settings):
    """One training run.

    Attributes:
        groups: headings of the options' groups in the help, by the first option of each.
    """

    groups: ClassVar[Mapping[str, str]] = {
        "stage": "What is trained",
        "dataset": "Data",
        "loss_type": "Loss and memory",
        "optimizer": "Optimisation",
        "bf16": "Machine, log and checkpoints",
    }

    stage: Literal["distill", "pretrain"] = "distill"
    """distill: train memories of a frozen base; pretrain: train a base model."""
    model_name_or_path: (
        Annotated[str, AfterValidator(lambda n: str(model_path(n))), _WRITTEN] | None
    ) = None
    """Base model: folder, hub id, or pocket."""
    ahn_name_or_path: (
        Annotated[str, AfterValidator(lambda n: str(ahn_path(n))), _WRITTEN] | None
    ) = None
    """AHN weights to start from: folder, hub id, pocket or pocket/dn ... Default: fresh weights."""
    base: BaseModelRecipe | None = None
    """Shape and start of a new base model (stage pretrain)."""
    output_dir: str
    """Folder for weights, log, loss curve, model card and checkpoints."""

    dataset: str | list[str]
    """Chat data: JSONL, JSON or Parquet files, folders of them, chatqa2 (the paper's), or hub ids
    (owner/name:configuration:split); joined by commas, or a list."""
    eval_dataset: str | list[str] | None = None
    """Data, named as in dataset, whose loss is measured every eval_steps."""
    template: str = "default"
    """Chat template: default (the tokenizer's), or a Jinja file."""
    streaming: StrictBool = False
    """Tokenise while training, for data that does not fit on the disk."""
    filter_len: Tokens = Field(0, ge=0, le=_MOST)
    """Leave out samples of at most this many tokens."""
    cutoff_len: Tokens = Field(24_576, gt=1, le=_MOST)
    """Longest sample, in tokens. Longer ones are shortened as in the paper's tool: the end of a
    turn's source goes, its answer stays."""
    max_samples: Whole | None = Field(None, gt=0, le=_MOST)
    """Keep only the first this many samples. Default: all."""
    preprocessing_num_workers: Whole | None = Field(None, ge=0, le=MOST_PROCESSES)
    """Processes that tokenise. Default: one per core where the data are large."""

    loss_type: str = "kl"
    """Terms of the loss: kl, ce, distill, joined with +."""
    loss_weights: dict[LossName, Annotated[Number, Field(gt=0, le=_MOST)]] = {}
    """Weight of each term of loss_type (--loss-weights.ce 0.1). Default: 1."""
    kl_positions: Literal["label", "prediction"] = "label"
    """Take the KL where a position's own token is labelled (the paper's tool), or where it
    predicts a labelled token."""
    ahn_implementation: str = Field(
        CELLS.builtin[0], description=f"Memory cell: {', '.join(CELLS.builtin)}, or another one."
    )
    ahn_position: Literal["prefix", "random"] = "prefix"
    """prefix: no sinks; random: the number of sinks is drawn per batch."""
    sliding_window_type: Literal["fixed", "random", "linear"] = "fixed"
    """W_total of a batch. fixed: sliding_window; random: drawn per batch; linear: max(L/4, 512)."""
    sliding_window: Tokens = Field(DEFAULT_WINDOW, gt=0, le=_MOST)
    """W_total: lossless positions, sinks included. Saved with the memory; also trained with where
    sliding_window_type is fixed."""
    sliding_window_choices: list[Annotated[Tokens, Field(gt=0, le=_MOST)]] = Field(
        [32, 64, 128, 256, 512, 1024, 2048, 4096, 8192], min_length=1
    )
    """Values of W_total for sliding_window_type random; only L/8 < W_total < L is drawn."""
    num_attn_sinks_choices: list[Annotated[Tokens, Field(ge=0, le=_MOST)]] = Field(
        [0, 32, 64, 128, 512, 2048, 4096], min_length=1
    )
    """Numbers of sinks for ahn_position random; only S <= W_total/2 is drawn."""
    num_attn_sinks: Tokens = Field(0, ge=0, le=_MOST)
    """Number of sinks that is saved with the memory, for inference."""
    fa_layer_ids: list[Annotated[Whole, Field(ge=0, le=_MOST)]] = []
    """Layers that keep full attention and get no memory."""
    use_normalized_l2: StrictBool = True
    """Loss distill compares attention outputs scaled to length 1."""
    save_ahn_only: StrictBool = True
    """Save the memories alone. Off: base and memories in one folder, as of `ahn merge`."""
    decay_init_max: Number = Field(16.0, gt=0, le=_MOST)
    """Start exp(A_log) uniformly in [min(1, max/2), max]; a small value forgets slowly."""

    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon uses Muon for matrices, and AdamW for embeddings, norms and biases."""
    learning_rate: Number = Field(1e-4, gt=0, le=_RATE_LIMIT)
    """Highest learning rate of AdamW."""
    muon_learning_rate: Number = Field(0.02, gt=0, le=_RATE_LIMIT)
    """Highest learning rate of Muon."""
    lr_scheduler_type: str = "cosine"
    """Schedule of transformers: cosine, linear, constant_with_warmup ..."""
    lr_scheduler_kwargs: dict[str, Any] = {}
    """Further arguments of that schedule."""
    warmup_steps: Number = Field(0.1, ge=0, le=_MOST)
    """Steps of warm-up, or their share of all steps when below 1."""
    weight_decay: Number = Field(0.1, ge=0, le=_MOST)
    """Weight decay of matrices; vectors are not decayed."""
    adam_beta2: Number = Field(0.999, ge=0, lt=1)
    """Decay of AdamW's second moment."""
    max_grad_norm: Number = Field(1.0, ge=0, le=_MOST)
    """Clip gradients to this norm; 0: do not clip."""
    max_steps: Whole = Field(-1, ge=-1, le=_MOST)
    """Optimiser steps; -1: as many as num_train_epochs makes."""
    num_train_epochs: Number = Field(1.0, ge=_LEAST_EPOCHS, le=_MOST_EPOCHS)
    """Passes over the data."""
    per_device_train_batch_size: Whole = Field(1, gt=0, le=_MOST)
    """Samples per device and forward pass."""
    tokens_per_batch: Tokens | None = Field(None, gt=0, le=_MOST)
    """Make batches of about this many tokens, in the order of the data, instead."""
    gradient_accumulation_steps: Whole = Field(1, gt=0, le=_MOST)
    """Forward passes per optimiser step."""
    gradient_checkpointing: StrictBool = False
    """Keep only the layers' inputs, and compute each layer again in the backward pass."""
    position_gap: Tokens = Field(0, ge=0, le=_MOST)
    """Add random jumps to position_ids, up to about this much in all."""
    key_spread: Number = Field(0.0, ge=0, le=_MOST)
    """Weight of the mean squared cosine between a head's keys, before RoPE and from layer 1 on,
    that is added to the loss of stage pretrain: memories recall best where keys differ."""
    bf16: StrictBool = False
    """Compute the base and all products in bfloat16; memories stay in float32."""
    seed: Seed = 0
    """Seed of weights, windows and data order."""
    logging_steps: Whole = Field(20, gt=0, le=_MOST)
    """Steps between lines of the log."""
    save_steps: Whole = Field(500, gt=0, le=_MOST)
    """Steps between checkpoints."""
    save_total_limit: Whole = Field(1, gt=0, le=_MOST)
    """Number of checkpoints that are kept."""
    eval_steps: Whole = Field(500, gt=0, le=_MOST)
    """Steps between losses of eval_dataset; the last step has one, too."""
    early_stopping_patience: Whole | None = Field(None, gt=0, le=_MOST)
    """Stop after this many evaluations without a lower loss, and save the best weights."""
    report_to: str | list[str] = "none"
    """Where transformers' Trainer reports to: none, tensorboard, wandb ..."""
    training_arguments: dict[str, Any] = {}
    """Any other option of transformers.TrainingArguments (deepspeed, fsdp, fsdp_config,
    torch_compile, dataloader_num_workers ...)."""
    threads: Whole | None = Field(None, gt=0, le=MOST_PROCESSES)
    """CPU threads. Default: torch's choice."""

    @field_validator("fa_layer_ids", mode="before")
    @classmethod
    def _layers(cls, value: object) -> object:
        """Also as in released configurations, `"0,5"`, and a single one."""
        if isinstance(value, str) and re.fullmatch(r"[\d\s,]*", value):
            return [int(part) for part in value.split(",") if part.strip()]
        return [value] if isinstance(value, int) else value

    @field_validator("ahn_implementation")
    @classmethod
    def _known_cell(cls, value: str) -> str:
        if (problem := CELLS.problem(value)) is not None:
            raise ValueError(problem)
        return value

    @field_validator("loss_type")
    @classmethod
    def _known_losses(cls, value: str) -> str:
        names = value.split("+")
        unknown = [name for name in names if name not in ("kl", "ce", "distill")]
        if unknown or len(set(names)) != len(names):
            raise ValueError(f"{value!r} is not kl, ce and distill joined with +")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if (self.base is None) == (self.model_name_or_path is None):
            raise ValueError("give exactly one of model_name_or_path and base")
        if self.base is not None and self.stage != "pretrain":
            raise ValueError("base is for stage pretrain; distillation needs model_name_or_path")
        if self.early_stopping_patience is not None and self.eval_dataset is None:
            raise ValueError("early_stopping_patience needs an eval_dataset")
        if self.streaming and self.tokens_per_batch is not None:
            raise ValueError("streaming cannot go with tokens_per_batch: lengths are not known")
        if self.streaming and self.max_steps <= 0:
            raise ValueError("streaming needs max_steps: the number of samples is not known")
        if self.max_steps == 0:
            raise ValueError("max_steps: 0 steps train nothing; -1 means by num_train_epochs")
        clash = sorted(self.training_arguments.keys() & type(self).model_fields.keys())
        if clash:
            raise ValueError(f"training_arguments: {clash[0]} is an option of the recipe itself")
        if self.position_gap and self.tokens_per_batch is None:
            raise ValueError("position_gap needs tokens_per_batch (batches in file order)")
        if self.num_attn_sinks >= self.sliding_window:
            raise ValueError("sliding_window counts the sinks: it must exceed num_attn_sinks")
        if self.ahn_name_or_path is not None and self._differs("decay_init_max"):
            raise ValueError("decay_init_max is for fresh memories: ahn_name_or_path has its own")
        stray = sorted(self.loss_weights.keys() - set(self.losses))
        if stray:
            raise ValueError(f"loss_weights: {stray[0]} is not in loss_type {self.loss_type}")
        if self.stage == "distill" and self.key_spread:
            raise ValueError("key_spread is for stage pretrain: distillation trains no keys")
        if self.stage == "distill" and self.optimizer == "muon":
            raise ValueError("optimizer muon is for stage pretrain")
        if self.stage == "pretrain":
            given = [name for name in _OF_DISTILLATION if self._differs(name)]
            if given:
                raise ValueError(f"{given[0]} is for stage distill; a base model has no memory")
        return self

    def _differs(self, name: str) -> bool:
        """Whether an option is not at its default."""
        field = type(self).model_fields[name]
        return bool(getattr(self, name) != field.get_default(call_default_factory=True))

    @property
    def losses(self) -> list[str]:
        """The names in `loss_type`."""
        return self.loss_type.split("+")

    @property
    def weights(self) -> dict[str, float]:
        """What each term of the loss counts, in the order of `loss_type`."""
        given: dict[Any, float] = dict(self.loss_weights)
        return {name: given.get(name, 1.0) for name in self.losses}

    @property
    def eval_recipe(self) -> Recipe | None:
        """As this recipe, for the data that evaluations look at."""
        if self.eval_dataset is None:
            return None
        return self.model_copy(
            update={"dataset": self.eval_dataset, "max_samples": None, "streaming": False}
        )


def load_recipe(path: str | Path | None, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Read a recipe and apply overrides.

    Args:
        path: YAML file; None: the overrides are the whole recipe.
        overrides: values that win over the file's; a mapping is merged into the file's.

    Raises:
        InputError: no such file, no YAML, or a key or value that a recipe does not have; every
            problem is named, with the file and line or the flag that it came from.
    """
    if path is not None and kind_of(path) is None:
        raise InputError(f"{shown(path)}: no such recipe")
    return settings(Recipe, overrides or {}, None if path is None else read_file(Recipe, path))
