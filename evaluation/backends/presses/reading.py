"""A stock model that reads documents with a press of kvpress."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from common.errors import InputError
from evaluation.backends.presses.library import PressSpec, Size
from evaluation.backends.presses.masks import PressedCache, install_masks
from evaluation.backends.presses.room import Layers, masks_heads, target_of, tokens_a_layer
from evaluation.backends.presses.shims import preparing, press_document
from evaluation.backends.presses.sizes import share_to_drop, sized_press


class PressedModel:
    """Reads documents of a model with a press.

    Args:
        spec: the press.
        size: how much is kept.
        model: a stock model of one of `press_room.FAMILIES`, with eager attention where
            `spec.eager`.
        seed: of presses that draw.

    Raises:
        InputError: what the press needs for this model cannot be had.
    """

    def __init__(self, spec: PressSpec, size: Size, model: Any, seed: int) -> None:
        self.spec = spec
        self.size = size
        self.seed = seed
        self._model = model
        self._layers = Layers.of(model.config, torch.empty((), dtype=model.dtype).element_size())
        self._press = spec.make()
        if any(part.traits.needs for part in spec.all):
            self._prepare()
        install_masks(model)

    def _prepare(self) -> None:
        """Let the press load what it needs, once and before the first document."""
        try:
            with preparing(self._model):
                self._press.post_init_from_model(self._model)
        except Exception as error:  # whatever the network, a file or a mismatch of sizes raises
            needs = "; ".join(part.traits.needs for part in self.spec.all if part.traits.needs)
            said = (str(error).splitlines() or [""])[0]
            raise InputError(
                f"{self.spec.name} cannot be prepared for this model: it needs {needs} "
                f"({type(error).__name__}: {said})"
            ) from error

    def new_cache(self) -> PressedCache:
        """An empty cache."""
        return PressedCache(self._model.config)

    @torch.inference_mode()
    def read(self, ids: Tensor, cache: PressedCache, budget: int | None = None) -> None:
        """Read a document into an empty cache, and press it.

        Args:
            ids: its token ids `[1, T]`.
            cache: of `new_cache`.
            budget: bytes that may be kept; None: the variant's own size.

        Raises:
            InputError: the document cannot be pressed to that size.
        """
        tokens = ids.shape[1]
        target = target_of(self.spec, self.size, self._layers, tokens, budget)

        def read() -> None:
            self._model.model(input_ids=ids, past_key_values=cache, use_cache=True)

        if target.whole:
            read()
            return
        room = self._layers.room(tokens)
        sized = None
        if target.slots is not None:
            sized = sized_press(self.spec, self._press)
            sized.compression_ratio = share_to_drop(self.spec, self._press, room, target.slots)
        try:
            masked = press_document(self._press, self._model, read, ids, self.seed)
        except (AssertionError, IndexError, RuntimeError, ValueError) as error:
            if isinstance(error, torch.cuda.OutOfMemoryError):
                raise
            said = (str(error).splitlines() or [""])[0]
            raise InputError(
                f"{self.spec.name} cannot press this document of {tokens} tokens: {said}"
            ) from error
        for layer in cache.layers:
            if layer.keys.shape[-2] > tokens:
                # KVCompose without structure reads the document twice, and leaves both there.
                layer.crop(tokens - layer.keys.shape[-2])
        if masks_heads(self.spec):
            none = torch.zeros(room.heads, tokens, dtype=torch.bool, device=ids.device)
            cache.masked = {
                number: masked.get(number, none.clone())
                for number, window in enumerate(self._layers.windows)
                if window is None
            }
        cache.pressed = True
        if self.spec.rotates:
            cache.next_position = cache.layers[self._layers.windows.index(None)].keys.shape[-2]
        if target.slots is not None and visible_slots(cache) > target.slots + (
            self._layers.sliding_tokens(tokens) * room.heads
        ):
            raise RuntimeError(
                f"{self.spec.name} kept {self.kept_tokens(cache)} tokens a layer, more than asked"
            )

    def kept_tokens(self, cache: PressedCache) -> float:
        """Tokens that heads look at in a cache, mean over heads and layers; measured."""
        return tokens_a_layer(visible_slots(cache), self._layers)

    def describe(self) -> Mapping[str, Any]:
        """For run.json."""
        found: dict[str, Any] = {"pressed_layers": self._layers.pressed}
        if self.spec.masks:
            found["frees_memory"] = f"no: {self.spec.masks}"
        return found


def visible_slots(cache: PressedCache) -> int:
    """Slots of all layers and key/value heads that heads look at."""
    found = 0
    for number, layer in enumerate(cache.layers):
        heads, slots = layer.keys.shape[1:3]
        found += heads * slots
        if number in cache.masked:
            found -= int(cache.masked[number].sum())
    return found
