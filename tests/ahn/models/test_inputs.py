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


HALF = torch.tensor([[1, 1, 1, 0, 0, 0]])


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        (torch.ones(1, 1, 6, 6), r"attention_mask must be \[1, 6\].*not \(1, 1, 6, 6\)"),
        (torch.ones(1, 6, 6), r"not \(1, 6, 6\)"),
        (torch.ones(6), r"not \(6,\)"),
        ({"full_attention": None}, "not dict"),
        (torch.ones(1, 7), r"not \(1, 7\)"),
        (torch.ones(2, 6), "has 2 rows, the input has 1"),
        (HALF * -1e9, "holds -1000000000.0"),
        (torch.tensor([[0, 0, -torch.inf, 0, 0, 0]]), "holds -inf .an additive mask"),
        (torch.zeros(1, 6), "holds 0.0 .an additive mask"),
        (torch.tensor([[1, 1, 2, 2, 3, 3]]), "holds 2 .*numbers of documents"),
        (torch.tensor([[1, 1, 0, 1, 1, 1]]), "padding between the tokens"),
    ],
    ids=lambda value: "" if isinstance(value, str) else type(value).__name__,
)
def test_a_mask_that_means_something_else_is_refused(models: Any, mask: Any, says: str) -> None:
    for model in (models("ahn"), models("ahn").model):
        with pytest.raises(ValueError, match=says):
            model(tokens(6), attention_mask=mask)


@pytest.mark.parametrize("more", [1, 4])
@torch.no_grad()
def test_a_mask_over_the_past_says_what_the_cache_was_given(models: Any, more: int) -> None:
    for model in (models("ahn"), models("ahn").model):
        cache, before = models("ahn").new_cache(), torch.ones(2, 30)
        before[1, :11] = 0
        model(tokens(30, rows=2), attention_mask=before, past_key_values=cache)
        new = torch.ones(2, more)
        for other in (torch.ones(2, 30), 1 - before, torch.zeros(2, 30)):
            with pytest.raises(ValueError, match=r"given \[30, 19\] tokens"):
                whole = torch.cat([other, new], 1)
                model(tokens(more, rows=2), attention_mask=whole, past_key_values=cache)
        for width in (more + 1, 29 + more, 31 + more):
            with pytest.raises(ValueError, match=rf"\[2, {more}\] or \[2, {30 + more}\]"):
                mask = torch.ones(2, width)
                model(tokens(more, rows=2), attention_mask=mask, past_key_values=cache)
        outputs = [
            model(tokens(more, rows=2), attention_mask=mask, past_key_values=cache.copy())[0]
            for mask in (None, new, torch.cat([before, new], 1))
        ]
        assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[0], outputs[2])


@pytest.mark.parametrize("length", [6, 1])
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda x: x[0], "position_ids must be"),
        (lambda x: x[None], "position_ids must be"),
        (lambda x: x[:, :1].expand(3, -1), r"not \(3, "),
        (lambda x: torch.cat([x, x[:, -1:] + 1], 1), "position_ids must be .1 or 2, "),
        (lambda x: x.float(), "whole numbers, not torch.float32"),
        (lambda x: x.tolist(), "position_ids must be"),
    ],
    ids=["one row", "three dimensions", "rows", "columns", "float", "list"],
)
def test_positions_of_another_shape_are_refused(
    models: Any, change: Any, says: str, length: int
) -> None:
    for model in (models("ahn"), models("ahn").model):
        with pytest.raises(ValueError, match=says):
            model(tokens(length, rows=2), position_ids=change(torch.arange(length)[None]))


def test_one_position_is_not_that_of_every_token(models: Any) -> None:
    for model in (models("ahn"), models("ahn").model):
        with pytest.raises(ValueError, match="position_ids must be"):
            model(tokens(6), position_ids=torch.tensor([[3]]))


def test_inputs_of_another_shape_are_refused(models: Any) -> None:
    for model in (models("ahn"), models("ahn").model):
        with pytest.raises(ValueError, match="input_ids must be .batch, tokens"):
            model(tokens(6)[0])
        with pytest.raises(ValueError, match="inputs_embeds must be"):
            model(inputs_embeds=torch.zeros(6, 48))
        for given in ({}, {"input_ids": tokens(6), "inputs_embeds": torch.zeros(1, 6, 48)}):
            with pytest.raises(ValueError, match="exactly one of"):
                model(**given)
    for labels in (tokens(5), tokens(3, rows=2)):
        with pytest.raises(ValueError, match=r"labels must be \[1, 6\]"):
            models("ahn")(tokens(6), labels=labels)
    with pytest.raises(ValueError, match="logits_to_keep must be 0"):
        models("ahn")(tokens(6), logits_to_keep=-2)


def test_a_loss_is_over_all_positions_and_logits_are_those_asked_for(models: Any) -> None:
    ids = tokens(30)
    whole = models("ahn")(ids, labels=ids)
    for keep in (4, torch.tensor([3, -1]), torch.arange(30) > 20):
        some = models("ahn")(ids, labels=ids, logits_to_keep=keep)
        assert torch.equal(some.loss, whole.loss)
        expected = whole.logits[:, -4:] if isinstance(keep, int) else whole.logits[:, keep]
        assert torch.equal(some.logits, expected)


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
