"""The recurrences with Triton kernels of flash-linear-attention (>= 0.6): CUDA devices.

Chunk kernels multiply in bfloat16 or float16 and sum in float32; the state comes and goes in
float32.  One token without gradients goes through the fused recurrent kernels, all in float32.
fla's state is `[N, H, K, V]`, ours; its gates are in log space, ours; its queries are scaled by
`d^-1/2` unless told otherwise, ours are scaled by the cells.

Importing this imports fla; `ahn.ops.selector` does it when it is wanted.
"""

from __future__ import annotations

import torch
from fla.ops.delta_rule import chunk_delta_rule, fused_recurrent_delta_rule
from fla.ops.gated_delta_rule import chunk_gated_delta_rule, fused_recurrent_gated_delta_rule
from fla.ops.simple_gla import chunk_simple_gla, fused_recurrent_simple_gla
from torch import Tensor

#: The kernels take differences of running sums of log decays, which -inf would turn into NaN and
#: huge values into noise. `exp(-30)` is 1e-13: nothing, beside the rounding of half precision.
LEAST_LOG_DECAY = -30.0


def fla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    write: Tensor,
    log_decay: Tensor | None,
    state: Tensor,
    delta_rule: bool,
) -> tuple[Tensor, Tensor]:
    """See `ahn.ops.recurrence`; float32 inputs are rounded to bfloat16 for several tokens."""
    state = state.float()
    if q.shape[1] == 0:
        return q.float(), state
    differentiable = torch.is_grad_enabled() and any(
        x is not None and x.requires_grad for x in (q, k, v, write, log_decay, state)
    )
    # the fused kernel of the gated rule has no backward pass
    fused = q.shape[1] == 1 and not differentiable
    half = v.dtype if v.dtype in (torch.bfloat16, torch.float16) else torch.bfloat16
    dtype = torch.float32 if fused else half
    if log_decay is not None:
        log_decay = log_decay.float().clamp(min=LEAST_LOG_DECAY)
    options = {"scale": 1.0, "initial_state": state, "output_final_state": True}
    if not delta_rule:
        kernel = fused_recurrent_simple_gla if fused else chunk_simple_gla
        v = v.float() * write.float()[..., None]
        output, state = kernel(q=q.to(dtype), k=k.to(dtype), v=v.to(dtype), g=log_decay, **options)
    elif log_decay is None:
        kernel = fused_recurrent_delta_rule if fused else chunk_delta_rule
        beta = write.to(dtype)
        output, state = kernel(q=q.to(dtype), k=k.to(dtype), v=v.to(dtype), beta=beta, **options)
    else:
        kernel = fused_recurrent_gated_delta_rule if fused else chunk_gated_delta_rule
        output, state = kernel(
            q=q.to(dtype),
            k=k.to(dtype),
            v=v.to(dtype),
            g=log_decay,
            beta=write.to(dtype),
            **options,
        )
    return output.float(), state
