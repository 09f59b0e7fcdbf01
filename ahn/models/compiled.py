"""Decoding through `torch.compile`.

A decode step (`ahn.models.decode_step`) sees tensors of unchanging shape and nothing that counts
tokens, so it is compiled once, not once a token, and a GPU can replay it as a CUDA graph.
"""

from __future__ import annotations

from typing import Any

import torch


def compile_decode(model: Any, mode: str | None = None) -> Any:
    """Compile what a model does with one token per row; `generate` uses it from then on.

    Prompts run as before. The first token takes the compilation, tens of seconds; so does the
    first one of which something leaves the window, and the one with which the window is full
    and no mask is needed any more. With full attention the cache still grows, in blocks, and each
    block may be compiled anew until torch takes the size as a variable. `torch.compile(model)`
    works too, and does the same to the head.

    Args:
        model: of `ahn.load_model`.
        mode: of `torch.compile`; default: `reduce-overhead` (CUDA graphs) on a GPU, else `default`.

    Returns:
        The model. `model.model.compiled_step = None` undoes it.
    """
    stack = model.model
    cuda = stack.embed_tokens.weight.is_cuda
    if mode is None:
        mode = "reduce-overhead" if cuda else "default"
    step = torch.compile(stack._run, mode=mode)
    stack.compiled_step = _with_static_addresses(step) if cuda else step
    return model


def _with_static_addresses(step: Any) -> Any:
    """CUDA graphs write into a cache as it lies, instead of into a copy of it."""

    def run(input_ids: Any, inputs_embeds: Any, position_ids: Any, cache: Any, *rest: Any) -> Any:
        for layer in cache.layers:
            for tensor in layer.tensors().values():
                torch._dynamo.mark_static_address(tensor, guard=False)
        torch.compiler.cudagraph_mark_step_begin()
        return step(input_ids, inputs_embeds, position_ids, cache, *rest)

    return run
