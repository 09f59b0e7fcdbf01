"""The families' models with a streaming past, as causal language models for `generate`.

A long prompt goes through the stack (`ahn.models.stack`) in chunks, with logits for the positions
that are asked for.  `family_classes` mixes these classes with transformers' classes of a family
(`ahn.families`) and registers the result with transformers' auto classes; `Qwen2AHNForCausalLM`
and the others can be imported from here by name.
"""

from __future__ import annotations

import importlib
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, Cache
from transformers.modeling_outputs import CausalLMOutputWithPast

from ahn.config import LayerLayout
from ahn.families import Family, families
from ahn.models.cache import AHNCache
from ahn.models.hooks import MemoryHook
from ahn.models.inputs import (
    LOSS_OPTIONS,
    check_positions,
    check_shapes,
    document_boundaries,
    given_input,
    refuse_unknown,
    wanted_states,
)
from ahn.models.layouts import layout_table
from ahn.models.packing import Documents, find_documents, refuse_cache
from ahn.models.readout import LayerReadout, memory_readout
from ahn.models.stack import (
    InitialisesCells,
    MemoryLayer,
    OwnAttention,
    StreamingModel,
    ahn_config,
    checkpointing_later,
)
from ahn.models.streaming import StreamingAttention
from ahn.models.weights import stored_buffers
from ahn.released import window_notice
from common.errors import InputError
from common.notices import tell_once

__all__ = [
    "PREFILL_CHUNK_SIZE",
    "FamilyClasses",
    "ahn_config",
    "family_classes",
    "register",
]

#: what `generate` needs itself, and hands on all the same
_OF_GENERATE = ("tokenizer", "assistant_tokenizer")

#: Tokens that go through the model at once when a prompt is streamed.
PREFILL_CHUNK_SIZE = 1024


