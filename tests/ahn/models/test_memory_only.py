"""The memory alone, without sinks and window, against its recurrences written out in float64.

The oracle is `tests.ahn.dense_oracle`: numpy, and nothing of the cells. Cells from outside are held
against what `tests.ahn.cells.outside` writes out.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

import ahn
from ahn import AHNCache, AHNConfig, InputError, LayerLayout
from ahn.cells import CELLS
from ahn.cost.accounting import ModelShape, cache_bytes, flops, layout_bytes
from ahn.models.attention import Chunk
from ahn.models.layouts import layout_text
from tests.ahn import equations
from tests.ahn.cells.outside import SHORT_CONV, WIDE_KEYS, read_memory
from tests.ahn.conftest import FAMILIES, SIZES, tokens, variant_model
from tests.ahn.dense_oracle import DenseModel, Run

CLOSE: dict[str, Any] = {"rtol": 0, "atol": 2e-4}
#: float64, but for the norms and RoPE of transformers
EXACT: dict[str, Any] = {"rtol": 0, "atol": 2e-5}
SHAPE = ModelShape.from_config(SIZES | {"model_type": "qwen2"})
OUTSIDE = (WIDE_KEYS, SHORT_CONV)
each_cell = pytest.mark.parametrize("cell", CELLS.builtin)


def model_of(cell: str = "GatedDeltaNet", **options: Any) -> Any:
    return variant_model("memory-only", cell=cell, **options)


@pytest.fixture
def outside() -> Iterator[None]:
    for declaration in OUTSIDE:
        ahn.register_cell(declaration)
    yield
    for declaration in OUTSIDE:
        CELLS.unregister(declaration.name)


def by_the_oracle(model: Any, row: Tensor) -> Run:
    """A row read by numpy with no window: position p writes token p, then reads."""
    config = model.config.to_dict() | {
        "_ahn_implementation": model.layout[0].cell or model.layout[1].cell,
        "fa_layer_ids": ",".join(map(str, model.config.ahn.get("full_attention_layers", ()))),
    }
    weights = {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}
    return DenseModel(config, weights).run(row.numpy(), window=0)


@torch.no_grad()
def read(model: Any, ids: Tensor, sizes: list[int], cache: Any = None) -> Tensor:
    cache = model.new_cache() if cache is None else cache
    return torch.cat([model(x, past_key_values=cache).logits for x in ids.split(sizes, 1)], 1)


# -- what it computes -----------------------------------------------------------------------


@each_cell
@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_chunks_and_steps_are_the_recurrence_in_float64(cell: str, family: str) -> None:
    model, ids = model_of(cell, family=family).double(), tokens(70)
    oracle = by_the_oracle(model, ids[0])
    expected = torch.from_numpy(oracle.logits)
    for sizes in ([70], [7, 1, 1, 30, 1, 30], [1] * 70, [33, 37]):
        cache = model.new_cache()
        torch.testing.assert_close(read(model, ids, sizes, cache)[0], expected, **EXACT)
        for layer, state in zip(cache.layers, oracle.states, strict=True):
            held = layer.states["state"][0]
            held = held.mT if cell == "Mamba2" else held
            torch.testing.assert_close(held, torch.from_numpy(state), **EXACT)
    model.prefill_chunk_size = 9
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits[0], expected, **EXACT)
        torch.testing.assert_close(model(ids, use_cache=False).logits[0], expected, **EXACT)


@pytest.mark.parametrize("backend", ["recurrent", "chunked"])
@each_cell
def test_both_forms_of_the_recurrence_give_it(cell: str, backend: str) -> None:
    model, ids = model_of(cell, backend=backend), tokens(150)
    expected = torch.from_numpy(by_the_oracle(model, ids[0]).logits).float()
    torch.testing.assert_close(read(model, ids, [130, 1, 19])[0], expected, **CLOSE)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_token_already_reads_what_it_wrote(family: str) -> None:
    """One token: the state is its own pair alone, so that nothing but the memory is heard."""
    model, ids = model_of("DeltaNet", family=family).double(), tokens(1)
    expected = torch.from_numpy(by_the_oracle(model, ids[0]).logits)
    found = read(model, ids, [1])[0]
    torch.testing.assert_close(found, expected, **EXACT)
    silent = variant_model("memory-only", cell="DeltaNet", family=family, fresh=True).double()
    assert (found - read(silent, ids, [1])[0]).abs().max() > 0.01


@torch.no_grad()
def test_a_fresh_memory_leaves_nothing_but_the_token_itself() -> None:
    """Its `o_proj` is zero and nobody attends: an answer depends on the last token only."""
    model, ids = model_of(fresh=True), tokens(30)
    other = ids.clone()
    other[:, :-1] = tokens(29, seed=5)
    assert torch.equal(model(ids).logits[:, -1], model(other).logits[:, -1])
    heard: list[Tensor] = []
    hook = model.model.layers[1].self_attn.o_proj.register_forward_pre_hook(
        lambda module, given: heard.append(given[0])
    )
    model(ids)
    hook.remove()
    assert heard and not any(x.any() for x in heard)


@pytest.mark.parametrize("cell", [one.name for one in OUTSIDE])
def test_a_cell_from_outside(cell: str, outside: None) -> None:
    model, ids = model_of(cell).double(), tokens(50)
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        if name.endswith("f_proj.weight"):
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.data = noise * 0.3
    expected = equations.logits(model, ids[0], read_memory)
    for sizes in ([50], [1] * 50, [7, 1, 1, 30, 1, 10]):
        torch.testing.assert_close(read(model, ids, sizes)[0], expected, **EXACT)
    cache = model.new_cache()
    read(model, ids, [50], cache)
    assert set(cache.layers[0].tensors()) == set(CELLS.find(cell).states)
    assert cache.nbytes == cache_bytes(SHAPE, "memory-only", 50, cell=cell, dtype_bytes=8).total


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    cell=st.sampled_from(CELLS.builtin),
    lengths=st.lists(st.integers(0, 25), min_size=2, max_size=3).filter(max),
    steps=st.lists(st.sampled_from([1, 1, 2, 9]), max_size=4),
    chunk=st.sampled_from([1, 4, 1024]),
    right=st.booleans(),
)
@torch.no_grad()
def test_ragged_rows_are_as_they_are_alone(
    cell: str, lengths: list[int], steps: list[int], chunk: int, right: bool
) -> None:
    model = variant_model("memory-only", cell=cell, full_attention_layers=[1]).double()
    model.prefill_chunk_size = chunk
    more, longest = sum(steps), max(lengths)
    rows = [tokens(n + more, seed=n)[0] for n in lengths]
    pads = [(0, longest - n) if right else (longest - n, 0) for n in lengths]
    ids = torch.stack([F.pad(r[:n], pad) for r, n, pad in zip(rows, lengths, pads, strict=True)])
    mask = torch.stack([F.pad(torch.ones(n), pad) for n, pad in zip(lengths, pads, strict=True)])
    cache = model.new_cache()
    found = [model(ids, attention_mask=mask.long(), past_key_values=cache).logits]
    later = torch.stack([row[n:] for row, n in zip(rows, lengths, strict=True)])
    for piece in later.split(steps, 1) if steps else ():
        found.append(model(piece, past_key_values=cache).logits)
    for number, (row, n, pad) in enumerate(zip(rows, lengths, pads, strict=True)):
        if len(row):
            own = [found[0][number, pad[0] : pad[0] + n], *(x[number] for x in found[1:])]
            expected = torch.from_numpy(by_the_oracle(model, row).logits)
            torch.testing.assert_close(torch.cat(own), expected, **EXACT)


@torch.no_grad()
def test_packed_documents_are_as_they_are_alone() -> None:
    model, ids = model_of(), tokens(70)
    positions = torch.cat([torch.arange(40), torch.arange(30)])[None]
    packed = model(ids, position_ids=positions, use_cache=False).logits[0]
    apart = [model(part).logits[0] for part in ids.split([40, 30], 1)]
    torch.testing.assert_close(packed, torch.cat(apart), **CLOSE)


@each_cell
def test_gradients_are_those_of_the_recurrence(cell: str) -> None:
    model, ids = model_of(cell).double(), tokens(30)
    with_gradients: Any = inspect.unwrap(equations.logits)
    found: list[dict[str, Tensor]] = []
    for logits in (lambda: model(ids).logits[0], lambda: with_gradients(model, ids[0])):
        model.zero_grad()
        logits().square().mean().backward()
        grown = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        found.append({name: gradient.clone() for name, gradient in grown.items()})
    assert found[0].keys() == found[1].keys()
    for name, expected in found[1].items():
        atol = 1e-3 * float(expected.abs().max())
        torch.testing.assert_close(found[0][name], expected, rtol=0, atol=atol, msg=name)


def test_training_in_chunks_on_a_cache_gets_the_gradients_of_one_pass() -> None:
    model, ids = model_of().double(), tokens(40)
    found = []
    for sizes in ([40], [13, 1, 26]):
        model.zero_grad()
        cache = model.new_cache()
        pieces = [model(x, past_key_values=cache, use_cache=True) for x in ids.split(sizes, 1)]
        torch.stack([piece.logits.square().sum() for piece in pieces]).sum().backward()
        found.append(model.model.layers[0].self_attn.k_proj.weight.grad.clone())
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-12)


# -- what it keeps --------------------------------------------------------------------------


@each_cell
@pytest.mark.parametrize("full", [(), (1,)])
def test_bytes_are_constant_and_those_of_the_arithmetic(cell: str, full: tuple[int, ...]) -> None:
    model = model_of(cell, full_attention_layers=full)
    cache, ids = model.new_cache(), tokens(60, rows=2)
    held, seen = [], 0
    for size in (1, 1, 20, 1, 37):
        read(model, ids[:, seen : seen + size], [size], cache)
        seen += size
        held.append(cache.nbytes)
        told = cache_bytes(
            SHAPE, "memory-only", seen, cell=cell, dtype_bytes=4, batch_size=2,
            full_attention_layers=full,
        )  # fmt: skip
        assert (
            held[-1]
            == told.total
            == layout_bytes(SHAPE, model.layout, seen, dtype_bytes=4, batch_size=2).total
        )
    for number, layer in enumerate(cache.layers):
        if number not in full:
            assert list(layer.tensors()) == ["state"] and layer.keys is None
    if not full:
        assert len(set(held)) == 1
        assert told.keys_values == told.gates == 0 and told.state == told.total


def test_a_copy_goes_its_own_way_and_rows_can_be_chosen(tmp_path: Path) -> None:
    model, ids = model_of(), tokens(40, rows=3)
    last, more = tokens(6, rows=3, seed=4), tokens(5, rows=3, seed=7)
    cache = model.new_cache()
    read(model, ids, [40], cache)
    assert cache.batch_size == 3 and not cache.is_croppable
    fork = cache.copy()
    expected = read(model, last, [1, 5], fork)
    read(model, more, [5], fork)
    assert not torch.equal(fork.layers[0].states["state"], cache.layers[0].states["state"])

    def answers(past: AHNCache, rows: list[int]) -> None:
        found = read(model, last[rows], [1, 5], past)
        torch.testing.assert_close(found, expected[rows], **CLOSE)

    file = tmp_path / "cache.safetensors"
    cache.save(file)
    assert AHNCache.load(file).nbytes == cache.nbytes
    answers(AHNCache.load(file, model), [0, 1, 2])
    chosen = cache.copy()
    chosen.batch_select_indices(torch.tensor([2, 0]))
    assert chosen.batch_size == 2
    answers(chosen, [2, 0])
    chosen = cache.copy()
    chosen.reorder_cache(torch.tensor([1, 1, 0]))
    answers(chosen, [1, 1, 0])
    repeated = cache.copy()
    repeated.batch_repeat_interleave(2)
    assert repeated.batch_size == 6
    answers(repeated, [0, 0, 1, 1, 2, 2])
    with pytest.raises(ValueError, match="the cache holds 3 rows, the input has 2"):
        model(last[:2], past_key_values=cache)
    cache.reset()
    assert cache.batch_size is None and cache.nbytes == 0


def test_a_cache_with_keys_put_into_it_is_refused() -> None:
    model = model_of()
    cache = model.new_cache()
    read(model, tokens(9), [9], cache)
    cache.layers[0].keys = torch.zeros(1, 2, 9, 12)
    with pytest.raises(InputError, match="somebody else has changed the slots"):
        read(model, tokens(1), [1], cache)


@torch.no_grad()
def test_beams_and_answers_of_generate_are_those_of_the_whole_text_again() -> None:
    model, ids = model_of(), tokens(20, rows=2)
    options: dict[str, Any] = {
        "max_new_tokens": 8, "do_sample": False, "pad_token_id": 0,
        "attention_mask": torch.ones_like(ids),
    }  # fmt: skip
    for beams in (1, 3):
        found = model.generate(ids, num_beams=beams, **options)
        assert torch.equal(found, model.generate(ids, num_beams=beams, use_cache=False, **options))


@torch.no_grad()
def test_steps_in_place_keep_their_tensors_and_their_shapes() -> None:
    model, ids = model_of(), tokens(12)
    cache = model.new_cache()
    read(model, ids[:, :5], [5], cache)
    before = [id(layer.states["state"]) for layer in cache.layers]
    plans = cache.plans(cache.chunk(1, None, torch.device("cpu")), fixed=True)
    assert all(plan.fixed_shapes for plan in plans) and len({id(plan) for plan in plans}) == 1
    cache.advance(cache.chunk(0, None, torch.device("cpu")))
    read(model, ids[:, 5:], [1] * 7, cache)
    assert [id(layer.states["state"]) for layer in cache.layers] == before


def test_a_plan_is_moved_with_its_padding() -> None:
    layout = LayerLayout(0, cell="DeltaNet")
    mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
    (plan,) = Chunk(3, 0, mask, torch.device("cpu")).plans([layout])
    q = torch.zeros(2, 1, 3, 4)
    _, _, leaving = plan.look(model_of().new_cache().layers[0], {"keys": q, "values": q}, True)
    assert leaving is not None and leaving.active is not None
    assert torch.equal(leaving.active, mask.bool())
    twin = plan.to("meta")
    meta = q.to("meta")
    _, _, moved = twin.look(model_of().new_cache().layers[0], {"keys": meta, "values": meta}, True)
    assert moved is not None and moved.active is not None and moved.active.device.type == "meta"
    assert plan.to("cpu") is plan and twin.to("meta") is twin


# -- what it costs --------------------------------------------------------------------------


@each_cell
def test_no_pair_is_attended_to_and_every_token_is_written_and_read(cell: str) -> None:
    sized = CELLS.find(cell).sized(SHAPE.hidden_size, SHAPE.num_attention_heads, SHAPE.head_dim)
    counted = flops(SHAPE, "memory-only", 50, 11, cell=cell)
    assert counted.parts["attention"] == 0
    of_a_token = sized.flops_per_token + sized.flops_per_read
    assert counted.parts["memory"] == SHAPE.num_hidden_layers * 60 * of_a_token
    for accounting in ("paper", "paper-free-lookup"):
        assert (
            flops(SHAPE, "memory-only", 50, cell=cell, accounting=accounting).parts["attention"]
            == 0
        )
    long = flops(SHAPE, "memory-only", 100_000, cell=cell)
    assert long.parts["memory"] == 2000 * flops(SHAPE, "memory-only", 50, cell=cell).parts["memory"]
    paper = cache_bytes(SHAPE, "memory-only", 50, cell=cell, accounting="paper")
    heads, d = SHAPE.num_attention_heads, SHAPE.head_dim
    assert paper.total == paper.state == SHAPE.num_hidden_layers * heads * d * d * 2


# -- what can be asked for ------------------------------------------------------------------


def test_the_layout_says_what_it_is() -> None:
    config = AHNConfig(variant="memory-only", layers={1: {"window": 4, "cell": "Mamba2"}})
    assert config.layouts(2) == (
        LayerLayout(0, cell="GatedDeltaNet"),
        LayerLayout(0, cell="Mamba2"),
    )
    first = config.layer(0)
    assert not first.attends and LayerLayout().attends and LayerLayout(1).attends
    assert layout_text(first) == "memory GatedDeltaNet alone, no window, no sinks"
    assert first.lossless(99) == 0
    assert AHNConfig(**config.to_dict()) == config


@pytest.mark.parametrize(
    ("given_", "said"),
    [
        ({"window": 0}, "window must be at least 1, not 0"),
        ({"window": False, "cell": "DeltaNet"}, "window must be a whole number"),
        ({"window": -1, "cell": "DeltaNet"}, "window must be at least 1"),
        ({"window": 0, "sinks": 4, "cell": "DeltaNet"}, "sinks 4: .*no sinks"),
        ({"window": 0, "sinks": -1, "cell": "DeltaNet"}, "sinks must be at least 0"),
        ({"window": 0, "slots": 4, "cell": "DeltaNet"}, "slots 4"),
    ],
)
def test_layouts_that_cannot_be_are_refused(given_: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        LayerLayout(**given_)


def test_a_layer_without_a_memory_would_see_nothing_and_is_refused() -> None:
    layers = {1: {"cell": None}}
    with pytest.raises(InputError, match="layer 1 has no memory .*'memory-only'"):
        AHNConfig(variant="memory-only", layers=layers)
    assert AHNConfig(variant="ahn", layers=layers).layer(1).cell is None


def test_a_window_is_no_other_variants_to_leave_out() -> None:
    for variant in ("window", "ahn", "no-write", "compressive"):
        with pytest.raises(InputError, match="window must be at least 1, not 0"):
            AHNConfig(variant=variant, window=0)


def test_the_pocket_model_is_loaded_so_and_says_what_it_does_not_use() -> None:
    pocket = ahn.POCKET_PATH
    plain = ahn.resolve_checkpoint(pocket, "memory-only", ahn=pocket / "gdn")
    assert plain.notices == () and {layer.window for layer in plain.layout} == {0}
    told = ahn.resolve_checkpoint(pocket, "memory-only", ahn=pocket / "gdn", window=64, sinks=4)
    assert told.layout == plain.layout
    assert told.notices == (
        "window 64, sinks 4: not used, variant 'memory-only' has no window and no sinks",
    )
    model = ahn.load_model(pocket, "memory-only", ahn=pocket / "gdn")
    ids = torch.arange(8, 108)[None]
    expected = by_the_oracle(model, ids[0]).logits.argmax(-1)
    with torch.no_grad():
        assert np.array_equal(model(ids).logits[0].argmax(-1).numpy(), expected)
    with pytest.raises(InputError, match="variant 'memory-only' needs memory weights"):
        ahn.resolve_checkpoint(pocket, "memory-only")
    with pytest.raises(InputError, match="pools nothing"):
        ahn.resolve_checkpoint(pocket, "memory-only", ahn=pocket / "gdn", slots=4)


def test_a_saved_model_is_loaded_as_it_was(tmp_path: Path) -> None:
    model, ids = model_of(), tokens(30)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert again.layout == model.layout
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)


@torch.no_grad()
def test_a_readout_tells_every_token_and_a_hook_sees_it() -> None:
    model, ids = model_of(), tokens(20)
    first = model.memory_readout(ids, positions=[0, 19])[0]
    assert first.gates["write"].shape[:2] == (1, 20)
    assert first.contribution[0, 0].abs().max() > 0, "the first token reads what it wrote"
