"""Switches and arguments of transformers: each does what it says, or is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from ahn.config import VARIANTS
from ahn.models.causal_lm import Qwen2AHNConfig, Qwen2AHNForCausalLM, Qwen2AHNModel
from tests.ahn.conftest import SIZES, WINDOW, tokens, variant_model

CLOSE: dict[str, Any] = {"rtol": 0, "atol": 1e-4}
AHN = {"variant": "ahn", "cell": "GatedDeltaNet", "window": WINDOW, "sinks": 3}


def config(**switches: Any) -> Any:
    return Qwen2AHNConfig(**SIZES, ahn=AHN, **switches)


def both(model: Any) -> list[Any]:
    """The language model and the stack in it."""
    return [model, model.model]


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("attention_masks", "attention_mask"),
        ("past_key_value", "past_key_values"),
        ("position_id", "position_ids"),
        ("output_hidden_state", "output_hidden_states"),
        ("cu_seq_lens_qs", "cu_seq_lens_q"),
        ("window", None),
        ("nonsense", None),
    ],
)
@pytest.mark.parametrize("value", [None, torch.ones(1, 5)], ids=["none", "tensor"])
def test_a_name_that_nobody_knows_is_refused(
    models: Any, name: str, near: str | None, value: Any
) -> None:
    for model in both(models("ahn")):
        with pytest.raises(TypeError, match=f"unexpected argument '{name}'") as error:
            model(tokens(5), **{name: value})
        assert near is None or f"did you mean '{near}'?" in str(error.value)
        assert type(model).__name__ in str(error.value)


def test_the_stack_takes_no_labels(models: Any) -> None:
    with pytest.raises(TypeError, match="unexpected argument 'labels'"):
        models("ahn").model(tokens(5), labels=tokens(5))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"seq_idx": torch.zeros(1, 5)}, "seq_idx alone is refused: .*ids that begin anew"),
        ({"block_table": torch.zeros(1, 5)}, "block_table is refused: continuous batching"),
        ({"cache": object()}, "cache is refused: continuous batching"),
        ({"read_index": [], "write_index": []}, "read_index is refused"),
        ({"cache_position": torch.arange(5)}, "cache_position is refused"),
        ({"token_type_ids": torch.zeros(1, 5)}, "token_type_ids is refused"),
        ({"head_mask": torch.ones(3, 4)}, "head_mask is refused"),
        ({"is_causal": False}, "is_causal=False is refused"),
        ({"output_router_logits": True}, "output_router_logits=True is refused"),
        ({"output_attentions": True}, "attention weights are never formed"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_what_other_models_understand_is_refused_with_the_reason(
    models: Any, given: dict[str, Any], says: str
) -> None:
    for model in both(models("ahn")):
        with pytest.raises(ValueError, match=says):
            model(tokens(5), **given)


@torch.no_grad()
def test_what_changes_nothing_may_be_said(models: Any) -> None:
    # as peft and transformers' wrappers pass on what nobody set
    absent = ("seq_idx", "block_table", "cache", "cache_position", "token_type_ids", "head_mask")
    nothing = dict.fromkeys(absent) | {"is_causal": True, "output_router_logits": False}
    nothing |= dict.fromkeys(("output_attentions", "output_hidden_states", "return_dict"))
    nothing |= {"num_items_in_batch": 7, "cu_seq_lens_q": None, "max_length_q": None}
    for model in both(models("ahn")):
        expected, found = model(tokens(40)), model(tokens(40), **nothing)
        assert torch.equal(expected[0], found[0])
        assert found.keys() == expected.keys()


@torch.no_grad()
def test_generate_hands_on_what_is_refused(models: Any) -> None:
    for given in ({"seq_idx": torch.zeros(1, 30).int() + 2}, {"is_causal": False}):
        with pytest.raises(ValueError, match="is refused|seq_idx must be"):
            models("ahn").generate(tokens(30), max_new_tokens=2, pad_token_id=0, **given)


@pytest.mark.parametrize("how", ["argument", "configuration"])
@pytest.mark.parametrize(
    "options", [{}, {"output_hidden_states": True}, {"use_cache": False}], ids=str
)
@torch.no_grad()
def test_a_tuple_is_returned_where_it_is_asked_for(
    stock: Any, how: str, options: dict[str, Any]
) -> None:
    model = variant_model("full")
    ids = tokens(20)
    labels = {"labels": ids}
    for ours, theirs, more in ((model, stock, labels), (model.model, stock.model, {})):
        expected = theirs(ids, return_dict=False, **more, **options)
        as_object = ours(ids, **more, **options)
        said = {"return_dict": False} if how == "argument" else {}
        model.config.return_dict = how == "argument"
        found = ours(ids, **said, **more, **options)
        model.config.return_dict = True
        assert isinstance(found, tuple) and len(found) == len(expected)
        for mine, other in zip(found, expected, strict=True):
            if isinstance(other, Tensor):
                torch.testing.assert_close(mine, other, **CLOSE)
        assert not isinstance(as_object, tuple) and len(as_object.to_tuple()) == len(found)
        assert not isinstance(ours(ids, return_dict=True, **more), tuple)


@pytest.mark.parametrize("size", [1024, 7, 1])
@torch.no_grad()
def test_hidden_states_are_those_of_transformers_in_chunks_too(
    stock: Any, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, ids = variant_model("full"), tokens(40, rows=2)
    expected = stock(ids, output_hidden_states=True).hidden_states
    model.prefill_chunk_size = size
    seen: list[int] = []
    hook = model.model.norm.register_forward_pre_hook(lambda _, x: seen.append(x[0].shape[1]))
    found = model(ids, output_hidden_states=True).hidden_states
    hook.remove()
    assert max(seen) == min(size, 40) and sum(seen) == 40
    assert len(found) == len(expected) == 4
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, **CLOSE)
    monkeypatch.setattr(model.config, "output_hidden_states", True)
    for ours in both(model):
        for mine, theirs in zip(ours(ids).hidden_states, expected, strict=True):
            torch.testing.assert_close(mine, theirs, **CLOSE)
        assert ours(ids, output_hidden_states=False).hidden_states is None


@pytest.mark.parametrize(
    ("asked", "kept"), [([0], [0]), ([-1, 1], [1, 3]), (2, [2]), (-4, [0]), ((3, 3), [3]), ([], [])]
)
@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_some_hidden_states_are_asked_for_by_number(
    models: Any, variant: str, asked: Any, kept: list[int]
) -> None:
    model, ids = models(variant), tokens(60)
    whole = model(ids, output_hidden_states=True).hidden_states
    model.prefill_chunk_size = 9
    try:
        outputs = [ours(ids, output_hidden_states=asked).hidden_states for ours in both(model)]
    finally:
        del model.prefill_chunk_size
    for found in outputs:
        if not kept:
            assert found is None
            continue
        assert [n for n, state in enumerate(found) if state is not None] == kept
        for number in kept:
            torch.testing.assert_close(found[number], whole[number], **CLOSE)


@pytest.mark.parametrize("asked", [[4], [-5], ["1"], [True], 9])
def test_hidden_states_that_there_are_not(models: Any, asked: Any) -> None:
    for model in both(models("ahn")):
        with pytest.raises(ValueError, match="numbers of the hidden states, 0 to 3"):
            model(tokens(5), output_hidden_states=asked)


@torch.no_grad()
def test_generate_returns_the_hidden_states_of_each_step(models: Any, stock: Any) -> None:
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    options |= {"output_hidden_states": True, "return_dict_in_generate": True}
    ids = tokens(30)
    found, expected = (m.generate(ids, **options) for m in (models("full"), stock))
    assert torch.equal(found.sequences, expected.sequences)
    for mine, theirs in zip(found.hidden_states, expected.hidden_states, strict=True):
        for ours, other in zip(mine, theirs, strict=True):
            torch.testing.assert_close(ours, other, **CLOSE)


def passes_of_layers(model: Any) -> list[int]:
    counts = [0] * len(model.model.layers)

    def count(index: int) -> Any:
        def hook(*_: Any) -> None:
            counts[index] += 1

        return hook

    for index, layer in enumerate(model.model.layers):
        layer.mlp.register_forward_pre_hook(count(index))
    return counts


@pytest.mark.parametrize("how", ["configuration", "from_pretrained", "method"])
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable.*:FutureWarning")
def test_gradient_checkpointing_is_switched_on(how: str, tmp_path: Path) -> None:
    plain = Qwen2AHNForCausalLM(config()).train()
    plain.save_pretrained(tmp_path)
    if how == "configuration":
        model = Qwen2AHNForCausalLM(config(gradient_checkpointing=True))
        model.load_state_dict(plain.state_dict())
    elif how == "from_pretrained":
        loaded = config()
        loaded.gradient_checkpointing = True
        model = Qwen2AHNForCausalLM.from_pretrained(tmp_path, config=loaded)
    else:
        model = Qwen2AHNForCausalLM.from_pretrained(tmp_path)
        model.gradient_checkpointing_enable()
    assert not getattr(model.config, "gradient_checkpointing", False)  # it is not saved again
    model.train()
    ids, counts = tokens(50), passes_of_layers(model)
    output = model(ids, labels=ids)
    assert output.past_key_values is None
    output.loss.backward()
    assert counts == [2, 2, 2]
    plain(ids, labels=ids).loss.backward()
    for (name, mine), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, msg=name)
    model.gradient_checkpointing_disable()
    model(ids, labels=ids).loss.backward()
    assert counts == [3, 3, 3]


def test_the_stack_alone_checkpoints_too() -> None:
    model = Qwen2AHNModel(config(gradient_checkpointing=True)).train()
    assert all(layer.gradient_checkpointing for layer in model.layers)
    assert model(tokens(30), use_cache=True).past_key_values is None
    cache = Qwen2AHNForCausalLM(config()).new_cache()
    with pytest.raises(ValueError, match="cannot fill a cache"):
        model(tokens(30), past_key_values=cache)


KERNELS = ["eager", "flash_attention_2", "flash_attention_3", "flex_attention", "paged|sdpa"]


@pytest.mark.parametrize("kernel", [*KERNELS, "kernels-community/flash-attn2", "sage"])
def test_another_attention_is_refused_wherever_it_is_asked_for(kernel: str, tmp_path: Path) -> None:
    says = "attn_implementation='.*' is refused"
    with pytest.raises(ValueError, match=says):
        Qwen2AHNForCausalLM(config(attn_implementation=kernel))
    model = variant_model("ahn")
    model.save_pretrained(tmp_path)
    for load in (Qwen2AHNForCausalLM, AutoModelForCausalLM, Qwen2AHNModel):
        with pytest.raises(ValueError, match=says):
            load.from_pretrained(tmp_path, attn_implementation=kernel)
    with pytest.raises(ValueError, match=says):
        AutoModelForCausalLM.from_config(config(), attn_implementation=kernel)
    for part in both(model):
        with pytest.raises(ValueError, match=says):
            part.set_attn_implementation(kernel)
    model.config._attn_implementation = kernel
    for part in both(model):
        with pytest.raises(ValueError, match=says):
            part(tokens(5))


def test_the_attention_that_is_computed_may_be_asked_for(tmp_path: Path) -> None:
    model = variant_model("ahn")
    model.save_pretrained(tmp_path)
    for kernel in (None, "sdpa"):
        loaded = Qwen2AHNForCausalLM.from_pretrained(tmp_path, attn_implementation=kernel)
        assert loaded.config._attn_implementation == "sdpa"
        loaded.set_attn_implementation("sdpa")
        assert torch.equal(loaded(tokens(40)).logits, model(tokens(40)).logits)


@pytest.mark.parametrize(
    ("switch", "value", "training", "says"),
    [
        ("_output_attentions", True, False, "config.output_attentions=True is refused"),
        ("is_causal", False, False, "config.is_causal=False is refused"),
        ("attention_dropout", 0.1, True, "config.attention_dropout=0.1 is refused"),
    ],
)
def test_switches_of_a_configuration_that_would_do_nothing(
    switch: str, value: Any, training: bool, says: str
) -> None:
    model = variant_model("ahn").train(training)
    setattr(model.config, switch, value)
    for part in both(model):
        with pytest.raises(ValueError, match=says):
            part(tokens(5))
    if training:  # which in evaluation drops nothing anyway
        assert model.eval()(tokens(5)).logits is not None


def test_the_stack_makes_a_cache_as_the_configuration_says() -> None:
    model = variant_model("ahn")
    ids = tokens(40)
    assert model.model(ids).past_key_values.get_seq_length() == 40
    assert model.model(ids, use_cache=False).past_key_values is None
    assert model.model.train()(ids).past_key_values is None
    model.eval()
    model.config.use_cache = False
    for part in both(model):
        assert part(ids).past_key_values is None
        assert part(ids, use_cache=True).past_key_values is not None


@torch.no_grad()
def test_without_use_cache_a_cache_is_read_and_none_returned(models: Any, stock: Any) -> None:
    from transformers import DynamicCache

    ids = tokens(40)
    for model in both(models("full")):
        cache, theirs = models("full").new_cache(), DynamicCache()
        for held, reader in ((cache, model), (theirs, stock)):
            reader(ids[:, :30], past_key_values=held)
            output = reader(ids[:, 30:], past_key_values=held, use_cache=False)
            assert output.past_key_values is None and held.get_seq_length() == 40
    with pytest.raises(ValueError, match="pass one or the other"):
        held = models("ahn").new_cache()
        models("ahn")(ids[:, :30], past_key_values=held)
        models("ahn").generate(
            ids, past_key_values=held, use_cache=False, max_new_tokens=2, pad_token_id=0
        )


class Rows(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        ids = tokens(30, seed=index)[0]
        return {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)}


def test_transformers_trainer_trains_evaluates_and_counts_labels(tmp_path: Path) -> None:
    model = variant_model("ahn")
    options = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "max_steps": 2}
    arguments = TrainingArguments(
        str(tmp_path), use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True, **options
    )
    trainer = Trainer(model, arguments, train_dataset=Rows(), eval_dataset=Rows())
    assert trainer.model_accepts_loss_kwargs and trainer.label_names == ["labels"]
    expected = trainer.evaluate()["eval_loss"]
    with torch.no_grad():
        losses = [
            float(model(row["input_ids"][None], labels=row["labels"][None]).loss)
            for row in (Rows()[n] for n in range(4))
        ]
    assert expected == pytest.approx(sum(losses) / 4, abs=1e-4)
    assert trainer.train().global_step == 2