class StreamingCausalLM(OwnAttention, InitialisesCells):
    """A causal language model that reads long prompts in chunks; see `forward`."""

    _model: ClassVar[Callable[..., nn.Module]]
    model: Any  # of that class
    _no_split_modules: Any  # by accelerate's device maps and FSDP: the layer's class
    #: `generate` refuses assistants: what they guessed wrong cannot be taken back from a memory
    _is_stateful = True
    #: tokens a chunk of a streamed prompt; any size gives the same result
    prefill_chunk_size: int = PREFILL_CHUNK_SIZE

    def __init__(self, config: Any) -> None:
        with checkpointing_later(config):
            super().__init__(config)  # type: ignore[call-arg]
        self.model = type(self)._model(config)
        self._no_split_modules = type(self)._no_split_modules  # not those of the stock stack
        self.post_init()  # type: ignore[attr-defined]

    @property
    def layout(self) -> list[LayerLayout]:
        """What each layer sees of the past: window and sinks in tokens, and the memory cell."""
        layout: list[LayerLayout] = self.model.layout
        return layout

    def layout_table(self) -> str:
        """The layout as text, one line for each run of equal layers."""
        return layout_table(self.layout)

    def new_cache(self, layout: Sequence[LayerLayout] | None = None) -> AHNCache:
        """An empty cache for this model.

        Args:
            layout: what each layer sees in the passes that use the cache, which must name it too
                (`layout=` of `forward` and `generate`); default: the model's.

        Raises:
            ValueError: layouts for another number of layers.
        """
        layouts = self.layout if layout is None else list(layout)
        if len(layouts) != len(self.layout):
            raise ValueError(f"{len(layouts)} layouts for {len(self.layout)} layers")
        return AHNCache(layouts, self)

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """As transformers', and GatedDeltaNet's `D`, which published counts include."""
        count = super().num_parameters(only_trainable, exclude_embeddings)  # type: ignore[misc]
        if not only_trainable:
            here: Any = self
            count += sum(buffer.numel() for _, buffer in stored_buffers(here))
        return int(count)

    def memory_readout(self, input_ids: Tensor, **options: Any) -> list[LayerReadout]:
        """What each layer's memory holds after reading; see `ahn.models.readout.memory_readout`."""
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
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Logits `[B, T or logits_to_keep, V]`; the loss when `labels [B, T]` are given.

        Without gradients the prompt is streamed: `prefill_chunk_size` tokens at a time go through
        all layers, and only the hidden states that are wanted are kept.  With gradients the whole
        input is one chunk.  Arguments are those of transformers' model of the family and, where
        they are not named here, of its loss (`num_items_in_batch`, `shift_labels`,
        `ignore_index`); and `layout` and `memory_hook`.  `StreamingModel.forward` says what they
        mean and what is refused.

        Several documents in a row are read apart, and no first token of a document is predicted
        by the one before it.
        """
        given, layouts, mask, documents, wanted = self._examine(
            (input_ids, inputs_embeds),
            attention_mask,
            position_ids,
            past_key_values,
            use_cache,
            labels,
            layout,
            output_hidden_states,
            (cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k),
            seq_idx,
            kwargs,
        )
        rows, tokens = given.shape[:2]
        cache: Any = past_key_values
        use_cache = self.model.makes_cache(use_cache) if cache is None else use_cache is not False
        use_cache = use_cache and not documents
        size = self.prefill_chunk_size
        whole = self.model.computes_twice or torch.is_grad_enabled() or tokens <= size
        if cache is None and not documents and (use_cache or not whole):
            cache = AHNCache(layouts, self)
        # one token: the stack looks at them itself
        lengths: dict[str, Any] = {
            "cu_seq_lens_q": cu_seq_lens_q,
            "cu_seq_lens_k": cu_seq_lens_k,
            "max_length_q": max_length_q,
            "max_length_k": max_length_k,
            "seq_idx": seq_idx,
        }
        # a loss needs them all
        columns, order = self._columns(tokens, 0 if labels is not None else logits_to_keep)
        kept = _Kept(rows, columns)
        states = {number: _Kept(rows, range(tokens)) for number in wanted}
        passes = self._passes(rows, tokens, size, whole, cache, documents, layouts)
        for some, start, end, past, inside in passes:
            output = self.model(
                input_ids=None if input_ids is None else input_ids[some, start:end],
                inputs_embeds=None if inputs_embeds is None else inputs_embeds[some, start:end],
                attention_mask=mask if whole or mask is None else mask[some, start:end],
                position_ids=_part(position_ids, some, start, end),
                past_key_values=past,
                use_cache=past is not None,
                layout=layouts,
                memory_hook=memory_hook,
                output_hidden_states=wanted or False,
                output_attentions=output_attentions,
                return_dict=True,
                **(lengths if inside is None else {}),
                documents=inside,
            )
            kept.add(output.last_hidden_state, some, start, end, whole)
            for number, state in states.items():
                state.add(output.hidden_states[number], some, start, end, whole)
        hidden = kept.held if order is None else kept.held[:, order.to(kept.held.device)]
        logits = self.lm_head(hidden)  # type: ignore[attr-defined]
        loss = None
        if labels is not None:
            options = {name: kwargs[name] for name in LOSS_OPTIONS if kwargs.get(name) is not None}
            if documents and "shift_labels" not in options:
                ignored = options.get("ignore_index", -100)
                labels = labels.masked_fill(documents.firsts().to(labels.device), ignored)
            loss = self.loss_function(  # type: ignore[attr-defined]
                logits=logits,
                labels=labels,
                vocab_size=self.config.vocab_size,  # type: ignore[attr-defined]
                **options,
            )
            logits = _last(logits, logits_to_keep)
        count = len(self.model.layers) + 1
        result = CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=cache if use_cache else None,
            hidden_states=tuple(states[n].held if n in states else None for n in range(count))
            if states
            else None,
        )
        if return_dict is None:
            return_dict = self.config.return_dict  # type: ignore[attr-defined]
        return result if return_dict else result.to_tuple()

    @torch.compiler.disable
    def _examine(
        self,
        inputs: tuple[Tensor | None, Tensor | None],
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        cache: Any,
        use_cache: bool | None,
        labels: Tensor | None,
        layout: Sequence[LayerLayout] | None,
        output_hidden_states: bool | int | Sequence[int] | None,
        lengths: tuple[Any, Any, Any, Any],
        numbers: Tensor | None,
        unknown: dict[str, Any],
    ) -> tuple[
        Tensor,
        list[LayerLayout],
        Tensor | None,
        Documents | Literal[False] | None,
        tuple[int, ...],
    ]:
        """Check all arguments against one another, once for a prompt.

        Returns:
            The input; what each layer sees; the mask of the input's tokens; the documents of a
            packed batch, False where there is one a row, None where that was not asked (one
            token: the stack does it); numbers of the hidden states to return.
        """
        refuse_unknown(self, unknown, LOSS_OPTIONS)
        given = given_input(*inputs)
        rows, tokens = given.shape[:2]
        layouts = list(layout) if layout is not None else self.layout
        if self.prefill_chunk_size < 1:
            raise ValueError(
                f"prefill_chunk_size must be at least 1 token, not {self.prefill_chunk_size}"
            )
        if labels is not None and labels.shape != (rows, tokens):
            raise ValueError(f"labels must be [{rows}, {tokens}], not {tuple(labels.shape)}")
        if isinstance(cache, AHNCache):
            cache.belong_to(self)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states  # type: ignore[attr-defined]
        wanted = wanted_states(output_hidden_states, len(self.model.layers) + 1)
        edges = document_boundaries(rows, tokens, *lengths)
        if tokens <= 1:
            check_positions(rows, tokens, position_ids)
            return given, layouts, attention_mask, None, wanted
        past, seen = self.model.past(cache, layouts, rows)
        mask = check_shapes(rows, tokens, attention_mask, position_ids, past, seen)
        documents = find_documents(rows, tokens, position_ids, mask, seen, edges, numbers)
        if documents is not None:
            refuse_cache(cache, use_cache)
        return given, layouts, mask, documents or False, wanted

    def _passes(
        self,
        rows: int,
        tokens: int,
        size: int,
        whole: bool,
        cache: AHNCache | None,
        documents: Documents | Literal[False] | None,
        layouts: list[LayerLayout],
    ) -> Iterator[tuple[slice, int, int, AHNCache | None, Documents | Literal[False] | None]]:
        """The pieces that go through the stack one after another.

        Yields:
            Rows, first column, column after the last, their past, and the documents in it.
        """
        everyone = slice(None)
        if whole:
            yield everyone, 0, tokens, cache, documents
        elif not documents:
            for start in range(0, tokens, size):
                yield everyone, start, min(start + size, tokens), cache, False
        else:
            for row in range(rows):
                for first, end in documents.pieces(row, size):
                    some = slice(row, row + 1)
                    if end - first <= size:
                        yield some, first, end, None, documents.within(row, first, end)
                        continue
                    own = AHNCache(layouts, self)  # a document that is streamed
                    for start in range(first, end, size):
                        yield some, start, min(start + size, end), own, False

    @staticmethod
    def _columns(tokens: int, keep: int | Tensor) -> tuple[Sequence[int], Tensor | None]:
        """Columns whose logits are wanted, ascending, and the position of each in the request."""
        if not isinstance(keep, Tensor):
            if keep < 0:
                raise ValueError(f"logits_to_keep must be 0 (all) or more, not {keep}")
            return range(0 if keep == 0 else max(0, tokens - keep), tokens), None
        keep = keep.nonzero().flatten() if keep.dtype == torch.bool else keep
        if len(keep) and not -tokens <= int(keep.min()) <= int(keep.max()) < tokens:
            raise ValueError(f"logits_to_keep {keep.tolist()}: the input has {tokens} tokens")
        ascending, order = torch.where(keep < 0, keep + tokens, keep).sort()
        return ascending.tolist(), order.argsort()

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
                model_kwargs["past_key_values"] = self.new_cache(model_kwargs.get("layout"))
            return
        if not isinstance(cache, AHNCache):
            raise ValueError(
                "past_key_values must be an AHNCache (model.new_cache()), not "
                f"{type(cache).__name__}"
            )
        if generation_config.use_cache is False:
            raise ValueError(
                "use_cache=False reads the whole sequence at every step, also what past_key_values "
                "holds already: pass one or the other"
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
        for name in _OF_GENERATE:
            kwargs.pop(name, None)
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


class _Kept:
    """Hidden states of the wanted columns, collected from the pieces.

    Args:
        rows: B.
        columns: ascending.

    Attributes:
        held: `[B, n, D]`.
    """

    held: Tensor

    def __init__(self, rows: int, columns: Sequence[int]) -> None:
        self._rows, self._columns = rows, columns
        self._empty = True

    def add(self, hidden: Tensor, rows: slice, start: int, end: int, whole: bool) -> None:
        """Take the wanted ones of `hidden [b, end - start, D]`; `whole`: nothing else comes."""
        if whole:
            self.held = self._pick(hidden, self._columns, 0)
            return
        if self._empty:  # zeros: padding between documents goes through nothing
            self.held = hidden.new_zeros(self._rows, len(self._columns), hidden.shape[-1])
            self._empty = False
        low, high = (bisect_left(self._columns, column) for column in (start, end))
        if high > low:
            self.held[rows, low:high] = self._pick(hidden, self._columns[low:high], start)

    @staticmethod
    def _pick(hidden: Tensor, columns: Sequence[int], start: int) -> Tensor:
        if isinstance(columns, range):
            return hidden[:, columns.start - start : columns.stop - start]
        return hidden[:, torch.tensor(columns, dtype=torch.long, device=hidden.device) - start]


def _part(x: Tensor | None, rows: slice, start: int, end: int) -> Tensor | None:
    """Some rows and columns of `[1 or B, T]`."""
    if x is None:
        return None
    return x[rows if x.shape[0] > 1 else slice(None), start:end]


def _last(logits: Tensor, keep: int | Tensor) -> Tensor:
    """What `logits_to_keep` asks for, of all `[B, T, V]`."""
    if isinstance(keep, Tensor):
        return logits[:, keep.to(logits.device)]
    return logits[:, -keep:] if keep else logits


class MergedConfig:
    """A base model's configuration with `ahn`, the fields of `ahn.config.AHNConfig` as a mapping.

    Mixed into transformers' configuration class of a family.
    """

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As transformers', whose ways of reading a `config.json` all end here.

        Tells what `ahn.load_model` would tell about the window of a merged folder.
        """
        name = kwargs.get("name_or_path") or config_dict.get("_name_or_path") or "this model"
        if isinstance(config_dict.get("ahn"), dict):
            tell_once(window_notice(config_dict, name))
        return super().from_dict(config_dict, **kwargs)  # type: ignore[misc]


