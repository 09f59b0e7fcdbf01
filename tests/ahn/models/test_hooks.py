"""Seeing and changing what memories write and read, against equations that say the same."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import ahn
from ahn.cells import Evicted, Gates
from ahn.config import CELLS
from tests.ahn import equations
from tests.ahn.conftest import SINKS, WINDOW, tokens, variant_model

#: float32 through three layers; the oracle sums in another order
CLOSE: dict[str, Any] = {"rtol": 0, "atol": 2e-4}
PIECES = ([60], [9, 1, 1, 40, 1, 8], [1] * 60)


class SilentHead(ahn.MemoryHook):
    """Head 2 of layer 1 says nothing."""

    def read(self, layer: int, added: Tensor, states: Mapping[str, Tensor]) -> Tensor:
        if layer != 1:
            return added
        mask = torch.ones(added.shape[2])
        mask[2] = 0
        return added * mask[:, None]


class OtherValues(ahn.MemoryHook):
    """Layer 0 is told other values, and head 3 of layer 2 is told nothing."""

    def write(self, layer: int, evicted: Evicted) -> Evicted:
        if layer == 0:
            return replace(evicted, values=evicted.values.flip(-1) * 2)
        if layer == 2:
            gates = {name: gate.clone() for name, gate in evicted.gates.items()}
            gates["write"][:, :, 3] = 0
            return replace(evicted, gates=gates)
        return evicted


class NeverForgets(ahn.MemoryHook):
    """Gates of layer 1 are changed when their tokens enter."""

    def gates(self, layer: int, gates: Gates, hidden: Tensor) -> Gates:
        if layer == 1 and "log_decay" in gates:
            return {**gates, "log_decay": torch.zeros_like(gates["log_decay"])}
        return gates


def by_equations(model: Any, hook: ahn.MemoryHook) -> Any:
    """`equations.read_memory` with what the hook does, said in another way."""
    cells = [layer.ahn.fn for layer in model.model.layers]

    def read(cell: Any, name: str, h: Any, q: Any, k: Any, v: Any, span: Any) -> Tensor:
        layer = cells.index(cell)
        if isinstance(hook, OtherValues) and layer == 0:
            v = v.flip(-1) * 2
        saved = cell.A_log.data.clone() if hasattr(cell, "A_log") else None
        if isinstance(hook, NeverForgets) and layer == 1 and saved is not None:
            cell.A_log.data.fill_(-100.0)  # a rate of zero
        said = equations.read_memory(cell, name, h, q, k, v, span)
        if saved is not None:
            cell.A_log.data.copy_(saved)
        silent = (SilentHead, 1, 2) if isinstance(hook, SilentHead) else (OtherValues, 2, 3)
        if isinstance(hook, silent[0]) and layer == silent[1]:
            said[:, silent[2]] = 0  # nothing is read from a head that was told nothing
        return said

    return read


@pytest.mark.parametrize("cell", ["GatedDeltaNet", "DeltaNet"])
@pytest.mark.parametrize(
    "hook", [SilentHead(), OtherValues(), NeverForgets()], ids=lambda hook: type(hook).__name__
)
@torch.no_grad()
def test_what_a_hook_changes_is_what_the_equations_say(
    models: Any, hook: ahn.MemoryHook, cell: str
) -> None:
    model, ids = models("ahn", cell=cell), tokens(60)
    expected = equations.logits(model, ids[0], by_equations(model, hook))
    if not (cell == "DeltaNet" and isinstance(hook, NeverForgets)):
        plain = equations.logits(model, ids[0])
        assert (plain - expected)[SINKS + WINDOW + 1 :].abs().max() > 0.01
    for sizes in PIECES:
        cache, found = model.new_cache(), []
        for piece in ids.split(sizes, 1):
            output = model(piece, past_key_values=cache, memory_hook=hook)
            found.append(output.logits)
        torch.testing.assert_close(torch.cat(found, 1)[0], expected, **CLOSE)


@torch.no_grad()
@pytest.mark.slow
def test_generate_takes_a_hook_from_the_prompt_on(models: Any) -> None:
    model, ids = models("ahn"), tokens(50)
    options: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    row = ids[0].tolist()
    for _ in range(12):
        read = by_equations(model, SilentHead())
        row.append(int(equations.logits(model, torch.tensor(row), read)[-1].argmax()))
    for size in (1024, 7):
        model.prefill_chunk_size = size
        try:
            found = model.generate(ids, memory_hook=SilentHead(), **options)
        finally:
            del model.prefill_chunk_size
        assert found[0].tolist() == row
    assert model.generate(ids, **options)[0].tolist() != row


class Count(ahn.MemoryHook):
    """What is shown, and where."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int, int]] = []

    def gates(self, layer: int, gates: Gates, hidden: Tensor) -> Gates:
        self.calls.append(("gates", layer, hidden.shape[1]))
        return gates

    def write(self, layer: int, evicted: Evicted) -> Evicted:
        self.calls.append(("write", layer, evicted.keys.shape[1]))
        assert evicted.keys.shape == evicted.values.shape == (2, evicted.keys.shape[1], 4, 12)
        assert evicted.gates["write"].shape == evicted.keys.shape[:3]
        return evicted

    def read(self, layer: int, added: Tensor, states: Mapping[str, Tensor]) -> Tensor:
        self.calls.append(("read", layer, added.shape[1]))
        assert states["state"].shape == (2, 4, 12, 12)
        return added


