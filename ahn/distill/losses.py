"""The losses of self-distillation, over the positions that lie beyond the lossless part.

Definitions as in the paper's tool: `kl`, `ce` and `distill`, each a mean over positions
`p >= W_total` whose label is not -100.  KL and cross-entropy are computed in float32, in chunks
over positions whose logits are formed, used and formed again in the backward pass, so that
logits of a whole sequence never exist.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ahn.cells.base import wide
from ahn.distill.encoding import IGNORED

#: Positions whose logits exist at one time.
POSITIONS = 1024


def beyond(labels: Tensor, lossless: int) -> Tensor:
    """`[B, L]` bool: labelled positions at or after `lossless` (W_total)."""
    positions = torch.arange(labels.shape[1], device=labels.device)
    return (labels != IGNORED) & (positions >= lossless)


def shifted(labels: Tensor) -> Tensor:
    """`[B, L]`: the label that the logits of each position must predict, -100 at the end.

    The reference selects positions first and shifts then, and so pairs wrong tokens around
    holes; here the shift comes first.
    """
    return F.pad(labels[:, 1:], (0, 1), value=IGNORED)


def _kl_sum(student: Tensor, teacher: Tensor, weight: Tensor) -> Tensor:
    student_log = F.log_softmax(wide(F.linear(student, weight)), -1)
    teacher_log = F.log_softmax(wide(F.linear(teacher, weight)), -1)
    return (teacher_log.exp() * (teacher_log - student_log)).sum()


def _ce_sum(student: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(student, weight).float(), targets, reduction="sum")


def kl_loss(student: Tensor, teacher: Tensor, head: nn.Linear) -> Tensor:
    """KL(teacher || student), summed over the vocabulary, mean over positions.

    Args:
        student: final hidden states `[N, D]` of the chosen positions, with gradient.
        teacher: the same of the teacher, without gradient.
        head: the output head, shared by both.

    Returns:
        A float32 scalar (float64 of float64 states).
    """
    total = student.new_zeros((), dtype=torch.float32)
    for s, t in zip(student.split(POSITIONS), teacher.split(POSITIONS), strict=True):
        total = total + checkpoint(_kl_sum, s, t, head.weight, use_reentrant=False)
    return total / student.shape[0]


def ce_loss(student: Tensor, targets: Tensor, head: nn.Linear) -> Tensor:
    """Mean cross-entropy of `targets [N]` under hidden states `[N, D]`, float32."""
    total = student.new_zeros((), dtype=torch.float32)
    for s, t in zip(student.split(POSITIONS), targets.split(POSITIONS), strict=True):
        total = total + checkpoint(_ce_sum, s, t, head.weight, use_reentrant=False)
    return total / student.shape[0]


def distill_loss(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    lossless: int,
    normalized: bool,
    attention_mask: Tensor | None = None,
) -> Tensor:
    """Mean squared error of attention outputs, mean over layers.

    Args:
        student: one `[B, L, H * d]` per layer, before `o_proj`.
        teacher: the same of the teacher.
        lossless: W_total; positions before it are left out.
        normalized: L2-normalise each vector over `H * d` first.
        attention_mask: `[B, L]`, 0 for padding, which is left out too.

    Returns:
        A float32 scalar.
    """
    losses = []
    for mine, theirs in zip(student, teacher, strict=True):
        a, b = mine[:, lossless:].float(), theirs[:, lossless:].float()
        if attention_mask is not None:
            tokens = attention_mask[:, lossless:].bool()
            a, b = a[tokens], b[tokens]
        if normalized:
            a, b = F.normalize(a, dim=-1), F.normalize(b, dim=-1)
        losses.append(F.mse_loss(a, b))
    return torch.stack(losses).mean()
