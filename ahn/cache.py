"""The streaming cache: sinks, ring window, pending gates and recurrent state, per layer.

State lives here and never in modules, so a cache can be copied and asked another question.
Beyond sinks + window nothing grows; slots are allocated in blocks of `ahn.cost.BLOCK` positions
until then, and decoding writes in place.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import Cache

from ahn.attention import Chunk, LayerPlan
from ahn.cells.base import Gates
from ahn.config import LayerLayout
from ahn.cost import allocated_slots

_BUFFERS = ("keys", "values", "write", "log_decay", "state")


class LayerCache:
    """What one layer keeps.

    Attributes:
        layout: window, sinks and cell of the layer.
        keys: `[B, num_key_value_heads, slots, d]`, after RoPE; None while empty.
        values: as `keys`.
        write: pending write strengths `[B, H, slots]`; None without a memory.
        log_decay: pending log decays `[B, H, slots]` float32; None without a decaying memory.
        state: the memory `[B, H, d, d]` float32; None without a memory.
    """

    def __init__(self, layout: LayerLayout) -> None:
        self.layout = layout
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self.write: Tensor | None = None
        self.log_decay: Tensor | None = None
        self.state: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, allocated slots included."""
        return sum(x.nbytes for x in self._tensors().values())

    def _tensors(self) -> dict[str, Tensor]:
        return {name: x for name in _BUFFERS if (x := getattr(self, name)) is not None}

    def joined(self, name: str, new: Tensor, plan: LayerPlan) -> Tensor:
        """Cached slots of buffer `name`, then `new [B, heads, T, ...]`."""
        held = getattr(self, name)
        if held is None or not plan.cached:
            return new
        return torch.cat([held[:, :, : plan.cached], new], 2)

    def store(self, keys: Tensor, values: Tensor, gates: Gates | None, plan: LayerPlan) -> None:
        """Keep what the layout keeps of a chunk's keys, values `[B, K, T, d]` and gates."""
        new = {"keys": keys, "values": values}
        if gates is not None:
            new["write"] = gates.write.transpose(1, 2)
            if gates.log_decay is not None:
                new["log_decay"] = gates.log_decay.transpose(1, 2)
        after = plan.chunk.after
        longest = after if isinstance(after, int) else int(after.max())
        slots = allocated_slots(longest, self.layout.sinks, self.layout.window)
        target = plan.slot_write()
        for name, tensor in new.items():
            buffer = getattr(self, name)
            held = 0 if buffer is None else buffer.shape[2]
            if held < slots:
                grown = tensor.new_zeros(*tensor.shape[:2], slots, *tensor.shape[3:])
                if buffer is not None:
                    grown[:, :, :held] = buffer
                buffer = grown
            elif torch.is_grad_enabled() and tensor.requires_grad:
                buffer = buffer.clone()  # autograd may still need the old contents
            if target.rows is None:
                buffer.index_copy_(2, target.slots, tensor.index_select(2, target.tokens))
            else:
                buffer[target.rows, :, target.slots] = tensor[target.rows, :, target.tokens]
            setattr(self, name, buffer)

    def select(self, rows: Tensor) -> None:
        """Keep (or repeat) batch rows."""
        for name, tensor in self._tensors().items():
            setattr(self, name, tensor.index_select(0, rows.to(tensor.device)))


class AHNCache(Cache):
    """A transformers cache for models of this package.

    Args:
        layouts: one per layer, `model.layout`.
    """

    is_compileable = False

    def __init__(self, layouts: Sequence[LayerLayout]) -> None:
        self.layers: list[LayerCache] = [LayerCache(layout) for layout in layouts]
        self.layer_class_to_replicate = None
        self.offloading = False
        #: tokens of each row, padding not counted: an int while all rows are alike, else `[B]`
        self.seen: int | Tensor = 0
        self._columns = 0

    def __len__(self) -> int:
        return len(self.layers)

    def __repr__(self) -> str:
        return f"AHNCache(layers={len(self)}, tokens={self._columns}, nbytes={self.nbytes})"

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors held: keys, values, pending gates and states of all layers."""
        return sum(layer.nbytes for layer in self.layers)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns of the input so far, padding counted: what `generate` slices its prompt by."""
        return self._columns

    def chunk(self, tokens: int, attention_mask: Tensor | None, device: torch.device) -> Chunk:
        """The index arithmetic for the next `tokens` columns."""
        return Chunk(tokens, self.seen, attention_mask, device)

    def advance(self, chunk: Chunk) -> None:
        """All layers have stored the chunk."""
        self.seen = chunk.after
        self._columns += chunk.tokens

    def copy(self) -> AHNCache:
        """A cache that goes its own way from here; costs one copy of the tensors."""
        fork = AHNCache([layer.layout for layer in self.layers])
        fork.seen = copy.copy(self.seen) if isinstance(self.seen, int) else self.seen.clone()
        fork._columns = self._columns
        for mine, theirs in zip(self.layers, fork.layers, strict=True):
            for name, tensor in mine._tensors().items():
                setattr(theirs, name, tensor.clone())
        return fork

    def _select(self, rows: Tensor) -> None:
        for layer in self.layers:
            layer.select(rows)
        if not isinstance(self.seen, int):
            self.seen = self.seen.index_select(0, rows.to(self.seen.device))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Rows in a new order, memory included (beam search)."""
        self._select(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows."""
        self._select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row `repeats` times."""
        first = next((layer.keys for layer in self.layers if layer.keys is not None), None)
        if first is not None:
            rows = torch.arange(first.shape[0], device=first.device)
            self._select(rows.repeat_interleave(repeats))

    def reset(self) -> None:
        """Empty the cache."""
        self.layers = [LayerCache(layer.layout) for layer in self.layers]
        self.seen, self._columns = 0, 0

    def crop(self, tokens_to_remove: int) -> None:
        """Refused: what was compressed cannot be taken out again.

        Raises:
            NotImplementedError: always; `copy()` the cache before what may be undone.
        """
        raise NotImplementedError(
            "an AHNCache cannot be cropped: tokens that left the window were compressed and those "
            "that the ring overwrote are gone; copy() the cache before the part you may undo"
        )

    @property
    def is_croppable(self) -> bool:
        """False, see `crop`."""
        return False

    @property
    def is_sliding(self) -> list[bool]:
        """Whether each layer has a window."""
        return [layer.layout.window is not None for layer in self.layers]

    @property
    def is_initialized(self) -> bool:
        """Whether anything was stored."""
        return self._columns > 0

    @property
    def batch_size(self) -> int | None:
        """Rows, None while empty."""
        keys = self.layers[0].keys if self.layers else None
        return None if keys is None else keys.shape[0]
