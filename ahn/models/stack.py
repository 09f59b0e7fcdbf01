"""The stack of layers over one chunk, as the difference to transformers' stack of any family.

`ahn.models.causal_lm` mixes these classes with transformers' classes of each family (see
`ahn.families`). What differs from those: a decoder layer may own a memory cell (`layers.N.ahn.fn`),
and attention sees sinks, window and memory (`ahn.models.streaming`). Training and prompts go
through the layers in chunks, decode steps in place on the cache: both are plans
(`ahn.models.plan`), which are tested to give the same result. `full`, `window`, `ahn`, `no-write`,
`compressive` and `memory-only` differ in their layout only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers import Cache
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPast

from ahn.cells.base import Eviction, HeadLinear, Scale, build_cell
from ahn.config import AHNConfig, LayerLayout
from ahn.models.attention import Chunk
from ahn.models.cache import AHNCache
from ahn.models.hooks import MemoryHook
from ahn.models.inputs import (
    LOSS_OPTIONS,
    check_hook,
    check_shapes,
    document_boundaries,
    given_input,
    refuse_attention,
    refuse_switches,
    refuse_unknown,
    wanted_states,
)
from ahn.models.layouts import layout_table
from ahn.models.packing import Documents, find_documents, packed_plans, refuse_cache
from ahn.models.plan import Plan
from common.errors import InputError


def ahn_config(config: Any) -> AHNConfig:
    """The AHN part of a model's configuration."""
    heads, key_heads = config.num_attention_heads, config.num_key_value_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return AHNConfig(**config.ahn).with_default_slots(heads, key_heads, head_dim)


class Memory(nn.Module):
    """Holds the cell as `fn`, the name in released checkpoints."""

    def __init__(self, cell: Eviction) -> None:
        super().__init__()
        self.fn = cell


def _memory(config: Any, layout: LayerLayout, backend: str | None) -> Memory | None:
    """The memory that a layer's layout names, if it names one."""
    if layout.cell is None:
        return None
    head_dim = getattr(config, "head_dim", None) or (
        config.hidden_size // config.num_attention_heads
    )
    cell = build_cell(layout.cell, config.hidden_size, config.num_attention_heads, head_dim)
    cell.use_backend(backend)
    return Memory(cell)


class MemoryLayer(nn.Module):
    """A decoder layer with our attention and, where the layout names a cell, a memory.

    Attributes:
        layout: what the layer sees of the past, unless a pass says otherwise.
    """

    _attention: ClassVar[Callable[..., nn.Module]]

    def __init__(self, config: Any, layer_idx: int, layout: LayerLayout | None = None) -> None:
        super().__init__(config, layer_idx)
        settings = ahn_config(config)
        self.layout = settings.layer(layer_idx) if layout is None else layout
        self.self_attn = type(self)._attention(config, layer_idx)
        self.ahn = _memory(config, self.layout, settings.backend)

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        """As the base class's, with the layer's cell at hand in attention."""
        memory = None if self.ahn is None else self.ahn.fn
        return super().forward(hidden_states, memory=memory, **kwargs)


class InitialisesCells:
    """A base model that is loaded without memory weights gets a fresh memory, not noise."""

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # transformers passes over a module without parameters of its own, as DeltaNet is, so its
        # parts are asked for one by one, too
        if isinstance(module, Eviction):
            _reset(module, self.config.initializer_range)  # type: ignore[attr-defined]
        elif isinstance(module, HeadLinear):
            init.zeros_(module.weight)
        elif isinstance(module, Scale):
            init.ones_(module.weight)
        else:
            super()._init_weights(module)  # type: ignore[misc]


def _reset(cell: Eviction, std: float) -> None:
    """Fresh parameters where a checkpoint brings none.

    Raises:
        InputError: the cell does not initialise all of them; the others would hold noise.
    """
    fresh = {
        n: p for n, p in cell.named_parameters() if not getattr(p, "_is_hf_initialized", False)
    }
    for parameter in fresh.values():
        init.constant_(parameter, torch.nan)
    cell.reset_parameters(std)
    left = [n for n, p in fresh.items() if not p.is_meta and bool(p.isnan().any())]
    if left:
        raise InputError(
            f"memory cell {cell.declaration.name!r}: reset_parameters leaves {', '.join(left)} "
            "without values; it must initialise every parameter"
        )


