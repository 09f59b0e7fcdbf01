"""torch's DDP over two processes: every trainable parameter gets a gradient from every batch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ahn.config import CELLS
from tests.ahn.conftest import SINKS, WINDOW, tokens, variant_model
from tests.ahn.distill.processes import forked

#: tokens of each process's two batches: of one nothing leaves the window
LENGTHS = ((60, 45), (WINDOW + SINKS - 1, 50))


def batch(rank: int, step: int) -> Tensor:
    return tokens(LENGTHS[rank][step], rows=2, seed=2 * rank + step)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        found[name.removeprefix("module.")] = parameter.grad.clone()
    return found


def trainable(cell: str, checkpointing: bool) -> Any:
    model = variant_model("ahn", cell=cell, full_attention_layers=(1,)).requires_grad_(True)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.train()


def train_in_parallel(cell: str, checkpointing: bool, folder: Path) -> None:
    """In a fork: two passes forward and backward; DDP refuses the second when a gradient is due."""
    torch.distributed.init_process_group("gloo")
    rank = int(os.environ["RANK"])
    model = DistributedDataParallel(trainable(cell, checkpointing))
    for step in range(2):
        model.zero_grad()
        ids = batch(rank, step)
        model(ids, labels=ids).loss.backward()
        torch.save(gradients(model), folder / f"{step}-{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.slow
def test_two_processes_get_the_mean_of_their_gradients(cell: str, tmp_path: Path) -> None:
    checkpointing = cell != "DeltaNet"
    ended = forked(tmp_path, train_in_parallel, cell, checkpointing, tmp_path, ranks=2)
    assert ended.code == 0, ended.output[-3000:]
    model = trainable(cell, checkpointing)
    for step in range(2):
        each = []
        for rank in range(2):
            model.zero_grad()
            ids = batch(rank, step)
            model(ids, labels=ids).loss.backward()
            each.append(gradients(model))
        for rank in range(2):
            found = torch.load(tmp_path / f"{step}-{rank}.pt", weights_only=True)
            assert found.keys() == each[0].keys()
            for name, gradient in found.items():
                mean = (each[0][name] + each[1][name]) / 2
                atol = 1e-5 * float(mean.abs().max()) + 1e-9
                torch.testing.assert_close(gradient, mean, rtol=0, atol=atol, msg=name)


@pytest.mark.parametrize("length", [1, WINDOW, SINKS + WINDOW, 60])
@pytest.mark.parametrize("cell", CELLS)
def test_a_memory_takes_part_in_every_batch(cell: str, length: int) -> None:
    model = trainable(cell, checkpointing=False)
    ids = tokens(length, rows=2)
    model(ids, labels=ids if length > 1 else None).logits.sum().backward()
    used = {name for name, p in model.named_parameters() if p.grad is not None}
    assert used == {name for name, _ in model.named_parameters()}
    if length <= SINKS + WINDOW:  # nothing was written, so nothing can be learnt
        memory = [p.grad for name, p in model.named_parameters() if ".ahn." in name]
        assert memory and not any(bool(gradient.any()) for gradient in memory)


@torch.no_grad()
def test_d_is_stored_counted_and_never_trained(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    from ahn.models.causal_lm import Qwen2AHNForCausalLM

    model = variant_model("ahn").requires_grad_(True)
    names = [f"model.layers.{n}.ahn.fn.D" for n in range(3)]
    assert not any(name.endswith(".D") for name, _ in model.named_parameters())
    for number, name in enumerate(names):
        model.get_buffer(name).fill_(7.0 + number)
    assert all(name in model.state_dict() for name in names)
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    loaded = Qwen2AHNForCausalLM.from_pretrained(tmp_path)
    for number, name in enumerate(names):
        assert stored[name].tolist() == [7.0 + number] * 4
        assert loaded.get_buffer(name).tolist() == [7.0 + number] * 4
        assert not loaded.get_buffer(name).requires_grad
    trained = sum(p.numel() for p in model.parameters())
    assert model.num_parameters() == trained + 3 * 4
    assert model.num_parameters(only_trainable=True) == trained
