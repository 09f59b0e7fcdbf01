"""The recurrences of the memory cells: one mathematics, several speeds.

`recurrent.py` is the readable form and the oracle of every test; `chunked.py` computes the same
with matrix products over chunks; `fla_kernels.py` and `mamba_kernels.py` call the Triton kernels
of other packages on CUDA devices.  Callers use `recurrence`; `selector.py` picks.

Shapes, everywhere: `q, k, v [B, T, H, d]`, gates `[B, T, H]`, state `[B, H, d, d]` float32 with
the key dimension first.

Importing this imports no torch: the functions come when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ahn.ops.dispatch import recurrence
    from ahn.ops.selector import BACKENDS, asked, check

__all__ = ["BACKENDS", "asked", "check", "recurrence"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'ahn.ops' has no attribute {name!r}")
    if name == "recurrence":
        from ahn.ops.dispatch import recurrence

        return recurrence
    from ahn.ops import selector

    return getattr(selector, name)
