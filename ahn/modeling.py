"""Qwen2 and Qwen3 with a streaming past, as causal language models for `generate`.

A long prompt goes through the stack (`ahn.stack`) in chunks, with logits for the positions that are
asked for.  Importing this registers `qwen2_ahn` and `qwen3_ahn` with transformers' auto classes
(configuration, stack, causal language model), and the classes by name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    Cache,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from ahn.cache import AHNCache
from ahn.config import LayerLayout
from ahn.layouts import layout_table
from ahn.readout import LayerReadout, memory_readout
from ahn.registration import register_names
from ahn.stack import (
    InitialisesCells,
    Qwen2AHNConfig,
    Qwen2AHNDecoderLayer,
    Qwen2AHNModel,
    Qwen3AHNConfig,
    Qwen3AHNDecoderLayer,
    Qwen3AHNModel,
    ahn_config,
)

__all__ = [
    "PREFILL_CHUNK_SIZE",
    "Qwen2AHNConfig",
    "Qwen2AHNDecoderLayer",
    "Qwen2AHNForCausalLM",
    "Qwen2AHNModel",
    "Qwen3AHNConfig",
    "Qwen3AHNDecoderLayer",
    "Qwen3AHNForCausalLM",
    "Qwen3AHNModel",
    "ahn_config",
]

#: what transformers' Trainer and data collators say about a loss
_LOSS_OPTIONS = ("num_items_in_batch", "shift_labels", "ignore_index")

#: Tokens that go through the model at once when a prompt is streamed.
PREFILL_CHUNK_SIZE = 1024


class _StreamingCausalLM(InitialisesCells):
    """Logits for the positions that are asked for; long prompts go through in chunks."""

    _model: ClassVar[Callable[..., nn.Module]]
    _no_split_modules: Any  # by accelerate's device maps and FSDP: the layer's class
    #: `generate` refuses assistants: what they guessed wrong cannot be taken back from a memory
    _is_stateful = True
    #: tokens a chunk of a streamed prompt; any size gives the same result
    prefill_chunk_size: int = PREFILL_CHUNK_SIZE

    def __init__(self, config: Any) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        self.model = type(self)._model(config)
        self._no_split_modules = type(self)._no_split_modules  # not those of the stock stack
        self.post_init()  # type: ignore[attr-defined]

    @property
    def layout(self) -> list[LayerLayout]:
        """What each layer sees of the past: window, sinks and cell."""
        return self.model.layout  # type: ignore[return-value]

    def layout_table(self) -> str:
        """The layout in words, a line for each run of layers that are alike."""
        return layout_table(self.layout)

    def new_cache(self) -> AHNCache:
        """An empty cache for this model."""
        return AHNCache(self.layout, self)

    def memory_readout(self, input_ids: Tensor, **options: Any) -> list[LayerReadout]:
        """What each layer's memory holds after reading; see `ahn.readout.memory_readout`."""
        return memory_readout(self, input_ids, **options)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits `[B, T or logits_to_keep, V]`; the loss when `labels [B, T]` are given.

        Without gradients the prompt is streamed: `prefill_chunk_size` tokens at a time go through
        all layers, and only the hidden states whose logits are wanted are kept.  With gradients
        the whole input is one chunk.  Arguments are those of transformers' `Qwen2ForCausalLM`,
        and `layout` (see `Qwen2AHNModel.forward`).
        """
        if use_cache is None:
            use_cache = not self.training and self.config.use_cache  # type: ignore[attr-defined]
        # transformers' layers drop the past when they are to be computed twice
        twice = self.training and self.is_gradient_checkpointing  # type: ignore[attr-defined]
        if twice and past_key_values is not None:
            raise ValueError(
                "gradient checkpointing computes each layer twice and cannot fill a cache: pass no "
                "past_key_values, or model.eval() first"
            )
        use_cache = use_cache and not twice
        inputs = input_ids if input_ids is not None else inputs_embeds
        if inputs is None or (input_ids is not None and inputs_embeds is not None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        tokens = inputs.shape[1]
        size = self.prefill_chunk_size
        if size < 1:
            raise ValueError(f"prefill_chunk_size must be at least 1 token, not {size}")
        whole = twice or torch.is_grad_enabled() or tokens <= size
        whole = whole or kwargs.get("output_hidden_states")
        cache = past_key_values
        if cache is None and (use_cache or not whole):
            cache = AHNCache(kwargs.get("layout") or self.layout, self)
        if isinstance(cache, AHNCache):
            _bind(cache, self)
        starts = [0] if whole else list(range(0, max(tokens, 1), size))
        wanted, order = self._wanted(tokens, logits_to_keep, labels)
        kept: list[Tensor] = []
        for start in starts:
            end = tokens if whole else min(start + size, tokens)
            output = self.model(
                input_ids=None if input_ids is None else input_ids[:, start:end],
                inputs_embeds=None if inputs_embeds is None else inputs_embeds[:, start:end],
                attention_mask=_mask_until(attention_mask, tokens - end),
                position_ids=None if position_ids is None else position_ids[:, start:end],
                past_key_values=cache,
                **kwargs,
            )
            hidden = output.last_hidden_state
            if isinstance(wanted, int):
                if end > wanted or not tokens:
                    kept.append(hidden[:, max(0, wanted - start) :])
            else:
                inside = wanted[(wanted >= start) & (wanted < end)] - start
                kept.append(hidden[:, inside.to(hidden.device)])
        states = torch.cat(kept, 1)
        if order is not None:
            states = states[:, order.to(states.device)]
        logits = self.lm_head(states)  # type: ignore[attr-defined]
        loss = None
        if labels is not None:
            loss = self.loss_function(  # type: ignore[attr-defined]
                logits=logits,
                labels=labels,
                vocab_size=self.config.vocab_size,  # type: ignore[attr-defined]
                **{key: value for key, value in kwargs.items() if key in _LOSS_OPTIONS},
            )
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=cache if use_cache or past_key_values is not None else None,
            hidden_states=output.hidden_states,
        )

    @staticmethod
    def _wanted(
        tokens: int, keep: int | Tensor, labels: Tensor | None
    ) -> tuple[int | Tensor, Tensor | None]:
        """First position whose logits are wanted; or positions, ascending, and their order."""
        if not isinstance(keep, Tensor):
            return 0 if labels is not None or keep == 0 else max(0, tokens - keep), None
        keep = keep.nonzero().flatten() if keep.dtype == torch.bool else keep
        if len(keep) and not -tokens <= int(keep.min()) <= int(keep.max()) < tokens:
            raise ValueError(f"logits_to_keep {keep.tolist()}: the input has {tokens} tokens")
        ascending, order = torch.where(keep < 0, keep + tokens, keep).sort()
        return ascending, order.argsort()

    def _prepare_cache_for_generation(
        self,
        generation_config: Any,
        model_kwargs: dict[str, Any],
        generation_mode: Any,
        batch_size: int,
        max_cache_length: int,
    ) -> None:
        """`generate` without a cache of its own gets ours; static caches have no meaning here."""
        if generation_config.cache_implementation is not None:
            raise ValueError(
                "cache_implementation is refused: the cache of this model is an AHNCache"
            )
        cache = model_kwargs.get("past_key_values")
        if cache is None:
            if generation_config.use_cache is not False:
                model_kwargs["past_key_values"] = self.new_cache()
            return
        if not isinstance(cache, AHNCache):
            raise ValueError(
                "past_key_values must be an AHNCache (model.new_cache()), not "
                f"{type(cache).__name__}"
            )
        answers = max(generation_config.num_beams or 1, generation_config.num_return_sequences or 1)
        if answers > 1 and cache.batch_size == batch_size:
            cache.batch_repeat_interleave(answers)  # as the input's rows were

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        past_key_values: Cache | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        is_first_iteration: bool | None = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """As transformers', which would read the whole input again where none of it is new.

        Raises:
            ValueError: the cache already holds everything that is passed.
        """
        if next_sequence_length is not None and next_sequence_length < 1 and past_key_values:
            seen = past_key_values.get_seq_length()
            raise ValueError(
                f"the cache holds {seen} tokens and the input {seen + next_sequence_length}: pass "
                "the whole sequence with at least one token that was not read yet; or only those "
                "that were not, with an attention_mask over all"
            )
        return super().prepare_inputs_for_generation(  # type: ignore[misc]
            input_ids,
            next_sequence_length=next_sequence_length,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )


@torch.compiler.disable
def _bind(cache: AHNCache, model: Any) -> None:
    cache.belong_to(model)


def _mask_until(mask: Tensor | None, rest: int) -> Tensor | None:
    """The mask as it stands `rest` columns before its end."""
    return mask if mask is None or rest == 0 else mask[:, :-rest]


class Qwen2AHNForCausalLM(_StreamingCausalLM, Qwen2ForCausalLM):
    """Qwen2 with a streaming past and, where the layout says so, a memory."""

    config_class = Qwen2AHNConfig
    _model = Qwen2AHNModel
    _no_split_modules = ("Qwen2AHNDecoderLayer",)


class Qwen3AHNForCausalLM(_StreamingCausalLM, Qwen3ForCausalLM):
    """Qwen3 with a streaming past and, where the layout says so, a memory."""

    config_class = Qwen3AHNConfig
    _model = Qwen3AHNModel
    _no_split_modules = ("Qwen3AHNDecoderLayer",)


for _config, _stack, _causal_lm in (
    (Qwen2AHNConfig, Qwen2AHNModel, Qwen2AHNForCausalLM),
    (Qwen3AHNConfig, Qwen3AHNModel, Qwen3AHNForCausalLM),
):
    AutoConfig.register(_config.model_type, _config)
    AutoModel.register(_config, _stack)
    AutoModelForCausalLM.register(_config, _causal_lm)
    register_names(_config, _stack, _causal_lm)
