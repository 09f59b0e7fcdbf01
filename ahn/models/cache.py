"""The streaming cache: sinks, ring window, pending gates and recurrent state, per layer.

State lives here and never in modules, so a cache can be copied and asked another question.
Beyond sinks + window nothing grows; slots are allocated in blocks of `ahn.cost.BLOCK` positions
until then, and decoding writes in place.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from ahn.cells.registry import CELLS
from ahn.config import LayerLayout
from ahn.cost.accounting import layer_slots
from ahn.models.attention import Chunk, LayerPlan
from ahn.models.cache_files import SavedCache, identify, mismatches, read_cache, write_cache
from ahn.models.decode_step import TokenStep
from ahn.models.layouts import layout_table
from ahn.models.memory_plan import MemoryPlan
from ahn.models.plan import Plan
from ahn.models.slots import SlotWrite
from common.errors import InputError


class LayerCache:
    """What one layer keeps.

    Attributes:
        layout: window, sinks and cell of the layer.
        slots: tensors with one slot for each token that is kept, by name, `[B, heads, slots, ...]`:
            `keys` and `values [B, num_key_value_heads, slots, d]`, after RoPE, and the gates of
            the layer's cell. Slots of pooled groups follow those of tokens (`pooled_keys`). Empty
            before the first pass, and where the layer has its memory alone.
        states: of the layer's cell, by name `[B, ...]`.
    """

    def __init__(self, layout: LayerLayout) -> None:
        self.layout = layout
        self.slots: dict[str, Tensor] = {}
        self.states: dict[str, Tensor] = {}
        self._left = self._shapes()

    @property
    def keys(self) -> Tensor | None:
        """`[B, num_key_value_heads, slots, d]`; None while empty."""
        return self.slots.get("keys")

    @keys.setter
    def keys(self, keys: Tensor | None) -> None:
        self._replace("keys", keys)  # as other packages do; `problem` notices

    @property
    def values(self) -> Tensor | None:
        """As `keys`."""
        return self.slots.get("values")

    @values.setter
    def values(self, values: Tensor | None) -> None:
        self._replace("values", values)

    @property
    def pooled_keys(self) -> Tensor | None:
        """Slots of pooled groups `[B, num_key_value_heads, n, d]`, a part of `keys`; None: none."""
        return self._pooled(self.keys)

    @property
    def pooled_values(self) -> Tensor | None:
        """As `pooled_keys`."""
        return self._pooled(self.values)

    def _pooled(self, buffer: Tensor | None) -> Tensor | None:
        if buffer is None or not self.layout.slots or self.layout.ring is None:
            return None
        first = self.layout.sinks + self.layout.ring
        return buffer[:, :, first:] if buffer.shape[2] > first else None

    def __getattr__(self, name: str) -> Tensor | None:
        """A gate or state by its name (`write`, `state`); None: the layer holds no such tensor.

        Raises:
            AttributeError: no known cell has a gate or state of this name.
        """
        for cell in CELLS.loaded().values():
            if name in cell.gates or name in cell.states:
                return self.states.get(name, self.slots.get(name))
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def _replace(self, name: str, tensor: Tensor | None) -> None:
        if tensor is None:
            self.slots.pop(name, None)
        else:
            self.slots[name] = tensor

    def empty(self) -> LayerCache:
        """An empty one of the same layout."""
        return LayerCache(self.layout)

    def _shapes(self) -> dict[str, torch.Size]:
        return {name: tensor.shape for name, tensor in self.slots.items()}

    def settle(self) -> None:
        """Remember the shapes of the slots, now that they hold what they should."""
        self._left = self._shapes()

    def problem(self) -> str | None:
        """What somebody else has done to the slots since `settle`; None: nothing."""
        now = self._shapes()
        if now == self._left:
            return None
        for name in [*self._left, *now]:
            shapes = [list(one[name]) if name in one else "nothing" for one in (now, self._left)]
            if shapes[0] != shapes[1]:
                return f"{name}: {shapes[0]} instead of {shapes[1]}"
        return None

    @property
    def recorded(self) -> bool:
        """Whether autograd follows what is held: then it must follow what overwrites it, too."""
        tensors = [*self.slots.values(), *self.states.values()]
        return any([tensor.requires_grad for tensor in tensors])

    @property
    def first(self) -> Tensor | None:
        """One of the tensors that are held, `[B, ...]`; None: there is none."""
        return next(iter((self.slots or self.states).values()), None)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, allocated slots included."""
        return sum(x.nbytes for x in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """What is held, by name."""
        return {**self.slots, **self.states}

    def kinds(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Of each tensor what rows and tokens do not change: its type and its other sizes."""
        slots = {name: (x.dtype, (x.shape[1], *x.shape[3:])) for name, x in self.slots.items()}
        return slots | {name: (x.dtype, tuple(x.shape[1:])) for name, x in self.states.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Hold these tensors, by the names of `tensors()`."""
        states = () if self.layout.cell is None else CELLS.find(self.layout.cell).states
        self.slots = {name: x for name, x in tensors.items() if name not in states}
        self.states = {name: x for name, x in tensors.items() if name in states}
        self.settle()

    def _map(self, change: Callable[[Tensor], Tensor]) -> None:
        """Replace every tensor by what a function makes of it."""
        self.slots = {name: change(x) for name, x in self.slots.items()}
        self.states = {name: change(x) for name, x in self.states.items()}

    def to(self, device: torch.device | str) -> None:
        """Move all tensors to another device."""
        self._map(lambda tensor: tensor.to(device))

    def follow(self, device: torch.device) -> None:
        """Be where the layer computes: a cache may have been made or read elsewhere."""
        held = self.first
        if held is not None and held.device != device:
            self.to(device)

    def thaw(self) -> None:
        """Replace what inference mode made, which may not be written to outside of it."""
        tensors = [*self.slots.values(), *self.states.values()]
        if any([tensor.is_inference() for tensor in tensors]):
            self._map(lambda tensor: tensor.clone() if tensor.is_inference() else tensor)

    def update(self, states: Mapping[str, Tensor]) -> None:
        """Take new states: in place, or as new tensors where autograd follows them.

        Raises:
            ValueError: other names or shapes than those that are held.
        """
        held = self.states
        if states.keys() != held.keys() or any(
            [x.shape != held[n].shape for n, x in states.items()]
        ):
            shown = [{n: list(x.shape) for n, x in some.items()} for some in (held, states)]
            raise ValueError(
                f"memory cell {self.layout.cell!r} must return the states it was given, "
                f"{shown[0]}, not {shown[1]}"
            )
        followed = torch.is_grad_enabled()
        for name, old in held.items():
            if followed or old.requires_grad:
                held[name] = states[name].to(old.dtype)
            else:
                old.copy_(states[name])

    def joined(self, name: str, new: Tensor, plan: LayerPlan) -> Tensor:
        """The columns of tokens: what buffer `name` holds, then `new [B, heads, T, ...]`."""
        held = self.slots.get(name)
        if held is None or not plan.cached:
            return new
        if not plan.ring_offset:
            return torch.cat([held[:, :, : plan.cached], new], 2)
        sinks, oldest = plan.sinks, plan.sinks + plan.ring_offset
        ring = held[:, :, oldest : plan.cached], held[:, :, sinks:oldest]
        parts = [held[:, :, :sinks], *ring, new]
        return torch.cat(parts, 2)

    def store(
        self,
        new: Mapping[str, Tensor],
        plan: LayerPlan,
        pooled: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> None:
        """Keep what the layout keeps of a chunk.

        Args:
            new: its keys, values and gates `[B, heads, T, ...]`.
            plan: of the chunk.
            pooled: keys and values of the groups that it completes `[B, heads, n, d]`.
        """
        self._store(new, plan.slot_write, self._slots(plan.chunk))
        if pooled and plan.groups is not None:
            self._store(pooled, plan.groups.write, 0)
        self.settle()

    def _store(self, new: Mapping[str, Tensor], target: SlotWrite, slots: int) -> None:
        if self.recorded and not torch.is_grad_enabled():
            # unrecorded, gradients of what a slot holds now would reach what it held before
            with torch.inference_mode(False), torch.enable_grad():
                constants = {name: x.detach().clone() for name, x in new.items()}
                self._write(constants, target.clone(), slots)
        else:
            self._write(new, target, slots)

    def _write(self, new: Mapping[str, Tensor], target: SlotWrite, slots: int) -> None:
        for name, tensor in new.items():
            fresh = self._with_room(self.slots.get(name), tensor, slots)
            # in place also where gradients flow: `joined` copies what attention sees
            target.put(fresh, tensor)
            self.slots[name] = fresh

    def make_room(self, chunk: Chunk) -> None:
        """Allocate slots for a chunk's tokens in a cache that holds some already."""
        slots = self._slots(chunk)
        keys = self.keys
        if keys is not None and keys.shape[2] >= slots:
            return
        for name, buffer in self.slots.items():
            self.slots[name] = self._with_room(buffer, buffer, slots)
        self.settle()

    def step(self, chunk: Chunk, fixed: bool) -> Plan:
        """What the layer does with one token a row, in place; `make_room` comes before it.

        Args:
            chunk: one token per row, none of them padding.
            fixed: see `TokenStep`.
        """
        if not self.layout.attends:
            return MemoryPlan(None, fixed_shapes=True)
        assert self.keys is not None
        return TokenStep(chunk, self.layout, self.keys.shape[2], fixed)

    def _slots(self, chunk: Chunk) -> int:
        """Slots that the layer needs after a chunk."""
        after = chunk.after
        longest = after if isinstance(after, int) else int(after.max())
        return layer_slots(self.layout, longest)

    @staticmethod
    def _with_room(buffer: Tensor | None, like: Tensor, slots: int) -> Tensor:
        """The buffer, or a larger one with its contents where it has too few slots."""
        held = 0 if buffer is None else buffer.shape[2]
        if buffer is not None and held >= slots:
            return buffer
        grown = like.new_zeros(*like.shape[:2], slots, *like.shape[3:])
        if buffer is not None:
            grown[:, :, :held] = buffer
        return grown

    def select(self, rows: Tensor, longest: int) -> None:
        """Keep (or repeat) batch rows.

        Args:
            rows: `[n]` their numbers.
            longest: tokens of the longest of them; slots beyond what it needs are given back.
        """
        self.restore(self.picked(rows, longest))

    def picked(self, rows: Tensor, longest: int) -> dict[str, Tensor]:
        """Copies of some rows of all tensors, by name; see `select`."""
        slots = layer_slots(self.layout, longest)
        within = {name: x[:, :, :slots] for name, x in self.slots.items()}
        return {n: x.index_select(0, rows.to(x.device)) for n, x in (within | self.states).items()}

    def join(self, others: Sequence[LayerCache], longest: int) -> None:
        """Put the rows of other caches behind its own, one tensor after the other.

        Slots are addressed from the first one on, so that shorter rows have unused ones behind
        theirs; these hold zeros, since attention multiplies also what it masks.

        Args:
            others: of the same layout, with the same tensors; none of them is empty.
            longest: tokens of the longest row of all.
        """
        parts = list(others) if self.first is None else [self, *others]
        slots, device = layer_slots(self.layout, longest), parts[0].first
        assert device is not None
        where = device.device
        self.states = {
            name: torch.cat([part.states[name].to(where) for part in parts])
            for name in list(parts[0].states)
        }
        for name, like in list(parts[0].slots.items()):
            buffers = [part.slots[name] for part in parts]
            rows = sum(len(buffer) for buffer in buffers)
            joined, start = like.new_zeros(rows, like.shape[1], slots, *like.shape[3:]), 0
            for buffer in buffers:
                used, end = min(slots, buffer.shape[2]), start + len(buffer)
                joined[start:end, :, :used] = buffer[:, :, :used]
                start = end
            self.slots[name] = joined
        self.settle()


class AHNCache(Cache):
    """A transformers cache for models of this package.

    Args:
        layouts: one per layer, `model.layout`.
        model: whose cache it is; default: that of the model that first uses it.
    """

    is_compileable = False

    def __init__(self, layouts: Sequence[LayerLayout], model: Any = None) -> None:
        self.layers: list[LayerCache] = [LayerCache(layout) for layout in layouts]
        self.layer_class_to_replicate = None
        self.offloading = False
        #: tokens of each row, padding not counted: an int while all rows have the same length,
        #: else `[B]` on the CPU
        self.seen: int | Tensor = 0
        self._columns = 0
        #: whether a pass has begun to store its tokens and has not ended
        self._torn = False
        self._model = None if model is None else weakref.ref(model)
        #: what a cache from disk belongs to, until a model has been held against it
        self._claims: tuple[Path, Mapping[str, Any]] | None = None

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
        if not torch.is_inference_mode_enabled():
            for layer in self.layers:
                layer.thaw()
        return Chunk(tokens, self.seen, attention_mask, device)

    def plans(self, chunk: Chunk, fixed: bool) -> list[Plan]:
        """What each layer does with the chunk.

        Args:
            chunk: the next tokens, from `chunk()`.
            fixed: keep shapes as they are from token to token (see `TokenStep`).
        """
        in_place = chunk.tokens == 1 and chunk.valid is None and not torch.is_grad_enabled()
        in_place = in_place and not any([layer.recorded for layer in self.layers])
        self._torn = chunk.tokens > 0
        if not in_place or not self.is_initialized:
            return [*chunk.plans([layer.layout for layer in self.layers])]
        steps: dict[LayerLayout, Plan] = {}
        for layer in self.layers:
            layer.make_room(chunk)
            if layer.layout not in steps:
                steps[layer.layout] = layer.step(chunk, fixed)
        return [steps[layer.layout] for layer in self.layers]

    @torch.compiler.disable
    def advance(self, chunk: Chunk) -> None:
        """All layers have stored the chunk."""
        self.seen = chunk.after
        self._columns += chunk.tokens
        self._torn = False

    def check(self) -> None:
        """Refuse to go on from slots that are no longer where the index arithmetic looks for them.

        Raises:
            InputError: somebody else has cut or replaced keys, values or gates, or a pass was
                interrupted while it stored its tokens.
        """
        if self._torn:
            raise InputError(
                "a pass through the model ended before all layers had stored its tokens (an error, "
                "or an interrupt), or rows were joined and not all layers got them: this cache "
                "holds a part of them; copy() it before what may fail"
            )
        for number, layer in enumerate(self.layers):
            if (problem := layer.problem()) is not None:
                raise InputError(
                    "somebody else has changed the slots of this cache: layer "
                    f"{number}, {problem}. Each token is looked for in the slot where it was put, "
                    "so slots can be neither cut nor pruned; a smaller window is set when the "
                    "model is loaded"
                )

    def copy(self) -> AHNCache:
        """A cache that goes its own way from here; costs one copy of the tensors.

        Raises:
            InputError: the cache does not hold what it should, see `check`.
        """
        self.check()
        fork = AHNCache([layer.layout for layer in self.layers])
        fork._model, fork._claims = self._model, self._claims
        fork.restore(self.seen if isinstance(self.seen, int) else self.seen.clone(), self._columns)
        for mine, theirs in zip(self.layers, fork.layers, strict=True):
            theirs.restore({name: tensor.clone() for name, tensor in mine.tensors().items()})
        return fork

    def __copy__(self) -> AHNCache:
        """`copy()`: two caches that wrote into the same tensors would both be wrong."""
        return self.copy()

    def __deepcopy__(self, memo: dict[int, Any]) -> AHNCache:
        """`copy()`; the model stays the one it is."""
        memo[id(self)] = fork = self.copy()
        return fork

    def __getstate__(self) -> dict[str, Any]:
        """For pickling: tensors without their history, and what tells the model.

        Raises:
            InputError: the cache does not hold what it should, or its model is gone.
        """
        self.check()
        claims = self._claims
        if claims is None and self.is_initialized:
            claims = (Path("a pickled cache"), identify(self._owner("pickled").base_model))
        return {
            "layouts": [layer.layout for layer in self.layers],
            "tensors": [
                {name: tensor.detach() for name, tensor in layer.tensors().items()}
                for layer in self.layers
            ],
            "seen": self.seen,
            "columns": self._columns,
            "claims": claims,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["layouts"])  # type: ignore[misc]
        for layer, tensors in zip(self.layers, state["tensors"], strict=True):
            layer.restore(tensors)
        self._claims = state["claims"]
        self.restore(state["seen"], state["columns"])

    def restore(self, seen: int | Tensor, columns: int) -> None:
        """Say how much went into tensors that were put here from elsewhere.

        Args:
            seen: tokens of each row, as the attribute.
            columns: of the input, padding counted.
        """
        self.seen, self._columns = seen, columns
        for layer in self.layers:
            layer.settle()

    def to(self, device: torch.device | str) -> AHNCache:
        """Move all tensors to another device, as `Module.to` does; returns the cache itself."""
        for layer in self.layers:
            layer.to(device)
        return self

    def belong_to(self, model: Any) -> None:
        """Hold the cache against the model that is about to use it; cheap after the first time.

        Args:
            model: a causal language model, or the stack of layers in one.

        Raises:
            InputError: it was made by another model, or by one that is gone and cannot be asked.
        """
        owner = None if self._model is None else self._model()
        if owner is model or (owner is not None and owner.base_model is model):
            return
        if self._claims is not None:
            path, saved = self._claims
            _refuse(f"{path}: ", mismatches(saved, model))
            self._claims = None
        elif self.is_initialized and owner is None and self._model is not None:
            raise InputError(
                "the model that made this cache is gone, and nothing tells whether this one is its "
                "equal: keep it, or save the cache before (cache.save, pickle)"
            )
        elif self.is_initialized and owner is not None:
            mine, theirs = owner.base_model, model.base_model
            _refuse("", [] if mine is theirs else mismatches(identify(mine), theirs))
        self._model = weakref.ref(model)

    def _owner(self, verb: str) -> Any:
        """The model that the cache is of.

        Raises:
            InputError: there is none, or it is gone.
        """
        model = None if self._model is None else self._model()
        if model is None:
            raise InputError(
                f"a cache is {verb} with what tells its model, and this one belongs to none (any "
                f"more); make it with model.new_cache() and keep the model until it is {verb}"
            )
        return model

    def save(self, path: str | Path) -> None:
        """Write the cache to a safetensors file, to be asked later (see `load`).

        Raises:
            InputError: no model has used the cache, or the file cannot be written.
        """
        self.check()
        try:
            # from disk, not used yet: it belongs to whom it belonged
            owner = identify(self._owner("saved")) if self._claims is None else self._claims[1]
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        saved = SavedCache(
            layouts=[layer.layout for layer in self.layers],
            tensors=[layer.tensors() for layer in self.layers],
            rows=self.batch_size,
            seen=self.seen if isinstance(self.seen, int) else self.seen.tolist(),
            columns=self.get_seq_length(),
            model=owner,
        )
        write_cache(saved, Path(path))

    @classmethod
    def load(cls, path: str | Path, model: Any = None) -> AHNCache:
        """Read a cache that `save` wrote.

        Args:
            path: of the file.
            model: that will use it: it is held against the cache at once, and each layer's tensors
                are put where that layer is. Without one they stay on the CPU, and the first use
                holds them against its model and moves them.

        Raises:
            InputError: no cache, a damaged one, or one of another model or layout.
        """
        saved = read_cache(Path(path))
        cache = cls(saved.layouts)
        for layer, tensors in zip(cache.layers, saved.tensors, strict=True):
            layer.restore(tensors)
        seen = saved.seen if isinstance(saved.seen, int) else torch.tensor(saved.seen)
        cache.restore(seen, saved.columns)
        cache._claims = (Path(path), saved.model)
        if model is not None:
            cache.belong_to(model)
            made, own = [layer.layout for layer in cache.layers], list(model.layout)
            if made != own:
                raise InputError(
                    f"{path}: the cache was made for another layout\n{layout_table(made)}\n"
                    f"than the model's\n{layout_table(own)}"
                )
            for mine, layer in zip(cache.layers, model.model.layers, strict=True):
                mine.to(layer.self_attn.k_proj.weight.device)
        return cache

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row, padding not counted; empty while the cache is."""
        if isinstance(self.seen, int):
            return [self.seen] * (self.batch_size or 0)
        return [int(length) for length in self.seen]

    @classmethod
    def stack(cls, caches: Iterable[AHNCache]) -> AHNCache:
        """The rows of several caches in one, to go on together; costs one copy of the tensors.

        Rows may have read different numbers of tokens. Each has as many slots as the longest needs,
        and `get_seq_length` says the length of the longest, as if the others had been padded on
        the left.

        Args:
            caches: of one model and layout; each holds at least a row. They stay as they are.

        Raises:
            InputError: there is none, or one that cannot be joined, see `append`.
        """
        rows = list(caches)
        if not rows:
            raise InputError("no caches to stack: give at least one")
        joined = cls([layer.layout for layer in getattr(rows[0], "layers", ())])
        joined.append(*rows)
        return joined

    def append(self, *others: AHNCache) -> None:
        """Put the rows of other caches behind its own, in place; see `stack`.

        One tensor is copied at a time, so that no more than that is held twice.

        Args:
            others: of the same model and layout; each holds at least a row. They stay as they are.

        Raises:
            InputError: a cache that is empty, holds what somebody else has changed, or is of
                another model, layout or type. Nothing is joined then.
        """
        self.check()
        for number, other in enumerate(others):
            self._check_joins(other, number, like=others[0] if self.batch_size is None else self)
        if not others:
            return
        self._adopt(others)
        lengths = [length for cache in (self, *others) for length in cache.lengths]
        self._torn = True
        for number, layer in enumerate(self.layers):
            layer.join([other.layers[number] for other in others], max(lengths))
        self._hold(lengths)
        self._torn = False

    def take(self, rows: Tensor | Sequence[int]) -> AHNCache:
        """Some rows in a cache of their own, with no more slots than the longest of them needs.

        Args:
            rows: their numbers, in any order, also repeatedly; or True for each that is taken.

        Returns:
            A cache with tensors of its own; an empty one without rows.

        Raises:
            InputError: there is no such row, or see `check`.
        """
        self.check()
        index = self._rows(rows)
        taken = AHNCache([layer.layout for layer in self.layers])
        taken._model, taken._claims = self._model, self._claims
        lengths = self.lengths
        some = [lengths[row] for row in index.tolist()]
        if some:
            for mine, theirs in zip(self.layers, taken.layers, strict=True):
                theirs.restore(mine.picked(index, max(some)))
        taken._hold(some)
        return taken

    def split(self) -> list[AHNCache]:
        """Each row in a cache of its own, as if it had been alone; none while it is empty.

        Raises:
            InputError: see `check`.
        """
        return [self.take([row]) for row in range(self.batch_size or 0)]

    def _hold(self, lengths: Sequence[int]) -> None:
        """Rows of so many tokens are held now."""
        longest = max(lengths, default=0)
        uniform = min(lengths, default=0) == longest
        self.restore(longest if uniform else torch.tensor(lengths), longest)

    def _rows(self, rows: Tensor | Sequence[int]) -> Tensor:
        """Numbers of rows `[n]`, from numbers or a tick for each row.

        Raises:
            InputError: there is no such row.
        """
        held, index = self.batch_size or 0, torch.as_tensor(rows)
        if index.dim() == 1 and index.dtype == torch.bool and len(index) == held:
            return index.nonzero().flatten()
        if not index.numel() and index.dim() == 1:
            return index.long()
        kinds = index.is_floating_point() or index.is_complex() or index.dtype == torch.bool
        if index.dim() != 1 or kinds or not 0 <= int(index.min()) <= int(index.max()) < held:
            shown = index.tolist()
            raise InputError(
                f"rows {shown}: the cache holds {held}; name them by numbers from 0 on, or give a "
                "True or False for each"
            )
        return index.long()

    def _check_joins(self, other: Any, number: int, like: AHNCache) -> None:
        """Refuse a cache whose rows cannot be joined.

        Args:
            other: what was given.
            number: among all that were.
            like: a cache that holds rows of the kind that is wanted; it may be `other`.

        Raises:
            InputError: it is none of this package, empty, or of another layout or type.
        """
        where = f"cache {number} of those to join"
        if not isinstance(other, AHNCache):  # another's may have rows of any shape
            raise InputError(f"{where} is no AHNCache but {type(other).__name__}")
        if other is self:
            raise InputError(f"{where} is the cache itself: take(rows) repeats rows")
        if other.batch_size is None:
            raise InputError(f"{where} is empty: it holds no rows; read something into it first")
        try:
            other.check()
        except InputError as error:
            raise error.prefixed(f"{where}: ") from None
        mine, theirs = ([layer.layout for layer in cache.layers] for cache in (self, other))
        if mine != theirs:
            raise InputError(
                f"{where} was made for another layout\n{layout_table(theirs)}\nthan the others\n"
                f"{layout_table(mine)}"
            )
        for wanted, layer in zip(like.layers, other.layers, strict=True):
            expected, found = wanted.kinds(), layer.kinds()
            if found != expected:
                raise InputError(f"{where} holds {found}, and not {expected} as the others")

    def _adopt(self, others: Sequence[AHNCache]) -> None:
        """Belong to whom the others belong, if all belong to the same.

        Raises:
            InputError: they do not, or a model is gone and cannot be asked.
        """
        holders = [cache for cache in (self, *others) if cache.batch_size is not None]
        models = [None if cache._model is None else cache._model() for cache in holders]
        model = next((model for model in models if model is not None), None)
        if model is not None:
            for cache in (self, *holders):
                cache.belong_to(model)
            return
        claims = [cache._claims for cache in holders]
        for number, claim in enumerate(claims):
            if claim is None:
                holders[number]._owner("joined")
            elif claims[0] is not None and claim[1] != claims[0][1]:
                raise InputError(
                    f"{claims[0][0]} and {claim[0]} hold caches of different models, which cannot "
                    "be joined"
                )
        self._claims = claims[0]

    def _select(self, rows: Tensor) -> None:
        self.check()
        if isinstance(self.seen, int):  # without waiting for a GPU
            longest = self.seen
        else:
            self.seen = self.seen.index_select(0, rows.to(self.seen.device))
            longest = max(self.seen.tolist(), default=0)
        for layer in self.layers:
            layer.select(rows, longest)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Rows in a new order, memory included (beam search)."""
        self._select(beam_idx)

    def batch_select_indices(self, indices: Tensor | Sequence[int]) -> None:
        """Keep these rows: numbers, or True for each that stays."""
        rows = torch.as_tensor(indices)
        self._select(rows.nonzero().flatten() if rows.dtype == torch.bool else rows)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row `repeats` times."""
        first = self._first
        if first is not None:
            rows = torch.arange(first.shape[0], device=first.device)
            self._select(rows.repeat_interleave(repeats))

    def reset(self) -> None:
        """Empty the cache."""
        self.layers = [LayerCache(layer.layout) for layer in self.layers]
        self.seen, self._columns, self._torn = 0, 0, False

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
        first = self._first
        return None if first is None else first.shape[0]

    @property
    def _first(self) -> Tensor | None:
        """One of the tensors that are held."""
        return next((layer.first for layer in self.layers if layer.first is not None), None)


def _refuse(where: str, problems: Sequence[str]) -> None:
    if problems:
        listed = "".join(f"\n  {problem}" for problem in problems)
        raise InputError(f"{where}the cache was made by another model:{listed}")
