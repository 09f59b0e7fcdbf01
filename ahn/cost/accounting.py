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
  window W; with M pooled slots at rate c `min(M, u // c) + u mod c` more, `u` being the tokens that
  have left the window: pooled groups, and tokens that wait for theirs. Pooling itself multiplies
  nothing. An implementation that multiplies masked blocks too executes more; a kernel that skips
  them executes this.
- Memory: the products that its cell declares (`ahn.cells.builtin`): gate projections for every
  token; for each reading query (`p >= S + W`) the output gate, the read-out projection, and per
  head the recurrence (delta rules: `S^T k`, the rank-1 update, `S^T q`: `6 d^2`; Mamba2 writes
  without looking: `4 d^2`). This is the recurrent form; the chunked form trades more FLOPs for
  fewer steps.
- Head: the last position of the prompt only, then one position per decoded token.
- `n` generated tokens take `n - 1` decode steps: the first comes out of the prefill, the last is
  never fed back.

`accounting="paper"` is Table 1 of the paper, memory included, with N = S + W positions lossless:
attention `2 H d L^2` for full and `2 H d N^2 + (L - N) 4 N H d` for the window; M pooled slots cost
`(L - N) 4 M H d` more; a memory costs two FLOPs for each weight of its matrices and each number of
its state, for the tokens beyond N: `2 (L - N) (2 d^2 H + 3 D H)` with GatedDeltaNet, 2 D H with the
others, which have a gate less. The head at every position, and the embedding as a second `2 L D V`
beside it, which no implementation computes. The cost cells of tables 2 and 9 (`ahn.cost.paper`).

`accounting="paper-abstract"` gives the -40.5 % of the paper's abstract (128,000 tokens, Qwen2.5-3B,
32,768 lossless positions): as `paper`, but the memory as `exact` counts it, gates of every token
included, and pooled slots as M more positions of N. `accounting="paper-free-lookup"` is that
without the second `2 L D V`. (`paper` used to be the name of `paper-abstract`.)

How cache bytes are counted
---------------------------
`accounting="exact"`: the bytes of the tensors the streaming cache allocates after `tokens` tokens,
in blocks of `BLOCK` positions, gates included. `accounting="paper"`: elements that carry content
(keys, values and the memory's state; gates, unused slots and tokens that wait to be pooled are not
counted), all in the model's type: 26.0 % of full attention in the setting above.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal, get_args

from ahn.cells.declaration import SizedCell
from ahn.config import CELLS, AHNConfig, LayerLayout, example_layout
from ahn.cost.shapes import ModelShape, added_parameters, sized_cell
from common.errors import InputError, Problems
from common.suggestions import did_you_mean

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
    "layer_slots",
    "layout_bytes",
    "layout_flops",
    "variant_layouts",
]

#: The cache allocates slots in blocks of this many positions.
BLOCK = 256

Accounting = Literal["exact", "paper", "paper-abstract", "paper-free-lookup"]
ACCOUNTINGS: tuple[str, ...] = get_args(Accounting)

#: Settings of single layers, by their numbers; see `AHNConfig.layers`.
OwnSettings = Mapping[int, Mapping[str, Any]]


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
        """FLOPs of prefill and decode together."""
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
    layers: OwnSettings | None = None,
    rate: int | None = None,
    slots: int | None = None,
) -> FlopCount:
    """FLOPs to process a prompt and generate from it; the module's head says what is counted.

    Args:
        shape: the base model.
        variant: one of `ahn.config.VARIANTS`; what it does not look at (window, sinks and cell for
            `full`, the cell for `window`, window and sinks for `memory-only`) is ignored.
            `no-write` costs what `ahn` costs: it writes with strength 0.
        prompt_tokens: length of the prompt, at least 1.
        generated_tokens: tokens that came out.
        window: W, the current token included.
        sinks: S.
        cell: memory cell, for `ahn`, `no-write` and `memory-only`.
        accounting: one of `ACCOUNTINGS`.
        reused_tokens: first tokens of the prompt that a cache already holds; they cost nothing.
        full_attention_layers: layers that keep full attention and have no memory.
        layers: settings of single layers, see `AHNConfig.layers`.
        rate: of `compressive`; default: the paper's.
        slots: of `compressive`; default: the paper's for this model.

    Raises:
        InputError: a value that no run can have.
    """
    layouts = variant_layouts(
        shape,
        variant,
        window=window,
        sinks=sinks,
        cell=cell,
        full_attention_layers=full_attention_layers,
        layers=layers,
        rate=rate,
        slots=slots,
        accounting=accounting,
    )
    return layout_flops(
        shape,
        layouts,
        prompt_tokens,
        generated_tokens,
        accounting=accounting,
        reused_tokens=reused_tokens,
    )


