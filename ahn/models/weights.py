"""What a model stores: its parameters, and tensors that belong to a checkpoint but never train."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn


def stored_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of the buffers that a checkpoint holds: GatedDeltaNet's `D`."""
    for prefix, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                yield f"{prefix}.{name}" if prefix else name, buffer


def stored_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of all that a checkpoint holds, tied ones once.

    Parameters as they are published are counted by this: `model.parameters()` lacks `D`.
    """
    yield from model.named_parameters()
    yield from stored_buffers(model)
