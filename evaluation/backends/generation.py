"""How answers are generated: the checkpoint's settings with the protocol's on top."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from ahn.checkpoints.locate import CheckpointFiles
from ahn.families import find_family
from common.errors import InputError

# Settings of a record of a run, besides whatever else is set.
_RECORDED = ("do_sample", "num_beams", "temperature", "top_p", "top_k", "min_p")
_PENALTY_DEFAULTS = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "length_penalty": 1.0}
# `generate` arguments that a protocol may set; `newline_eos` is ours, see below.
_PROTOCOL_KEYS = {*_RECORDED, "min_new_tokens", "newline_eos"}
# AHN samples with Qwen3 in eval/longbench/pred.py, by which InfiniteBench is run too; eval/lveval
# and every other model decode greedily.
_AHN_SAMPLES = frozenset({"longbench", "longbench_e", "infinitebench"})
_AHN_QWEN3 = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 200, "min_p": 0.0}


def load_generation_config(folder: Path, model_config: Mapping[str, Any]) -> GenerationConfig:
    """The checkpoint's ``generation_config.json``; without one, the ids of its ``config.json``.

    Raises:
        InputError: the file is there but cannot be used.
    """
    if not (folder / "generation_config.json").exists():
        keys = ("bos_token_id", "eos_token_id", "pad_token_id")
        return GenerationConfig(**{key: model_config.get(key) for key in keys})
    try:
        _ = CheckpointFiles(folder).generation_config  # refuses what is not strict JSON
        return GenerationConfig.from_pretrained(folder)
    except InputError:
        raise
    except (OSError, ValueError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{folder / 'generation_config.json'}: {reason}") from error


def generation_settings(
    checkpoint: GenerationConfig,
    protocol_name: str,
    protocol_settings: Mapping[str, Any],
    max_new_tokens: int,
    tokenizer: Any,
    model_type: str | None,
    benchmark: str = "longbench",
) -> GenerationConfig:
    """The checkpoint's settings with the protocol's on top: what `generate` really uses.

    What the protocol does not name stays as the checkpoint has it: stop ids and
    ``repetition_penalty`` above all, which greedy decoding applies too. ``newline_eos`` (samsum,
    official) replaces the stop ids by the tokenizer's end token and the last id of a newline.
    """
    unknown = sorted(set(protocol_settings) - _PROTOCOL_KEYS)
    if unknown:
        raise InputError(f"unknown generation settings of a task: {', '.join(unknown)}")
    settings = copy.deepcopy(checkpoint)
    chosen: dict[str, Any] = {"do_sample": False, "num_beams": 1, **protocol_settings}
    family = find_family(model_type)
    qwen3 = family is not None and family.model_type == "qwen3"
    if protocol_name == "ahn" and qwen3 and benchmark in _AHN_SAMPLES:
        chosen |= _AHN_QWEN3
    newline_eos = chosen.pop("newline_eos", False)
    if not chosen["do_sample"]:
        # Greedy decoding ignores these; unset, so that the record does not suggest otherwise.
        chosen |= {"temperature": None, "top_p": None, "top_k": None, "min_p": None}
    for key, value in chosen.items():
        setattr(settings, key, value)
    settings.max_new_tokens = max_new_tokens
    settings.max_length = None
    if settings.eos_token_id is None:
        settings.eos_token_id = tokenizer.eos_token_id
    if newline_eos:
        newline = tokenizer.encode("\n", add_special_tokens=False)
        if not newline:
            raise InputError("the tokenizer gives no token for a newline, which ends samsum")
        settings.eos_token_id = [tokenizer.eos_token_id, newline[-1]]
    if settings.pad_token_id is None:
        ids = stop_ids(settings)
        settings.pad_token_id = ids[0] if ids else 0
    return settings


def stop_ids(settings: GenerationConfig) -> list[int]:
    """Ids that end an answer."""
    ids = settings.eos_token_id
    if ids is None:
        return []
    return [ids] if isinstance(ids, int) else list(ids)


def settings_as_dict(settings: GenerationConfig) -> dict[str, Any]:
    """Everything that decides what is generated, for the record and the run's identity."""
    stated = {key: value for key, value in settings.to_dict().items() if value is not None}
    # True of the file that they were read from, not of what is generated.
    for key in ("_from_model_config", "transformers_version"):
        stated.pop(key, None)
    result: dict[str, Any] = {key: getattr(settings, key, None) for key in _RECORDED}
    result |= _PENALTY_DEFAULTS | stated
    result["eos_token_id"] = stop_ids(settings)
    return result