def layout_flops(
    shape: ModelShape,
    layouts: Sequence[LayerLayout],
    prompt_tokens: int,
    generated_tokens: int = 0,
    *,
    accounting: str = "exact",
    reused_tokens: int = 0,
) -> FlopCount:
    """As `flops`, of layers with these layouts.

    Args:
        shape: the base model.
        layouts: one for each layer.
        prompt_tokens: length of the prompt, at least 1.
        generated_tokens: tokens that came out.
        accounting: one of `ACCOUNTINGS`.
        reused_tokens: first tokens of the prompt that a cache already holds; they cost nothing.

    Raises:
        InputError: a value that no run can have.
    """
    _check_layouts(shape, layouts, accounting)
    if prompt_tokens < 1 or generated_tokens < 0 or not 0 <= reused_tokens < prompt_tokens:
        raise InputError(
            f"a prompt of {prompt_tokens} tokens ({reused_tokens} of them reused) and "
            f"{generated_tokens} generated ones: at least one prompt token must be processed, and "
            "no count is negative"
        )
    counted = Counter(layouts)
    steps = max(generated_tokens - 1, 0)
    spans = [
        _span_flops(
            shape,
            range(start, end),
            layouts=counted,
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
    layouts: Counter[LayerLayout],
    head_positions: int,
    accounting: str,
) -> dict[str, int]:
    """FLOPs of the given positions when all before them are in the cache, by kind of work.

    `layouts` counts the layers of each layout.
    """
    tokens = len(positions)
    D, H, d = shape.hidden_size, shape.num_attention_heads, shape.head_dim
    q_width, kv_width = H * d, shape.num_key_value_heads * d
    vocabulary = 2 * D * shape.vocab_size

    attention = memory = 0
    for layout, count in layouts.items():
        attention += count * (
            _pairs_doubled(positions.stop, layout, accounting)
            - _pairs_doubled(positions.start, layout, accounting)
        )
        if layout.cell is not None and layout.window is not None:
            lossless = layout.sinks + layout.window
            reading = max(positions.stop - lossless, 0) - max(positions.start - lossless, 0)
            costs = sized_cell(shape, layout.cell)
            if accounting == "paper":
                memory += count * reading * 2 * _weights_and_state(costs)
            else:
                memory += count * (tokens * costs.flops_per_token + reading * costs.flops_per_read)
    parts = {
        "projections": shape.num_hidden_layers * tokens * (4 * D * q_width + 4 * D * kv_width),
        "mlp": shape.num_hidden_layers * tokens * 6 * D * shape.intermediate_size,
        "attention": 2 * q_width * attention,
        "memory": memory,
        "lm_head": head_positions * vocabulary,
    }
    if accounting in ("paper", "paper-abstract"):
        parts["embedding"] = tokens * vocabulary
    return parts


def _weights_and_state(cell: SizedCell) -> int:
    """Numbers of a memory's matrices and states; what has one dimension multiplies nothing."""
    matrices = sum(prod(size) for size in cell.parameters.values() if len(size) > 1)
    return matrices + sum(prod(size) for size in cell.states.values())


def _pairs_doubled(length: int, layout: LayerLayout, accounting: str) -> int:
    """Twice the (query, key) pairs of the first `length` positions."""
    # The key at a query's own position: counted exactly, left out by L^2 / 2.
    own = 1 if accounting == "exact" else 0
    if layout.window is None:
        return length * (length + own)
    limit = layout.sinks + layout.window
    if accounting in ("paper-abstract", "paper-free-lookup"):
        limit += layout.slots  # positions like others, and nothing waits
    bounded = min(length, limit)
    pairs = bounded * (bounded + own) + 2 * limit * (length - bounded)
    if accounting == "exact":
        return pairs + 2 * _pairs_beyond(length - bounded, layout)
    pooled = layout.slots if accounting == "paper" else 0
    return pairs + 2 * pooled * (length - bounded)


def _pairs_beyond(queries: int, layout: LayerLayout) -> int:
    """Pairs with pooled slots and waiting tokens of the first queries after tokens leave.

    The query after which `u = 1, 2, ...` tokens have left sees `min(M, u // c)` groups and
    `u mod c` tokens that wait.
    """
    rate, whole = layout.rate, queries // layout.rate
    rest = queries % rate
    waiting = whole * (rate * (rate - 1) // 2) + rest * (rest + 1) // 2
    filling = min(whole, layout.slots)
    groups = rate * (filling * (filling - 1) // 2 + (whole - filling) * layout.slots)
    return waiting + groups + (rest + 1) * filling


@dataclass(frozen=True)
class CacheBytes:
    """Bytes of a cache over all layers (analytic).

    Attributes:
        keys_values: lossless keys and values.
        gates: gates kept with each lossless position until it is evicted.
        state: recurrent states of the memory.
        pooled: keys and values of pooled groups.
    """

    keys_values: int
    gates: int
    state: int
    pooled: int = 0

    @property
    def total(self) -> int:
        """Bytes of keys, values, gates, states and pooled groups together."""
        return self.keys_values + self.gates + self.state + self.pooled


def allocated_slots(
    tokens: int, sinks: int, window: int | None, rate: int = 1, slots: int = 0
) -> int:
    """Positions for which a layer's cache has room once it holds `tokens` tokens.

    Grows by blocks of `BLOCK` and stops at sinks + window; `window=None` never stops. With pooled
    slots the ring is `rate - 1` longer, for tokens that wait, and room for groups grows in the same
    way and stops at `slots`.
    """
    room = -(-tokens // BLOCK) * BLOCK
    if window is None:
        return room
    groups = max(tokens - sinks - window, 0) // rate
    return min(room, sinks + window + rate - 1) + min(-(-groups // BLOCK) * BLOCK, slots)


def layer_slots(layout: LayerLayout, tokens: int) -> int:
    """`allocated_slots` of a layer with this layout."""
    return allocated_slots(tokens, layout.sinks, layout.window, layout.rate, layout.slots)


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
    layers: OwnSettings | None = None,
    rate: int | None = None,
    slots: int | None = None,
) -> CacheBytes:
    """Bytes that the cache holds after `tokens` tokens; the module's head says what is counted.

    Args:
        shape: the base model.
        variant: one of `ahn.config.VARIANTS`; what it does not use is ignored, as in `flops`.
        tokens: tokens that went through the model (prompt and decode steps).
        window: W, the current token included.
        sinks: S.
        cell: memory cell, for `ahn`, `no-write` and `memory-only`.
        dtype_bytes: bytes of one element of the model's type (2: bfloat16).
        batch_size: sequences.
        accounting: `exact` or `paper`.
        full_attention_layers: layers that keep full attention and have no memory.
        layers: settings of single layers, see `AHNConfig.layers`.
        rate: of `compressive`; default: the paper's.
        slots: of `compressive`; default: the paper's for this model.

    Raises:
        InputError: a value that no run can have.
    """
    layouts = variant_layouts(
        shape,
        variant,
        window=window,
        sinks=sinks,
        cell=cell,
        full_attention_layers=full_attention_layers,
        layers=layers,
        rate=rate,
        slots=slots,
        accounting=accounting,
    )
    return layout_bytes(
        shape,
        layouts,
        tokens,
        dtype_bytes=dtype_bytes,
        batch_size=batch_size,
        accounting=accounting,
    )


def layout_bytes(
    shape: ModelShape,
    layouts: Sequence[LayerLayout],
    tokens: int,
    *,
    dtype_bytes: int = 2,
    batch_size: int = 1,
    accounting: str = "exact",
) -> CacheBytes:
    """As `cache_bytes`, of layers with these layouts.

    Args:
        shape: the base model.
        layouts: one for each layer.
        tokens: tokens that went through the model (prompt and decode steps).
        dtype_bytes: bytes of one element of the model's type (2: bfloat16).
        batch_size: sequences.
        accounting: `exact` or `paper`.

    Raises:
        InputError: a value that no run can have.
    """
    _check_layouts(shape, layouts, accounting)
    if tokens < 0 or dtype_bytes < 1 or batch_size < 1:
        raise InputError(
            f"tokens {tokens}, dtype_bytes {dtype_bytes}, batch_size {batch_size}: "
            "none may be negative, and the last two not 0"
        )
    exact = accounting == "exact"
    of_a_slot = slot_bytes(shape, dtype_bytes)
    keys_values = gates = state = pooled = 0
    for layout, count in Counter(layouts).items():
        if exact:
            lossless = allocated_slots(tokens, layout.sinks, layout.window, layout.rate)
            groups = layer_slots(layout, tokens) - lossless
        else:
            lossless = tokens
            if layout.window is not None:
                lossless = min(tokens, layout.sinks + layout.window)
            groups = min(layout.groups(tokens), layout.slots)
        keys_values += count * lossless * of_a_slot
        pooled += count * groups * of_a_slot
        if layout.cell is not None:
            kept = sized_cell(shape, layout.cell)
            if exact:
                state += count * kept.state_bytes(dtype_bytes)
                gates += count * lossless * kept.gate_bytes(dtype_bytes)
            else:  # all in the model's type
                elements = sum(prod(size) for size in kept.states.values())
                state += count * elements * dtype_bytes
    return CacheBytes(
        keys_values=batch_size * keys_values,
        gates=batch_size * gates,
        state=batch_size * state,
        pooled=batch_size * pooled,
    )


def slot_bytes(shape: ModelShape, dtype_bytes: int) -> int:
    """Bytes of the keys and values of one slot of one layer."""
    return 2 * shape.num_key_value_heads * shape.head_dim * dtype_bytes


def _check_layouts(shape: ModelShape, layouts: Sequence[LayerLayout], accounting: str) -> None:
    """Refuse an unknown accounting, and layouts for another number of layers."""
    problems = Problems(_accounting_problems(accounting))
    if len(layouts) != shape.num_hidden_layers:
        problems.add(f"{len(layouts)} layouts for {shape.num_hidden_layers} layers")
    problems.check()


def _accounting_problems(accounting: str) -> list[str]:
    if accounting in ACCOUNTINGS:
        return []
    hint = did_you_mean(str(accounting), ACCOUNTINGS)
    return [f"accounting {accounting!r} is unknown; one of {', '.join(ACCOUNTINGS)}{hint}"]


def variant_layouts(
    shape: ModelShape,
    variant: str,
    *,
    window: int | None = None,
    sinks: int = 0,
    cell: str | None = None,
    full_attention_layers: Collection[int] = (),
    layers: OwnSettings | None = None,
    rate: int | None = None,
    pooling: str | None = None,
    slots: int | None = None,
    accounting: str = "exact",
) -> tuple[LayerLayout, ...]:
    """The layout of each layer. What the variant does not look at is ignored.

    Args:
        shape: the base model.
        variant: one of `ahn.config.VARIANTS`.
        window: W, the current token included.
        sinks: S.
        cell: memory cell, for `ahn`, `no-write` and `memory-only`.
        full_attention_layers: layers that keep full attention and have no memory.
        layers: settings of single layers, see `AHNConfig.layers`.
        rate: of `compressive`; default: the paper's.
        pooling: of `compressive`; it costs nothing.
        slots: of `compressive`; default: the paper's for this model.
        accounting: that is asked for besides; only checked.

    Raises:
        InputError: everything that is wrong with these settings, a line each.
    """
    full, count = tuple(full_attention_layers), shape.num_hidden_layers
    problems = Problems(AHNConfig.problems(variant, cell, None, None, full, count, layers=layers))
    settings: dict[str, Any] = {}
    if not problems:
        seen = example_layout(variant)  # what the variant looks at is what it needs
        if seen.window is not None:
            settings = {"layers": layers or {}}
        if seen.window:
            settings |= {"window": window, "sinks": sinks}
            problems.add(*AHNConfig.problems(variant, cell, window, sinks))
            if window is None:
                problems.add(f"variant {variant!r} needs a window")
        if seen.cell is not None:
            settings["cell"] = cell
            if cell is None:
                problems.add(f"variant {variant!r} needs a memory cell; one of {', '.join(CELLS)}")
        if seen.slots:
            pooled = {"rate": rate, "pooling": pooling, "slots": slots}
            settings |= {name: value for name, value in pooled.items() if value is not None}
            problems.add(
                *AHNConfig.problems(
                    variant, None, None, None, rate=rate, pooling=pooling, slots=slots
                )
            )
    problems.add(*_accounting_problems(accounting))
    problems.check()
    config = AHNConfig(variant=variant, full_attention_layers=full, **settings)
    sized = config.with_default_slots(
        shape.num_attention_heads, shape.num_key_value_heads, shape.head_dim
    )
    return sized.layouts(count)
