"""Which tokens a memory has kept: gradients of KL(teacher || student) at the tokens' embeddings.

Figure 5 of the paper (Fang et al., "Artificial Hippocampus Networks", arXiv 2510.07318): the L2
norm of that gradient for each token outside of the window, read as: small where the memory has kept
what the student needs of the token, large where it has not.

What is computed here:

- Teacher: the same base model with full attention. Student: the model as it was loaded. Both read
  the same embeddings; the teacher's distributions are constants, so that the gradient is the
  student's alone, as in training, whose loss this is (`ahn.distill.distillation`).
- Positions compared: all from `W + S` on (counted from 0; W window, S sinks). They are the first
  that do not see every token before them; until then both distributions are equal. Or any choice
  of these: the last one, those that predict an answer. The KL is their mean, in nats.
- Outside of the window: the tokens that the last position does not see as they are: behind the
  sinks and before the last W. Many of them were in the window of earlier compared positions and
  reach those directly; with the last position alone none does.

A gradient is small, too, where nothing that is compared depends on the token. It is 0 where no path
leads from the token to a compared position, as without a memory beyond `layers * (W - 1)` tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ahn.checkpoints.tokenizer import token_texts
from ahn.distill.distillation import distillation_terms
from ahn.distill.encoding import IGNORED
from ahn.distill.student import checkpoint_layers
from ahn.models.layouts import check_length, places, span_of
from common.errors import InputError
from common.probes import ProbedDocument, ProbedToken


@dataclass(frozen=True)
class Gradients:
    """What one text gives.

    Attributes:
        norms: of each token, L2, float64 of a gradient in the model's type: `[L]`.
        kl: mean over the compared positions, in nats.
        positions: how many these are.
    """

    norms: tuple[float, ...]
    kl: float
    positions: int


def gradient_norms(
    model: Any, ids: Sequence[int], positions: Sequence[int] | None = None
) -> Gradients:
    """The norm of the gradient at each token of a text.

    No weight gets a gradient. Layers are run again going backward, so that of each only its input
    is kept; logits exist for 1,024 positions at a time. Memory is that of the weights and of
    `layers * L * D` numbers; a layer's own part is of `L * D` and of the feed-forward's width.

    Args:
        model: of `ahn.load_model`, in any variant with a window; computed in its type.
        ids: the text.
        positions: at which teacher and student are compared, counted from 0; default: all that do
            not see everything.

    Raises:
        InputError: nothing is outside of the window, or a gradient is no finite number.
        ValueError: positions at which everything is seen, or that there are not.
    """
    window, sinks = span_of(model.layout)
    check_length(len(ids), window, sinks)
    first = window + sinks
    chosen = range(first, len(ids)) if positions is None else positions
    if not chosen or min(chosen) < first or max(chosen) >= len(ids):
        raise ValueError(f"positions must be from {first} to {len(ids) - 1}: {list(chosen)[:5]}")
    embed = model.model.embed_tokens
    inputs = torch.tensor([list(ids)], device=embed.weight.device)
    labels = torch.full_like(inputs, IGNORED)
    labels[:, list(chosen)] = inputs[:, list(chosen)]
    with _frozen(model), torch.enable_grad():
        embedded = embed(inputs).detach().requires_grad_()
        terms = distillation_terms(
            model, {"inputs_embeds": embedded}, labels, (first, sinks), ["kl"], layout=model.layout
        )
        assert terms is not None  # something is labelled
        (gradient,) = torch.autograd.grad(terms["kl"], embedded, allow_unused=True)
    return Gradients(_norms(gradient, embedded), float(terms["kl"].detach()), len(set(chosen)))


def _norms(gradient: Tensor | None, embedded: Tensor) -> tuple[float, ...]:
    if gradient is None:  # nothing that is compared depends on any of them
        gradient = torch.zeros_like(embedded)
    norms = gradient[0].double().norm(dim=-1)
    if not bool(torch.isfinite(norms).all()):
        position = int((~torch.isfinite(norms)).nonzero()[0])
        raise InputError(
            f"the gradient at token {position} is no finite number in "
            f"{str(embedded.dtype).removeprefix('torch.')}; compute in float32 (--dtype float32)"
        )
    return tuple(norms.tolist())


@contextmanager
def _frozen(model: Any) -> Iterator[None]:
    """Weights without gradients, and layers that are run again going backward."""
    needed = [parameter for parameter in model.parameters() if parameter.requires_grad]
    before = [
        (module, module.gradient_checkpointing)
        for module in model.modules()
        if hasattr(module, "gradient_checkpointing")
    ]
    modes = [(layer, layer.training) for layer in model.model.layers]
    for parameter in needed:
        parameter.requires_grad_(False)
    checkpoint_layers(model)
    for layer, _ in modes:
        # of the layer alone, which asks for it: its parts stay in eval mode, and drop nothing
        layer.training = True
    try:
        yield
    finally:
        for layer, training in modes:
            layer.training = training
        for module, checkpointing in before:
            module.gradient_checkpointing = checkpointing
        for parameter in needed:
            parameter.requires_grad_()


def probe_text(
    model: Any, tokenizer: Any, ids: Sequence[int], positions: Sequence[int] | None = None
) -> ProbedDocument:
    """What `gradient_norms` finds for a text, with the tokens' texts and places.

    Args:
        model: as there.
        tokenizer: the model's.
        ids: the text.
        positions: as there.

    Raises:
        InputError: as there.
    """
    found = gradient_norms(model, ids, positions)
    rows = zip(
        token_texts(tokenizer, ids), found.norms, places(len(ids), model.layout), strict=True
    )
    return ProbedDocument(
        id="prompt",
        length=len(ids),
        kl=found.kl,
        positions=found.positions,
        tokens=tuple(
            ProbedToken(position=position, text=text, norm=norm, place=place)
            for position, (text, norm, place) in enumerate(rows)
        ),
    )
