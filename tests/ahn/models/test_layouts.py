"""Layers of one model that differ in window, sinks and memory, and what happens beyond a window."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import ahn
from ahn import AHNCache, InputError
from ahn.cells import CELLS, CellDeclaration, Evicted, Eviction, Gates, State, States
from ahn.checkpoints.build import build_model
from ahn.checkpoints.write import save_memory
from ahn.config import AHNConfig, LayerLayout
from ahn.cost.accounting import added_parameters, cache_bytes, flops
from ahn.cost.shapes import ModelShape
from ahn.distill.distillation import distillation_loss
from tests.ahn import equations
from tests.ahn.conftest import SINKS, SIZES, WINDOW, tokens, variant_model

#: float32 through three layers; the oracle sums in another order
CLOSE: dict[str, Any] = {"rtol": 0, "atol": 2e-4}
MIXED: dict[str, Any] = {
    "layers": {0: {"window": 5, "cell": "Mamba2"}, 2: {"window": 30, "sinks": 0, "cell": None}}
}
SHAPE = ModelShape.from_config(SIZES | {"model_type": "qwen2"})


def in_pieces(model: Any, ids: Tensor, sizes: list[int]) -> Tensor:
    cache = model.new_cache()
    pieces = ids.split(sizes, 1)
    return torch.cat([model(piece, past_key_values=cache).logits for piece in pieces], 1)


@pytest.mark.parametrize("settings", [MIXED, {**MIXED, "full_attention_layers": (1,)}], ids=str)
@torch.no_grad()
def test_layers_that_differ_are_what_the_equations_say(settings: dict[str, Any]) -> None:
    model, ids = variant_model("ahn", **settings), tokens(60)
    assert [layout.window for layout in model.layout][::2] == [5, 30]
    assert model.layout[2].cell is None and model.model.layers[2].ahn is None
    expected = equations.logits(model, ids[0])
    for sizes in ([60], [9, 1, 1, 1, 40, 1, 7], [1] * 60):
        torch.testing.assert_close(in_pieces(model, ids, sizes)[0], expected, **CLOSE)


@torch.no_grad()
def test_layers_that_differ_take_padding_and_a_cache_on_disk(tmp_path: Path) -> None:
    model, ids = variant_model("ahn", **MIXED), tokens(50, rows=2)
    mask = torch.ones_like(ids)
    mask[1, :21] = 0
    cache = model.new_cache()
    model(ids, attention_mask=mask, past_key_values=cache)
    cache.save(tmp_path / "cache")
    cache = AHNCache.load(tmp_path / "cache", model)
    after = model(tokens(1, rows=2), past_key_values=cache).logits[1]
    alone = model(torch.cat([ids[1:, 21:], tokens(1, rows=2)[1:]], 1)).logits[0, -1:]
    torch.testing.assert_close(after, alone, **CLOSE)
    other = variant_model("ahn", layers=MIXED["layers"] | {1: {"window": 6}})
    with pytest.raises(InputError, match="another layout"):
        AHNCache.load(tmp_path / "cache", other)


@torch.no_grad()
def test_cost_follows_each_layer() -> None:
    model = variant_model("ahn", **MIXED)
    cache = model.new_cache()
    options: dict[str, Any] = {"window": WINDOW, "sinks": SINKS, "cell": "GatedDeltaNet"}
    model(tokens(300, rows=2), past_key_values=cache)
    analytic = cache_bytes(SHAPE, "ahn", 300, dtype_bytes=4, batch_size=2, **options, **MIXED)
    assert cache.nbytes == analytic.total
    stored = sum(x.numel() for n, x in model.state_dict().items() if ".ahn.fn." in n)
    assert added_parameters(SHAPE, "GatedDeltaNet", **MIXED) == stored
    # a layer costs what it costs in a model whose layers are all like it
    each: tuple[tuple[int, int, str | None], ...]
    each = ((5, SINKS, "Mamba2"), (WINDOW, SINKS, "GatedDeltaNet"), (30, 0, None))
    expected = 0
    for window, sinks, cell in each:
        variant = "window" if cell is None else "ahn"
        alike = flops(SHAPE, variant, 100, 9, window=window, sinks=sinks, cell=cell)
        expected += alike.parts["attention"] + alike.parts["memory"]
    found = flops(SHAPE, "ahn", 100, 9, **options, **MIXED)
    assert found.parts["attention"] + found.parts["memory"] == expected / 3
    with pytest.raises(InputError, match="layers: the model has no layer 7"):
        flops(SHAPE, "ahn", 100, **options, layers={7: {"window": 2}})


def test_layers_that_differ_are_trained_saved_and_loaded(tmp_path: Path) -> None:
    settings = AHNConfig(window=12, sinks=2, layers={1: {"cell": "Mamba2", "window": 9}})
    folder, described = tmp_path / "memory", ahn.describe_model(ahn.POCKET_PATH)
    model = build_model(ahn.POCKET_PATH, "qwen2", described, settings, torch.float32)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".ahn.fn." in name)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-2)
    ids = torch.arange(8, 68)[None]
    for _ in range(3):
        loss = distillation_loss(model, {"input_ids": ids}, ids, (16, 2), ["kl", "distill"])
        assert loss is not None
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(layer.ahn.fn.o_proj.weight.any() for layer in model.model.layers)
    save_memory(model, folder, described)
    loaded = ahn.load_model(ahn.POCKET_PATH, ahn=folder)
    assert loaded.layout == model.layout
    with torch.no_grad():
        expected = model.eval()(ids).logits
        assert torch.equal(loaded(ids).logits, expected)
        ahn.merge_checkpoint(ahn.POCKET_PATH, folder, tmp_path / "merged")
        assert torch.equal(ahn.load_model(tmp_path / "merged")(ids).logits, expected)
    ahn.split_checkpoint(tmp_path / "merged", tmp_path / "split")
    again = ahn.load_model(ahn.POCKET_PATH, ahn=tmp_path / "split")
    assert again.layout == model.layout
    with pytest.raises(InputError, match="window 99: layers 1 have window of their own"):
        ahn.load_model(tmp_path / "merged", window=99)
    tensors = load_file(folder / "model.safetensors")
    wrong = {key: x for key, x in tensors.items() if "layers.1.ahn.fn.dt_proj" not in key}
    save_file(wrong, folder / "model.safetensors")
    with pytest.raises(InputError, match="memory keys are missing: .*layers.1.ahn.fn.dt_proj"):
        ahn.load_model(ahn.POCKET_PATH, ahn=folder)


RUNNING_MEAN = CellDeclaration(
    "RunningMean",
    "tests.ahn.models.test_layouts:RunningMean",
    states={"sum": State(("H", "d")), "count": State((1,))},
)


class RunningMean(Eviction):
    """No memory cell: what left is kept as the mean of its values, and added to every query."""

    declaration = RUNNING_MEAN

    def gates(self, hidden: Tensor) -> Gates:
        return {}

    def forward(
        self, q: Tensor, evicted: Evicted, states: States, hidden: Tensor
    ) -> tuple[Tensor, States]:
        wrote = torch.ones(q.shape[:2]) if evicted.written is None else evicted.written.float()
        wrote = wrote.expand(q.shape[:2])
        total = states["sum"][:, None] + (evicted.values * wrote[..., None, None]).cumsum(1)
        count = states["count"][:, None] + wrote[..., None].cumsum(1)  # [B, n, 1]
        added = 0.3 * total / count.clamp(min=1)[..., None]
        return added, {"sum": total[:, -1], "count": count[:, -1]}


@pytest.fixture
def running_mean() -> Iterator[None]:
    ahn.register_cell(RUNNING_MEAN)
    yield
    CELLS.unregister("RunningMean")


def mean_of_what_left(cell: Any, name: str, h: Tensor, q: Tensor, k: Any, v: Any, span: Any) -> Any:
    sinks, total = span
    rows = [0.3 * v[sinks : p - total + sinks + 1].mean(0) for p in range(total, len(q))]
    return torch.stack(rows) if rows else q[:0]


@torch.no_grad()
def test_what_leaves_a_window_may_be_treated_otherwise(running_mean: None, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"layers": {1: {"cell": "GatedDeltaNet"}}}
    model, ids = variant_model("ahn", cell="RunningMean", **settings), tokens(60)
    assert [layout.cell for layout in model.layout] == ["RunningMean", "GatedDeltaNet"] + [
        "RunningMean"
    ]

    def read(cell: Any, name: str, *given: Any) -> Any:
        treated = mean_of_what_left if name == "RunningMean" else equations.read_memory
        return treated(cell, name, *given)

    expected = equations.logits(model, ids[0], read)
    assert (expected - variant_model("window")(ids).logits[0]).abs().max() > 0.05
    for sizes in ([60], [9, 1, 1, 40, 1, 8], [1] * 60):
        torch.testing.assert_close(in_pieces(model, ids, sizes)[0], expected, **CLOSE)
    rows = torch.cat([ids, tokens(60, seed=4)])
    mask = torch.ones_like(rows)
    mask[1, :25] = 0
    cache = model.new_cache()
    model(rows, attention_mask=mask, past_key_values=cache)
    found = model(rows[:, :1], past_key_values=cache).logits[1]
    alone = model(torch.cat([rows[1:, 25:], rows[1:, :1]], 1)).logits[0, -1:]
    torch.testing.assert_close(found, alone, **CLOSE)
    cache.save(tmp_path / "cache")
    assert AHNCache.load(tmp_path / "cache", model).nbytes == cache.nbytes
    options: dict[str, Any] = {"window": WINDOW, "sinks": SINKS, "cell": "RunningMean", **settings}
    assert cache_bytes(SHAPE, "ahn", 61, dtype_bytes=4, batch_size=2, **options).total == (
        cache.nbytes
    )


def test_a_layout_that_names_a_memory_which_a_layer_lacks_is_refused(models: Any) -> None:
    for variant, own in (("window", "no memory"), ("ahn", "a GatedDeltaNet")):
        layouts = [LayerLayout(WINDOW, SINKS, "DeltaNet")] * 3
        with pytest.raises(ValueError, match=f"names a memory DeltaNet, and the layer has {own}"):
            models(variant)(tokens(30), layout=layouts)


@torch.no_grad()
def test_a_layout_of_a_pass_replaces_the_models(models: Any) -> None:
    ids, layouts = tokens(40), [LayerLayout(6, 1), LayerLayout(), LayerLayout(9, 2)]
    found = models("ahn")(ids, layout=layouts, use_cache=False).logits
    window = variant_model(
        "window", layers={0: {"window": 6, "sinks": 1}, 2: {"window": 9, "sinks": 2}},
        full_attention_layers=(1,),
    )  # fmt: skip
    torch.testing.assert_close(found, window(ids).logits, rtol=0, atol=1e-5)


def test_the_layout_is_made_once(models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, before = models("ahn"), models("ahn").layout
    monkeypatch.setattr(AHNConfig, "__post_init__", lambda self: pytest.fail("computed again"))
    with torch.no_grad():
        model.generate(tokens(5), max_new_tokens=3, pad_token_id=0)
    assert all(mine is other for mine, other in zip(model.layout, before, strict=True))


@torch.no_grad()
def test_what_is_never_written_stays_empty_also_without_gates(running_mean: None) -> None:
    never, ids = variant_model("no-write", cell="RunningMean"), tokens(60)
    expected = variant_model("window")(ids).logits
    for sizes in ([60], [30, 1, 29]):
        torch.testing.assert_close(in_pieces(never, ids, sizes), expected, **CLOSE)
