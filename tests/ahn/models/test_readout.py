"""What the memory says is exactly what it adds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ahn import InputError
from ahn.config import CELLS
from tests.ahn.conftest import SINKS, WINDOW, tokens

LENGTH = 70


@torch.no_grad()
def residuals(model: Any, ids: Tensor, layouts: Any, **inputs: Any) -> list[Tensor]:
    """The residual stream after the attention of each layer."""
    seen: list[Tensor] = []
    hooks = [
        layer.post_attention_layernorm.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
        for layer in model.model.layers
    ]
    model.model(ids, layout=layouts, **inputs)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
@pytest.mark.parametrize("cell", CELLS)
def test_the_contribution_is_the_residual_with_the_memory_minus_without(
    models: Any, cell: str, family: str
) -> None:
    model, ids = models("ahn", cell=cell, family=family), tokens(LENGTH, rows=2)
    readouts = model.memory_readout(ids, positions=range(LENGTH))
    assert [readout.layer for readout in readouts] == [0, 1, 2]
    with_all = residuals(model, ids, model.layout)
    for index, readout in enumerate(readouts):
        without = list(model.layout)
        without[index] = replace(without[index], cell=None)
        difference = with_all[index] - residuals(model, ids, without)[index]
        torch.testing.assert_close(readout.contribution, difference, rtol=0, atol=2e-5)
        assert not readout.contribution[:, : SINKS + WINDOW].any()
        assert (readout.contribution[:, SINKS + WINDOW :].norm(dim=-1) > 1e-3).all()


@pytest.mark.parametrize("cell", CELLS)
@torch.no_grad()
def test_state_gates_and_positions_are_those_of_the_pass(models: Any, cell: str) -> None:
    model, ids = models("ahn", cell=cell), tokens(LENGTH, rows=2)
    cache = model.new_cache()
    model(ids, past_key_values=cache)
    whole = model.memory_readout(ids, positions=[3, 40, -1])
    model.prefill_chunk_size = 16
    try:
        pieces = model.memory_readout(ids, positions=[-1, 40, 3])
    finally:
        del model.prefill_chunk_size
    for layer, readout, streamed in zip(cache.layers, whole, pieces, strict=True):
        assert readout.positions.tolist() == [3, 40, LENGTH - 1]
        torch.testing.assert_close(readout.states["state"], layer.states["state"])
        torch.testing.assert_close(
            readout.norms["state"], layer.states["state"].pow(2).sum((2, 3)).sqrt()
        )
        assert readout.gates["write"].shape == (2, LENGTH, 4)
        assert ("log_decay" in readout.gates) == (cell != "DeltaNet")
        if "log_decay" in readout.gates:
            assert (readout.gates["log_decay"] <= 0).all()
        held = readout.gates["write"][:, -WINDOW:].transpose(1, 2).sort(-1).values
        torch.testing.assert_close(layer.slots["write"][:, :, SINKS:].sort(-1).values, held)
        pairs = [(streamed.states["state"], readout.states["state"])]
        pairs += [(streamed.gates["write"], readout.gates["write"])]
        pairs += [(streamed.contribution, readout.contribution)]
        assert all(torch.allclose(mine, theirs, atol=1e-5) for mine, theirs in pairs)


def test_a_padded_row_reads_out_as_it_does_alone_and_reading_can_go_on(models: Any) -> None:
    model, long, short = models("ahn"), tokens(LENGTH), tokens(41, seed=3)
    ids = torch.cat([long, torch.nn.functional.pad(short, (LENGTH - 41, 0))])
    mask = (torch.arange(LENGTH) >= torch.tensor([[0], [LENGTH - 41]])).long()
    together = model.memory_readout(ids, attention_mask=mask)
    cache = model.new_cache()
    model.memory_readout(short[:, :30], past_key_values=cache)
    alone = model.memory_readout(short[:, 30:], past_key_values=cache)
    for both, one in zip(together, alone, strict=True):
        torch.testing.assert_close(both.states["state"][1:], one.states["state"], rtol=0, atol=1e-5)
        torch.testing.assert_close(both.contribution[1:], one.contribution, rtol=0, atol=1e-5)


def test_what_is_never_written_holds_nothing_and_no_memory_is_refused(models: Any) -> None:
    for readout in models("no-write").memory_readout(tokens(LENGTH)):
        assert not readout.states["state"].any() and not readout.gates["write"].any()
        assert not readout.contribution.any()
    with pytest.raises(InputError, match="no layer of this model has a memory"):
        models("window").memory_readout(tokens(5))
    with pytest.raises(InputError, match="the input has 5 tokens"):
        models("ahn").memory_readout(tokens(5), positions=[5])
    kept = models("ahn", full_attention_layers=(0,)).memory_readout(tokens(LENGTH))
    assert [readout.layer for readout in kept] == [1, 2]
