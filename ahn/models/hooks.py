"""Seeing and changing what the memories do, in `forward` and in `generate`.

    class Silence(ahn.MemoryHook):
        def read(self, layer, added, states):
            added = added.clone()
            added[:, :, 2] = 0  # head 2 says nothing
            return added

    model.generate(ids, memory_hook=Silence())

Hooks see prompts (in chunks of `prefill_chunk_size` tokens) and decode steps alike.  Each method
gets what the layer computed and returns what goes on from there: the same object leaves it as it
is.  With `compile_decode` a pass that has a hook is computed without the compiled step.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ahn.cells.base import Evicted, Gates


class MemoryHook:
    """Is called by every layer that has a memory; override what you need.

    With gradient checkpointing a layer is computed twice, and so are its calls. Nothing that is
    given may be changed in place.

    Shape letters: B rows, T tokens of the pass, n tokens that leave the window, H query heads,
    d head dimension, D hidden size.
    """

    def gates(self, layer: int, gates: Gates, hidden: Tensor) -> Gates:
        """The gates of the tokens that enter, which are kept until these leave the window.

        Args:
            layer: its number.
            gates: `[B, T, ...]` by name.
            hidden: layer-normed hidden states of the tokens `[B, T, D]`.

        Returns:
            Gates of the same names, shapes and dtypes.
        """
        return gates

    def write(self, layer: int, evicted: Evicted) -> Evicted:
        """The tokens that leave the window, before they are written; `[B, n, H, d]`.

        Args:
            layer: its number.
            evicted: keys, values and gates of each token. `evicted.written` is False where no
                token leaves: nothing is written there, whatever stands in the others.

        Returns:
            An `Evicted` of the same shapes (`dataclasses.replace`).
        """
        return evicted

    def read(self, layer: int, added: Tensor, states: Mapping[str, Tensor]) -> Tensor:
        """What the memory adds to the attention output of the n last queries of the pass.

        Args:
            layer: its number.
            added: `[B, n, H, d]`, before the layer's `o_proj`; zero where a row does not read.
            states: by name `[B, ...]`, after the last write.

        Returns:
            `[B, n, H, d]`.
        """
        return added
