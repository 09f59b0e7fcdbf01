"""A model whose layers lie on several devices: layers stay whole, and the past follows them.

Two devices that every machine has are the CPU and `meta`, which computes shapes only and refuses
tensors of other devices as a second GPU would. Values are compared under accelerate's hooks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import dispatch_model, infer_auto_device_map
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch.nn import functional as F

import ahn
from ahn.models.cache import AHNCache
from tests.ahn.checkpoints.makers import base_folder, memory_folder
from tests.ahn.conftest import tokens, variant_model

PARTS = ["embed_tokens", "rotary_emb", *(f"layers.{n}" for n in range(3)), "norm"]


def spread(model: Any, *on_meta: str) -> Any:
    """The model with some of its parts on `meta`, and the hooks that accelerate gives it."""
    skipped = model._skip_keys_device_placement
    for name in [*(f"model.{part}" for part in PARTS), "lm_head"]:
        part = model.get_submodule(name)
        place = "meta" if name in on_meta else "cpu"
        add_hook_to_module(part.to(place), AlignDevicesHook(place, skip_keys=skipped))
    return model


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_no_layer_is_taken_apart(family: str) -> None:
    model = variant_model("ahn", family=family)
    for part in (model, model.model):  # FSDP wraps by these names, too
        layer = type(model.model.layers[0]).__name__
        assert set(part._no_split_modules) == {layer} and layer.endswith("AHNDecoderLayer")
    size = sum(p.nbytes for p in model.parameters())
    for share in range(1, 10):
        memory = {"cpu": size * share // 10, "disk": 10 * size}
        places = infer_auto_device_map(
            model, memory, no_split_module_classes=list(model._no_split_modules)
        )
        layers = [name for name in places if name.startswith("model.layers.")]
        assert all(name.count(".") == 2 for name in layers), places


@torch.no_grad()
@pytest.mark.parametrize("variant", ["full", "window", "ahn"])
def test_hooks_between_layers_change_nothing(models: Any, variant: str) -> None:
    model, ids = variant_model(variant), tokens(40, rows=2)
    mask = torch.ones_like(ids)
    mask[0, :9] = 0
    options: dict[str, Any] = {"attention_mask": mask, "max_new_tokens": 9, "do_sample": False}
    options |= {"pad_token_id": 0, "num_beams": 2}
    expected = models(variant).generate(ids, **options)
    parts = {f"model.{part}": "cpu" for part in PARTS} | {"lm_head": "cpu"}
    hooked = dispatch_model(model, parts, main_device="cpu", force_hooks=True)
    assert hasattr(hooked.model.layers[1], "_hf_hook")
    assert torch.equal(hooked.generate(ids, **options), expected)


@torch.no_grad()
@pytest.mark.parametrize("variant", ["full", "ahn", "no-write"])
@pytest.mark.parametrize("padded", [False, True])
def test_the_past_lies_where_its_layer_does(variant: str, padded: bool) -> None:
    model = spread(variant_model(variant), "model.layers.1", "model.layers.2", "model.norm")
    model.lm_head.to("meta")
    add_hook_to_module(model.lm_head, AlignDevicesHook("meta"))
    ids, cache = tokens(40, rows=3), model.new_cache()
    mask = torch.ones_like(ids)
    if padded:
        mask[0, :30], mask[1] = 0, 0
    model.prefill_chunk_size = 16
    for more in (0, 1, 1, 5):  # what the prompt is, then tokens one by one and several
        mask = F.pad(mask, (0, more), value=1)
        output = model(ids[:, :more] if more else ids, attention_mask=mask, past_key_values=cache)
    assert output.logits.device.type == "meta" and output.logits.shape[1] == 5
    cache.reorder_cache(torch.tensor([2, 1, 0]))
    cache.batch_repeat_interleave(2)
    for held in (cache, cache.copy()):
        for index, layer in enumerate(held.layers):
            places = {x.device.type for x in layer.tensors().values()}
            assert places == {"meta" if index else "cpu"}


@torch.no_grad()
def test_a_cache_from_elsewhere_comes_to_the_layers(tmp_path: Path) -> None:
    model, ids = variant_model("ahn"), tokens(40)
    cache = model.new_cache()
    model(ids, past_key_values=cache)
    cache.save(tmp_path / "cache")
    apart = spread(variant_model("ahn"), "model.layers.2", "model.norm", "lm_head")
    saved = AHNCache.load(tmp_path / "cache")
    saved._claims = None  # the weights on meta have no fingerprint
    for held in (cache.copy(), saved, cache.copy().to("cpu")):
        apart(ids[:, :2], past_key_values=held)
        for name in ("keys", "state"):
            places = [layer.tensors()[name].device.type for layer in held.layers]
            assert places == ["cpu", "cpu", "meta"]


@torch.no_grad()
def test_a_checkpoint_is_loaded_layer_by_layer(tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base")
    memory = memory_folder(tmp_path / "memory", base)
    expected, ids = ahn.load_model(base, ahn=memory), tokens(50)
    places: dict[str, Any] = {f"model.{part}": "cpu" for part in PARTS} | {"lm_head": "cpu"}
    model = ahn.load_model(base, ahn=memory, device_map=places)
    assert torch.equal(model(ids).logits, expected(ids).logits)
