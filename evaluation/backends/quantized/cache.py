"""Caches that keep keys and values in 8, 4 or 2 bits, and how many bytes they take.

The quantisers are those of transformers' `QuantizedCache` (optimum-quanto and hqq), made to take
documents of any length; `fp8` needs no package. What is stored, per layer, for keys and for values
of K heads, T tokens and d channels (N = K T d elements, G the group, e the bytes of the model's
dtype):

- `quanto`, `hqq`: N elements of 2, 4 or 8 bits, packed in bytes, and for each group of G elements a
  scale and a zero (hqq) or shift (quanto) in the model's dtype. `axis` says what a group is. By
  default G consecutive channels of one token and head, so that no token shares a group with another
  (quanto 0, hqq 1). quanto -1: one channel of G consecutive tokens. hqq 0: every N/G-th element.
  The last group is filled up by repeating its last element, or token.
- `fp8`: N elements as `float8_e4m3fn`, and a scale in the model's dtype for each token and head.

The layers of quanto and hqq follow the rule of transformers 5.23. The first chunk that is read is
quantised as a whole, while attention still sees it unquantised. Later chunks are kept in full
precision until `residual` tokens are waiting; then *everything* is dequantised and quantised again.
The layer of fp8 quantises each token once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import (
    Cache,
    DynamicLayer,
    HQQQuantizedLayer,
    QuantoQuantizedLayer,
)

BITS = {"hqq": (8, 4, 2), "quanto": (4, 2), "fp8": (8,)}
"""Bits per element of each back-end, as far as they are offered here."""
DEFAULT_BACKEND = {8: "hqq", 4: "quanto", 2: "quanto"}
"""What is taken for so many bits: quanto, which needs no search, where it has them."""
AXES = {"hqq": (1, 0), "quanto": (0, -1), "fp8": ()}
"""Axes of each back-end, its default first."""
PACKAGES = {"hqq": "hqq", "quanto": "optimum-quanto"}
"""The package that each back-end needs."""
LARGEST_GROUP = 64
_SMALLEST_GROUP = 8
DEFAULT_RESIDUAL = 128
FP8 = torch.float8_e4m3fn


@dataclass(frozen=True)
class KVShape:
    """Keys and values of one layer: `[1, heads, tokens, key_dim]` and `[.., value_dim]`."""

    heads: int
    key_dim: int
    value_dim: int


def default_group(shapes: Iterable[KVShape]) -> int:
    """The largest power of two up to 64 that divides the channels of every head.

    64 where they have no power of two from 8 on in common; groups then cross tokens.
    """
    dims = {dim for shape in shapes for dim in (shape.key_dim, shape.value_dim)}
    group = LARGEST_GROUP
    while group >= _SMALLEST_GROUP:
        if all(dim % group == 0 for dim in dims):
            return group
        group //= 2
    return LARGEST_GROUP


@dataclass(frozen=True)
class Scheme:
    """How keys and values are quantised.

    Attributes:
        backend: `hqq`, `quanto` or `fp8`.
        bits: per element.
        group: elements that share a scale; 0 for fp8, where it is a token's head.
        axis_key: what a group of keys is, in the back-end's own numbers.
        axis_value: the same for values.
        residual: tokens that wait in full precision before all is quantised again; 0 for fp8.
    """

    backend: str
    bits: int
    group: int = 0
    axis_key: int = 0
    axis_value: int = 0
    residual: int = 0

    @property
    def per_byte(self) -> int:
        """Elements in a byte."""
        return 8 // self.bits

    def layer(self) -> DynamicLayer:
        """An empty cache layer."""
        if self.backend == "fp8":
            return Fp8Layer()
        made = QuantoLayer if self.backend == "quanto" else HQQLayer
        return made(self.bits, self.axis_key, self.axis_value, self.group, self.residual)

    def cache(self, layers: int) -> Cache:
        """An empty cache of so many layers."""
        return Cache(layers=[self.layer() for _ in range(layers)])

    def layer_bytes(self, shape: KVShape, quantized: int, waiting: int, element: int) -> int:
        """Bytes of a layer.

        Args:
            shape: its heads and channels.
            quantized: tokens that are quantised.
            waiting: tokens in full precision.
            element: bytes of the model's dtype.
        """
        dims = ((shape.key_dim, self.axis_key), (shape.value_dim, self.axis_value))
        packed = sum(self._states(quantized, shape.heads, dim, axis, element) for dim, axis in dims)
        return packed + waiting * shape.heads * (shape.key_dim + shape.value_dim) * element

    def _states(self, tokens: int, heads: int, dim: int, axis: int, element: int) -> int:
        """Bytes of the keys, or the values, of some tokens."""
        if not tokens:
            return 0
        rows = heads * tokens
        if self.backend == "fp8":
            return rows * (dim + element)
        groups = _up(rows * dim, self.group) // self.group
        if (self.backend, axis) == ("quanto", -1):
            groups = dim * _up(rows, self.group) // self.group
        elif self.backend == "quanto":
            groups = max(groups, 2)
        elif axis == 1:
            groups = _up(groups, self.per_byte)
        # quanto packs the last bytes half empty, where the groups do not fill them.
        whole = _up(groups, self.per_byte) if axis == 0 and self.backend == "quanto" else groups
        return whole * self.group // self.per_byte + 2 * groups * element

    def padding(self, shape: KVShape, element: int) -> int:
        """The most bytes of a layer that fill up its last groups, whatever the number of tokens."""
        period = self.group * self.per_byte or 1
        one = self.layer_bytes(shape, period, 0, element) / period
        numbers = range(1, period + 1)
        return ceil(max(self.layer_bytes(shape, n, 0, element) - n * one for n in numbers))

    def after(self, chunks: Iterable[int], start: tuple[int, int] = (0, 0)) -> tuple[int, int]:
        """Tokens that are quantised, and tokens that wait, once some chunks were read.

        Args:
            chunks: their lengths, in order.
            start: both numbers before them.
        """
        quantized, waiting = start
        for chunk in chunks:
            if not chunk:
                continue
            waiting += chunk
            if not quantized or waiting >= self.residual:
                quantized, waiting = quantized + waiting, 0
        return quantized, waiting

    def most_tokens(self, shapes: Sequence[KVShape], element: int, budget: int, limit: int) -> int:
        """The most tokens, up to a limit, that are quantised in at most `budget` bytes."""
        low, high = 0, limit
        while low < high:
            middle = (low + high + 1) // 2
            if sum(self.layer_bytes(shape, middle, 0, element) for shape in shapes) <= budget:
                low = middle
            else:
                high = middle - 1
        return low


def _up(number: int, multiple: int) -> int:
    """`number`, or the next multiple of `multiple` above it."""
    return -(-number // multiple) * multiple


def states(layer: Any) -> tuple[Tensor, Tensor]:
    """Keys and values `[B, K, T, d]` of a cache layer as attention would see them."""
    if isinstance(layer, Fp8Layer):
        return layer.dequantized()
    if not isinstance(layer, _WaitingLayer):
        return layer.keys, layer.values
    keys = layer._dequantize(layer._quantized_keys)
    values = layer._dequantize(layer._quantized_values)
    if not layer.keys.numel():
        return keys, values
    return torch.cat([keys, layer.keys], dim=-2), torch.cat([values, layer.values], dim=-2)


def quantize(cache: Any, scheme: Scheme, kept: Sequence[Tensor | None] | None = None) -> None:
    """Put quantised layers in the place of all layers of a cache, each quantised in one piece.

    Args:
        cache: of layers with full attention.
        scheme: how.
        kept: indices `[n]` of the tokens that stay, per layer; None: all.
    """
    for number in range(len(cache.layers)):
        keys, values = states(cache.layers[number])
        indices = None if kept is None else kept[number]
        if indices is not None:
            keys, values = keys[..., indices, :], values[..., indices, :]
        cache.layers[number] = layer = scheme.layer()
        if keys.shape[-2]:
            layer.update(keys.contiguous(), values.contiguous())


@dataclass
class Packed:
    """Quantised keys or values: plain tensors, which can be copied and counted."""

    data: Tensor
    """Packed elements, uint8."""
    scale: Tensor
    shift: Tensor
    base: torch.Size
    """Shape of what was quantised, filled up to whole groups."""
    shape: torch.Size
    """Shape of the states."""


def _filled(x: Tensor, multiple: int, least: int = 1) -> Tensor:
    """`x` with its last entry along the first axis repeated up to a multiple of `multiple`.

    Args:
        x: `[N, ...]`.
        multiple: of the length.
        least: multiples there must be.
    """
    missing = max(_up(len(x), multiple), least * multiple) - len(x)
    return torch.cat([x, x[-1:].expand(missing, *x.shape[1:])]) if missing else x


class _WaitingLayer(DynamicLayer):
    """When a layer quantises: the rule of transformers 5.23, whatever version is installed.

    5.17 counts a chunk of several tokens as one that waits.
    """

    keys: Tensor
    values: Tensor

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """See `transformers.cache_utils.CacheLayerMixin`."""
        self.cumulative_length += key_states.shape[-2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._store(key_states, value_states)
            return key_states, value_states
        waiting = torch.cat([self.keys, key_states], -2), torch.cat([self.values, value_states], -2)
        keys, values = states(self)
        keys, values = torch.cat([keys, key_states], -2), torch.cat([values, value_states], -2)
        if waiting[0].shape[-2] >= self.residual_length:
            self._store(keys, values)
            waiting = key_states.new_empty(0), value_states.new_empty(0)
        self.keys, self.values = waiting
        return keys, values

    def _store(self, keys: Tensor, values: Tensor) -> None:
        self._quantized_keys = self._quantize(keys.contiguous(), axis=self.axis_key)
        self._quantized_values = self._quantize(values.contiguous(), axis=self.axis_value)


class QuantoLayer(_WaitingLayer, QuantoQuantizedLayer):
    """transformers' layer of optimum-quanto for documents of any length.

    quanto refuses what does not divide into groups, divides by zero in groups of equal elements,
    and stores a scale for every element where there is only one group. Its tensors can not be
    copied, and its unpacking compiles a C++ extension into the package's folder: what it makes is
    taken out of its tensors here, and unpacked with torch.
    """

    def _quantize(self, tensor: Tensor, axis: int) -> Packed:
        from optimum.quanto import quantize_weight

        group = self.q_group_size
        if axis == 0:
            base = _filled(tensor.reshape(-1), group, least=2)[None]
        else:
            base = _filled(tensor.reshape(-1, tensor.shape[-1]), group)[None]
        scale, shift = self.optimizer(base, self.qtype, axis, group)
        scale = torch.where(scale == 0, torch.ones_like(scale), scale)
        made = quantize_weight(base, self.qtype, axis, scale, shift, group)
        return Packed(made._data._data, scale, shift, base.shape, tensor.shape)

    def _dequantize(self, packed: Packed) -> Tensor:
        """What quanto's `dequantize` computes."""
        from optimum.quanto.tensor.grouped import ungroup

        data, bits = packed.data, self.nbits
        parts = [(data >> shift) & (2**bits - 1) for shift in range(0, 8, bits)]
        axis = -1 if packed.scale.shape[0] == 1 else 0
        rows = packed.scale.shape[0] if axis == 0 else self.q_group_size
        grouped = packed.scale * torch.cat(parts)[:rows] - packed.shift
        flat = ungroup(grouped, axis, packed.base).reshape(-1)
        return flat[: packed.shape.numel()].reshape(packed.shape)