@torch.no_grad()
def test_every_chunk_and_step_is_shown_and_seeing_changes_nothing(models: Any) -> None:
    model, ids = models("ahn", full_attention_layers=(0,)), tokens(30, rows=2)
    hook, cache, other = Count(), model.new_cache(), model.new_cache()
    full = SINKS + WINDOW
    for piece, leaves in zip(ids.split([10, 18, 1, 1], 1), (0, 28 - full, 1, 1), strict=True):
        hook.calls.clear()
        seen = model(piece, past_key_values=cache, memory_hook=hook).logits
        assert torch.equal(seen, model(piece, past_key_values=other).logits)
        shown = [("gates", piece.shape[1])] + [("write", leaves), ("read", leaves)][: 2 * leaves]
        assert hook.calls == [(what, layer, n) for layer in (1, 2) for what, n in shown]


@torch.no_grad()
def test_rows_that_write_nothing_are_shown_as_such(models: Any) -> None:
    model, ids = models("ahn"), tokens(40, rows=2)
    shown: list[Any] = []

    class Look(ahn.MemoryHook):
        def write(self, layer: int, evicted: Evicted) -> Evicted:
            if layer == 0:
                shown.append(evicted.written)
            return evicted

        def read(self, layer: int, added: Tensor, states: Mapping[str, Tensor]) -> Tensor:
            assert not added[1].any() and added[0].any()
            return added

    mask = torch.ones_like(ids)
    mask[1, :25] = 0  # 15 tokens: nothing leaves
    model(ids, attention_mask=mask, memory_hook=Look(), use_cache=False)
    assert shown[0].shape == (2, 40 - SINKS - WINDOW)
    assert shown[0][0].all() and not shown[0][1].any()


def test_gradients_flow_through_what_a_hook_returns() -> None:
    model, factor = variant_model("ahn"), torch.tensor(1.0, requires_grad=True)

    class Scaled(ahn.MemoryHook):
        def read(self, layer: int, added: Tensor, states: Mapping[str, Tensor]) -> Tensor:
            return added * factor

    model(tokens(40), memory_hook=Scaled()).logits.square().mean().backward()
    assert factor.grad is not None and factor.grad != 0


