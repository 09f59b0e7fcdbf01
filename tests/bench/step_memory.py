"""Memory of one distillation step, computed from a model's shape: `step_memory`.

L tokens in one sequence, W_total of them the student's window; D hidden size, F width of the MLP,
V vocabulary, N layers, H query heads, K key/value heads, d head dimension, C = 64 tokens of a chunk
of the recurrence, P parameters that train; e bytes of the model's type (bfloat16: 2), 4 of float32.

- weights: e for each of the base, 4 for each of P (float32 masters).
- training state: 12 P (gradient and AdamW's two moments, float32).
- layer inputs: (N + 6) L D e. Gradient checkpointing keeps what enters each layer; beside it stand
  the last hidden states of teacher and student, their selected positions, and gradients of these.
- then the larger of two, which do not exist at the same time:
  - logits: 6 * 4 V min(1024, L - W_total). The losses form logits of 1,024 positions at a time,
    forward and again backward: student's and teacher's log-probabilities, the teacher's
    probabilities, products and gradients.
  - one layer, run again to go backward: e L (4 D + 4 K d + 3 F) of projections, norms and MLP;
    4 L (m H d + c H C) of memory and attention, in float32, (m, c) as in `CELL_BLOCKS`; the masks
    4 L (W_total + B), with B = min(1024, 2^23 / L) queries a block; on CUDA, where a mask and
    grouped heads exclude each other, keys and values of each block with heads repeated,
    2 e H d (W_total + B) L / B; and gradients on their way, e L (3 F + 4 D).

What is counted is what torch's own recurrence (`chunked`) holds; kernels (`fla`) hold less. m and c
are what autograd was seen to save (saved_tensors_hooks, shapes varied one by one, float32, fitted
to 1 %). Not in it: the allocator's slack and the device's context (about 0.5 GB on CUDA). One
device, nothing sharded.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from ahn.cost.shapes import ModelShape, added_parameters
from ahn.distill.losses import POSITIONS
from ahn.ops.chunked import CHUNK
from common.errors import InputError

#: Blocks of `[L, H, d]` and of `[L, H, C]` float32 that one layer's memory and attention hold.
CELL_BLOCKS = {"GatedDeltaNet": (22.2, 5.3), "DeltaNet": (20.3, 1.5), "Mamba2": (17.5, 2.5)}
_FLOAT32 = 4
_LOGIT_BLOCKS = 6
#: Query-key pairs and queries of a block of masked attention (see `ahn.models.attention`).
_PAIRS, _QUERIES = 1 << 23, 1024


@dataclass(frozen=True)
class StepMemory:
    """Bytes of one step by part, as above.

    Attributes:
        weights: base and memories.
        training_state: gradients and moments.
        layer_inputs: one hidden state a layer.
        logits: of one chunk of positions.
        layer: what one layer holds when it is run again.
    """

    weights: int
    training_state: int
    layer_inputs: int
    logits: int
    layer: int

    @property
    def above_weights(self) -> int:
        """Peak beyond the weights."""
        return self.training_state + self.layer_inputs + max(self.logits, self.layer)

    @property
    def total(self) -> int:
        """Peak in all."""
        return self.weights + self.above_weights

    def record(self) -> dict[str, int]:
        """All figures by name."""
        return {**asdict(self), "above_weights": self.above_weights, "total": self.total}


def step_memory(
    shape: ModelShape, tokens: int, window: int, cell: str, dtype_bytes: int, cuda: bool
) -> StepMemory:
    """The formula above.

    Args:
        shape: of the base model.
        tokens: L.
        window: W_total.
        cell: the memory in every layer.
        dtype_bytes: e.
        cuda: count what CUDA's attention kernels need.

    Raises:
        InputError: unknown cell, or nothing to learn from.
    """
    if tokens <= window:
        raise InputError(f"{tokens} tokens: nothing lies beyond a window of {window}")
    added, e = added_parameters(shape, cell), dtype_bytes
    width, kv_width = (
        heads * shape.head_dim for heads in (shape.num_attention_heads, shape.num_key_value_heads)
    )
    D, F = shape.hidden_size, shape.intermediate_size
    queries = max(1, min(_QUERIES, _PAIRS // tokens))
    seen = min(window + queries, tokens)
    of_width, of_chunk = CELL_BLOCKS[cell]
    chunk = shape.num_attention_heads * CHUNK
    layer = e * tokens * (4 * D + 4 * kv_width + 3 * F)
    layer += int(_FLOAT32 * tokens * (of_width * width + of_chunk * chunk))
    layer += _FLOAT32 * tokens * seen
    if cuda:
        layer += 2 * e * width * seen * tokens // queries
    layer += e * tokens * (3 * F + 4 * D)
    return StepMemory(
        weights=e * shape.parameters + _FLOAT32 * added,
        training_state=3 * _FLOAT32 * added,
        layer_inputs=e * tokens * D * (shape.num_hidden_layers + 6),
        logits=_LOGIT_BLOCKS * _FLOAT32 * min(POSITIONS, tokens - window) * shape.vocab_size,
        layer=layer,
    )
