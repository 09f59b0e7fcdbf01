"""Memory cells of another package: run, trained, saved, loaded, cached, merged, costed."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import ahn
from ahn import AHNCache, InputError
from ahn.cells import CELLS
from ahn.cost.accounting import added_parameters, cache_bytes, flops
from ahn.cost.shapes import ModelShape
from ahn.distill.recipe import Recipe
from ahn.distill.run import train
from tests.ahn import equations
from tests.ahn.cells.outside import SHORT_CONV, WIDE_KEYS, read_memory
from tests.ahn.conftest import SINKS, SIZES, WINDOW, tokens, variant_model
from tests.ahn.distill.recipes import pocket_options, write_conversations

#: float32 through three layers; the oracle sums in another order
CLOSE: dict[str, Any] = {"rtol": 0, "atol": 2e-4}
NAMES = ("WideKeys", "ShortConv")
each = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    for declaration in (WIDE_KEYS, SHORT_CONV):
        ahn.register_cell(declaration)
    yield
    for name in NAMES:
        CELLS.unregister(name)


def model_of(name: str, **options: Any) -> Any:
    """The tiny model; features of `WideKeys` of a useful size."""
    model = variant_model("ahn", cell=name, **options)
    generator = torch.Generator().manual_seed(5)
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith("f_proj.weight"):
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return model


@each
@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_prefill_decode_and_training_are_what_the_equations_say(name: str, family: str) -> None:
    model, ids = model_of(name, family=family), tokens(60)
    expected = equations.logits(model, ids[0], read_memory)
    plain = equations.logits(model, ids[0], lambda *given: given[3][given[-1][1] :] * 0)
    assert (expected - plain)[SINKS + WINDOW :].abs().max() > 0.05, "the memory says something"
    torch.testing.assert_close(model(ids).logits[0], expected, **CLOSE)  # as in training
    with torch.no_grad():
        for sizes in ([60], [7, 1, 1, 30, 1, 20], [1] * 60):
            cache, found = model.new_cache(), []
            for piece in ids.split(sizes, 1):
                found.append(model(piece, past_key_values=cache).logits)
            torch.testing.assert_close(torch.cat(found, 1)[0], expected, **CLOSE)


@each
def test_gradients_are_those_of_the_equations(name: str) -> None:
    model, ids = model_of(name), tokens(40)
    with_gradients: Any = inspect.unwrap(equations.logits)  # it is under no_grad
    found: list[dict[str, Any]] = []
    for logits in (
        lambda: model(ids).logits[0],
        lambda: with_gradients(model, ids[0], read_memory),
    ):
        model.zero_grad()
        logits().square().mean().backward()
        memory = ((n, p) for n, p in model.named_parameters() if ".ahn.fn." in n)
        found.append({n: p.grad.clone() for n, p in memory})
    for key, expected in found[1].items():
        assert expected.abs().max() > 0, key
        atol = 2e-3 * float(expected.abs().max())
        torch.testing.assert_close(found[0][key], expected, rtol=0, atol=atol, msg=key)


@each
@torch.no_grad()
def test_rows_of_unlike_lengths_are_as_they_are_alone(name: str) -> None:
    model, lengths = model_of(name), (50, 31, 12)
    rows = [tokens(n, seed=n)[0] for n in lengths]
    for side in ("left", "right"):
        ids, mask = torch.zeros(3, 50, dtype=torch.long), torch.zeros(3, 50, dtype=torch.long)
        for number, row in enumerate(rows):
            where = slice(50 - len(row), 50) if side == "left" else slice(0, len(row))
            ids[number, where], mask[number, where] = row, 1
        cache, following = model.new_cache(), tokens(25, rows=3, seed=9)
        together = [model(ids, attention_mask=mask, past_key_values=cache).logits]
        for piece in following.split([1, 1, 20, 1, 1, 1], 1):
            together.append(model(piece, past_key_values=cache).logits)
        found = torch.cat(together, 1)
        for number, row in enumerate(rows):
            expected = model(torch.cat([row, following[number]])[None]).logits[0]
            start = 50 - len(row) if side == "left" else 0
            kept = torch.cat([found[number, start : start + len(row)], found[number, 50:]])
            torch.testing.assert_close(kept, expected, **CLOSE)


@each
@torch.no_grad()
def test_packed_documents_are_as_they_are_alone(name: str) -> None:
    model, ids = model_of(name), tokens(70)
    positions = torch.cat([torch.arange(40), torch.arange(30)])[None]
    packed = model(ids, position_ids=positions, use_cache=False).logits[0]
    apart = [model(part).logits[0] for part in ids.split([40, 30], 1)]
    torch.testing.assert_close(packed, torch.cat(apart), **CLOSE)


@each
@torch.no_grad()
def test_a_memory_that_is_never_written_says_what_an_empty_one_says(name: str) -> None:
    model, ids = model_of(name), tokens(50)
    never = variant_model("no-write", cell=name)
    never.load_state_dict(model.state_dict())
    expected = equations.logits(
        model,
        ids[0],
        lambda cell, name, h, q, k, v, span: (
            torch.full_like(q, 0.5 if name == "ShortConv" else 0.0)[span[1] :]
            .transpose(0, 1)
            .bmm(cell.o_proj.weight)
            .transpose(0, 1)
        ),
    )
    cache, found = never.new_cache(), []
    for piece in ids.split([30, 1, 19], 1):
        found.append(never(piece, past_key_values=cache).logits)
    torch.testing.assert_close(torch.cat(found, 1)[0], expected, **CLOSE)
    assert not any(state.any() for layer in cache.layers for state in layer.states.values())


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@torch.no_grad()
def test_a_cache_goes_to_disk_and_back(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model, ids = model_of(name).to(dtype), tokens(50, rows=2)
    cache = model.new_cache()
    model(ids, past_key_values=cache)
    cache.save(tmp_path / "cache.safetensors")
    loaded = AHNCache.load(tmp_path / "cache.safetensors", model)
    one, other = cache.layers[1].tensors(), loaded.layers[1].tensors()
    assert one.keys() == other.keys() == {"keys", "values", *CELLS[name].gates, *CELLS[name].states}
    for piece in tokens(4, rows=2, seed=1).split([1, 3], 1):
        expected = model(piece, past_key_values=cache).logits
        assert torch.equal(model(piece, past_key_values=loaded).logits, expected)
    CELLS.unregister(name)
    with pytest.raises(InputError, match=f"cache.safetensors: cell '{name}' is unknown"):
        AHNCache.load(tmp_path / "cache.safetensors")


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.no_grad()
def test_cache_bytes_are_those_of_the_cache(name: str, dtype: torch.dtype) -> None:
    model, cache = model_of(name).to(dtype), model_of(name).to(dtype).new_cache()
    shape = ModelShape.from_config(SIZES | {"model_type": "qwen2"})
    model(tokens(300, rows=2), past_key_values=cache)
    options: dict[str, Any] = {"window": WINDOW, "sinks": SINKS, "cell": name}
    expected = cache_bytes(shape, "ahn", 300, dtype_bytes=dtype.itemsize, batch_size=2, **options)
    assert cache.nbytes == expected.total
    # 2 rows, 3 layers, 4 heads of 12 dimensions, counted by hand
    wide, slots = 4, SINKS + WINDOW
    by_hand = {
        "WideKeys": (15 * 12 * wide, slots * (dtype.itemsize + 15 * wide)),
        "ShortConv": (12 * 12 * wide + 2 * 12 * dtype.itemsize, slots * wide),
    }
    assert (expected.state, expected.gates) == tuple(2 * 3 * 4 * n for n in by_hand[name])


@each
def test_flops_and_parameters_are_those_counted_by_hand(name: str) -> None:
    shape = ModelShape.from_config(SIZES | {"model_type": "qwen2"})
    options: dict[str, Any] = {"window": WINDOW, "sinks": SINKS, "cell": name}
    count = flops(shape, "ahn", 100, 5, **options)
    entering, reading = 104, 104 - (SINKS + WINDOW)
    H, d, D = 4, 12, 48
    if name == "WideKeys":
        k = 15
        entered = 2 * D * H + 2 * D * H * k
        read = H * (2 * 2 * d * k + 2 * 2 * k * d + 2 * d * d)
        parameters = H * D + H * k * D + H * d * k + H * d * d
    else:
        entered = 2 * D * H
        read = H * (2 * 3 * d + 2 * d * d + 2 * d * d + 2 * d * d)
        parameters = H * D + 3 * H + H + H * d * d
    assert count.parts["memory"] == 3 * (entering * entered + reading * read)
    assert added_parameters(shape, name) == 3 * parameters
    model = model_of(name)
    stored = sum(p.numel() for n, p in model.named_parameters() if ".ahn.fn." in n)
    assert stored == 3 * parameters


@each
@pytest.mark.slow
def test_it_is_trained_saved_loaded_merged_and_split(name: str, tmp_path: Path) -> None:
    data = write_conversations(tmp_path / "data.jsonl")
    options = pocket_options(data, tmp_path / "memory", ahn_implementation=name, max_steps=3)
    folder = train(Recipe(**options))
    trained = load_file(folder / "model.safetensors")
    assert {key.split(".ahn.fn.")[1] for key in trained} == set(CELLS[name].parameters)
    o_proj = [tensor for key, tensor in trained.items() if key.endswith("o_proj.weight")]
    assert o_proj and all(tensor.any() for tensor in o_proj), "zero before training"
    model = ahn.load_model(ahn.POCKET_PATH, ahn=folder, window=20, sinks=4)
    assert [layout.cell for layout in model.layout] == [name] * len(model.layout)
    ids = torch.arange(8, 68)[None]
    with torch.no_grad():
        expected = model(ids).logits
    merged, split = tmp_path / "merged", tmp_path / "split"
    ahn.merge_checkpoint(ahn.POCKET_PATH, folder, merged, window=20, sinks=4)
    with torch.no_grad():
        assert torch.equal(ahn.load_model(merged)(ids).logits, expected)
        one, both = model.generate(ids, max_new_tokens=4), ahn.load_model(merged)
        assert torch.equal(both.generate(ids, max_new_tokens=4), one)
    ahn.split_checkpoint(merged, split)
    taken = load_file(split / "model.safetensors")
    assert taken.keys() == trained.keys()
    assert all(torch.equal(taken[key], trained[key]) for key in trained)
    CELLS.unregister(name)
    with pytest.raises(InputError, match=f"cell '{name}' is unknown; one of GatedDeltaNet"):
        ahn.load_model(merged)


@each
@torch.no_grad()
def test_its_memory_is_read_out_by_the_names_it_declares(name: str) -> None:
    for readout in model_of(name).memory_readout(tokens(50, rows=2), positions=[-1, 3]):
        assert readout.cell == name
        assert readout.states.keys() == readout.norms.keys() == CELLS[name].states.keys()
        assert readout.gates.keys() == CELLS[name].gates.keys()
        assert all(norm.shape == (2, 4) and norm.all() for norm in readout.norms.values())
        assert not readout.contribution[:, 0].any() and readout.contribution[:, 1].any()