class OwnAttention:
    """transformers' attention kernels cannot be switched between: layers have one of their own."""

    _supports_flash_attn = False
    _supports_flex_attn = False
    _supports_attention_backend = False

    def _check_and_adjust_attn_implementation(
        self, attn_implementation: str | None, *args: Any, **kwargs: Any
    ) -> str:
        """Asked for when a model is built, loaded or told to change."""
        refuse_attention(attn_implementation)
        adjusted: str = super()._check_and_adjust_attn_implementation(  # type: ignore[misc]
            attn_implementation, *args, **kwargs
        )
        return adjusted


@contextmanager
def checkpointing_later(config: Any) -> Iterator[None]:
    """Keeps `config.gradient_checkpointing` from being spent on layers that are replaced."""
    wanted = config.__dict__.pop("gradient_checkpointing", False)
    yield
    if wanted:
        config.gradient_checkpointing = wanted


class StreamingModel(OwnAttention, InitialisesCells):
    """The stack of layers over one chunk."""

    _layer: ClassVar[Callable[..., nn.Module]]
    #: a compiled `_run` for tokens that come one at a time; see `ahn.compile_decode`
    compiled_step: Callable[..., Any] | None = None

    def __init__(self, config: Any) -> None:
        with checkpointing_later(config):
            super().__init__(config)  # type: ignore[call-arg]
        layouts = ahn_config(config).layouts(config.num_hidden_layers)
        self.layers = nn.ModuleList(
            [type(self)._layer(config, index, layout) for index, layout in enumerate(layouts)]
        )
        self.post_init()  # type: ignore[attr-defined]

    @property
    def layout(self) -> list[LayerLayout]:
        """What each layer sees of the past, as it was built."""
        layers: Any = self.layers
        return [layer.layout for layer in layers]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        layout: Sequence[LayerLayout] | None = None,
        memory_hook: MemoryHook | None = None,
        output_hidden_states: bool | int | Sequence[int] | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        cu_seq_lens_q: Tensor | None = None,
        cu_seq_lens_k: Tensor | None = None,
        max_length_q: int | None = None,
        max_length_k: int | None = None,
        seq_idx: Tensor | None = None,
        documents: Documents | Literal[False] | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast | tuple[Any, ...]:
        """One chunk through all layers.

        Several documents may stand one behind another in a row (a packed batch). Each then has
        sinks, a window and a memory of its own, as if it were alone; there is no cache. They are
        told by `position_ids` that begin anew, or by `cu_seq_lens_q` and `cu_seq_lens_k`.

        Args:
            input_ids: `[B, T]`; or give `inputs_embeds [B, T, D]`.
            attention_mask: `[B, T]`, 1 for tokens and 0 for padding; or of all that the cache
                has seen, too. Padding may stand left and right of a row's tokens, not between.
            position_ids: `[B, T]` for RoPE; default: each token's own position in its document.
                They increase within a document; jumps ahead are gaps in it.
            past_key_values: an `AHNCache`, updated in place.
            inputs_embeds: instead of `input_ids`.
            use_cache: make and return a cache when none was given; default: as the configuration
                says, but not in training. False with a cache: use and update it, return none.
            layout: what each layer sees in this pass; default: the configuration's. A layout
                other than the cache's cannot be used with a cache.
            memory_hook: sees and may change what each layer's memory does (see
                `ahn.models.hooks`).
            output_hidden_states: return the input of every layer and the last output, as
                transformers does; or the number of one of them or several, negative ones count
                from the end: the others are None. Default: as the configuration says.
            output_attentions: refused.
            return_dict: False: return a tuple. Default: as the configuration says.
            cu_seq_lens_q: `[n + 1]`: 0, then where each document ends in the batch `[B * T]`.
            cu_seq_lens_k: the same.
            max_length_q: at least the length of the longest document.
            max_length_k: the same.
            seq_idx: `[B, T]`, the document of each token; it must agree with what the positions
                or lengths tell.
            documents: of a packed batch, where a caller knows them; False: there is one a row.
            kwargs: nothing else is understood.

        Raises:
            TypeError: an argument that nobody knows.
            ValueError: neither or both inputs, a cache of another kind, layout or number of rows,
                a mask or positions that do not fit, an argument of other models, or a switch that
                does nothing here: attention weights are never formed, for one.
        """
        inputs, layouts, wanted, boundaries = self._checked(
            input_ids,
            inputs_embeds,
            layout,
            output_attentions,
            output_hidden_states,
            (cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k),
            kwargs,
        )
        cache, chunk, plans, documents = self._prepare(
            inputs,
            attention_mask,
            position_ids,
            past_key_values,
            use_cache,
            layouts,
            boundaries if documents is None else documents,
            seq_idx,
            memory_hook,
            fixed=self.compiled_step is not None or torch.compiler.is_compiling(),
        )
        if position_ids is None:
            position_ids = (documents or chunk).position_ids().to(inputs.device)
        if chunk.tokens == 1:
            # other strides or sizes, as callers happen to give them, would be compiled anew
            input_ids = None if input_ids is None else input_ids.contiguous()
            position_ids = position_ids.expand(inputs.shape[0], -1).contiguous()
        arguments = (
            input_ids, inputs_embeds, position_ids, cache, plans, layouts, wanted, memory_hook,
        )  # fmt: skip
        if not all([plan.fixed_shapes for plan in plans]):
            hidden, states = self._run_chunk(*arguments)
        elif self.compiled_step is not None and not wanted and not self._watched(memory_hook):
            hidden, states = self.compiled_step(*arguments)
        else:
            hidden, states = self._run(*arguments)
        if cache is not None:
            cache.advance(chunk)
        output = BaseModelOutputWithPast(
            last_hidden_state=hidden,
            past_key_values=None if use_cache is False else cache,
            hidden_states=states,
        )
        if return_dict is None:
            return_dict = self.config.return_dict  # type: ignore[attr-defined]
        return output if return_dict else output.to_tuple()

    @torch.compiler.disable
    def _checked(
        self,
        input_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        layout: Sequence[LayerLayout] | None,
        output_attentions: bool | None,
        output_hidden_states: bool | int | Sequence[int] | None,
        lengths: tuple[Any, Any, Any, Any],
        unknown: dict[str, Any],
    ) -> tuple[Tensor, list[LayerLayout], tuple[int, ...], list[int] | None]:
        """The input, what layers see, numbers of hidden states to return, where documents end.

        What nobody understands is refused, and so is what does nothing here.
        """
        config: Any = self.config  # type: ignore[attr-defined]
        refuse_unknown(self, unknown, LOSS_OPTIONS)  # a loss is the head's business
        if output_attentions:
            raise ValueError("attention weights are never formed; output_attentions is refused")
        refuse_switches(config, self.training)  # type: ignore[attr-defined]
        inputs = given_input(input_ids, inputs_embeds)
        if output_hidden_states is None:
            output_hidden_states = config.output_hidden_states
        wanted = wanted_states(output_hidden_states, len(self.layers) + 1)
        rows, tokens = inputs.shape[:2]
        layouts = list(layout) if layout is not None else self.layout
        return inputs, layouts, wanted, document_boundaries(rows, tokens, *lengths)

    @torch.compiler.disable
    def _prepare(
        self,
        inputs: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        cache: Any,
        use_cache: bool | None,
        layouts: list[LayerLayout],
        documents: Documents | list[int] | Literal[False] | None,
        numbers: Tensor | None,
        memory_hook: MemoryHook | None,
        fixed: bool,
    ) -> tuple[AHNCache | None, Chunk, list[Plan], Documents | None]:
        """All that depends on how many tokens have passed; the layers see only its tensors."""
        if memory_hook is not None:
            check_hook(memory_hook, layouts)
        rows, tokens = inputs.shape[:2]
        past, seen = self.past(cache, layouts, rows)
        mask = check_shapes(rows, tokens, attention_mask, position_ids, past, seen)
        if documents is None or isinstance(documents, list):
            found = find_documents(rows, tokens, position_ids, mask, seen, documents, numbers)
        else:
            found = documents or None
        if found is not None:
            if memory_hook is not None:
                raise ValueError("memory_hook needs one document a row, and there are several")
            refuse_cache(cache, use_cache)
            chunk = Chunk(tokens, 0, mask, inputs.device)
            return None, chunk, [*packed_plans(found, layouts, inputs.device)], found
        if cache is None and self.makes_cache(use_cache):
            cache = AHNCache(layouts, self)
        if cache is None:
            chunk = Chunk(tokens, 0, mask, inputs.device)
            return None, chunk, [*chunk.plans(layouts)], None
        chunk = cache.chunk(tokens, mask, inputs.device)
        return cache, chunk, [*cache.plans(chunk, fixed)], None

    def past(self, cache: Any, layouts: list[LayerLayout], rows: int) -> tuple[int, int | Tensor]:
        """Columns and tokens that a cache holds, if it is one for this pass."""
        if cache is None:
            return 0, 0
        if not isinstance(cache, AHNCache):
            raise ValueError(
                "past_key_values must be an AHNCache (model.new_cache()), not "
                f"{type(cache).__name__}"
            )
        if self.computes_twice:
            raise ValueError(
                "gradient checkpointing computes each layer twice and cannot fill a cache: pass no "
                "past_key_values, or model.eval() first"
            )
        if [layer.layout for layer in cache.layers] != layouts:
            raise ValueError(
                "the cache was made for another layout (window, sinks or variant)\n"
                f"{layout_table([layer.layout for layer in cache.layers])}\n"
                f"than the model's\n{layout_table(layouts)}"
            )
        cache.check()
        cache.belong_to(self)
        if cache.batch_size not in (None, rows):
            raise ValueError(
                f"the cache holds {cache.batch_size} rows, the input has {rows}; "
                "cache.batch_repeat_interleave(n) asks each row n times"
            )
        return cache.get_seq_length(), cache.seen

    @property
    def computes_twice(self) -> bool:
        """Whether layers are run again going backward, and so cannot fill a cache."""
        training: bool = self.training  # type: ignore[attr-defined]
        return training and any(layer.gradient_checkpointing for layer in self.layers)

    def makes_cache(self, use_cache: bool | None) -> bool:
        """Whether a pass without a cache makes one; by default not in training."""
        if use_cache is None:
            config: Any = self.config  # type: ignore[attr-defined]
            use_cache = bool(config.use_cache) and not self.training  # type: ignore[attr-defined]
        return use_cache and not self.computes_twice

    def _watched(self, memory_hook: MemoryHook | None) -> bool:
        """Whether somebody looks at the memories, which a compiled step would pass over."""
        if memory_hook is not None:
            return True
        layers: Any = self.layers
        cells = [layer.ahn.fn for layer in layers if layer.ahn is not None]
        return any([cell._forward_hooks or cell._forward_pre_hooks for cell in cells])

    @torch.compiler.disable
    def _run_chunk(self, *arguments: Any) -> tuple[Tensor, tuple[Tensor | None, ...] | None]:
        """Chunks of several tokens are matrix products of ever new sizes: never compiled."""
        return self._run(*arguments)

    def _run(
        self,
        input_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        position_ids: Tensor,
        cache: AHNCache | None,
        plans: Sequence[Plan],
        layouts: Sequence[LayerLayout],
        wanted: tuple[int, ...],
        memory_hook: MemoryHook | None,
    ) -> tuple[Tensor, tuple[Tensor | None, ...] | None]:
        """Embedding, all layers and the last norm."""
        hidden = inputs_embeds
        if hidden is None:
            hidden = self.embed_tokens(input_ids)  # type: ignore[attr-defined]
        embeddings = self.rotary_emb(hidden, position_ids)  # type: ignore[attr-defined]
        states = [hidden if 0 in wanted else None]
        for layer, seen, plan in zip(self.layers, layouts, plans, strict=True):
            hidden = layer(
                hidden,
                position_embeddings=embeddings,
                past_key_values=cache,
                plan=plan,
                layout=seen,
                memory_hook=memory_hook,
            )
            states.append(hidden if len(states) in wanted else None)
        hidden = self.norm(hidden)  # type: ignore[attr-defined]
        states[-1] = hidden if states[-1] is not None else None
        return hidden, tuple(states) if wanted else None
