"""Tokens in, text out: prefill in the streaming cache, then decode, with clocks and bytes.

The prompt except its last token is *prefilled* here; `generate` then reads the last token and
decodes. So ``decode_seconds`` covers exactly one forward pass per generated token, and
``prefill_seconds`` everything before.

Examples about one document share the beginning of their prompts. Its cache is filled once and
copied per example, which the attention sinks, the ring window and the recurrent state allow
just as keys and values do.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import GenerationConfig

from ahn.checkpoints.locate import generation_defaults
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


@dataclass(frozen=True)
class Generation:
    """One answer and what it cost."""

    text: str
    token_ids: list[int]
    finish_reason: str  # "eos", "length", or "stop" where a stop text ended it
    prefill_seconds: float
    decode_seconds: float
    reused_prefix_tokens: int
    cache_bytes: int


def load_generation_config(folder: Path, model_config: Mapping[str, Any]) -> GenerationConfig:
    """The checkpoint's ``generation_config.json``; without one, the ids of its ``config.json``.

    Raises `InputError` when the file is there but cannot be used.
    """
    if not (folder / "generation_config.json").exists():
        keys = ("bos_token_id", "eos_token_id", "pad_token_id")
        return GenerationConfig(**{key: model_config.get(key) for key in keys})
    try:
        generation_defaults(folder)  # in strict JSON
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


def before_stop(text: str, stop: Sequence[str]) -> str:
    """`text` up to the first place where one of the texts `stop` begins."""
    ends = [at for end in stop if end and (at := text.find(end)) >= 0]
    return text[: min(ends, default=len(text))]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device, or the machine, had no memory left."""
    return isinstance(error, torch.cuda.OutOfMemoryError | MemoryError)


class Generator:
    """Answers prompts with one model, reusing the cache of a shared beginning."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        # `generate` fills what a call leaves open from here; each call comes with all settings.
        model.generation_config = GenerationConfig()
        self._model = model
        self._tokenizer = tokenizer
        self._device = next(model.parameters()).device
        self._shared_ids: npt.NDArray[np.int32] | None = None
        self._shared_cache: Any = None

    def forget(self) -> None:
        """Drop the cache that is kept for the next example."""
        self._shared_ids, self._shared_cache = None, None

    @torch.inference_mode()
    def answer(
        self,
        prompt: npt.NDArray[np.int32],
        settings: GenerationConfig,
        *,
        shared_tokens: int = 0,
        keep_shared: bool = False,
        seed: int | None = None,
        stop: Sequence[str] = (),
    ) -> Generation:
        """Answer `prompt` (ids ``[T]``).

        The first `shared_tokens` ids (fewer than ``T``) are taken from the cache that an earlier
        call kept, if they are the same ones; with `keep_shared` they are kept for the next call.
        `seed` sets the generators first, so that a sampled answer does not depend on the
        examples before it. The answer ends before the first of the texts `stop`.
        """
        if not 0 <= shared_tokens < len(prompt):
            raise ValueError(f"shared_tokens {shared_tokens} of a prompt of {len(prompt)} tokens")
        if seed is not None:
            torch.manual_seed(seed)
        started = self._now()
        cache, reused = self._start_cache(prompt[:shared_tokens], keep_shared)
        self._prefill(prompt[shared_tokens:-1], cache)
        prefilled = self._now()
        ids = self._as_batch(prompt)
        output = self._model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            past_key_values=cache,
            generation_config=settings,
            **({"stop_strings": list(stop), "tokenizer": self._tokenizer} if stop else {}),
        )
        new_ids: list[int] = output[0, len(prompt) :].tolist()
        finished = self._now()
        ended = bool(new_ids) and new_ids[-1] in stop_ids(settings)
        whole = self._tokenizer.decode(new_ids, skip_special_tokens=True)
        text = before_stop(whole, stop)
        return Generation(
            text=text,
            token_ids=new_ids,
            finish_reason="stop" if text != whole else "eos" if ended else "length",
            prefill_seconds=prefilled - started,
            decode_seconds=finished - prefilled,
            reused_prefix_tokens=reused,
            cache_bytes=int(cache.nbytes),
        )

    def _start_cache(self, shared: npt.NDArray[np.int32], keep: bool) -> tuple[Any, int]:
        """A cache that holds `shared`, and how many of its tokens were there already."""
        kept_ids, kept = self._shared_ids, self._shared_cache
        if len(shared) and kept_ids is not None and np.array_equal(kept_ids, shared):
            if keep:
                return kept.copy(), len(shared)
            self.forget()
            return kept, len(shared)
        self.forget()
        cache = self._model.new_cache()
        self._prefill(shared, cache)
        if keep and len(shared):
            self._shared_ids, self._shared_cache = shared.copy(), cache.copy()
        return cache, 0

    def _prefill(self, ids: npt.NDArray[np.int32], cache: Any) -> None:
        if len(ids):
            self._model(
                input_ids=self._as_batch(ids),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )

    def _as_batch(self, ids: npt.NDArray[np.int32]) -> torch.Tensor:
        return torch.from_numpy(ids.astype(np.int64))[None].to(self._device)  # [1, T]

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()
