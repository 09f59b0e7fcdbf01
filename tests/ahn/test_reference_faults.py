"""The faults of the reference implementation (ByteDance-Seed/AHN 3d2d174), one by one, absent.

Each was found by running it. The oracle is one whole pass over the sequence, or stock Qwen2.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

import ahn
from ahn import InputError
from ahn.distill.distillation import distillation_loss
from ahn.models.causal_lm import Qwen2AHNConfig, Qwen2AHNForCausalLM
from tests.ahn.conftest import SIZES, stock_model, tokens, variant_model

#: float32 through three layers; pieces only change the order of sums
CLOSE: dict[str, Any] = {"rtol": 0, "atol": 1e-4}
LENGTH, NEW = 60, 12


@torch.no_grad()
def in_pieces(model: Any, ids: Tensor, *sizes: int) -> Tensor:
    """Logits of all positions when the sequence comes in pieces."""
    cache = model.new_cache()
    pieces = [model(piece, past_key_values=cache).logits for piece in ids.split(list(sizes), 1)]
    return torch.cat(pieces, 1)


@torch.no_grad()
def whole(model: Any, ids: Tensor) -> Tensor:
    return model(ids, use_cache=False).logits


@pytest.mark.parametrize("sinks", [0, 1, 4, 20, 128, 130])
def test_decode_knows_how_many_sinks_there_are(models: Any, sinks: int) -> None:
    model, ids = models("ahn", sinks=sinks, window=9), tokens(sinks + 40)
    sizes = (sinks + 16, *[1] * 24)
    torch.testing.assert_close(in_pieces(model, ids, *sizes), whole(model, ids), **CLOSE)


def test_layers_with_full_attention_infer(models: Any) -> None:
    model, ids = models("ahn", full_attention_layers=(1,)), tokens(LENGTH)
    torch.testing.assert_close(in_pieces(model, ids, 50, *[1] * 10), whole(model, ids), **CLOSE)
    assert model.layout_table().splitlines()[1].split(maxsplit=2)[2] == "full attention"
    everywhere = variant_model("ahn", full_attention_layers=(0, 1, 2))
    with torch.no_grad():
        expected = stock_model()(ids).logits
    torch.testing.assert_close(in_pieces(everywhere, ids, 50, *[1] * 10), expected, **CLOSE)


def test_layers_with_full_attention_are_not_skipped_in_training() -> None:
    # with a memory that says nothing and every layer lossless, the student is the teacher
    lossless = variant_model("ahn", full_attention_layers=(0, 1), fresh=True)
    calls: list[int] = []
    for index, layer in enumerate(lossless.model.layers):
        layer.self_attn.register_forward_hook(lambda *_, index=index: calls.append(index))
    labels = tokens(LENGTH)
    loss = distillation_loss(lossless, {"input_ids": labels}, labels, (16, 3), ["kl"])
    assert loss is not None and loss.requires_grad
    assert [calls.count(index) for index in range(3)] == [2, 2, 2]  # teacher and student


def test_the_router_and_q_proj_of_released_configurations_are_refused(tmp_path: Path) -> None:
    variant_model("ahn").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["ahn"]
    config |= {"model_type": "qwen2", "_ahn_implementation": "GatedDeltaNet"}
    for key in ("use_q_proj", "use_ahn_router"):
        (tmp_path / "config.json").write_text(json.dumps({**config, key: True}))
        with pytest.raises(InputError, match=key):
            ahn.load_model(tmp_path)


@pytest.mark.parametrize("variant", ["window", "ahn"])
@torch.no_grad()
def test_left_padding_is_never_seen_written_nor_a_sink(models: Any, variant: str) -> None:
    model, row = models(variant), tokens(70)
    padding = 50  # longer than sinks and window
    ids = torch.cat([tokens(padding, seed=4), row], 1)
    mask = (torch.arange(ids.shape[1]) >= padding).long()[None]
    cache = model.new_cache()
    padded = model(ids, attention_mask=mask, past_key_values=cache).logits[:, padding:]
    torch.testing.assert_close(padded, whole(model, row), **CLOSE)
    alone = model.new_cache()
    model(row, past_key_values=alone)
    for mine, other in zip(cache.layers, alone.layers, strict=True):
        for name, tensor in other.tensors().items():
            torch.testing.assert_close(mine.tensors()[name], tensor, rtol=0, atol=1e-5)
    options: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(row, attention_mask=torch.ones_like(row), **options)[:, -NEW:]
    both = torch.cat([ids, torch.cat([tokens(padding, seed=6), row], 1)])
    masks = torch.cat([mask, torch.ones_like(mask)])
    assert torch.equal(model.generate(both, attention_mask=masks, **options)[:1, -NEW:], expected)


@torch.no_grad()
def test_two_interleaved_sequences_do_not_touch_each_other(models: Any) -> None:
    model, sequences = models("ahn"), [tokens(LENGTH), tokens(LENGTH, seed=1)]
    caches, pieces = [model.new_cache(), model.new_cache()], ([], [])  # type: ignore[var-annotated]
    for at in range(LENGTH):
        for which, ids in enumerate(sequences):
            output = model(ids[:, at : at + 1], past_key_values=caches[which])
            pieces[which].append(output.logits)
    for which, ids in enumerate(sequences):
        torch.testing.assert_close(torch.cat(pieces[which], 1), whole(model, ids), **CLOSE)


@pytest.mark.parametrize("cell", ahn.CELLS)
@torch.no_grad()
def test_beams_take_their_memory_with_them(models: Any, cell: str) -> None:
    model, ids = models("ahn", cell=cell), tokens(45)
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NEW,
        num_beams=4,
        num_return_sequences=4,
        length_penalty=0.0,
        do_sample=False,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_scores=True,
    )
    assert len({tuple(row.tolist()) for row in output.sequences}) == 4
    for row, score in zip(output.sequences, output.sequences_scores, strict=True):
        log = whole(model, row[None, :-1])[0, 44:].log_softmax(-1)
        rescored = log.gather(1, row[45:, None]).sum()  # each answer scored alone, in one pass
        torch.testing.assert_close(score, rescored, rtol=0, atol=1e-3)


def test_several_tokens_continue_a_cache(models: Any) -> None:
    model, ids = models("ahn"), tokens(LENGTH)
    torch.testing.assert_close(in_pieces(model, ids, 30, 1, 9, 20), whole(model, ids), **CLOSE)


@torch.no_grad()
def test_generation_without_a_cache_and_from_embeddings(models: Any) -> None:
    model, ids = models("ahn"), tokens(45)
    options: dict[str, Any] = {
        "max_new_tokens": NEW,
        "do_sample": False,
        "pad_token_id": 0,
        "attention_mask": torch.ones_like(ids),
    }
    expected = model.generate(ids, **options)[:, 45:]
    assert torch.equal(model.generate(ids, use_cache=False, **options)[:, 45:], expected)
    embeddings = model.get_input_embeddings()(ids)
    assert torch.equal(model.generate(inputs_embeds=embeddings, **options), expected)


@pytest.mark.parametrize("cell", ahn.CELLS)
def test_a_base_model_gets_an_initialised_memory(
    cell: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stock_model().save_pretrained(tmp_path)
    empty_like = torch.empty_like

    def poisoned(*args: Any, **kwargs: Any) -> Tensor:
        made = empty_like(*args, **kwargs)
        return made.fill_(torch.nan) if made.is_floating_point() and not made.is_meta else made

    monkeypatch.setattr(torch, "empty_like", poisoned)  # what is not initialised is no number
    config = Qwen2AHNConfig(**SIZES, ahn={"variant": "ahn", "cell": cell, "window": 8, "sinks": 2})
    model = Qwen2AHNForCausalLM.from_pretrained(tmp_path, config=config)
    for layer in model.model.layers:
        cell_parameters = dict(layer.ahn.fn.named_parameters())
        for name, parameter in cell_parameters.items():
            assert torch.isfinite(parameter).all(), name
            assert parameter.abs().max() < 20, name
        assert not cell_parameters["o_proj.weight"].any()
        if "A_log" in cell_parameters:
            assert ((cell_parameters["A_log"].exp() >= 1) & (cell_parameters["A_log"] < 3)).all()


def test_a_batch_shorter_than_the_window_is_skipped_and_needs_no_process_group() -> None:
    model, labels = variant_model("ahn"), tokens(12)
    assert distillation_loss(model, {"input_ids": labels}, labels, (16, 3), ["kl"]) is None
    nothing = torch.full((1, LENGTH), -100)
    ids = tokens(LENGTH)
    assert distillation_loss(model, {"input_ids": ids}, nothing, (16, 3), ["kl", "ce"]) is None


def test_sampled_windows_do_not_leak_into_the_saved_configuration(tmp_path: Path) -> None:
    model, ids = variant_model("ahn"), tokens(LENGTH)
    before = json.dumps(model.config.to_dict(), default=str, sort_keys=True)
    for span in ((20, 2), (32, 8)):
        assert distillation_loss(model, {"input_ids": ids}, ids, span, ["kl"]) is not None
    assert json.dumps(model.config.to_dict(), default=str, sort_keys=True) == before
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["ahn"] == model.config.ahn


@pytest.mark.parametrize("variant", ["full", "ahn"])
@torch.no_grad()
def test_generate_computes_logits_for_the_last_position_only(models: Any, variant: str) -> None:
    model, ids, shapes = models(variant), tokens(200, rows=2), []
    hook = model.lm_head.register_forward_hook(lambda _, __, output: shapes.append(output.shape))
    model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=False, pad_token_id=0
    )
    hook.remove()
    assert {tuple(shape) for shape in shapes} == {(2, 1, SIZES["vocab_size"])}


def test_window_and_sinks_that_are_asked_for_take_effect(tmp_path: Path) -> None:
    variant_model("ahn").save_pretrained(tmp_path)
    ids = tokens(LENGTH)
    found = []
    for window, sinks in ((16, 3), (24, 3), (16, 8)):
        model = ahn.load_model(tmp_path, window=window, sinks=sinks)
        assert {(x.window, x.sinks) for x in model.layout} == {(window, sinks)}
        text = f"layers 0-2   window {window}, sinks {sinks}, memory GatedDeltaNet"
        assert model.layout_table() == text
        torch.testing.assert_close(in_pieces(model, ids, 50, *[1] * 10), whole(model, ids), **CLOSE)
        found.append(whole(model, ids)[0, -1])
    assert (found[0] - found[1]).abs().max() > 1e-3 and (found[0] - found[2]).abs().max() > 1e-3


@pytest.mark.parametrize("where", ["rope_parameters", "rope_scaling"])
@torch.no_grad()
def test_yarn_of_a_checkpoint_takes_effect(tmp_path: Path, where: str) -> None:
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    stock = stock_model()
    stock.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    theta = config.pop("rope_parameters")["rope_theta"]
    new = {"rope_parameters": {**scaling, "rope_theta": theta}}
    old = {"rope_scaling": scaling, "rope_theta": theta}
    config |= new if where == "rope_parameters" else old
    (tmp_path / "config.json").write_text(json.dumps(config))
    scaled = Qwen2ForCausalLM(Qwen2Config(**SIZES, **new, initializer_range=0.15)).eval()
    scaled.load_state_dict(stock.state_dict())
    ids = tokens(150)
    expected = scaled(ids).logits
    assert (expected - stock(ids).logits).abs().max() > 1e-2
    logits = in_pieces(ahn.load_model(tmp_path, "full"), ids, 100, *[1] * 50)
    torch.testing.assert_close(logits, expected, **CLOSE)
    window = ahn.load_model(tmp_path, "window", window=120, sinks=30)
    torch.testing.assert_close(in_pieces(window, ids, 100, *[1] * 50), expected, **CLOSE)


@torch.no_grad()
def test_a_window_is_not_silently_full_attention(models: Any) -> None:
    ids = tokens(LENGTH)
    changed = torch.cat([ids[:, :10], (ids[:, 10:11] + 1) % 101, ids[:, 11:]], 1)
    for variant, sees in (("full", True), ("window", False), ("ahn", True)):
        # through one layer only; more layers hand things on
        layouts = [ahn.LayerLayout(1, 0), ahn.LayerLayout(1, 0), models(variant).layout[0]]
        rows = [models(variant)(x, layout=layouts, use_cache=False).logits for x in (ids, changed)]
        difference = (rows[0] - rows[1])[0, -1].abs().max()
        assert (difference > 1e-5) == sees, variant