@pytest.mark.parametrize(
    ("method", "returned", "message"),
    [
        ("read", None, "MemoryHook.read must return a tensor"),
        ("read", torch.zeros(1), "MemoryHook.read must return a tensor .*not .1."),
        ("write", None, "MemoryHook.write must return an Evicted, not None"),
        ("gates", {}, "declares gates .'log_decay', 'write'. and computes .."),
        ("gates", {"write": torch.zeros(1), "log_decay": torch.zeros(1)}, "gate 'write' must be"),
    ],
)
@torch.no_grad()
def test_what_a_hook_must_not_return_is_refused(
    models: Any, method: str, returned: Any, message: str
) -> None:
    hook = ahn.MemoryHook()
    setattr(hook, method, lambda *_: returned)
    with pytest.raises(ValueError, match=message):
        models("ahn")(tokens(40), memory_hook=hook)


@torch.no_grad()
def test_other_shapes_than_those_that_leave_are_refused(models: Any) -> None:
    class Fewer(ahn.MemoryHook):
        def write(self, layer: int, evicted: Evicted) -> Evicted:
            return replace(evicted, keys=evicted.keys[:, :, :1])

    with pytest.raises(ValueError, match="tensors of the shapes it was given"):
        models("ahn")(tokens(40), memory_hook=Fewer())


def test_a_hook_that_could_never_be_called_is_refused(models: Any) -> None:
    with pytest.raises(ValueError, match="no layer of this pass has a memory"):
        models("window")(tokens(5), memory_hook=ahn.MemoryHook())
    with pytest.raises(TypeError, match="must be an ahn.MemoryHook, not function"):
        models("ahn")(tokens(5), memory_hook=lambda *_: None)


@pytest.mark.parametrize("cell", CELLS)
@torch.no_grad()
def test_forward_hooks_on_a_cells_module_fire_and_may_change_what_it_says(
    models: Any, cell: str
) -> None:
    model, ids, calls = models("ahn", cell=cell), tokens(50), []

    def silence(module: Any, inputs: Any, output: Any) -> Any:
        calls.append(inputs[0].shape[1])
        return output[0] * 0, output[1]

    cells = [layer.ahn.fn for layer in model.model.layers]
    handles = [cell.register_forward_hook(silence) for cell in cells]
    try:
        cache, found = model.new_cache(), []
        for piece in ids.split([30, 1, 18, 1], 1):
            found.append(model(piece, past_key_values=cache).logits)
    finally:
        for handle in handles:
            handle.remove()
    left = 30 - SINKS - WINDOW
    assert calls == [left] * 3 + [1] * 3 + [18] * 3 + [1] * 3
    assert all(layer.states["state"].any() for layer in cache.layers)  # written all the same
    window = variant_model("window")
    torch.testing.assert_close(torch.cat(found, 1), window(ids).logits, **CLOSE)


def one_layer() -> Any:
    model = variant_model("ahn")
    model.model.layers = model.model.layers[:1]
    model.config.num_hidden_layers = 1
    return model


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@torch.no_grad()
def test_hooks_are_called_when_decoding_is_compiled() -> None:
    model, ids = one_layer(), tokens(40, rows=2)
    expected = model(torch.cat([ids, ids[:, :2]], 1)).logits[:, -1:]
    ahn.compile_decode(model)
    cache = model.new_cache()
    model(ids, past_key_values=cache)
    model(ids[:, :1], past_key_values=cache)  # compiles
    hook = Count()
    found = model(ids[:, 1:2], past_key_values=cache.copy(), memory_hook=hook).logits
    torch.testing.assert_close(found, expected, **CLOSE)
    assert [what for what, _, _ in hook.calls] == ["gates", "write", "read"]
    calls: list[int] = []
    cell = model.model.layers[0].ahn.fn
    for registered in (cell.register_forward_hook, cell.register_forward_pre_hook):
        calls.clear()
        handle = registered(lambda *_: calls.append(1))
        model(ids[:, 1:2], past_key_values=cache.copy())
        handle.remove()
        assert calls == [1]
        model(ids[:, 1:2], past_key_values=cache.copy())
        assert calls == [1]
