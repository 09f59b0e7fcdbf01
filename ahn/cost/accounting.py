"""What a run costs, from a model's shape alone: FLOPs and cache bytes. Arithmetic, no torch.

How FLOPs are counted
---------------------
A product of `[m, k]` and `[k, n]` is `2 m n k` FLOPs. Counted are all products of matrices and
vectors; not counted is what works element by element (norms, RoPE, softmax, activations, biases,
residuals, the decay of a memory's state), nor the embedding look-up, which multiplies nothing.
One sequence; times the batch size for a batch.

`accounting="exact"` is what generation computes:

- Attention: `4 H d` for each (query, key) pair that is *visible*, scores and values together. A
  query at position `p` sees `p + 1` keys with full attention, `min(p + 1, S + W)` with S sinks and
  window W. An implementation that multiplies masked blocks too executes more; a kernel that skips
  them executes this.
- Memory: gate projections for every token; the output gate and the read-out projection for each
  reading query (`p >= S + W`); per head, a write costs two products with the state and one read
  another (delta rules: `S^T k`, the rank-1 update, `S^T q`: `6 d^2`; Mamba2 writes without looking:
  `4 d^2`). This is the recurrence; the chunked form trades more FLOPs for fewer steps.
- Head: the last position of the prompt only, then one position per decoded token.
- `n` generated tokens take `n - 1` decode steps: the first comes out of the prefill, the last is
  never fed back.

`accounting="paper"` reproduces the published figure (-40.5 % at 128,000 tokens, Qwen2.5-3B, 32,768
lossless positions): attention `2 H d L^2` for full and `2 H d N^2 + (L - N) 4 N H d` for the window
of `N = S + W` positions; the head at every position; and the embedding as a second `2 L D V`
beside it. `accounting="paper-free-lookup"` is the same without that second `2 L D V`, which no
implementation computes.

How cache bytes are counted
---------------------------
`accounting="exact"`: the bytes of the tensors the streaming cache allocates after `tokens` tokens,
in blocks of `BLOCK` positions, gates included. `accounting="paper"`: elements that carry content
(keys, values and the memory's state; gates and unused slots are not counted), all in the model's
type: 26.0 % of full attention in the setting above.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal, get_args

from ahn.config import CELLS, AHNConfig, LayerLayout
from ahn.cost.shapes import CELL_SIZES, ModelShape, added_parameters
from common.errors import InputError

__all__ = [
    "ACCOUNTINGS",
    "BLOCK",
    "CacheBytes",
    "FlopCount",
    "ModelShape",
    "added_parameters",
    "allocated_slots",
    "cache_bytes",
    "flops",
]

#: The cache allocates slots in blocks of this many positions.
BLOCK = 256

Accounting = Literal["exact", "paper", "paper-free-lookup"]
ACCOUNTINGS: tuple[str, ...] = get_args(Accounting)

_FLOAT32_BYTES = 4


@dataclass(frozen=True)
class FlopCount:
    """FLOPs of one sequence (analytic).

    Attributes:
        prefill: processing the prompt.
        decode: the steps after it.
        parts: both together by kind of work: `projections` (q, k, v, o), `mlp`, `attention`,
            `memory`, `lm_head`, and `embedding` where the accounting has one. They add up to
            `total`.
    """

    prefill: int
    decode: int
    parts: dict[str, int]

    @property
    def total(self) -> int:
        return self.prefill + self.decode


def flops(
    shape: ModelShape,
    variant: str,
    prompt_tokens: int,
    generated_tokens: int = 0,
    *,
    window: int | None = None,
    sinks: int = 0,
    cell: str | None = None,
    accounting: str = "exact",
    reused_tokens: int = 0,
    full_attention_layers: Collection[int] = (),
) -> FlopCount:
    """FLOPs to process a prompt and generate from it; the module's head says what is counted.

    Args:
        shape: the base model.
        variant: one of `ahn.config.VARIANTS`; what it does not look at (window, sinks and cell for
            `full`, the cell for `window`) is ignored. `no-write` costs what `ahn` costs: it
            writes with strength 0.
        prompt_tokens: length of the prompt, at least 1.
        generated_tokens: tokens that came out.
        window: W, the current token included.
        sinks: S.
        cell: memory cell, for `ahn` and `no-write`.
        accounting: `exact`, `paper` or `paper-free-lookup`.
        reused_tokens: first tokens of the prompt that a cache already holds; they cost nothing.
        full_attention_layers: layers that keep full attention and have no memory.

    Raises:
        InputError: a value that no run can have.
    """
    layout, bounded_layers = _layout(
        shape, variant, window, sinks, cell, full_attention_layers, accounting
    )
    if prompt_tokens < 1 or generated_tokens < 0 or not 0 <= reused_tokens < prompt_tokens:
        raise InputError(
            f"a prompt of {prompt_tokens} tokens ({reused_tokens} of them reused) and "
            f"{generated_tokens} generated ones: at least one prompt token must be processed, and "
            "no count is negative"
        )
    steps = max(generated_tokens - 1, 0)
    spans = [
        _span_flops(
            shape,
            range(start, end),
            layout=layout,
            bounded_layers=bounded_layers,
            head_positions=heads if accounting == "exact" else end - start,
            accounting=accounting,
        )
        for start, end, heads in (
            (reused_tokens, prompt_tokens, 1),
            (prompt_tokens, prompt_tokens + steps, steps),
        )
    ]
    return FlopCount(
        prefill=sum(spans[0].values()),
        decode=sum(spans[1].values()),
        parts={name: spans[0][name] + spans[1][name] for name in spans[0]},
    )


def _span_flops(
    shape: ModelShape,
    positions: range,
    *,
    layout: LayerLayout,
    bounded_layers: int,
    head_positions: int,
    accounting: str,
) -> dict[str, int]:
    """FLOPs of the given positions when all before them are in the cache, by kind of work.

    `bounded_layers` layers see what `layout` says, the others everything.
    """
    tokens = len(positions)
    D, H, d = shape.hidden_size, shape.num_attention_heads, shape.head_dim
    layers, full_layers = shape.num_hidden_layers, shape.num_hidden_layers - bounded_layers
    q_width, kv_width = H * d, shape.num_key_value_heads * d
    vocabulary = 2 * D * shape.vocab_size

    # The key at a query's own position: counted exactly, left out by L^2 / 2.
    own = 1 if accounting == "exact" else 0

    def pairs_doubled(limit: int | None) -> int:
        return _pairs_doubled(positions.stop, limit, own) - _pairs_doubled(
            positions.start, limit, own
        )

    attention = full_layers * pairs_doubled(None)
    memory = 0
    if layout.window is not None:
        lossless, cell = layout.sinks + layout.window, layout.cell
        attention += bounded_layers * pairs_doubled(lossless)
        if cell is not None:
            reading = max(positions.stop - lossless, 0) - max(positions.start - lossless, 0)
            gates = len(CELL_SIZES[cell].gate_projections)
            write = 4 * d * d if CELL_SIZES[cell].delta_rule else 2 * d * d
            memory = tokens * gates * 2 * D * H + reading * (
                2 * D * H  # output gate
                + H * (2 * d * d + write)
                + H * 2 * d * d  # read-out projection, per head
            )
    parts = {
        "projections": layers * tokens * (4 * D * q_width + 4 * D * kv_width),
        "mlp": layers * tokens * 6 * D * shape.intermediate_size,
        "attention": 2 * q_width * attention,
        "memory": bounded_layers * memory,
        "lm_head": head_positions * vocabulary,
    }
    if accounting == "paper":
        parts["embedding"] = tokens * vocabulary
    return parts


def _pairs_doubled(length: int, limit: int | None, own: int) -> int:
    """Twice the (query, key) pairs of `length` positions that see at most `limit` keys each."""
    bounded = length if limit is None else min(length, limit)
    pairs = bounded * (bounded + own)
    return pairs if limit is None else pairs + 2 * limit * (length - bounded)


@dataclass(frozen=True)
class CacheBytes:
    """Bytes of a cache over all layers (analytic).

    Attributes:
        keys_values: lossless keys and values.
        gates: gates kept with each lossless position until it is evicted.
        state: recurrent states of the memory.
    """

    keys_values: int
    gates: int
    state: int

    @property
    def total(self) -> int:
        return self.keys_values + self.gates + self.state


def allocated_slots(tokens: int, sinks: int, window: int | None) -> int:
    """Positions for which a layer's cache has room once it holds `tokens` tokens.

    Grows by blocks of `BLOCK` and stops at sinks + window; `window=None` never stops.
    """
    slots = -(-tokens // BLOCK) * BLOCK
    return slots if window is None else min(slots, sinks + window)


def cache_bytes(
    shape: ModelShape,
    variant: str,
    tokens: int,
    *,
    window: int | None = None,
    sinks: int = 0,
    cell: str | None = None,
    dtype_bytes: int = 2,
    batch_size: int = 1,
    accounting: str = "exact",
    full_attention_layers: Collection[int] = (),
) -> CacheBytes:
    """Bytes that the cache holds after `tokens` tokens; the module's head says what is counted.

    Args:
        shape: the base model.
        variant: one of `ahn.config.VARIANTS`; what it does not use is ignored, as in `flops`.
        tokens: tokens that went through the model (prompt and decode steps).
        window: W, the current token included.
        sinks: S.
        cell: memory cell, for `ahn` and `no-write`.
        dtype_bytes: bytes of one element of the model's type (2: bfloat16).
        batch_size: sequences.
        accounting: `exact` or `paper`.
        full_attention_layers: layers that keep full attention and have no memory.

    Raises:
        InputError: a value that no run can have.
    """
    layout, bounded_layers = _layout(
        shape, variant, window, sinks, cell, full_attention_layers, accounting
    )
    if tokens < 0 or dtype_bytes < 1 or batch_size < 1:
        raise InputError(
            f"tokens {tokens}, dtype_bytes {dtype_bytes}, batch_size {batch_size}: "
            "none may be negative, and the last two not 0"
        )
    exact = accounting == "exact"
    H, d = shape.num_attention_heads, shape.head_dim

    def slots(limit: int | None) -> int:
        if exact:
            return allocated_slots(tokens, layout.sinks, limit)
        return tokens if limit is None else min(tokens, layout.sinks + limit)

    bounded = bounded_layers * slots(layout.window)
    positions = (shape.num_hidden_layers - bounded_layers) * slots(None) + bounded
    keys_values = positions * 2 * shape.num_key_value_heads * d * dtype_bytes
    gates = state = 0
    if layout.cell is not None:
        wide = max(dtype_bytes, _FLOAT32_BYTES)
        state = bounded_layers * H * d * d * (wide if exact else dtype_bytes)
        if exact:
            # beta in the model's type, Mamba2's dt in float32; the log-decay in float32, where the
            # cell has one.
            sizes = CELL_SIZES[layout.cell]
            write = wide if sizes.float32_write else dtype_bytes
            gates = bounded * H * (write + (wide if sizes.decays else 0))
    return CacheBytes(
        keys_values=batch_size * keys_values, gates=batch_size * gates, state=batch_size * state
    )


def _layout(
    shape: ModelShape,
    variant: str,
    window: int | None,
    sinks: int,
    cell: str | None,
    full_attention_layers: Collection[int],
    accounting: str,
) -> tuple[LayerLayout, int]:
    """What the layers that do not keep full attention see, and how many of them there are.

    Raises:
        InputError: everything that is wrong with these settings, a line each.
    """
    full = tuple(full_attention_layers)
    problems = AHNConfig.problems(variant, cell, None, None, full, shape.num_hidden_layers)
    if not problems:
        # What the variant looks at is what it needs; the rest is ignored.
        seen = AHNConfig(variant=variant).layer(0)
        if seen.window is not None:
            problems += AHNConfig.problems(variant, cell, window, sinks)
            if window is None:
                problems.append(f"variant {variant!r} needs a window")
        if seen.cell is not None and cell is None:
            problems.append(f"variant {variant!r} needs a memory cell; one of {', '.join(CELLS)}")
    if accounting not in ACCOUNTINGS:
        problems.append(f"accounting {accounting!r} is unknown; one of {', '.join(ACCOUNTINGS)}")
    if problems:
        raise InputError(*problems)
    if seen.window is None:
        return seen, 0
    layout = replace(seen, window=window, sinks=sinks, cell=None if seen.cell is None else cell)
    return layout, shape.num_hidden_layers - len(set(full))
