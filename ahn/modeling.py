"""Qwen2 and Qwen3 with a streaming past, told as their difference to transformers' classes.

What differs: a decoder layer may own a memory cell (`layers.N.ahn.fn`), attention sees sinks,
window and memory through one path (`ahn.attention`, `ahn.cache`), and a causal model streams a
long prompt through in chunks.  Training is a prefill of one chunk, a decode step a chunk of one
token.  `full`, `window`, `ahn` and `no-write` differ in their layout only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Cache,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Model,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
)
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer

from ahn.attention import Chunk, LayerPlan
from ahn.cache import AHNCache
from ahn.cells import CELL_CLASSES, MemoryCell
from ahn.cells.base import HeadLinear, Scale
from ahn.config import AHNConfig, LayerLayout
from ahn.layouts import layout_table
from ahn.readout import LayerReadout, memory_readout
from ahn.streaming import Observer, StreamingQwen2Attention, StreamingQwen3Attention
from ahn.token_step import TokenStep

#: Tokens that go through the model at once when a prompt is streamed.
PREFILL_CHUNK_SIZE = 1024


class Qwen2AHNConfig(Qwen2Config):
    """Qwen2's configuration with `ahn`, the fields of `ahn.config.AHNConfig` as a mapping."""

    model_type = "qwen2_ahn"

    def __init__(self, ahn: dict[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.ahn = dict(ahn or {})


class Qwen3AHNConfig(Qwen3Config):
    """Qwen3's configuration with `ahn`, the fields of `ahn.config.AHNConfig` as a mapping."""

    model_type = "qwen3_ahn"

    def __init__(self, ahn: dict[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.ahn = dict(ahn or {})


def ahn_config(config: Any) -> AHNConfig:
    """The AHN part of a model's configuration."""
    return AHNConfig(**config.ahn)


class Memory(nn.Module):
    """Holds the cell as `fn`, the name in released checkpoints."""

    def __init__(self, cell: MemoryCell) -> None:
        super().__init__()
        self.fn = cell


def _memory(config: Any, layer_idx: int) -> Memory | None:
    settings = ahn_config(config)
    name = settings.layer(layer_idx).cell
    if name is None:
        return None
    head_dim = getattr(config, "head_dim", None) or (
        config.hidden_size // config.num_attention_heads
    )
    cell = CELL_CLASSES[name](config.hidden_size, config.num_attention_heads, head_dim)
    cell.use_backend(settings.backend)
    return Memory(cell)


class _MemoryLayer(nn.Module):
    """A decoder layer with our attention and, where the layout names a cell, a memory."""

    _attention: ClassVar[Callable[..., nn.Module]]

    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.self_attn = type(self)._attention(config, layer_idx)
        self.ahn = _memory(config, layer_idx)

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        """As the base class's, with the layer's cell at hand in attention."""
        memory = None if self.ahn is None else self.ahn.fn
        return super().forward(hidden_states, memory=memory, **kwargs)


class Qwen2AHNDecoderLayer(_MemoryLayer, Qwen2DecoderLayer):
    """Qwen2's layer with a memory."""

    _attention = StreamingQwen2Attention


class Qwen3AHNDecoderLayer(_MemoryLayer, Qwen3DecoderLayer):
    """Qwen3's layer with a memory."""

    _attention = StreamingQwen3Attention


class _InitialisesCells:
    """A base model that is loaded without memory weights gets a fresh memory, not noise."""

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # transformers passes over a module without parameters of its own, as DeltaNet is, so its
        # parts are asked for one by one, too
        if isinstance(module, MemoryCell):
            module.reset_parameters(self.config.initializer_range)  # type: ignore[attr-defined]
        elif isinstance(module, HeadLinear):
            init.zeros_(module.weight)
        elif isinstance(module, Scale):
            init.ones_(module.weight)
        else:
            super()._init_weights(module)  # type: ignore[misc]


class _StreamingModel(_InitialisesCells):
    """The stack of layers over one chunk."""

    _layer: ClassVar[Callable[..., nn.Module]]
    #: a compiled `_run` for tokens that come one at a time; see `ahn.compile_decode`
    compiled_step: Callable[..., Any] | None = None

    def __init__(self, config: Any) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        self.layers = nn.ModuleList(
            [type(self)._layer(config, index) for index in range(config.num_hidden_layers)]
        )
        self.post_init()  # type: ignore[attr-defined]

    @property
    def layout(self) -> list[LayerLayout]:
        """What each layer sees of the past."""
        config = ahn_config(self.config)  # type: ignore[attr-defined]
        return [config.layer(index) for index in range(len(self.layers))]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        layout: Sequence[LayerLayout] | None = None,
        observer: Observer | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """One chunk through all layers.

        Args:
            input_ids: `[B, T]`; or give `inputs_embeds [B, T, D]`.
            attention_mask: `[B, >= T]`, 1 for tokens and 0 for padding.
            position_ids: `[B, T]` for RoPE; default: each token's own position in its row.
            past_key_values: an `AHNCache`, updated in place.
            inputs_embeds: instead of `input_ids`.
            use_cache: make and return a cache when none was given.
            layout: what each layer sees in this pass; default: the configuration's. A layout
                other than the cache's cannot be used with a cache.
            observer: is shown what each layer's memory does (see `ahn.streaming.Observer`).
            output_hidden_states: return the input of every layer and the last output.
            output_attentions: refused.
            return_dict: ignored; the output is always a dataclass.
            kwargs: what transformers passes around.

        Raises:
            ValueError: neither or both inputs, a cache of another kind, or attention weights
                asked for (no layer ever forms them).
        """
        del return_dict, kwargs
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if output_attentions:
            raise ValueError("attention weights are never formed; output_attentions is refused")
        if past_key_values is not None and not isinstance(past_key_values, AHNCache):
            raise ValueError(
                f"past_key_values must be an AHNCache (model.new_cache()), not "
                f"{type(past_key_values).__name__}"
            )
        inputs = input_ids if input_ids is not None else inputs_embeds
        assert inputs is not None
        layouts = list(layout) if layout is not None else self.layout
        cache, chunk, plans = self._prepare(
            inputs,
            attention_mask,
            past_key_values,
            bool(use_cache),
            layouts,
            fixed=self.compiled_step is not None or torch.compiler.is_compiling(),
        )
        if position_ids is None:
            position_ids = chunk.position_ids()
        if chunk.tokens == 1:
            # other strides or sizes, as callers happen to give them, would be compiled anew
            input_ids = None if input_ids is None else input_ids.contiguous()
            position_ids = position_ids.expand(inputs.shape[0], -1).contiguous()
        arguments = (
            input_ids, inputs_embeds, position_ids, cache, plans, layouts,
            bool(output_hidden_states), observer,
        )  # fmt: skip
        if not all(isinstance(plan, TokenStep) for plan in plans):
            hidden, states = self._run_chunk(*arguments)
        elif self.compiled_step is not None and observer is None and not output_hidden_states:
            hidden, states = self.compiled_step(*arguments)
        else:
            hidden, states = self._run(*arguments)
        if cache is not None:
            cache.advance(chunk)
        return BaseModelOutputWithPast(
            last_hidden_state=hidden, past_key_values=cache, hidden_states=states
        )

    @torch.compiler.disable
    def _prepare(
        self,
        inputs: Tensor,
        attention_mask: Tensor | None,
        cache: AHNCache | None,
        use_cache: bool,
        layouts: list[LayerLayout],
        fixed: bool,
    ) -> tuple[AHNCache | None, Chunk, list[LayerPlan | TokenStep]]:
        """All that depends on how many tokens have passed; the layers see only its tensors."""
        if cache is None and use_cache:
            cache = AHNCache(layouts)
        elif cache is not None and [layer.layout for layer in cache.layers] != layouts:
            raise ValueError(
                "the cache was made for another layout (window, sinks or variant)\n"
                f"{layout_table([layer.layout for layer in cache.layers])}\n"
                f"than the model's\n{layout_table(layouts)}"
            )
        tokens, device = inputs.shape[1], inputs.device
        if cache is None:
            chunk = Chunk(tokens, 0, attention_mask, device)
            return None, chunk, [*chunk.plans(layouts)]
        chunk = cache.chunk(tokens, attention_mask, device)
        return cache, chunk, cache.plans(chunk, fixed)

    @torch.compiler.disable
    def _run_chunk(self, *arguments: Any) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        """Chunks of several tokens are matrix products of ever new sizes: never compiled."""
        return self._run(*arguments)

    def _run(
        self,
        input_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        position_ids: Tensor,
        cache: AHNCache | None,
        plans: Sequence[LayerPlan | TokenStep],
        layouts: Sequence[LayerLayout],
        output_hidden_states: bool,
        observer: Observer | None,
    ) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        """Embedding, all layers and the last norm."""
        hidden = inputs_embeds
        if hidden is None:
            hidden = self.embed_tokens(input_ids)  # type: ignore[attr-defined]
        embeddings = self.rotary_emb(hidden, position_ids)  # type: ignore[attr-defined]
        states = [hidden]
        for layer, seen, plan in zip(self.layers, layouts, plans, strict=True):
            hidden = layer(
                hidden,
                position_embeddings=embeddings,
                past_key_values=cache,
                plan=plan,
                layout=seen,
                observer=observer,
            )
            if output_hidden_states:
                states.append(hidden)
        hidden = self.norm(hidden)  # type: ignore[attr-defined]
        return hidden, (*states[:-1], hidden) if output_hidden_states else None


class Qwen2AHNModel(_StreamingModel, Qwen2Model):
    """Qwen2's stack with a streaming past."""

    config_class = Qwen2AHNConfig
    _layer = Qwen2AHNDecoderLayer
    _no_split_modules = ("Qwen2AHNDecoderLayer",)


class Qwen3AHNModel(_StreamingModel, Qwen3Model):
    """Qwen3's stack with a streaming past."""

    config_class = Qwen3AHNConfig
    _layer = Qwen3AHNDecoderLayer
    _no_split_modules = ("Qwen3AHNDecoderLayer",)


class _StreamingCausalLM(_InitialisesCells):
    """Logits for the positions that are asked for; long prompts go through in chunks."""

    _model: ClassVar[Callable[..., nn.Module]]
    _no_split_modules: Any  # by accelerate's device maps and FSDP: the layer's class
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
        inputs = input_ids if input_ids is not None else inputs_embeds
        if inputs is None or (input_ids is not None and inputs_embeds is not None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        tokens = inputs.shape[1]
        size = self.prefill_chunk_size
        whole = torch.is_grad_enabled() or tokens <= size or kwargs.get("output_hidden_states")
        cache = past_key_values
        if cache is None and (use_cache or not whole):
            cache = AHNCache(kwargs.get("layout") or self.layout, self)
        if isinstance(cache, AHNCache):
            _bind(cache, self)
        starts = [0] if whole else list(range(0, tokens, size))
        wanted = self._wanted(tokens, logits_to_keep, labels)
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
                if end > wanted:
                    kept.append(hidden[:, max(0, wanted - start) :])
            else:
                inside = wanted[(wanted >= start) & (wanted < end)] - start
                kept.append(hidden[:, inside])
        logits = self.lm_head(torch.cat(kept, 1))  # type: ignore[attr-defined]
        loss = None
        if labels is not None:
            loss = self.loss_function(  # type: ignore[attr-defined]
                logits=logits,
                labels=labels,
                vocab_size=self.config.vocab_size,  # type: ignore[attr-defined]
            )
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=cache if use_cache or past_key_values is not None else None,
            hidden_states=output.hidden_states,
        )

    @staticmethod
    def _wanted(tokens: int, keep: int | Tensor, labels: Tensor | None) -> int | Tensor:
        """First position whose logits are wanted, or the positions themselves, ascending."""
        if isinstance(keep, Tensor):
            return keep
        return 0 if labels is not None or keep == 0 else max(0, tokens - keep)

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        """`generate` without a cache of its own gets ours; static caches have no meaning here."""
        if generation_config.cache_implementation is not None:
            raise ValueError(
                "cache_implementation is refused: the cache of this model is an AHNCache"
            )
        if model_kwargs.get("past_key_values") is None and generation_config.use_cache is not False:
            model_kwargs["past_key_values"] = self.new_cache()


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


AutoConfig.register("qwen2_ahn", Qwen2AHNConfig)
AutoConfig.register("qwen3_ahn", Qwen3AHNConfig)
AutoModelForCausalLM.register(Qwen2AHNConfig, Qwen2AHNForCausalLM)
AutoModelForCausalLM.register(Qwen3AHNConfig, Qwen3AHNForCausalLM)
