"""Analytic cost of an example under a variant: what `ahn.cost.accounting` says of a `ModelSpec`."""

from __future__ import annotations

from ahn.cost.accounting import ModelShape, cache_bytes, flops
from evaluation.plan.variants import ModelSpec

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def example_flops(
    shape: ModelShape, spec: ModelSpec, prompt_tokens: int, generated_tokens: int
) -> int:
    """Operations for prompt and answer, nothing reused ("exact" accounting, x 2 per FMA)."""
    count = flops(
        shape,
        spec.variant,
        prompt_tokens,
        generated_tokens,
        window=spec.window,
        sinks=spec.sinks or 0,
        cell=spec.cell,
        accounting="exact",
        full_attention_layers=spec.full_attention_layers,
    )
    return int(count.total)


def example_cache_bytes(shape: ModelShape, spec: ModelSpec, tokens: int) -> int:
    """Bytes that the cache holds after `tokens` tokens went through the model."""
    return int(
        cache_bytes(
            shape,
            spec.variant,
            tokens,
            window=spec.window,
            sinks=spec.sinks or 0,
            cell=spec.cell,
            dtype_bytes=DTYPE_BYTES[spec.dtype],
            full_attention_layers=spec.full_attention_layers,
        ).total
    )
