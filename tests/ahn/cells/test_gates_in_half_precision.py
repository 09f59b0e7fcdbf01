"""Gates of a half-precision model against an oracle in float32: one rounding, the projection's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ahn import MemoryHook
from ahn.cells import CELLS, Gates
from tests.ahn.conftest import tokens, variant_model

SIZE, HEADS, D, TOKENS = 256, 8, 32, 400
#: largest relative error of a rounded number
ROUNDING = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


def cell_of(name: str, dtype: torch.dtype) -> tuple[Any, Any, Tensor]:
    """A cell in half precision, one in float32 with the same values, and hidden states."""
    torch.manual_seed(0)
    cell = CELLS.implementation(name)(SIZE, HEADS, D)
    cell.reset_parameters()
    with torch.no_grad():
        for parameter_name, parameter in cell.named_parameters():
            if parameter_name.endswith("proj.bias"):
                parameter.normal_()
    half = cell.to(dtype)
    oracle = CELLS.implementation(name)(SIZE, HEADS, D)
    oracle.load_state_dict({key: value.float() for key, value in half.state_dict().items()})
    return half, oracle, torch.randn(2, TOKENS, SIZE).to(dtype)


def error_of_a_step(projected: Tensor, dtype: torch.dtype) -> Tensor:
    """Largest relative error of `softplus(x + b)` when `x` alone is rounded: its own size."""
    return 1.01 * ROUNDING[dtype] * projected.abs() + 1e-5


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("name", CELLS)
@torch.no_grad()
def test_gates_differ_from_float32_by_the_rounding_of_a_projection(
    name: str, dtype: torch.dtype
) -> None:
    half, oracle, hidden = cell_of(name, dtype)
    found, expected = half.gates(hidden), oracle.gates(hidden.float())
    if name == "Mamba2":
        projected = oracle.dt_proj(hidden.float())
        worst = error_of_a_step(projected, dtype)
        assert found["write"].dtype == found["log_decay"].dtype == torch.float32
        assert ((found["write"] / expected["write"] - 1).abs() <= worst).all()
    else:
        projected = oracle.b_proj(hidden.float())
        # the sigmoid is rounded, too
        worst = ROUNDING[dtype] * (projected.abs() / 4 + expected["write"]) + 1e-6
        assert found["write"].dtype == dtype
        assert ((found["write"].float() - expected["write"]).abs() <= worst).all()
    if "log_decay" not in expected:
        assert "log_decay" not in found
        return
    if name == "GatedDeltaNet":
        worst = error_of_a_step(oracle.a_proj(hidden.float()), dtype)
    assert found["log_decay"].dtype == torch.float32
    assert ((found["log_decay"] / expected["log_decay"] - 1).abs() <= worst).all()


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@torch.no_grad()
def test_mamba2_adds_its_step_bias_in_float32_as_the_reference_kernel(dtype: torch.dtype) -> None:
    half, _, hidden = cell_of("Mamba2", dtype)
    step = F.softplus(half.dt_proj(hidden).float() + half.dt_bias.float())
    gates = half.gates(hidden)
    assert torch.equal(gates["write"], step)
    assert torch.equal(gates["log_decay"], -half.A_log.float().exp() * step)


@pytest.mark.parametrize("name", CELLS)
@torch.no_grad()
def test_output_gates_are_computed_in_float32(name: str) -> None:
    half, oracle, hidden = cell_of(name, torch.bfloat16)
    for cell in (half, oracle):
        cell.o_proj.weight.copy_(torch.eye(D).expand(HEADS, D, D))
    read = torch.randn(2, TOKENS, HEADS, D)
    found = half.readout(read, hidden).float()
    expected = oracle.readout(read, hidden.float())
    # the gate's projection, what comes out of the norm, and o_proj's product are rounded
    error = (found - expected).norm() / expected.norm()
    assert error < 2 * ROUNDING[torch.bfloat16], error


@pytest.mark.parametrize("dtype", [*ROUNDING, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", CELLS)
@torch.no_grad()
def test_gates_wait_in_the_cache_as_they_were_computed(name: str, dtype: torch.dtype) -> None:
    model = variant_model("ahn", cell=name).to(dtype)
    shown: list[Gates] = []

    class Collect(MemoryHook):
        def gates(self, layer: int, gates: Gates, hidden: Tensor) -> Gates:
            shown.append(gates)
            return gates

    cache = model.new_cache()
    model.model(tokens(30), past_key_values=cache, memory_hook=Collect())
    assert len(shown) == len(cache.layers)
    for layer, gates in zip(cache.layers, shown, strict=True):
        # three sinks, and the last 16 of 30 tokens by their slot
        order = torch.tensor([0, 1, 2, *sorted(range(14, 30), key=lambda p: (p - 3) % 16)])
        for gate in gates:
            assert layer.slots[gate].dtype == gates[gate].dtype
            assert torch.equal(layer.slots[gate], gates[gate][:, order].transpose(1, 2))
