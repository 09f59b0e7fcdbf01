"""Nothing is seen as it is: the plan of layers that hear their memory alone.

Without a window each token leaves at once. It is written before its own query reads, as the token
that leaves a window is written before the query that pushes it out reads: a window of W tokens
gives position `p` a memory that ends with `p - W`, and here W is 0. Nothing of a token is kept but
what the memory makes of it, so that chunks and single tokens need the same: a decode step has
tensors of unchanging shape.

Shape letters as in `ahn.models.plan`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ahn.models.plan import Buffers, Leaving, Plan


class MemoryPlan(Plan):
    """What such a layer does with the tokens of a pass.

    Args:
        valid: `[B, T]` bool, False for padding, which is neither written nor reads; None: there is
            none.
        fixed_shapes: see `Plan`.
    """

    def __init__(self, valid: Tensor | None, fixed_shapes: bool = False) -> None:
        self.valid = valid
        self.fixed_shapes = fixed_shapes

    def to(self, device: torch.device | str | int) -> MemoryPlan:
        """The plan for layers on another device (accelerate's hooks ask)."""
        if self.valid is None or self.valid.device == torch.device(device):
            return self
        return MemoryPlan(self.valid.to(device), self.fixed_shapes)

    def look(
        self, past: Buffers, new: Mapping[str, Tensor], evicts: bool
    ) -> tuple[Tensor, Tensor, Leaving | None]:
        """All tokens leave, and nobody looks at their keys and values."""
        keys, values = new["keys"], new["values"]
        leaving = Leaving(0, new, self.valid) if evicts and keys.shape[2] else None
        return keys, values, leaving

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scaling: float) -> Tensor:
        """Attention over no key: zeros `[B, H, T, d]`."""
        return torch.zeros_like(q)

    def keep(self, past: Buffers, new: Mapping[str, Tensor]) -> None:
        """Nothing: the memory has taken the tokens."""
