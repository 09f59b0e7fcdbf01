"""What every way of keeping the past has room for at equal cache bytes. Arithmetic, no torch.

The budget
----------
A budget is what a model with a memory (AHN) holds of a document, once it was read and before the
question: `B = L [(W + S) (t + g) + s]` bytes of one sequence, with L layers, window W, S sinks,
`t = 2 K d e` bytes of a token's keys and values (K key/value heads of d elements of e bytes), g
bytes of gates that are kept with a token, and s bytes of state. Two accountings give two budgets,
so that a table must name one (`ahn.cost.accounting`): `exact` counts bytes allocated, with gates
and float32 states, and is what is measured; `paper` counts elements with content, all in the
model's type.

What it has room for
--------------------
- Methods that drop tokens keep `n = B / (L t)` of them in a layer; a compression ratio is
  `1 - n / T`. PyramidKV keeps more in the first layers and fewer in the last, n in the mean.
- b bits, in groups of G elements with a scale and a zero of e bytes each, take
  `2 K d (b + 16 e / G) / 8` bytes a token; fp8 takes half of 16 bits. Where not all tokens fit, the
  share that does is what a press in front may keep.
- Compressive, rate c: S + W tokens as they are, M pooled slots, and up to c - 1 tokens that wait
  for their group to be complete. M fills the budget beside S + W, as the paper sizes it: room for
  the waiting tokens, which `exact` counts, comes on top. (A run with a budget leaves room for them
  and has up to c - 1 slots fewer.) `reach` is c M tokens beyond the window.

What it costs
-------------
FLOPs are those of `accounting="exact"`: the whole document is read, then one token is decoded.
Presses and quantised caches read the document as full attention does. Dequantising and pooling work
element by element, and are not counted. Peaks are bytes beside the weights: the cache, the
activations of the tokens that are read at once, at their largest in an MLP (`2 I + 3 D + 2 K d`
elements a token), and keys and values of these tokens in one layer where the cache does not hold
them as they are (twice where they are quantised). Masks and the logits are not in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ahn.config import CELLS, LayerLayout
from ahn.cost.accounting import cache_bytes, flops, layout_bytes, layout_flops, slot_bytes
from ahn.cost.shapes import ModelShape, sized_cell
from common.errors import InputError

__all__ = [
    "CHUNK",
    "DocumentSizes",
    "EqualBytes",
    "Method",
    "equal_bytes",
    "pyramid",
]

#: Tokens that are read at once where a document is read in chunks.
CHUNK = 2048
#: Of PyramidKV, as its authors and kvpress have them: steepness, and latest tokens always kept.
PYRAMID_BETA, PYRAMID_WINDOW = 20, 64
#: Elements that share a scale and a zero in a quantised cache.
GROUP = 64
ACCOUNTINGS = ("exact", "paper")


@dataclass(frozen=True)
class Method:
    """A way of keeping the past, sized to a budget where its size can be chosen.

    Attributes:
        name: of the method.
        settings: with which it is sized, as JSON.
        sized: whether the budget decided its size.
        kept_tokens: tokens that are kept in a layer, mean over layers; pooled and remembered ones
            are none of them.
        cache_bytes: once the document was read.
        prefill_flops: to read the document.
        decode_flops: of one token after it.
        peak_whole: most bytes beside the weights when the document is read at once.
        peak_chunked: likewise in chunks of `CHUNK`; None: it cannot be, or is not known.
        missing: why there are no figures; empty: there are.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    sized: bool = False
    kept_tokens: float | None = None
    cache_bytes: int | None = None
    prefill_flops: int | None = None
    decode_flops: int | None = None
    peak_whole: int | None = None
    peak_chunked: int | None = None
    missing: str = ""


