"""Training recipes: everything that decides what weights come out, in one YAML file.

The option names of the paper's own tool are kept (`loss_type`, `ahn_implementation`,
`sliding_window_type` ...); names of optimisation options are those of
`transformers.TrainingArguments`.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ahn.cells.registry import CELLS
from ahn.checkpoints.names import ahn_path, model_path
from common import yaml as strict_yaml
from common.errors import InputError, shown
from common.files import kind_of

LossName = Literal["kl", "ce", "distill"]
#: W_total where a recipe names none (told when a run starts)
DEFAULT_WINDOW = 32


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


class BaseModelRecipe(BaseModel):
    """Shape and start of a base model that is trained from scratch (`stage: pretrain`)."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    config: dict[str, Any] = Field(description="arguments of transformers' Qwen2Config")
    tokenizer: str = Field(description="folder of the tokenizer that is saved with the model")
    structured_start: bool = Field(
        True,
        description="first-layer heads look at fixed offsets, later layers match equal keys "
        "(see ahn.distill.pretrain)",
    )
    offset_logit: float = Field(20.0, gt=0, description="attention logit at a head's own offset")


class Recipe(BaseModel):
    """One training run."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    stage: Literal["distill", "pretrain"] = Field(
        "distill", description="distill: memories of a frozen base; pretrain: a base model"
    )
    model_name_or_path: str | None = Field(
        None, description="base model: folder, hub id, or pocket"
    )
    ahn_name_or_path: str | None = Field(
        None,
        description="memory to go on training, released or one's own: folder, hub id, pocket or "
        "pocket/dn ...; none: a fresh one",
    )
    base: BaseModelRecipe | None = Field(None, description="a new base model (stage pretrain)")
    output_dir: str = Field(description="folder of weights, log, curve, card and checkpoints")

    dataset: str | list[str] = Field(
        description="chat JSONL, JSON or Parquet files, folders of them, chatqa2 (the paper's), or "
        "hub ids (owner/name:configuration:split); joined by commas, or a list"
    )
    eval_dataset: str | list[str] | None = Field(
        None, description="as dataset: its loss is taken every eval_steps"
    )
    template: str = Field(
        "default", description="default: the tokenizer's chat template; or a Jinja file"
    )
    streaming: bool = Field(
        False, description="tokenise while training, for data that does not fit a disk"
    )
    filter_len: int = Field(0, ge=0, description="samples of at most so many tokens are left out")
    cutoff_len: int = Field(
        24_576,
        gt=1,
        description="longer samples are shortened, as in the paper's tool: the end of a turn's "
        "source goes, its answer stays",
    )
    max_samples: int | None = Field(
        None, gt=0, description="keep so many samples, the first ones; none: all"
    )
    preprocessing_num_workers: int | None = Field(
        None, ge=0, description="processes that tokenise; none: one a core where it pays"
    )

    loss_type: str = Field("kl", description="kl, ce, distill, joined with +")
    loss_weights: dict[LossName, Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict,
        description="what each term of loss_type counts (--loss_weights.ce 0.1); 1 where not given",
    )
    kl_positions: Literal["label", "prediction"] = Field(
        "label",
        description="KL where a position's own token is labelled (the paper's tool), or where "
        "it predicts a labelled token",
    )
    ahn_implementation: str = Field(
        CELLS.builtin[0], description=f"memory: {', '.join(CELLS.builtin)}, or an installed one"
    )
    ahn_position: Literal["prefix", "random"] = Field(
        "prefix", description="prefix: no sinks; random: sinks drawn per batch"
    )
    sliding_window_type: Literal["fixed", "random", "linear"] = Field(
        "fixed",
        description="fixed: sliding_window; random: drawn per batch; linear: max(L/4, 512)",
    )
    sliding_window: int = Field(
        DEFAULT_WINDOW,
        gt=0,
        description="W_total: lossless positions, sinks included; those that are saved, and, for "
        "sliding_window_type fixed, those that are trained with",
    )
    sliding_window_choices: list[Annotated[int, Field(gt=0)]] = Field(
        default_factory=lambda: [32, 64, 128, 256, 512, 1024, 2048, 4096, 8192],
        min_length=1,
        description="W_total for sliding_window_type random; only L/8 < W_total < L is drawn",
    )
    num_attn_sinks_choices: list[Annotated[int, Field(ge=0)]] = Field(
        default_factory=lambda: [0, 32, 64, 128, 512, 2048, 4096],
        min_length=1,
        description="sinks for ahn_position random; only S <= W_total/2 is drawn",
    )
    num_attn_sinks: int = Field(
        0, ge=0, description="sinks that are saved with the memory, for inference"
    )
    fa_layer_ids: list[int] = Field(
        default_factory=list, description="layers that keep full attention and get no memory"
    )
    use_normalized_l2: bool = Field(
        True, description="loss distill compares attention outputs of length 1"
    )
    save_ahn_only: bool = Field(
        True, description="false: base and memories in one folder, as `ahn merge` writes it"
    )
    decay_init_max: float = Field(
        16.0,
        gt=0,
        description="exp(A_log) starts uniform in [min(1, max/2), max]; small: slow forgetting",
    )

    optimizer: Literal["adamw", "muon"] = Field(
        "adamw", description="muon: Muon for matrices, AdamW for embeddings, norms and biases"
    )
    learning_rate: float = Field(1e-4, gt=0, le=_RATE_LIMIT, description="highest, of AdamW")
    muon_learning_rate: float = Field(0.02, gt=0, le=_RATE_LIMIT, description="highest, of Muon")
    lr_scheduler_type: str = Field(
        "cosine", description="cosine, linear, constant_with_warmup ... of transformers"
    )
    lr_scheduler_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="what that schedule takes besides"
    )
    warmup_steps: float = Field(0.1, ge=0, description="steps, or a share of all when below 1")
    weight_decay: float = Field(0.1, ge=0, description="of matrices; vectors are not decayed")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="of AdamW's second moment")
    max_grad_norm: float = Field(1.0, ge=0, description="gradients are clipped to it; 0: never")
    max_steps: int = Field(-1, ge=-1, description="optimiser steps; -1: by num_train_epochs")
    num_train_epochs: float = Field(1.0, gt=0, description="passes over the data")
    per_device_train_batch_size: int = Field(1, gt=0, description="samples a device and pass")
    tokens_per_batch: int | None = Field(
        None, gt=0, description="batches of about so many tokens, in file order, instead"
    )
    gradient_accumulation_steps: int = Field(
        1, gt=0, description="passes whose gradients make one step"
    )
    gradient_checkpointing: bool = Field(
        False, description="keep only the layers' inputs; layers are run again going backward"
    )
    position_gap: int = Field(
        0, ge=0, description="random jumps in position_ids, up to about so much in all"
    )
    key_spread: float = Field(
        0.0,
        ge=0,
        description="weight of the mean squared cosine between a head's keys, before RoPE and "
        "from layer 1 on, that is added to the loss of stage pretrain: memories recall best "
        "where keys differ",
    )
    bf16: bool = Field(False, description="base and products in bfloat16, memories in float32")
    seed: int = Field(0, description="of weights, windows and data order")
    logging_steps: int = Field(20, gt=0, description="steps between lines of the log")
    save_steps: int = Field(500, gt=0, description="steps between checkpoints")
    save_total_limit: int = Field(1, gt=0, description="checkpoints that are kept, the last ones")
    eval_steps: int = Field(
        500, gt=0, description="steps between losses of eval_dataset; the last step has one, too"
    )
    early_stopping_patience: int | None = Field(
        None,
        gt=0,
        description="stop after so many evaluations without a better loss; the best weights are "
        "saved",
    )
    report_to: str | list[str] = Field(
        "none", description="none, tensorboard, wandb ... of transformers' Trainer"
    )
    training_arguments: dict[str, Any] = Field(
        default_factory=dict,
        description="any other option of transformers.TrainingArguments (deepspeed, fsdp, "
        "fsdp_config, torch_compile, dataloader_num_workers ...)",
    )
    threads: int | None = Field(None, gt=0, description="CPU threads; None: torch's choice")

    @field_validator("fa_layer_ids", mode="before")
    @classmethod
    def _layers(cls, value: object) -> object:
        """Also as in released configurations, `"0,5"`, and a single one."""
        if isinstance(value, str):
            return [part.strip() for part in value.split(",") if part.strip()]
        return [value] if isinstance(value, int) else value

    @field_validator("model_name_or_path")
    @classmethod
    def _embedded(cls, value: str | None) -> str | None:
        return None if value is None else str(model_path(value))

    @field_validator("ahn_name_or_path")
    @classmethod
    def _embedded_memory(cls, value: str | None) -> str | None:
        return None if value is None else str(ahn_path(value))

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


def load_recipe(path: str | Path | None, overrides: dict[str, Any] | None = None) -> Recipe:
    """Read a recipe and apply overrides.

    Args:
        path: YAML file; None: the overrides are the whole recipe.
        overrides: values that win over the file's; a mapping is merged into the file's.

    Raises:
        InputError: no such file, no YAML, or a key or value that a recipe does not have; every
            problem is named, with the file or the flag that it came from.
    """
    overrides = overrides or {}
    values = _merged({} if path is None else _read(Path(path)), overrides)
    try:
        return Recipe(**values)
    except ValidationError as error:
        problems = []
        for item in error.errors():
            place = list(map(str, item["loc"]))
            name = ".".join(place) or "recipe"
            if not place:
                source = "" if path is None else f"{path}: "
            elif place[0] in overrides or path is None:
                source = "--"
            else:
                source = f"{path}: "
            problems.append(f"{source}{name}: {_in_words(item, place)}")
        raise InputError(*problems) from None


def _read(path: Path) -> dict[str, Any]:
    if kind_of(path) is None:
        raise InputError(f"{shown(path)}: no such recipe")
    values = strict_yaml.read(path)
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise InputError(f"{path}: a recipe is a mapping of options")
    return values


def _merged(values: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(values)
    for key, value in over.items():
        mine = merged.get(key)
        both = isinstance(value, dict) and isinstance(mine, dict)
        merged[key] = _merged(mine, value) if both else value  # type: ignore[arg-type]
    return merged


def _in_words(item: Any, place: list[str]) -> str:
    """What is wrong with one option, and what was given."""
    if item["type"] == "extra_forbidden":
        known = BaseModelRecipe if place[0] == "base" and len(place) > 1 else Recipe
        close = difflib.get_close_matches(place[-1], known.model_fields, n=1)
        return "no such option" + (f"; did you mean {close[0]}?" if close else "")
    if item["type"] == "missing":
        return "must be given"
    if not place or item["type"] == "value_error":
        return str(item["msg"]).removeprefix("Value error, ")
    return f"{item['msg']}, not {item['input']!r}"
