"""Muon for matrices and AdamW for the rest, as one optimiser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class MuonAdamW(torch.optim.Optimizer):
    """Two torch optimisers behind one interface, so that schedulers and Trainer see one.

    `torch.optim.Muon` takes the two-dimensional weights of linear layers; `torch.optim.AdamW`
    takes embeddings (and a tied output head), norms and biases.  Their parameter groups are
    shared objects: a scheduler that sets `lr` here sets it there.

    Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024).
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        learning_rate: float,
        muon_learning_rate: float,
        weight_decay: float,
        betas: tuple[float, float],
        eps: float = 1e-8,
    ) -> None:
        matrices: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                is_matrix = parameter.dim() == 2 and "embed" not in name and "lm_head" not in name
                (matrices if is_matrix else others).append(parameter)
        self.muon = torch.optim.Muon(
            matrices, lr=muon_learning_rate, weight_decay=weight_decay, momentum=0.95
        )
        self.adamw = torch.optim.AdamW(
            others, lr=learning_rate, betas=betas, eps=eps, weight_decay=0.0
        )
        super().__init__([*matrices, *others], {"lr": learning_rate})
        self.param_groups = [*self.muon.param_groups, *self.adamw.param_groups]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of both."""
        loss = None if closure is None else closure()
        self.muon.step()
        self.adamw.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The state of both, for a checkpoint."""
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self.muon.load_state_dict(state_dict["muon"])
        self.adamw.load_state_dict(state_dict["adamw"])
        self.param_groups = [*self.muon.param_groups, *self.adamw.param_groups]