class HQQLayer(_WaitingLayer, HQQQuantizedLayer):
    """transformers' layer of hqq for documents of any length: whole groups, and whole bytes."""

    def _quantize(self, tensor: Tensor, axis: int) -> tuple[Any, torch.Size]:
        rows = 8 // self.nbits if axis == 1 else 1
        flat = _filled(tensor.reshape(-1), self.q_group_size * rows)
        return super()._quantize(flat, axis), tensor.shape

    def _dequantize(self, quantized: tuple[Any, torch.Size]) -> Tensor:
        made, shape = quantized
        return super()._dequantize(made)[: shape.numel()].reshape(shape)


@dataclass
class Scaled:
    """Keys or values in FP8."""

    data: Tensor
    """`[B, K, T, d]`, `float8_e4m3fn`."""
    scale: Tensor
    """`[B, K, T, 1]` in the model's dtype."""

    @classmethod
    def of(cls, x: Tensor) -> Scaled:
        """`x` `[B, K, T, d]`; each scale takes the largest of d elements to the largest FP8."""
        largest = torch.finfo(FP8).max
        scale = x.abs().amax(-1, keepdim=True).float() / largest
        scale = scale.clamp(min=torch.finfo(x.dtype).tiny).to(x.dtype)
        # A scale that was rounded takes the largest to 449 at most, which is stored as 448.
        return cls((x.float() / scale.float()).to(FP8), scale)

    def joined(self, later: Scaled) -> Scaled:
        """These tokens, and later ones after them."""
        return Scaled(
            torch.cat([self.data, later.data], dim=-2), torch.cat([self.scale, later.scale], dim=-2)
        )

    def dequantized(self) -> Tensor:
        """`[B, K, T, d]` in the model's dtype."""
        return self.data.to(self.scale.dtype) * self.scale