@dataclass(frozen=True)
class FamilyClasses:
    """Our classes of one family, mixed from transformers' and from those of this package.

    Attributes:
        config: `Qwen2AHNConfig`.
        attention: `StreamingQwen2Attention`.
        layer: `Qwen2AHNDecoderLayer`.
        stack: `Qwen2AHNModel`.
        causal_lm: `Qwen2AHNForCausalLM`.
        stock: transformers' `Qwen2ForCausalLM`.
    """

    config: Any
    attention: Any
    layer: Any
    stack: Any
    causal_lm: Any
    stock: Any


def _mixed(name: str, ours: type, stock: type, doc: str, **attributes: Any) -> Any:
    """A class of this module that computes as `ours`, and else as transformers' `stock`."""
    content = {"__module__": __name__, "__qualname__": name, "__doc__": doc, **attributes}
    return type(name, (ours, stock), content)


@cache
def family_classes(family: Family) -> FamilyClasses:
    """The classes of a family; the first call makes them known to transformers' auto classes.

    Raises:
        InputError: transformers, or the module that the family names, has no such classes.
    """
    name, title = family.prefix, family.title
    stock_config, stock_attention, stock_layer, stock_stack, stock_causal_lm = _stock(family)

    def init_config(self: Any, ahn: dict[str, Any] | None = None, **kwargs: Any) -> None:
        given = family.window_default | kwargs
        if family.sliding_layers({"num_hidden_layers": 1, **given}):
            found, _ = family.window_switch(given)
            raise InputError(
                f"{found}: the layers of this model see what 'ahn' says (window and sinks), and "
                "have no window of the base model's own; leave it out"
            )
        super(config, self).__init__(**given)
        self.ahn = dict(ahn or {})

    config = _mixed(
        f"{name}AHNConfig",
        MergedConfig,
        stock_config,
        f"{title}'s configuration with `ahn`, the fields of `ahn.config.AHNConfig` as a mapping.",
        model_type=family.ahn_model_type,
        __init__=init_config,
    )
    attention = _mixed(
        f"Streaming{name}Attention",
        StreamingAttention,
        stock_attention,
        f"{title}'s projections, our attention.",
    )
    layer = _mixed(
        f"{name}AHNDecoderLayer",
        MemoryLayer,
        stock_layer,
        f"{title}'s layer with a memory.",
        _attention=attention,
    )
    whole = (layer.__name__,)  # what no device map and no FSDP may split
    stack = _mixed(
        f"{name}AHNModel",
        StreamingModel,
        stock_stack,
        f"{title}'s stack with a streaming past.",
        config_class=config,
        _layer=layer,
        _no_split_modules=whole,
    )
    causal_lm = _mixed(
        family.ahn_class,
        StreamingCausalLM,
        stock_causal_lm,
        f"{title} with a streaming past and, where the layout says so, a memory.",
        config_class=config,
        _model=stack,
        _no_split_modules=whole,
    )
    AutoConfig.register(config.model_type, config)
    AutoModel.register(config, stack)
    AutoModelForCausalLM.register(config, causal_lm)
    _register_names(config, stack, causal_lm)
    return FamilyClasses(config, attention, layer, stack, causal_lm, stock_causal_lm)


