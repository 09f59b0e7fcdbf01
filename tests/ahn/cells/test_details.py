"""A memory cell's parts: fresh parameters, norms, read-outs per head, precision."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ahn.cells import CELLS, MemoryCell
from ahn.cells.base import Evicted, HeadLinear, Scale, check_gates, rms_norm, wide
from common.errors import InputError

D, H, d = 24, 4, 6
every_cell = pytest.mark.parametrize("name", CELLS)


def cell_of(name: str, heads: int = H, **options: Any) -> Any:
    torch.manual_seed(0)
    cell = CELLS.implementation(name)(D, heads, d)
    cell.reset_parameters(**options)
    return cell


@every_cell
def test_a_fresh_cell_has_small_projections_and_no_effect(name: str) -> None:
    cell = cell_of(name, heads=40, std=0.5)
    drawn = [m for m in cell.modules() if isinstance(m, nn.Linear)]
    assert len(drawn) == {"DeltaNet": 2, "GatedDeltaNet": 3, "Mamba2": 2}[name]
    for linear in drawn:
        assert linear.weight.std().item() == pytest.approx(0.5, rel=0.1)
        assert linear.weight.mean().abs() < 0.1
        if linear.bias is not None:
            assert not linear.bias.any()
    assert not cell.o_proj.weight.any()
    norms = [m for m in cell.modules() if isinstance(m, Scale)]
    assert len(norms) == 1 and bool((norms[0].weight == 1).all())
    usual = cell_of(name, heads=40)
    linear = next(m for m in usual.modules() if isinstance(m, nn.Linear))
    assert linear.weight.std().item() == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize("name", ["GatedDeltaNet", "Mamba2"])
@pytest.mark.parametrize(("decay_max", "low"), [(16.0, 1.0), (2.0, 1.0), (1.0, 0.5), (0.1, 0.05)])
def test_fresh_decays_are_spread_over_their_ranges(name: str, decay_max: float, low: float) -> None:
    cell = cell_of(name, heads=4000, decay_max=decay_max)
    rate = cell.A_log.exp()
    assert low <= rate.min() and rate.max() <= decay_max * 1.0001
    assert rate.mean().item() == pytest.approx((low + decay_max) / 2, rel=0.02)
    step = nn.functional.softplus(cell.dt_bias)
    assert step.min() >= 0.001 * 0.999 and step.max() <= 0.1 * 1.001
    # log-uniform: as many below the geometric mean of the ends as above
    assert step.log().mean().item() == pytest.approx(math.log(0.01), abs=0.05)
    assert step.log().std().item() == pytest.approx(math.log(100) / math.sqrt(12), rel=0.03)
    default = cell_of(name, heads=4000).A_log.exp()
    assert 15.9 < default.max() <= 16 and 1 <= default.min() < 1.1
    if name == "GatedDeltaNet":
        assert bool((cell.D == 1).all())


@every_cell
def test_which_cells_decay(name: str) -> None:
    gates = cell_of(name).gates(torch.randn(2, 3, D))
    assert ("log_decay" in gates) == (name != "DeltaNet")
    assert gates["write"].shape == (2, 3, H)
    if "log_decay" in gates:
        assert gates["log_decay"].shape == (2, 3, H) and bool((gates["log_decay"] < 0).all())


@every_cell
def test_an_empty_memory_is_float32_zeros_where_it_is_asked_for(name: str) -> None:
    state = cell_of(name).new_states(3, torch.zeros(1, dtype=torch.bfloat16))["state"]
    assert state.shape == (3, H, d, d) and state.dtype == torch.float32 and not state.any()
    double = cell_of(name).new_states(1, torch.zeros(1, dtype=torch.float64, device="meta"))
    assert double["state"].device.type == "meta" and double["state"].dtype == torch.float64


@every_cell
def test_a_form_of_the_recurrence_is_kept_or_refused(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AHN_BACKEND", raising=False)
    cell = cell_of(name)
    assert not cell.backend
    cell.use_backend("recurrent")
    assert cell.backend == "recurrent"
    with pytest.raises(InputError, match="unknown backend 'slow'"):
        cell.use_backend("slow")
    assert cell.backend == "recurrent"


def test_a_cell_must_say_what_it_computes() -> None:
    bare = MemoryCell(D, H, d)
    assert (bare.hidden_size, bare.num_attention_heads, bare.head_dim) == (D, H, d)
    x = torch.zeros(1, 1, H, d)
    gates = {"write": torch.zeros(1, 1, H)}
    for call in (
        lambda: bare.scan(x, x, x, gates, {"state": torch.zeros(1, H, d, d)}),
        lambda: bare.readout(x, torch.zeros(1, 1, D)),
    ):
        with pytest.raises(NotImplementedError):
            call()
    assert bare.gates(torch.zeros(1, 1, D)) == {}  # a cell may do without gates


def test_the_norm_adds_one_hundred_thousandth_under_the_root() -> None:
    weight = torch.tensor([1.0, 2.0, -1.0])
    for scale in (1.0, 1e-2, 1e-4):
        x = torch.tensor([[3.0, -4.0, 0.0], [1.0, 1.0, 1.0]]) * scale
        expected = x / torch.sqrt((x * x).sum(-1, keepdim=True) / 3 + 1e-5) * weight
        torch.testing.assert_close(rms_norm(x, weight), expected)
    assert rms_norm(x.double(), weight.bfloat16()).dtype == torch.float64


def test_narrow_types_are_widened_and_double_stays() -> None:
    for given, expected in (
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ):
        assert wide(torch.zeros(1, dtype=given)).dtype == expected


def test_each_head_has_a_matrix_of_its_own() -> None:
    linear = HeadLinear(H, d)
    assert linear.weight.shape == (H, d, d) and not linear.weight.any()
    linear.weight.data = torch.randn(H, d, d)
    x = torch.randn(2, 3, H, d)
    expected = torch.stack([x[:, :, n] @ linear.weight[n] for n in range(H)], 2)
    torch.testing.assert_close(linear(x), expected)
    assert linear(x.bfloat16()).dtype == torch.bfloat16


def readout_by_hand(cell: Any, name: str, read: Tensor, hidden: Tensor) -> Tensor:
    """In float32, position by position and head by head, as the equations say."""
    cell = cell.float()
    gate = nn.functional.silu(cell.g_proj(hidden.float()))  # [B, T, H]
    out = torch.zeros_like(read)
    for b in range(read.shape[0]):
        for t in range(read.shape[1]):
            y = read[b, t] * gate[b, t][:, None] if name == "Mamba2" else read[b, t]
            if name == "Mamba2":
                y = rms_norm(y.flatten(), cell.norm.weight).view(H, d)
            else:
                y = rms_norm(y, cell.o_norm.weight) * gate[b, t][:, None]
            for n in range(H):
                out[b, t, n] = y[n] @ cell.o_proj.weight[n]
    return out


@every_cell
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_readout_is_gated_and_normed_in_float32_and_comes_in_the_models_dtype(
    name: str, dtype: torch.dtype
) -> None:
    cell = cell_of(name, std=0.5)
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5)
    read, hidden = torch.randn(2, 3, H, d), torch.randn(2, 3, D).to(dtype)
    cell = cell.to(dtype)
    found = cell.readout(read, hidden)
    assert found.dtype == dtype and found.shape == (2, 3, H, d)
    expected = readout_by_hand(cell, name, read, hidden)
    # bfloat16 rounds the gate's projection, what goes into o_proj and what comes out of it
    tolerance = 1e-5 if dtype == torch.float32 else 4e-2
    torch.testing.assert_close(found.float(), expected, rtol=tolerance, atol=tolerance)


@every_cell
def test_keys_and_queries_of_no_length_are_no_trouble(name: str) -> None:
    cell = cell_of(name)
    q = torch.zeros(1, 2, H, d)
    gates = cell.gates(torch.randn(1, 2, D))
    read, states = cell.scan(q, q, torch.randn(1, 2, H, d), gates, cell.new_states(1, q))
    assert not read.any() and not states["state"].any()


@every_cell
def test_the_length_of_keys_and_queries_does_not_count(name: str) -> None:
    cell = cell_of(name)
    q, k, v = torch.randn(3, 1, 9, H, d)
    gates = cell.gates(torch.randn(1, 9, D))
    state = {"state": torch.randn(1, H, d, d)}
    long = cell.scan(1000 * q, 1000 * k, v, gates, state)
    torch.testing.assert_close(cell.scan(q, k, v, gates, state), long, rtol=1e-4, atol=1e-5)
    half = cell.scan(q.bfloat16(), k.bfloat16(), v.bfloat16(), gates, state)
    assert half[0].dtype == half[1]["state"].dtype == torch.float32


def test_the_built_in_cells_say_which_recurrence_they_compute() -> None:
    found = {name: CELLS.find(name).recurrence for name in CELLS.builtin}
    assert found == {
        "GatedDeltaNet": "delta_rule",
        "DeltaNet": "delta_rule",
        "Mamba2": "outer_products",
    }


@pytest.mark.parametrize("name", CELLS.builtin)
def test_a_reset_makes_norms_one_and_the_read_out_zero(name: str) -> None:
    cell = CELLS.implementation(name)(24, 4, 8)
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.fill_(7.0)
    cell.reset_parameters()
    stored = dict(cell.named_parameters())
    norm = next(p for key, p in stored.items() if "norm" in key)
    assert bool((norm == 1).all()) and not bool(stored["o_proj.weight"].any())
    assert bool((stored["g_proj.weight"] != 7).all())


def test_gates_of_another_shape_than_declared_are_refused_in_words() -> None:
    declaration = CELLS.find("GatedDeltaNet")
    gates = {"write": torch.zeros(2, 3, 4), "log_decay": torch.zeros(2, 3)}
    with pytest.raises(ValueError, match=r"gate 'log_decay' must be \[B, T, H\], not \[2, 3\]"):
        check_gates(declaration, gates, torch.Size((2, 3)))
    with pytest.raises(
        ValueError, match=r"declares gates \['log_decay', 'write'\] and computes \["
    ):
        check_gates(declaration, {}, torch.Size((2, 3)))


@pytest.mark.parametrize("name", CELLS.builtin)
def test_a_cell_knows_its_sizes(name: str) -> None:
    cell = CELLS.implementation(name)(24, 4, 8)
    assert (cell.hidden_size, cell.num_attention_heads, cell.head_dim) == (24, 4, 8)


@pytest.mark.parametrize("name", CELLS.builtin)
@torch.no_grad()
def test_one_token_leaves_at_each_step_unless_it_is_said(name: str) -> None:
    torch.manual_seed(0)
    cell = CELLS.implementation(name)(24, 4, 8)
    torch.nn.init.normal_(cell.o_proj.weight)
    q, k, v = torch.randn(3, 2, 5, 4, 8)
    hidden = torch.randn(2, 5, 24)
    gates, states = cell.gates(hidden), cell.new_states(2, q)
    everywhere = torch.ones(2, 5, dtype=torch.bool)
    said = cell(q, Evicted(k, v, gates, everywhere), states, hidden)
    silent = cell(q, Evicted(k, v, gates), states, hidden)
    torch.testing.assert_close(silent, said, rtol=0, atol=0)
    assert bool(said[0].any())