class Fp8Layer(DynamicLayer):
    """Keys and values as `float8_e4m3fn` with a scale for each token and head.

    Each token is quantised once, when it is read. Attention sees the tokens of the chunk that is
    being read unquantised, and all earlier ones as they are stored.
    """

    def __init__(self) -> None:
        super().__init__()
        self.quantized_keys: Scaled | None = None
        self.quantized_values: Scaled | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """See `transformers.cache_utils.CacheLayerMixin`."""
        new_keys, new_values = Scaled.of(key_states), Scaled.of(value_states)
        if self.quantized_keys is None or self.quantized_values is None:
            self.lazy_initialization(key_states, value_states)
            self.quantized_keys, self.quantized_values = new_keys, new_values
            return key_states, value_states
        keys, values = self.dequantized()
        self.quantized_keys = self.quantized_keys.joined(new_keys)
        self.quantized_values = self.quantized_values.joined(new_values)
        return torch.cat([keys, key_states], dim=-2), torch.cat([values, value_states], dim=-2)

    def dequantized(self) -> tuple[Tensor, Tensor]:
        """Keys and values as they are stored, of a layer that holds some."""
        assert self.quantized_keys is not None and self.quantized_values is not None
        return self.quantized_keys.dequantized(), self.quantized_values.dequantized()

    def get_seq_length(self) -> int:
        """Tokens that it holds."""
        return 0 if self.quantized_keys is None else int(self.quantized_keys.data.shape[-2])
