"""The stack of layers over one chunk: Qwen2 and Qwen3, told as their difference to transformers'.

What differs: a decoder layer may own a memory cell (`layers.N.ahn.fn`), and attention sees sinks,
window and memory through one path (`ahn.attention`, `ahn.cache`).  Training is a chunk of all
tokens, a decode step a chunk of one.  `full`, `window`, `ahn` and `no-write` differ in their layout
only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import Cache, Qwen2Config, Qwen2Model, Qwen3Config, Qwen3Model
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer

from ahn.attention import Chunk, LayerPlan
from ahn.cache import AHNCache
from ahn.cells import CELL_CLASSES, MemoryCell
from ahn.cells.base import HeadLinear, Scale
from ahn.config import AHNConfig, LayerLayout
from ahn.layouts import layout_table
from ahn.notices import tell_once
from ahn.released import window_notice
from ahn.streaming import Observer, StreamingQwen2Attention, StreamingQwen3Attention
from ahn.token_step import TokenStep


class _MergedConfig:
    """Read from a merged folder, it says what `ahn.load_model` would say of its window."""

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As transformers'; all its ways of reading a `config.json` end here."""
        name = kwargs.get("name_or_path") or config_dict.get("_name_or_path") or "this model"
        if isinstance(config_dict.get("ahn"), dict):
            tell_once(window_notice(config_dict, name))
        return super().from_dict(config_dict, **kwargs)  # type: ignore[misc]


class Qwen2AHNConfig(_MergedConfig, Qwen2Config):
    """Qwen2's configuration with `ahn`, the fields of `ahn.config.AHNConfig` as a mapping."""

    model_type = "qwen2_ahn"

    def __init__(self, ahn: dict[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.ahn = dict(ahn or {})


class Qwen3AHNConfig(_MergedConfig, Qwen3Config):
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


class InitialisesCells:
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


class _StreamingModel(InitialisesCells):
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
            ValueError: neither or both inputs, a cache of another kind, layout or number of rows,
                a mask that does not fit, or attention weights asked for (no layer ever forms
                them).
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
        rows, tokens, device = *inputs.shape[:2], inputs.device
        if attention_mask is not None and attention_mask.dim() == 2:
            if attention_mask.shape[0] not in (1, rows):
                raise ValueError(
                    f"attention_mask has {attention_mask.shape[0]} rows, the input has {rows}"
                )
            attention_mask = attention_mask.expand(rows, -1)
        if cache is not None and cache.batch_size not in (None, rows):
            raise ValueError(
                f"the cache holds {cache.batch_size} rows, the input has {rows}; "
                "cache.batch_repeat_interleave(n) asks each row n times"
            )
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
