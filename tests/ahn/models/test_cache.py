"""The cache: written in place, allocated in blocks, copied, picked from, emptied."""

from __future__ import annotations

import copy
import gc
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import ahn
from ahn import AHNCache, InputError
from ahn.config import CELLS, VARIANTS, LayerLayout
from ahn.cost.accounting import BLOCK
from ahn.models.attention import Chunk
from ahn.models.cache import LayerCache
from tests.ahn.conftest import SINKS, WINDOW, tokens, variant_model


@torch.no_grad()
def test_decoding_writes_in_place(models: Any) -> None:
    model, cache = models("ahn"), models("ahn").new_cache()
    model(tokens(SINKS + WINDOW + 4), past_key_values=cache)
    layer = cache.layers[1]
    buffers = [
        x.data_ptr()
        for x in (layer.keys, layer.values, layer.slots["write"], layer.slots["log_decay"])
    ]
    size = cache.nbytes
    for step in range(2 * WINDOW):
        model(tokens(1, seed=step), past_key_values=cache)
    assert buffers == [
        x.data_ptr()
        for x in (layer.keys, layer.values, layer.slots["write"], layer.slots["log_decay"])
    ]
    assert cache.nbytes == size


@torch.no_grad()
def test_slots_are_allocated_in_blocks_until_the_window_is_full(models: Any) -> None:
    model, cache = models("full"), models("full").new_cache()
    model(tokens(10), past_key_values=cache)
    assert cache.layers[0].keys.shape[2] == BLOCK
    model(tokens(BLOCK), past_key_values=cache)
    assert cache.layers[0].keys.shape[2] == 2 * BLOCK
    bounded = models("window").new_cache()
    models("window")(tokens(300), past_key_values=bounded)
    assert bounded.layers[0].keys.shape[2] == SINKS + WINDOW


def test_room_is_made_for_slots_however_long_the_heads_are() -> None:
    layer = LayerCache(LayerLayout())
    layer.slots = {"keys": torch.ones(1, 2, 4, 4 * BLOCK), "values": torch.ones(1, 2, 4, 4)}
    layer.make_room(Chunk(1, 4, None, torch.device("cpu")))
    assert {name: x.shape[2] for name, x in layer.slots.items()} == {"keys": BLOCK, "values": BLOCK}
    assert bool((layer.slots["keys"].sum(2) == 4).all())


@torch.no_grad()
def test_a_copy_goes_its_own_way(models: Any) -> None:
    model, cache = models("ahn"), models("ahn").new_cache()
    model(tokens(50), past_key_values=cache)
    fork = cache.copy()
    expected = model(tokens(9, seed=2), past_key_values=cache.copy()).logits
    model(tokens(30, seed=1), past_key_values=fork)
    assert torch.equal(model(tokens(9, seed=2), past_key_values=cache).logits, expected)


