"""What a checkpoint was made of: its recipe, its data, its base, and every start of its run.

Beside each checkpoint lie `recipe.yaml` (every option; it runs again) and `run.json` (hashes of
content, processes, starts). A run goes on from a checkpoint of the same recipe only: else log and
card would state options that were not used.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ahn.checkpoints.load import describe_model, weight_files
from ahn.checkpoints.names import name_of
from ahn.distill.conversations import Source, file_digest
from ahn.distill.recipe import Recipe
from common import yaml as strict_yaml
from common.errors import InputError

logger = logging.getLogger(__name__)

RECIPE, RECORD = "recipe.yaml", "run.json"
_FORMAT = 1

#: Options that may differ when a run goes on: where it is kept, how long it is, what it logs and
#: saves, and what it runs on.
FREE = {
    "output_dir",
    "max_steps",
    "num_train_epochs",
    "early_stopping_patience",
    "eval_steps",
    "logging_steps",
    "report_to",
    "save_steps",
    "save_total_limit",
    "threads",
    "gradient_checkpointing",
    "preprocessing_num_workers",
}
#: The same among the options of transformers: names, and how names begin.
_FREE_ARGUMENTS = {
    "bf16_full_eval",
    "debug",
    "disable_tqdm",
    "do_train",
    "enable_jit_checkpoint",
    "fp16_full_eval",
    "local_rank",
    "per_device_eval_batch_size",
    "project",
    "restore_callback_states_from_checkpoint",
    "run_name",
    "skip_memory_metrics",
    "torch_empty_cache_steps",
    "use_cpu",
}
_FREE_BEGINNINGS = (
    *("dataloader_num", "dataloader_per", "dataloader_pin", "dataloader_pre", "dataloader_multi"),
    *("ddp_", "deepspeed", "eval_", "fsdp", "hub_", "include_num_", "log_", "logging_"),
    *("push_to_hub", "save_", "torch_compile", "trackio_"),
)
#: Options whose value is a name of something; what it holds is compared.
_BY_CONTENT = {"dataset", "eval_dataset", "model_name_or_path", "ahn_name_or_path", "template"}
#: Options of transformers that are written nowhere.
_SECRET = ("hub_token",)


@dataclass
class RunRecord:
    """A run up to a checkpoint, or to its end.

    Attributes:
        recipe: every option, secrets left out.
        content: hashes by option: what the names in the recipe held.
        processes: that trained together when this was written.
        skipped_batches: with nothing to learn from, of all processes and starts; None: cannot be.
        samples: what of streamed data was read; see `Conversations.counts`.
        starts: each with the step it began at, time, command, seconds, machine, and its options
            among those that may differ.
    """

    recipe: dict[str, Any]
    content: dict[str, str]
    processes: int
    skipped_batches: int | None = None
    samples: dict[str, int] | None = None
    starts: list[dict[str, Any]] = field(default_factory=list)

    def write_recipe(self, folder: Path) -> None:
        """Write `recipe.yaml`."""
        text = yaml.safe_dump(self.recipe, sort_keys=False, allow_unicode=True)
        (folder / RECIPE).write_text(text, encoding="utf-8")

    def write(self, folder: Path) -> None:
        """Write `recipe.yaml` and `run.json`."""
        self.write_recipe(folder)
        values = {"format": _FORMAT, **asdict(self)}
        del values["recipe"]
        (folder / RECORD).write_text(strict_json(values), encoding="utf-8")


def read_record(folder: Path) -> RunRecord | None:
    """What `RunRecord.write` wrote; None where there is none (checkpoints of older versions).

    Raises:
        InputError: the files are damaged.
    """
    if not (folder / RECORD).is_file() or not (folder / RECIPE).is_file():
        return None
    try:
        values = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        recipe = strict_yaml.read(folder / RECIPE)
        if values.pop("format") != _FORMAT or not isinstance(recipe, dict):
            raise ValueError("of another version")
        return RunRecord(recipe=_with_defaults(recipe), **values)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, InputError) as error:
        raise InputError(
            f"{folder / RECORD}: cannot be read: {error}; remove this checkpoint"
        ) from None


def finished_record(output: Path) -> RunRecord | None:
    """What the log of a finished training says about it; None where none is finished here."""
    log = output / "training.json"
    if not log.is_file() or not any(output.glob("*.safetensors")):
        return None
    try:
        values = json.loads(log.read_text(encoding="utf-8"))
        return RunRecord(
            recipe=_with_defaults(values["recipe"]),
            content=values.get("content", {}),
            processes=values.get("processes", 1),
            starts=[{"to_step": values["steps"]}],
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"{log}: cannot be read: {error}; train into another folder, or anew with --fresh"
        ) from None


def _with_defaults(written: Mapping[str, Any]) -> dict[str, Any]:
    """Every option of a recipe that was written without those at their default."""
    defaults = {
        name: option.get_default(call_default_factory=True)
        for name, option in Recipe.model_fields.items()
        if not option.is_required()
    }
    named = {
        option: name_of(written[option])  # an earlier version wrote the embedded model's folder
        for option in ("model_name_or_path", "ahn_name_or_path")
        if isinstance(written.get(option), str)
    }
    return {**defaults, **written, **named}


def every_option(recipe: Recipe) -> dict[str, Any]:
    """All options and their values, secrets left out."""
    return without_secrets(recipe.model_dump(mode="json"))


def without_secrets(values: dict[str, Any]) -> dict[str, Any]:
    """Options as they may be written down."""
    given = values.get("training_arguments")
    if not given:
        return values
    kept = {name: value for name, value in given.items() if name not in _SECRET}
    return {**values, "training_arguments": kept}


def content_of(
    recipe: Recipe,
    tokenizer: Any,
    sources: Sequence[Source],
    eval_sources: Sequence[Source] | None,
) -> dict[str, str]:
    """Hashes of what the names in a recipe hold, by option.

    Args:
        recipe: names base and memory.
        tokenizer: with the recipe's template.
        sources: what its `dataset` names.
        eval_sources: what its `eval_dataset` names.

    Raises:
        InputError: something that cannot be read.
    """
    found = {"dataset": _hash([source.identity for source in sources])}
    if eval_sources is not None:
        found["eval_dataset"] = _hash([source.identity for source in eval_sources])
    for name in ("model_name_or_path", "ahn_name_or_path"):
        if (place := getattr(recipe, name)) is not None:
            found[name] = _model_hash(place)
    found["tokenizer"] = _hash([tokenizer.backend_tokenizer.to_str(), tokenizer.chat_template])
    return found


def _model_hash(place: str) -> str:
    config = {k: v for k, v in describe_model(place).items() if k != "transformers_version"}
    try:
        files = [file_digest(path).hex() for path in weight_files(place)]
    except OSError as error:
        raise InputError(f"{place}: cannot be read: {error}") from None
    return _hash([config, files])


def _hash(parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def option_differences(recipe: Recipe, before: RunRecord, processes: int) -> list[str]:
    """Options that decide the weights and are not those of `before`, a line each.

    `gradient_accumulation_steps` may differ as far as it makes up for the number of processes.
    """
    mine, theirs = every_option(recipe), before.recipe
    lines = []
    for name in Recipe.model_fields:
        if name in FREE or name in _BY_CONTENT:
            continue
        ours: Any = mine[name]
        other: Any = theirs.get(name)
        if name == "training_arguments":
            ours, other = _binding(ours), _binding(other)
            for key in sorted(ours.keys() | other.keys()):
                if ours.get(key) != other.get(key):
                    lines.append(_line(f"{name}.{key}", ours.get(key), other.get(key)))
        elif name == "gradient_accumulation_steps":
            if ours != other and ours * processes != other * before.processes:
                lines.append(_line(name, ours, other))
        elif name == "base" and ours and other:
            lines += [
                _line(f"base.{key}", ours[key], other.get(key))
                for key in ours
                if ours[key] != other.get(key) and key != "tokenizer"
            ]
        elif ours != other:
            lines.append(_line(name, ours, other))
    return lines


def content_differences(recipe: Recipe, content: Mapping[str, str], before: RunRecord) -> list[str]:
    """Options whose content is not that of `before`, a line each.

    A name alone may differ (a folder that was moved), unless it is all that is known.
    """
    lines = []
    mine = every_option(recipe)
    for name in ("dataset", "eval_dataset", "model_name_or_path", "ahn_name_or_path", "tokenizer"):
        ours, other = content.get(name), before.content.get(name)
        named, named_before = mine.get(name), before.recipe.get(name)
        known = ours is not None and other is not None
        if known and ours == other:
            continue
        if named != named_before:
            lines.append(_line(name, named, named_before))
        elif known:
            lines.append(f"{name}: {json.dumps(named)} has another content now than before")
    return lines


def same_length(recipe: Recipe, before: RunRecord) -> bool:
    """Whether a finished training was asked to be as long as this one."""
    mine = every_option(recipe)
    length = ("max_steps", "num_train_epochs", "early_stopping_patience")
    return all(mine[name] == before.recipe.get(name) for name in length)


def free_options(recipe: Recipe) -> dict[str, Any]:
    """Options of this start that may differ from start to start, those not at their default."""
    given = without_secrets(recipe.model_dump(mode="json", exclude_defaults=True))
    found = {name: value for name, value in given.items() if name in FREE}
    arguments = given.get("training_arguments", {})
    free = {name: value for name, value in arguments.items() if _is_free(name)}
    return {**found, "training_arguments": free} if free else found


def _binding(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if not _is_free(name)}


def _is_free(name: str) -> bool:
    return name in _FREE_ARGUMENTS or name.startswith(_FREE_BEGINNINGS)


def _line(name: str, ours: Any, other: Any) -> str:
    return f"{name}: {json.dumps(ours)} now, {json.dumps(other)} before"


def refuse(place: Path, differences: list[str], finished: bool = False) -> None:
    """Say which options differ.

    Raises:
        InputError: there are differences.
    """
    if not differences:
        return
    what = (
        "holds a finished training of another recipe"
        if finished
        else "the run cannot go on from this checkpoint, which is of another recipe"
    )
    raise InputError(
        "\n".join(
            [
                f"{place}: {what}; what differs:",
                *(f"  {line}" for line in differences),
                "give what it was made with, train into another folder (output_dir), or anew "
                "with --fresh",
            ]
        )
    )


def strict_json(values: Any) -> str:
    """JSON that every parser takes: a number that is not finite becomes null."""
    return json.dumps(_finite(values), indent=1, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