@dataclass(frozen=True)
class EqualBytes:
    """A table of methods at one budget.

    Attributes:
        shape: the base model.
        document_tokens: T, tokens of the document.
        accounting: `exact` or `paper`.
        budget: bytes that may be kept of the document.
        full_bytes: bytes that full attention keeps of it.
        token_bytes: keys and values of one token in one layer.
        tokens: n, tokens that a layer keeps of a method that drops tokens; at most T.
        methods: the rows.
    """

    shape: ModelShape
    document_tokens: int
    accounting: str
    budget: int
    full_bytes: int
    token_bytes: int
    tokens: int
    methods: tuple[Method, ...]

    @property
    def compression_ratio(self) -> float:
        """Share of the document's tokens that is dropped."""
        return 1 - self.tokens / self.document_tokens


def pyramid(
    tokens: int,
    kept: int,
    layers: int,
    beta: int = PYRAMID_BETA,
    window: int = PYRAMID_WINDOW,
) -> list[int]:
    """Tokens that PyramidKV keeps in each layer, first to last; `kept` in the mean.

    They fall evenly from the first layer to the last. Where the last would keep fewer than
    `window`, all keep the same, as kvpress does it.

    Args:
        tokens: of the document.
        kept: mean over layers.
        layers: of the model.
        beta: the last layer keeps `kept / beta`.
        window: latest tokens that are always kept.
    """
    least = kept / beta
    most = 2 * kept - least
    if most >= tokens - window:
        most = tokens - window
        least = 2 * kept - most
    if not tokens >= most >= least >= window:
        return [kept] * layers
    step = (most - least) / (layers - 1) if layers > 1 else 0.0
    return [round(most - layer * step) for layer in range(layers)]


@dataclass(frozen=True)
class DocumentSizes:
    """Sizes of what a stock cache keeps of a token.

    Attributes:
        shape: the base model.
        dtype_bytes: bytes of one element of the model's type.
    """

    shape: ModelShape
    dtype_bytes: int = 2

    @property
    def token(self) -> int:
        """Bytes of a token's keys and values in a layer."""
        return slot_bytes(self.shape, self.dtype_bytes)

    def quantized(self, bits: int, group: int) -> float:
        """Bytes of them with so many bits an element, with scales and zeros in the model's type."""
        of_group = 2 * 8 * self.dtype_bytes
        return self.token / (8 * self.dtype_bytes) * (bits + of_group / group)

    @property
    def fp8(self) -> float:
        """Bytes of them with 8 bits an element; the one scale of a layer is not counted."""
        return self.token / self.dtype_bytes

    @property
    def activations(self) -> int:
        """Bytes of a token's activations where they are most: in an MLP."""
        keys = self.shape.num_key_value_heads * self.shape.head_dim
        elements = 2 * self.shape.intermediate_size + 3 * self.shape.hidden_size + 2 * keys
        return elements * self.dtype_bytes


def equal_bytes(
    shape: ModelShape,
    tokens: int,
    *,
    window: int,
    sinks: int,
    cell: str,
    dtype_bytes: int = 2,
    accounting: str = "exact",
    cells: Sequence[str] | None = None,
) -> EqualBytes:
    """All methods at the bytes that a model with a memory holds of a document.

    Args:
        shape: the base model.
        tokens: of the document.
        window: W of the memory's model.
        sinks: S of it.
        cell: the memory whose bytes are the budget.
        dtype_bytes: bytes of one element of the model's type.
        accounting: `exact` or `paper`.
        cells: memories that have a row; None: all that can be named.

    Raises:
        InputError: values that no run can have.
    """
    if accounting not in ACCOUNTINGS:
        raise InputError(f"accounting {accounting!r}: one of {', '.join(ACCOUNTINGS)} gives bytes")
    if tokens < 1:
        raise InputError(f"a document of {tokens} tokens: it has at least one")
    table = _Table(shape, tokens, window, sinks, dtype_bytes, accounting, cell)
    return table.made(tuple(CELLS) if cells is None else cells)


