"""What `forward` takes, looked at before anything is computed: nothing is swallowed."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ahn.config import LayerLayout
from ahn.models.hooks import MemoryHook
from common.suggestions import did_you_mean

#: what transformers' Trainer and data collators say about a loss
LOSS_OPTIONS = ("num_items_in_batch", "shift_labels", "ignore_index")

_PAGED = (
    "continuous batching keeps keys and values in pages of its own; generate() with an AHNCache "
    "serves rows of different lengths in one batch"
)
#: Arguments of other models and of transformers' machinery, and why they mean nothing here.
_FOREIGN = {
    "block_table": _PAGED,
    "cache": _PAGED,
    "read_index": _PAGED,
    "write_index": _PAGED,
    "cache_position": "a cache counts for itself; position_ids say other positions",
    "token_type_ids": "tokens have no types here; leave them out "
    "(tokenizer(..., return_token_type_ids=False))",
    "head_mask": "no head can be masked",
}
#: Values that change nothing here, of switches that other models have.
_WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    "is_causal": (None, True),
    "output_router_logits": (None, False),
}


def refuse_unknown(model: Any, given: Mapping[str, Any], known: Collection[str] = ()) -> None:
    """Refuse named arguments that a model's `forward` does not understand.

    Args:
        model: whose.
        given: what its signature does not name.
        known: names among them that it understands all the same.

    Raises:
        TypeError: a name that nobody knows; the message suggests a similar one.
        ValueError: an argument that other models understand; the message says why it is refused.
    """
    for name, value in given.items():
        if name in known:
            continue
        if name in _WITHOUT_EFFECT:
            if any(value is harmless for harmless in _WITHOUT_EFFECT[name]):
                continue
            raise ValueError(f"{name}={value!r} is refused: this model has no such switch")
        if name in _FOREIGN:
            if value is None:
                continue
            raise ValueError(f"{name} is refused: {_FOREIGN[name]}")
        own = inspect.signature(type(model).forward).parameters
        hint = did_you_mean(name, [*own, *known], 1)
        raise TypeError(
            f"{type(model).__name__}.forward() got an unexpected argument {name!r}{hint}"
        )


def refuse_switches(config: Any, training: bool) -> None:
    """Refuse what a configuration switches on and this model does not compute.

    Raises:
        ValueError: says which switch.
    """
    if config.output_attentions:
        raise ValueError(
            "attention weights are never formed; config.output_attentions=True is refused"
        )
    refuse_attention(config._attn_implementation)
    if getattr(config, "is_causal", None) is False:
        raise ValueError("config.is_causal=False is refused: this model only looks back")
    dropped = [name for name in vars(config) if name.endswith("dropout")] if training else []
    for name in dropped:
        if getattr(config, name):
            raise ValueError(
                f"config.{name}={getattr(config, name)} is refused: nothing is dropped in "
                "training; set it to 0"
            )


def refuse_attention(name: str | None) -> None:
    """Refuse an `attn_implementation` that would change nothing.

    Raises:
        ValueError: any but transformers' default.
    """
    if name not in (None, "sdpa"):
        raise ValueError(
            f"attn_implementation={name!r} is refused: this model computes attention over sinks "
            "and window itself, with torch's scaled_dot_product_attention and its flash attention; "
            "leave it out, or say 'sdpa'"
        )


def check_hook(hook: Any, layouts: Sequence[LayerLayout]) -> None:
    """Refuse a memory hook that could never be called.

    Raises:
        TypeError: no `MemoryHook`.
        ValueError: no layer of the pass has a memory.
    """
    if not isinstance(hook, MemoryHook):
        raise TypeError(f"memory_hook must be an ahn.MemoryHook, not {type(hook).__name__}")
    if all(layout.cell is None for layout in layouts):
        raise ValueError("memory_hook is refused: no layer of this pass has a memory")


def given_input(input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
    """The one of the two that was given.

    Raises:
        ValueError: neither or both, or without rows of tokens.
    """
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("give exactly one of input_ids and inputs_embeds")
    if input_ids is not None:
        if input_ids.dim() != 2:
            raise ValueError(f"input_ids must be [batch, tokens], not {tuple(input_ids.shape)}")
        return input_ids
    assert inputs_embeds is not None
    if inputs_embeds.dim() != 3:
        raise ValueError(
            f"inputs_embeds must be [batch, tokens, hidden size], not {tuple(inputs_embeds.shape)}"
        )
    return inputs_embeds


def wanted_states(asked: bool | int | Sequence[int] | None, count: int) -> tuple[int, ...]:
    """Numbers of the hidden states that `output_hidden_states` asks for, ascending.

    Args:
        asked: True: all; a number or several, negative ones count from the end.
        count: of all there are: the embeddings and what each layer puts out.

    Raises:
        ValueError: a number that none has.
    """
    if asked is None or asked is False:
        return ()
    if asked is True:
        return tuple(range(count))
    numbers = [asked] if isinstance(asked, int) else list(asked)
    if any(type(n) is not int or not -count <= n < count for n in numbers):
        raise ValueError(
            f"output_hidden_states={asked!r}: True, or numbers of the hidden states, 0 to "
            f"{count - 1} (negative ones from the end)"
        )
    return tuple(sorted({n % count for n in numbers}))


def check_shapes(
    rows: int,
    tokens: int,
    attention_mask: Any,
    position_ids: Tensor | None,
    past: int = 0,
    seen: int | Tensor = 0,
) -> Tensor | None:
    """Hold mask and positions against the input.

    Args:
        rows: B.
        tokens: T.
        attention_mask: `[1 or B, T]`, or with what a cache holds `[1 or B, past + T]`; 1 for
            tokens and 0 for padding.
        position_ids: `[1 or B, T]`.
        past: columns that a cache holds.
        seen: tokens of each row among them: an int or `[B]` on the CPU.

    Returns:
        The mask of these tokens `[B, T]`; None: there is no padding.

    Raises:
        ValueError: another shape or type, values that are neither 0 nor 1, or a mask that
            contradicts what the cache was given.
    """
    check_positions(rows, tokens, position_ids)
    if attention_mask is None:
        return None
    wanted = f"[{rows}, {tokens}]" + (f" or [{rows}, {past + tokens}]" if past else "")
    if not isinstance(attention_mask, Tensor) or attention_mask.dim() != 2:
        kind = (
            tuple(attention_mask.shape)
            if isinstance(attention_mask, Tensor)
            else type(attention_mask).__name__
        )
        raise ValueError(
            f"attention_mask must be {wanted}, 1 for tokens and 0 for padding, not {kind}: which "
            "query sees which key is said by window and sinks"
        )
    if attention_mask.shape[0] not in (1, rows):
        raise ValueError(f"attention_mask has {attention_mask.shape[0]} rows, the input has {rows}")
    if attention_mask.shape[1] not in (tokens, past + tokens):
        raise ValueError(
            f"attention_mask must be {wanted}, 1 for tokens and 0 for padding, not "
            f"{tuple(attention_mask.shape)}"
        )
    if tokens == 0:
        return None
    mask = attention_mask if len(attention_mask) == rows else attention_mask.expand(rows, -1)
    # a token at a time, nobody waits for a GPU to count its whole past
    if mask.shape[1] > tokens and (tokens > 1 or mask.device.type == "cpu"):
        counts = (mask[:, :-tokens] == 1).sum(1)
        if not bool((counts == (seen if isinstance(seen, int) else seen.to(mask.device))).all()):
            raise ValueError(
                "attention_mask contradicts the cache: before these tokens it has "
                f"{counts.tolist()} ones a row, and the cache was given "
                f"{seen if isinstance(seen, int) else seen.tolist()} tokens"
            )
    now = mask[:, -tokens:]
    real = now == 1
    if bool(real.all()):
        return None
    strange = now[~real & (now != 0)]
    if len(strange) or (mask.is_floating_point() and not bool(real.any())):
        value = strange[0].item() if len(strange) else 0.0
        raise ValueError(
            f"attention_mask must hold 1 for tokens and 0 for padding, and holds {value} "
            "(an additive mask, or numbers of documents?)"
        )
    return real


def check_positions(rows: int, tokens: int, position_ids: Any) -> None:
    """Hold positions against the input `[B, T]`.

    Raises:
        ValueError: another shape or type.
    """
    if position_ids is None:
        return
    if not isinstance(position_ids, Tensor) or position_ids.dim() != 2:
        shape = tuple(position_ids.shape) if isinstance(position_ids, Tensor) else position_ids
        raise ValueError(f"position_ids must be [{rows}, {tokens}], not {shape}")
    if position_ids.shape[0] not in (1, rows) or position_ids.shape[1] != tokens:
        raise ValueError(
            f"position_ids must be [1 or {rows}, {tokens}], not {tuple(position_ids.shape)}"
        )
    if position_ids.is_floating_point() or position_ids.dtype == torch.bool:
        raise ValueError(f"position_ids must be whole numbers, not {position_ids.dtype}")


def document_boundaries(
    rows: int,
    tokens: int,
    queries: Tensor | Sequence[int] | None,
    keys: Tensor | Sequence[int] | None,
    longest_query: int | Tensor | None,
    longest_key: int | Tensor | None,
) -> list[int] | None:
    """The boundaries of a packed batch's documents, from flash attention's arguments for them.

    Args:
        rows: B.
        tokens: T.
        queries: `cu_seq_lens_q`: 0, then where each document ends in the batch `[B * T]`.
        keys: `cu_seq_lens_k`: the same.
        longest_query: `max_length_q`, at least the length of the longest document.
        longest_key: `max_length_k`: the same.

    Raises:
        ValueError: one of the two alone, different ones, no boundaries of this batch, a document
            in two rows, or a length that is too small.
    """
    limits = {"max_length_q": longest_query, "max_length_k": longest_key}
    if queries is None and keys is None:
        if named := [name for name, limit in limits.items() if limit is not None]:
            raise ValueError(f"{named[0]} comes with cu_seq_lens_q and cu_seq_lens_k")
        return None
    if queries is None or keys is None:
        raise ValueError("cu_seq_lens_q and cu_seq_lens_k come together")
    found, other = (torch.as_tensor(edges).flatten().tolist() for edges in (queries, keys))
    if found != other:
        raise ValueError(
            "cu_seq_lens_q and cu_seq_lens_k differ: a packed batch has no past, so that each "
            "document has as many keys as queries"
        )
    lengths = [b - a for a, b in zip(found, found[1:], strict=False)]
    if not found or found[0] != 0 or found[-1] != rows * tokens or min(lengths, default=0) < 0:
        raise ValueError(
            f"cu_seq_lens_q must rise from 0 to the {rows * tokens} tokens of the batch, not "
            f"{found if len(found) < 9 else [*found[:4], '...', *found[-4:]]}"
        )
    across = set(range(0, rows * tokens, max(tokens, 1))) - set(found)
    if across:
        raise ValueError(
            f"by cu_seq_lens_q a document goes on from row {min(across) // tokens - 1} of "
            "input_ids to the next: rows are read apart; put all documents in one row"
        )
    for name, limit in limits.items():
        if limit is not None and int(limit) < max(lengths, default=0):
            raise ValueError(f"{name} is {int(limit)}, and a document has {max(lengths)} tokens")
    return found
