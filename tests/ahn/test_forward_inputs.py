"""What `forward` takes: empty inputs, masks, positions whose logits are wanted."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ahn.config import VARIANTS
from tests.ahn.conftest import SIZES, tokens, variant_model

VOCABULARY = SIZES["vocab_size"]


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_nothing_may_come_in(models: Any, variant: str) -> None:
    model, ids = models(variant), tokens(40)
    assert model(ids[:, :0]).logits.shape == (1, 0, VOCABULARY)
    assert model(ids[:0]).logits.shape == (0, 40, VOCABULARY)
    cache = model.new_cache()
    pieces = [ids[:, :0], ids[:, :30], ids[:, :0], ids[:, 30:31], ids[:, 31:]]
    logits = [model(piece, past_key_values=cache).logits for piece in pieces]
    whole = model(ids, use_cache=False).logits
    torch.testing.assert_close(torch.cat(logits, 1), whole, rtol=0, atol=1e-4)
    with torch.enable_grad():
        assert model(ids[:, :0], use_cache=False).logits.requires_grad


@pytest.mark.parametrize("size", [7, 1024])
@torch.no_grad()
def test_logits_of_any_positions(models: Any, size: int) -> None:
    model, ids = models("ahn"), tokens(40, rows=2)
    whole = model(ids).logits
    model.prefill_chunk_size = size
    try:
        for wanted in ([3, 39], [39, 3, 3, 12], [-1], [-40, 5], []):
            index = torch.tensor(wanted, dtype=torch.long)
            found = model(ids, logits_to_keep=index).logits
            torch.testing.assert_close(found, whole[:, index], rtol=0, atol=1e-4)
        late = torch.arange(40) > 33
        found = model(ids, logits_to_keep=late).logits
        torch.testing.assert_close(found, whole[:, late], rtol=0, atol=1e-4)
        for keep in (1, 9, 40, 99):
            found = model(ids, logits_to_keep=keep).logits
            torch.testing.assert_close(found, whole[:, -keep:], rtol=0, atol=1e-4)
        for beyond in (40, -41):
            with pytest.raises(ValueError, match="the input has 40 tokens"):
                model(ids, logits_to_keep=torch.tensor([0, beyond]))
    finally:
        del model.prefill_chunk_size


@torch.no_grad()
def test_masks_of_any_type_and_of_one_row_for_all(models: Any) -> None:
    model, ids = models("ahn"), tokens(40, rows=3)
    mask = (torch.arange(40) >= 9).long()[None]
    expected = model(ids[:, 9:]).logits
    for given in (mask, mask.bool(), mask.float(), mask.expand(3, -1)):
        cache = model.new_cache()
        first = model(ids[:, :30], attention_mask=given[:, :30], past_key_values=cache).logits
        second = model(ids[:, 30:], attention_mask=given, past_key_values=cache).logits
        together = torch.cat([first, second], 1)[:, 9:]
        torch.testing.assert_close(together, expected, rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="attention_mask has 2 rows, the input has 3"):
        model(ids, attention_mask=torch.ones(2, 40))
    for wrong in (torch.ones(3, 39), torch.ones(3, 1, 40, 40)):
        with pytest.raises(ValueError, match="attention_mask must be"):
            model(ids, attention_mask=wrong)


def test_a_chunk_has_a_size(models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models("ahn"), "prefill_chunk_size", 0)
    with pytest.raises(ValueError, match="at least 1 token, not 0"):
        models("ahn")(tokens(4))


@torch.no_grad()
def test_gradient_checkpointing_and_a_past_exclude_each_other() -> None:
    ids, expected = tokens(60), variant_model("ahn")(tokens(60)).logits
    model = variant_model("ahn").train()
    model.gradient_checkpointing_enable()
    model.prefill_chunk_size = 7
    output = model(ids, use_cache=True)
    assert output.past_key_values is None
    torch.testing.assert_close(output.logits, expected, rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="cannot fill a cache"):
        model(ids, past_key_values=model.new_cache())
    assert model.eval()(ids).past_key_values.get_seq_length() == 60


def test_the_loss_is_transformers_in_every_option(stock: Any, models: Any) -> None:
    # transformers' Trainer counts the labels of all accumulated batches and leaves the division
    # to the model
    model, ids = models("full"), tokens(30, rows=2)
    labels = ids.clone()
    labels[0, 5:9] = -100
    for more in (
        {},
        {"num_items_in_batch": 200},
        {"num_items_in_batch": torch.tensor(7)},
        {"shift_labels": labels.roll(-1, 1)},
    ):
        with torch.no_grad():
            expected = stock(ids, labels=labels, **more).loss
        found = model(ids, labels=labels, **more).loss
        torch.testing.assert_close(found.detach(), expected, rtol=1e-5, atol=1e-5)
        assert found.requires_grad
