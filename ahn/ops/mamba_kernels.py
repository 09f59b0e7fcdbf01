"""Decayed outer products with the Triton kernels of mamba-ssm (>= 2.2.5): CUDA devices, inference.

Mamba's kernel knows one step size `dt` that both decays, by `exp(dt A)`, and writes, `dt x B^T`.
Ours are two: with `A = -1` the step is `-g`, and the values are divided by it beforehand.  Its
state is `[B, H, d_v, d_k]`, so it is transposed on the way in and out.

Importing this imports mamba_ssm; `ahn.ops.selector` does it when it is wanted.
"""

from __future__ import annotations

import torch
from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined
from torch import Tensor

from ahn.ops.recurrent import recurrent

#: Tokens a chunk of the kernel: its authors' default.
CHUNK = 256
#: `exp(-30)` is 1e-13, nothing beside the rounding of half precision; `exp(-1e-9)` is 1.
LEAST_STEP, LARGEST_STEP = 1e-9, 30.0


def mamba_ssm(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    write: Tensor,
    log_decay: Tensor | None,
    state: Tensor,
    delta_rule: bool,
) -> tuple[Tensor, Tensor]:
    """See `ahn.ops.recurrence`; without the delta rule; always in bfloat16 for several tokens."""
    assert not delta_rule  # the selector's business
    if q.shape[1] <= 1:
        return recurrent(q, k, v, write, log_decay, state, delta_rule)
    rate = -torch.ones(q.shape[2], device=q.device)  # A
    if log_decay is None:
        rate, step = torch.zeros_like(rate), torch.ones_like(write, dtype=torch.float32)
    else:
        step = (-log_decay.float()).clamp(LEAST_STEP, LARGEST_STEP)
    # the quotient may exceed the range of float16
    x = (v.float() * (write.float() / step)[..., None]).bfloat16()
    output, final = mamba_chunk_scan_combined(
        x,
        step,
        rate,
        k.bfloat16(),
        q.bfloat16(),
        chunk_size=CHUNK,
        initial_states=state.float().transpose(-1, -2).contiguous(),
        return_final_states=True,
    )
    return output.float(), final.float().transpose(-1, -2)