class _Table:
    """The rows of a table; see `equal_bytes` for the arguments."""

    def __init__(
        self,
        shape: ModelShape,
        tokens: int,
        window: int,
        sinks: int,
        dtype_bytes: int,
        accounting: str,
        cell: str,
    ) -> None:
        self._shape, self._tokens, self._accounting = shape, tokens, accounting
        self._window, self._sinks, self._cell = window, sinks, cell
        self._dtype_bytes = dtype_bytes
        self._sizes = DocumentSizes(shape, dtype_bytes)
        self._layers = shape.num_hidden_layers
        self._budget = self._held("ahn", window=window, sinks=sinks, cell=cell)
        self._full = self._held("full")
        self._kept = min(tokens, self._budget // (self._layers * self._sizes.token))

    def made(self, cells: Sequence[str]) -> EqualBytes:
        """The table, with a row for each of these memories."""
        return EqualBytes(
            self._shape,
            self._tokens,
            self._accounting,
            self._budget,
            self._full,
            self._sizes.token,
            self._kept,
            (
                self._streaming("full attention", "full", self._tokens),
                self._streaming(
                    "window",
                    "window",
                    self._window + self._sinks,
                    {"window": self._window, "sinks": self._sinks},
                ),
                self._equal_window(),
                *(self._memory(cell) for cell in dict.fromkeys([*cells, self._cell])),
                self._streaming_llm(),
                self._dropping(
                    "SnapKV, KNorm, ExpectedAttention, TOVA",
                    [self._kept] * self._layers,
                    {"compression_ratio": 1 - self._kept / self._tokens},
                ),
                self._pyramid(),
                self._quantized("fp8", self._sizes.fp8, {"bits": 8}),
                *(
                    self._quantized(
                        f"{bits} bit, group {GROUP}",
                        self._sizes.quantized(bits, GROUP),
                        {"bits": bits, "group": GROUP},
                    )
                    for bits in (8, 4, 2)
                ),
                self._same_window(4),
                self._whole_document(4),
                self._whole_document(8),
            ),
        )

    def _held(self, variant: str, **settings: Any) -> int:
        return cache_bytes(
            self._shape,
            variant,
            self._tokens,
            dtype_bytes=self._dtype_bytes,
            accounting=self._accounting,
            **settings,
        ).total

    def _streaming(
        self,
        name: str,
        variant: str,
        lossless: int,
        settings: Mapping[str, Any] | None = None,
        sized: bool = False,
    ) -> Method:
        """A variant of `ahn.config`, which is read in chunks of any length."""
        given = dict(settings or {})
        counted = flops(self._shape, variant, self._tokens, 2, accounting="exact", **given)
        held = self._held(variant, **given)
        own = 0 if variant == "full" else 1  # full attention's cache holds them as they are
        return Method(
            name,
            given,
            sized,
            min(self._tokens, lossless),
            held,
            counted.prefill,
            counted.decode,
            self._peak(held, self._tokens, own),
            self._peak(held, min(CHUNK, self._tokens), own),
        )

    def _equal_window(self) -> Method:
        settings = {"window": self._beside_sinks, "sinks": self._sinks}
        name = "window at equal bytes"
        return self._streaming(name, "window", self._kept, settings, sized=True)

    def _memory(self, cell: str) -> Method:
        name = f"ahn {cell}"
        try:
            sized_cell(self._shape, cell)
        except InputError as error:
            return Method(name, missing=str(error))
        settings = {"window": self._window, "sinks": self._sinks, "cell": cell}
        return self._streaming(name, "ahn", self._window + self._sinks, settings)

    def _streaming_llm(self) -> Method:
        settings = {"n_sink": self._sinks, "window": self._beside_sinks}
        return self._dropping("StreamingLLM", [self._kept] * self._layers, settings)

    def _pyramid(self) -> Method:
        layers = pyramid(self._tokens, self._kept, self._layers)
        settings = {
            "beta": PYRAMID_BETA,
            "window_size": PYRAMID_WINDOW,
            "compression_ratio": 1 - self._kept / self._tokens,
            "tokens_per_layer": layers,
        }
        return self._dropping("PyramidKV", layers, settings)

    def _dropping(self, name: str, layers: Sequence[int], settings: Mapping[str, Any]) -> Method:
        """A press: it reads the document as full attention does, and keeps some of its tokens."""
        held = sum(layers) * self._sizes.token
        return Method(
            name,
            settings,
            True,
            sum(layers) / len(layers),
            held,
            self._read_whole(),
            self._step(sum(layers)),
            self._peak(held, self._tokens, 1),
        )

    def _quantized(self, name: str, of_token: float, settings: Mapping[str, Any]) -> Method:
        """A quantised cache of as many tokens as it has room for."""
        kept = min(self._tokens, int(self._budget / (self._layers * of_token)))
        held = round(self._layers * kept * of_token)
        share = min(1.0, self._budget / (self._layers * of_token * self._tokens))
        return Method(
            name,
            {**settings, "share_of_tokens": share},
            True,
            kept,
            held,
            self._read_whole(),
            self._step(self._layers * kept),
            self._peak(held, self._tokens, 2),
        )

    def _same_window(self, rate: int) -> Method:
        """The paper's: pooled slots take what the memory took beside the window."""
        name = f"compressive {rate}x, same window"
        if self._tokens <= self._window + self._sinks:
            return Method(name, missing="the window holds the document")
        slots = self._kept - self._window - self._sinks
        if slots < 1:
            return Method(name, missing="the memory takes less than one token's keys and values")
        return self._compressive(name, rate, self._window, slots)

    def _whole_document(self, rate: int) -> Method:
        """The longest window beside which the pooled slots stand for all the rest."""
        name = f"compressive {rate}x, whole document"
        if self._kept >= self._tokens:
            return Method(name, missing="the budget holds the document as it is")
        rest = self._kept - self._sinks
        window = round((rate * rest - (self._tokens - self._sinks)) / (rate - 1))
        if window < 1:
            return Method(
                name,
                missing=f"a rate of more than {(self._tokens - self._sinks) / max(rest, 1):.1f} "
                "would be needed",
            )
        return self._compressive(name, rate, window, rest - window)

    def _compressive(self, name: str, rate: int, window: int, slots: int) -> Method:
        sinks, tokens = self._sinks, self._tokens
        layouts = [LayerLayout(window, sinks, rate=rate, slots=slots)] * self._layers
        counted = layout_flops(self._shape, layouts, tokens, 2, accounting="exact")
        held = layout_bytes(
            self._shape,
            layouts,
            tokens,
            dtype_bytes=self._dtype_bytes,
            accounting=self._accounting,
        )
        return Method(
            name,
            {
                "rate": rate,
                "window": window,
                "sinks": sinks,
                "slots": slots,
                "reach": min(rate * slots, max(tokens - sinks - window, 0)),
            },
            True,
            min(tokens, sinks + window),
            held.total,
            counted.prefill,
            counted.decode,
        )

    @property
    def _beside_sinks(self) -> int:
        """Tokens that are kept beside the sinks; at least one where these hold the document."""
        return max(self._kept - self._sinks, 1)

    @property
    def _pair(self) -> int:
        """FLOPs of one query and one key, in all layers."""
        return 4 * self._shape.num_attention_heads * self._shape.head_dim * self._layers

    def _read_whole(self) -> int:
        return flops(self._shape, "full", self._tokens, accounting="exact").prefill

    def _step(self, slots: int) -> int:
        """FLOPs of a token over so many slots, of all layers together, and its own."""
        first = flops(self._shape, "full", 1, 2, accounting="exact").decode  # sees one slot a layer
        return first + (slots - self._layers) * self._pair // self._layers

    def _peak(self, held: int, at_once: int, own: int) -> int:
        """Bytes when so many tokens are read at once; `own`: how often a layer copies theirs."""
        return held + at_once * (self._sizes.activations + own * self._sizes.token)