@torch.no_grad()
def test_rows_can_be_picked_and_repeated(models: Any) -> None:
    model, ids = models("ahn"), tokens(40, rows=3)
    cache = model.new_cache()
    mask = torch.ones_like(ids)
    mask[2, :11] = 0
    model(ids, attention_mask=mask, past_key_values=cache)
    after = torch.nn.functional.pad(mask, (0, 1), value=1)
    one = tokens(1, rows=3)
    expected = model(one, attention_mask=after, past_key_values=cache.copy()).logits
    order = torch.tensor([2, 0])
    picked = cache.copy()
    picked.reorder_cache(order)
    output = model(one[order], attention_mask=after[order], past_key_values=picked).logits
    torch.testing.assert_close(output, expected[order], rtol=0, atol=1e-5)
    repeated = cache.copy()
    repeated.batch_repeat_interleave(2)
    rows = torch.tensor([0, 0, 1, 1, 2, 2])
    output = model(one[rows], attention_mask=after[rows], past_key_values=repeated).logits
    torch.testing.assert_close(output, expected[rows], rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("keep", [[2, 0], torch.tensor([True, False, True])], ids=str)
def test_rows_are_named_or_ticked(models: Any, keep: Any) -> None:
    model, ids, cache = models("ahn"), tokens(40, rows=3), models("ahn").new_cache()
    model(ids, past_key_values=cache)
    cache.batch_select_indices(keep)
    assert cache.batch_size == 2
    following = tokens(3, rows=3)[keep]
    logits = model(following, past_key_values=cache).logits
    whole = model(torch.cat([ids[keep], following], 1)).logits[:, 40:]
    torch.testing.assert_close(logits, whole, rtol=0, atol=1e-4)


@pytest.mark.parametrize("variant", ["full", "ahn"])
@pytest.mark.parametrize("then", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_a_cache_outlives_inference_mode(models: Any, variant: str, then: Any) -> None:
    model, ids = models(variant), tokens(60)
    with torch.no_grad():
        whole = model(ids).logits
    cache = model.new_cache()
    with torch.inference_mode():
        model(ids[:, :50], past_key_values=cache)
    with then():
        pieces = [model(piece, past_key_values=cache).logits for piece in ids[:, 50:].split(1, 1)]
        found = torch.cat(pieces, 1)
    torch.testing.assert_close(found.detach(), whole[:, 50:], rtol=0, atol=1e-4)
    if then is torch.enable_grad:
        found.sum().backward()
        model.zero_grad()


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(
    "options",
    [{"variant": v} for v in ("full", "window")] + [{"variant": "ahn", "cell": c} for c in CELLS],
    ids=str,
)
def test_gradients_flow_through_a_cache(models: Any, options: dict[str, Any], padded: bool) -> None:
    # slots are overwritten in place while gradients of what attention saw of them are still due
    model, found = models(**options), []
    ids, mask = tokens(60, rows=2), torch.ones(2, 60)
    if padded:
        mask[1, :13] = 0
    for sizes in ([60], [30, 1, 1, 20, 8]):
        cache, end, logits = model.new_cache(), 0, []
        for piece in ids.split(sizes, 1):
            end += piece.shape[1]
            logits.append(model(piece, attention_mask=mask[:, :end], past_key_values=cache).logits)
        model.zero_grad()
        (torch.cat(logits, 1).square() * mask[..., None]).mean().backward()
        found.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    model.zero_grad()
    assert found[0].keys() == found[1].keys()
    for name, expected in found[0].items():
        atol = 1e-4 * float(expected.abs().max())
        torch.testing.assert_close(found[1][name], expected, rtol=0, atol=atol)


def test_crop_is_refused_and_reset_empties(models: Any) -> None:
    cache = models("ahn").new_cache()
    with torch.no_grad():
        models("ahn")(tokens(30), past_key_values=cache)
    with pytest.raises(NotImplementedError, match="copy\\(\\) the cache"):
        cache.crop(1)
    cache.reset()
    assert cache.nbytes == 0 and cache.get_seq_length() == 0


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("sizes", [[20], [1] * 20, [3, 1, 16]], ids=str)
@pytest.mark.parametrize("variant", ["window", "ahn"])
def test_gradients_end_where_a_slot_was_overwritten_without_them(
    variant: str, sizes: list[int], mode: Any
) -> None:
    # one layer: nothing is handed on but through the slots and the memory
    model = variant_model(variant, window=WINDOW, sinks=SINKS)
    model.model.layers = model.model.layers[:1]
    model.config.num_hidden_layers = 1
    embeddings = model.model.embed_tokens(tokens(30)).detach().requires_grad_()
    cache = model.new_cache()
    model(inputs_embeds=embeddings, past_key_values=cache)
    with mode():
        for piece in tokens(20, seed=1).split(sizes, 1):
            model(piece, past_key_values=cache)
    output = model(tokens(5, seed=2), past_key_values=cache)
    output.logits.square().sum().backward()
    gradient = embeddings.grad[0].abs().amax(1)
    assert (gradient[:SINKS] > 0).all()  # still there
    # 20 tokens later the window holds none of them; what the memory was told it was told unseen
    assert not gradient[SINKS:].any()


@pytest.mark.parametrize("cell", CELLS)
def test_gradients_reach_what_the_memory_was_told(cell: str) -> None:
    # so that the zeros above are known to be more than silence
    model = variant_model("ahn", cell=cell)
    embeddings = model.model.embed_tokens(tokens(30)).detach().requires_grad_()
    cache = model.new_cache()
    model(inputs_embeds=embeddings, past_key_values=cache)
    model(tokens(20, seed=1), past_key_values=cache)
    model(tokens(5, seed=2), past_key_values=cache).logits.square().sum().backward()
    assert (embeddings.grad[0].abs().amax(1) > 0).all()


def through_pickle(cache: AHNCache) -> AHNCache:
    return pickle.loads(pickle.dumps(cache))


def through_torch(cache: AHNCache) -> AHNCache:
    file = io.BytesIO()
    torch.save(cache, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES: list[Callable[[AHNCache], AHNCache]] = [
    copy.copy, copy.deepcopy, AHNCache.copy, through_pickle, through_torch,
]  # fmt: skip


@pytest.mark.parametrize("taken", COPIES, ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    "options",
    [{"variant": v} for v in VARIANTS] + [{"variant": "ahn", "cell": c} for c in CELLS],
    ids=str,
)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_a_cache_is_pickled_and_copied_at_any_time(
    models: Any, options: dict[str, Any], taken: Any, mode: Any
) -> None:
    model, mask = models(**options), torch.ones(2, 40)
    mask[1, :7] = 0
    with mode():
        cache = model.new_cache()
        assert taken(cache).get_seq_length() == 0
        model(tokens(40, rows=2), attention_mask=mask, past_key_values=cache)
        model(tokens(1, rows=2), past_key_values=cache)
        fork = taken(cache)
        assert fork.nbytes == cache.nbytes and fork.get_seq_length() == 41
        expected = model(tokens(9, rows=2, seed=2), past_key_values=cache).logits
        # what goes into one does not go into the other
        for _ in range(2):
            found = model(tokens(9, rows=2, seed=2), past_key_values=taken(fork)).logits
            assert torch.equal(found, expected)
    assert fork.get_seq_length() == 41


def test_a_pickled_cache_belongs_to_its_model_alone(models: Any, tmp_path: Path) -> None:
    with torch.no_grad():
        for part in (models("ahn"), models("ahn").model):
            cache = part(tokens(40), use_cache=True).past_key_values
            twin = through_pickle(cache)
            other = variant_model("ahn")
            other.model.layers[1].mlp.up_proj.weight.mul_(1.01)
            for wrong in (other, other.model):
                with pytest.raises(InputError, match="a pickled cache.*made by another model"):
                    wrong(tokens(1), past_key_values=through_pickle(cache))
            equal = variant_model("ahn")
            for right in (equal, equal.model):
                output = right(tokens(1), past_key_values=through_pickle(cache))
                assert output[0].isfinite().all()
            # also by way of a file, which neither of them has been held against yet
            twin.save(tmp_path / "twin")
            assert AHNCache.load(tmp_path / "twin", equal).get_seq_length() == 40
            with pytest.raises(InputError, match="another model"):
                AHNCache.load(tmp_path / "twin", other)


def test_a_cache_whose_model_is_gone_is_nobodys(tmp_path: Path) -> None:
    model = variant_model("ahn")
    cache, empty = model.new_cache(), model.new_cache()
    with torch.no_grad():
        model(tokens(40), past_key_values=cache)
    del model
    gc.collect()
    with pytest.raises(InputError, match="belongs to none"):
        pickle.dumps(cache)
    with pytest.raises(InputError, match="the model that made this cache is gone"):
        variant_model("ahn")(tokens(1), past_key_values=cache)
    # nothing was stored in this one
    assert through_pickle(empty).get_seq_length() == 0
    assert variant_model("ahn")(tokens(1), past_key_values=empty).logits is not None


@torch.no_grad()
def test_a_cache_of_another_model_is_refused_and_of_its_twin_taken(models: Any) -> None:
    model, twin, other = models("ahn"), variant_model("ahn"), variant_model("ahn")
    other.model.layers[2].self_attn.k_proj.weight.mul_(1.01)
    for make in (model, model.model):
        for use in (other, other.model):
            cache = make(tokens(40), use_cache=True).past_key_values
            with pytest.raises(
                InputError, match="made by another model:\n  the weights are others"
            ):
                use(tokens(1), past_key_values=cache)
        for use in (twin, twin.model, model, model.model):
            cache = make(tokens(40), use_cache=True).past_key_values
            expected = model(tokens(1), past_key_values=cache.copy(), output_hidden_states=[-1])
            found = use(tokens(1), past_key_values=cache, output_hidden_states=[-1])
            assert torch.equal(found.hidden_states[-1], expected.hidden_states[-1])


def cut(layer: Any, name: str) -> None:
    layer.slots[name] = layer.slots[name][:, :, :-2]


def emptied(layer: Any, name: str) -> None:
    if name in ("keys", "values"):
        setattr(layer, name, None)
    else:
        del layer.slots[name]


def grown(layer: Any, name: str) -> None:
    held = layer.slots[name]
    layer.slots[name] = torch.cat([held, held[:, :, :1]], 2)


def fewer_rows(layer: Any, name: str) -> None:
    layer.slots[name] = layer.slots[name][:1]


@pytest.mark.parametrize("name", ["keys", "values", "write", "log_decay"])
@pytest.mark.parametrize("change", [cut, emptied, grown, fewer_rows])
@pytest.mark.parametrize("number", [0, 2])
@torch.no_grad()
def test_slots_that_somebody_else_has_changed_are_refused(
    models: Any, number: int, change: Any, name: str, tmp_path: Path
) -> None:
    model, cache = models("ahn"), models("ahn").new_cache()
    model(tokens(40, rows=2), past_key_values=cache)
    change(cache.layers[number], name)
    uses: list[Callable[[], Any]] = [
        lambda: model(tokens(1, rows=2), past_key_values=cache),
        lambda: model(tokens(5, rows=2), past_key_values=cache),
        lambda: model.model(tokens(1, rows=2), past_key_values=cache),
        lambda: cache.copy(),
        lambda: pickle.dumps(cache),
        lambda: cache.save(tmp_path / "c"),
        lambda: cache.reorder_cache(torch.tensor([1, 0])),
        lambda: cache.batch_repeat_interleave(2),
    ]
    for use in uses:
        with pytest.raises(InputError, match="slots of this cache: layer") as error:
            use()
        assert f"layer {number}, {name}" in str(error.value)
    cache.reset()
    assert model(tokens(4, rows=2), past_key_values=cache).logits is not None


@torch.no_grad()
def test_full_attention_may_not_be_pruned_either(models: Any) -> None:
    # as kvpress does: keys and values gathered from every layer, after a prompt
    model, cache = models("full"), models("full").new_cache()
    model(tokens(40), past_key_values=cache)
    kept = torch.arange(0, 40, 2)
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys[:, :, kept], layer.values[:, :, kept]
    with pytest.raises(InputError, match=r"layer 0, keys: \[1, 2, 20, 12\] instead of \[1, 2, 256"):
        model(tokens(1), past_key_values=cache)


@torch.no_grad()
def test_what_keeps_the_shape_is_the_callers_business(models: Any) -> None:
    # a memory that is wiped or scaled on purpose, as an experiment does
    model, cache = models("ahn"), models("ahn").new_cache()
    model(tokens(40), past_key_values=cache)
    plain = model(tokens(1), past_key_values=cache.copy()).logits
    for layer in cache.layers:
        layer.states = {name: state * 0 for name, state in layer.states.items()}
    assert (model(tokens(1), past_key_values=cache).logits - plain).abs().max() > 1e-4


@pytest.mark.parametrize("many", [1, 5])
@torch.no_grad()
def test_a_cache_that_was_left_half_written_is_refused(models: Any, many: int) -> None:
    model, cache = variant_model("ahn"), variant_model("ahn").new_cache()
    cache = model.new_cache()
    model(tokens(40), past_key_values=cache)
    kept = cache.copy()

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    hook = model.model.layers[1].mlp.register_forward_pre_hook(interrupted)
    with pytest.raises(KeyboardInterrupt):
        model(tokens(many), past_key_values=cache)
    hook.remove()
    for use in (lambda: model(tokens(many), past_key_values=cache), cache.copy):
        with pytest.raises(InputError, match="ended before all layers had stored"):
            use()
    assert model(tokens(many), past_key_values=kept).logits is not None
    # what is refused before anything is stored leaves a cache as it was
    for wrong in ({"attention_mask": torch.zeros(1, 2, 3)}, {"position_ids": tokens(1)[:, :0]}):
        with pytest.raises(ValueError):
            model(tokens(many), past_key_values=kept, **wrong)
    assert model(tokens(many), past_key_values=kept).logits is not None


def test_gates_and_states_are_attributes_of_a_layer_by_their_names() -> None:
    model = ahn.load_model(ahn.POCKET_PATH, "ahn", ahn.POCKET_PATH / "gdn", window=16, sinks=2)
    cache = model.new_cache()
    layer = cache.layers[0]
    assert (layer.keys, layer.state, layer.write, layer.log_decay) == (None,) * 4
    with torch.no_grad():
        model(torch.ones(1, 40, dtype=torch.long), past_key_values=cache)
    assert layer.state is layer.states["state"] and layer.write is layer.slots["write"]
    with pytest.raises(AttributeError, match="'LayerCache' object has no attribute 'stat'"):
        _ = layer.stat
    window = ahn.load_model(ahn.POCKET_PATH, "window", window=16, sinks=2).new_cache()
    assert window.layers[0].state is None