def _stock(family: Family) -> tuple[Any, Any, Any, Any, Any]:
    """transformers' configuration, attention, layer, stack and causal language model."""
    names = [f"{family.prefix}{kind}" for kind in ("Attention", "DecoderLayer", "Model")]
    try:
        module = importlib.import_module(family.modeling)
        attention, layer, stack = (getattr(module, name) for name in names)
        causal_lm = getattr(module, family.stock_class)
    except (ImportError, AttributeError) as error:
        raise InputError(f"family {family.model_type!r}: {error}") from error
    return causal_lm.config_class, attention, layer, stack, causal_lm


def _register_names(*classes: type) -> None:
    """Make classes attributes of `transformers`, where `transformers serve` looks them up by name.

    `transformers.__init__` may run twice in a process (`transformers.processing_utils` runs it
    again), and modules that were imported in between hold the first module object. So the names
    become attributes of the class that both objects are instances of.
    """
    transformers = importlib.import_module("transformers")
    kind = type(transformers)
    for one in classes:
        setattr(transformers if kind is ModuleType else kind, one.__name__, one)


def register() -> None:
    """Make every family known to transformers' auto classes, see `ahn.register`."""
    for family in families():
        family_classes(family)


def __getattr__(name: str) -> Any:
    """Classes by name, `Qwen2AHNForCausalLM`: made when they are first asked for."""
    for family in families() if not name.startswith("_") else ():
        if name.startswith((f"{family.prefix}AHN", f"Streaming{family.prefix}")):
            for made in vars(family_classes(family)).values():
                if made.__name__ == name:
                    return made
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
